//! Which process on this machine is the client of a backend, as far as the kernel lets us know: an
//! application that runs as the same user, and another backend that connects through dblink or
//! postgres_fdw.
//!
//! The kernel tells the socket at the other end of a connection, and `/proc` which process has it
//! open. Of other users' processes it does not (`proc(5)`, `/proc/pid/fd`).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};

use pgrx::pg_sys;
use procfs::net::{TcpNetEntry, tcp, tcp6};

use super::connection::inode_at;
use super::unix_diag::UnixDiag;
use crate::core::observation::{Client, Pid};

/// The client processes of these backends. `backend_inode`: of the backend's own socket, where that
/// is known.
pub fn find(
    clients: &HashMap<Pid, Client>,
    backend_inode: impl Fn(Pid) -> Option<u64>,
) -> HashMap<Pid, Pid> {
    let ends = other_ends(clients, backend_inode);
    if ends.is_empty() {
        return HashMap::new();
    }
    let wanted: HashSet<u64> = ends.values().copied().collect();
    let holders = holders(&wanted);
    ends.into_iter()
        .filter_map(|(backend, inode)| Some((backend, *holders.get(&inode)?)))
        .collect()
}

/// The inodes of the clients' sockets, by backend; only of those on this machine.
fn other_ends(
    clients: &HashMap<Pid, Client>,
    backend_inode: impl Fn(Pid) -> Option<u64>,
) -> HashMap<Pid, u64> {
    let mut by_address: HashMap<SocketAddr, Pid> = HashMap::new();
    let mut ends = HashMap::new();
    let mut unix = None;
    for (&backend, &client) in clients {
        match client {
            Client::Tcp(address) => {
                by_address.insert(canonical(address), backend);
            }
            Client::UnixSocket => {
                let unix = unix.get_or_insert_with(UnixDiag::open);
                let stream = unix
                    .as_ref()
                    .zip(backend_inode(backend))
                    .and_then(|(unix, inode)| unix.ask(inode));
                ends.extend(stream.and_then(|stream| Some((backend, stream.peer?))));
            }
        }
    }
    if by_address.is_empty() {
        return ends;
    }
    let port = server_port();
    let tables = [tcp(), tcp6()];
    for TcpNetEntry {
        local_address,
        remote_address,
        inode,
        ..
    } in tables.into_iter().flatten().flatten()
    {
        // One local port can have several connections, to different servers.
        if Some(remote_address.port()) == port
            && inode != 0
            && let Some(backend) = by_address.get(&canonical(local_address))
        {
            ends.insert(*backend, inode);
        }
    }
    ends
}

/// An IPv4 client of an IPv6 socket is `::ffff:…` to the server, and not to itself.
fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

fn server_port() -> Option<u16> {
    // SAFETY: a setting that is set when the server starts.
    u16::try_from(unsafe { pg_sys::PostPortNumber }).ok()
}

/// Which processes have these sockets open. Of several that share one, as parent and child do, the
/// one with the lowest pid, so that it is always the same.
fn holders(wanted: &HashSet<u64>) -> HashMap<u64, Pid> {
    let mut holders: HashMap<u64, Pid> = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::new) else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            if let Some(inode) = inode_at(&descriptor.path())
                && wanted.contains(&inode)
            {
                let holder = holders.entry(inode).or_insert(pid);
                if pid.get() < holder.get() {
                    *holder = pid;
                }
            }
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::process;

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u64 {
        let path = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        inode_at(&path).expect("a socket")
    }

    #[test]
    fn a_socket_is_found_with_its_process() {
        let (one, other) = UnixStream::pair().expect("two sockets");
        let wanted = HashSet::from([inode(&one), inode(&other)]);
        let me = Pid::new(process::id().try_into().expect("a pid")).expect("a pid");
        assert_eq!(
            holders(&wanted),
            HashMap::from([(inode(&one), me), (inode(&other), me)])
        );
        drop(one);
        assert_eq!(holders(&wanted).len(), 1);
    }

    #[test]
    fn an_ipv4_client_has_one_address() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(
            canonical(address("[::ffff:10.0.0.7]:5433")),
            address("10.0.0.7:5433")
        );
        assert_eq!(canonical(address("[fe80::1]:1")), address("[fe80::1]:1"));
    }
}
