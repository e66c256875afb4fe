//! What the kernel knows of a Unix-domain socket (`sock_diag(7)`, `unix_diag.c`).
//!
//! `/proc/net/unix` does not tell whether the other end was closed: it shows a socket as connected
//! for as long as it is open. This way asks for no privilege.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

// linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h, linux/tcp_states.h
const HEADER_SIZE: usize = 16;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_SIZE: u32 = 40;
const ANY_COOKIE: u64 = u64::MAX;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const ANSWER_SIZE: usize = 16;
const ESTABLISHED: u8 = 1;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
/// Neither to be read from nor to be written to.
const SHUTDOWN_MASK: u8 = 3;

/// A way to ask.
pub struct UnixDiag(File);

/// A connected stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// It has an address, as one that was accepted has its listener's. One that connected has none.
    pub is_named: bool,
    /// The other end was closed, or shut down both ways (`unix_release_sock`, `unix_shutdown` in
    /// `af_unix.c`).
    pub is_shut: bool,
    /// The inode of the other end.
    pub peer: Option<u64>,
}

impl UnixDiag {
    pub fn open() -> Option<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: makes a descriptor, which is ours alone.
        let netlink = unsafe {
            let netlink = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG);
            if netlink < 0 {
                return None;
            }
            OwnedFd::from_raw_fd(netlink)
        };
        Some(Self(netlink.into()))
    }

    /// `None` for any other socket than a connected Unix-domain stream of this network namespace.
    pub fn ask(&self, inode: u64) -> Option<Stream> {
        let inode = u32::try_from(inode).ok()?;
        let mut netlink = &self.0;
        netlink.write_all(&request(inode)).ok()?;
        // The kernel has answered before the write returns (`netlink_unicast_kernel`), so nothing
        // to read means no answer. A name has 108 bytes at most.
        let mut answer = [0; 512];
        let size = netlink.read(&mut answer).ok()?;
        read(answer.get(..size)?, inode)
    }
}

/// A `nlmsghdr` and a `unix_diag_req`.
fn request(inode: u32) -> Vec<u8> {
    let words = |words: [u32; 2]| words.map(u32::to_ne_bytes).concat();
    let flags = u16::try_from(libc::NLM_F_REQUEST).unwrap_or(0);
    let family = u8::try_from(libc::AF_UNIX).unwrap_or(0);
    [
        REQUEST_SIZE.to_ne_bytes().to_vec(),
        [SOCK_DIAG_BY_FAMILY, flags].map(u16::to_ne_bytes).concat(),
        words([0, 0]),
        vec![family, 0, 0, 0],
        words([u32::MAX, inode]),
        (UDIAG_SHOW_NAME | UDIAG_SHOW_PEER).to_ne_bytes().to_vec(),
        ANY_COOKIE.to_ne_bytes().to_vec(),
    ]
    .concat()
}

/// Reads a `nlmsghdr`, a `unix_diag_msg` and its attributes. An error has another type.
fn read(answer: &[u8], inode: u32) -> Option<Stream> {
    let (header, body) = answer.split_at_checked(HEADER_SIZE)?;
    let (message, mut attributes) = body.split_at_checked(ANSWER_SIZE)?;
    let kind = i32::from(*message.get(1)?);
    if u16_at(header, 4)? != SOCK_DIAG_BY_FAMILY
        || message.get(4..8)? != inode.to_ne_bytes()
        || kind != libc::SOCK_STREAM
        || *message.get(2)? != ESTABLISHED
    {
        return None;
    }
    let mut is_named = false;
    let (mut shutdown, mut peer) = (None, None);
    while let Some(size) = u16_at(attributes, 0) {
        let size = usize::from(size);
        match (u16_at(attributes, 2)?, attributes.get(4..size)?) {
            (UNIX_DIAG_NAME, name) => is_named = !name.is_empty(),
            (UNIX_DIAG_PEER, inode) => {
                peer = inode
                    .try_into()
                    .ok()
                    .map(|bytes| u64::from(u32::from_ne_bytes(bytes)));
            }
            (UNIX_DIAG_SHUTDOWN, mask) => shutdown = mask.first().copied(),
            _ => {}
        }
        attributes = attributes.get(size.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(Stream {
        is_named,
        is_shut: shutdown? == SHUTDOWN_MASK,
        peer,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a stream, with attributes.
    fn answer(attributes: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; HEADER_SIZE];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer.extend([1, 1, ESTABLISHED, 0]);
        answer.extend(7_u32.to_ne_bytes());
        answer.extend([0; 8]);
        answer.extend(attributes);
        answer
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let size = u16::try_from(4 + value.len()).expect("short");
        let mut attribute = [size, kind].map(u16::to_ne_bytes).concat();
        attribute.extend(value);
        attribute.resize(usize::from(size).next_multiple_of(4), 0);
        attribute
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let (name, unknown) = (attribute(UNIX_DIAG_NAME, b"/s\0"), attribute(5, &[9; 8]));
        for (mask, is_shut) in [(0, false), (1, false), (2, false), (3, true)] {
            let shutdown = attribute(UNIX_DIAG_SHUTDOWN, &[mask]);
            let stream = |is_named, peer| {
                Some(Stream {
                    is_named,
                    is_shut,
                    peer,
                })
            };
            let peer = attribute(UNIX_DIAG_PEER, &9_u32.to_ne_bytes());
            let all = [&*name, &*unknown, &*peer, &*shutdown].concat();
            assert_eq!(read(&answer(&all), 7), stream(true, Some(9)));
            assert_eq!(read(&answer(&shutdown), 7), stream(false, None));
            assert_eq!(read(&answer(&all), 8), None, "another socket");
        }
        assert_eq!(read(&answer(&name), 7), None, "it does not say");
        // An error, a socket for datagrams, one that listens.
        for at in [4, HEADER_SIZE + 1, HEADER_SIZE + 2] {
            let mut other = answer(&attribute(UNIX_DIAG_SHUTDOWN, &[3]));
            other[at] = 2;
            assert_eq!(read(&other, 7), None, "{at}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_short_says_nothing() {
        let shutdown = attribute(UNIX_DIAG_SHUTDOWN, &[3]);
        let whole = answer(&shutdown);
        // The last bytes only fill it up.
        for size in 0..=whole.len() - 4 {
            assert_eq!(read(&whole[..size], 7), None, "{size}");
        }
        // An attribute that takes no room, or more than there is.
        for size in [0_u16, 3, 400] {
            assert_eq!(read(&answer(&size.to_ne_bytes()), 7), None);
            assert_eq!(
                read(&answer(&[size, 6].map(u16::to_ne_bytes).concat()), 7),
                None
            );
        }
    }
}
