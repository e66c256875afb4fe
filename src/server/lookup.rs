//! Looks host names up, by a program: `getent`, which asks the C library as libpq would.
//!
//! getaddrinfo(3) may take minutes, and no signal ends it. In the process itself it would hold up
//! whoever waits for that; a background worker in it would not serve the postmaster's SIGTERM
//! either, and hold up a shutdown; and a server process has one thread. A program is what Postgres
//! itself runs for what may take its time (`archive_command`, COPY FROM PROGRAM). It can be killed
//! whenever nobody waits for it any more, and it is in the group of its server process, to which
//! the postmaster and `pg_terminate_backend()` send their signals (`signal_child`, `postmaster.c`;
//! `pg_signal_backend`, `signalfuncs.c`): it ends with it.
//!
//! Nothing is remembered: a name whose address changes is followed by the next connection.

use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::process;

/// Whether there is such a program. Elsewhere libpq looks names up itself.
pub const SUPPORTED: bool = cfg!(target_os = "linux");

/// For looking up names, which leaves time to connect.
const LIMIT: Duration = Duration::from_millis(2500);
/// How much longer to wait for names once there is an address to try.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks whether a name's addresses are there.
const PAUSE: Duration = Duration::from_millis(5);
/// Names that are looked up at a time, and the addresses of all that are taken.
const MOST_NAMES: usize = 8;
const MOST_ADDRESSES: usize = 64;
/// What is read of one program: three lines an address, of some 60 bytes and the name.
const MOST_BYTES: usize = 64 << 10;

/// The addresses of these names, as far as they are known in time, each with its name. `has_others`:
/// there are addresses to try even without them. An error says that the program can't be run.
pub fn addresses(mut names: Vec<String>, has_others: bool) -> io::Result<Vec<(String, String)>> {
    names.sort();
    names.dedup();
    // What looks like an option is no host's name.
    names.retain(|name| !name.starts_with('-'));
    names.truncate(MOST_NAMES);
    let begun = Instant::now();
    let mut end = begun + if has_others { PATIENCE } else { LIMIT };
    let mut running = names
        .into_iter()
        .map(Lookup::begin)
        .collect::<io::Result<Vec<_>>>()?;
    let mut found = Vec::new();
    while !running.is_empty() && Instant::now() < end {
        process::wait(PAUSE, pg_sys::PG_WAIT_EXTENSION);
        running.retain_mut(|lookup| {
            if !lookup.is_over() {
                return true;
            }
            for address in lookup.addresses() {
                let answer = (lookup.name.clone(), address);
                if !found.contains(&answer) && found.len() < MOST_ADDRESSES {
                    found.push(answer);
                    end = end.min(Instant::now() + PATIENCE);
                }
            }
            false
        });
    }
    Ok(found)
}

/// The program at work on one name. It is killed when this is dropped, also while an error is on
/// its way.
struct Lookup {
    name: String,
    program: Child,
    output: ChildStdout,
    printed: Vec<u8>,
}

impl Lookup {
    fn begin(name: String) -> io::Result<Self> {
        let mut program = Command::new("getent")
            .args(["ahosts", &name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = program.stdout.take().ok_or(ErrorKind::BrokenPipe)?;
        let lookup = Self {
            name,
            program,
            output,
            printed: Vec::new(),
        };
        // SAFETY: the pipe's own end here.
        if unsafe { libc::fcntl(lookup.output.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } == -1
        {
            return Err(io::Error::last_os_error());
        }
        Ok(lookup)
    }

    /// Reads what was printed so far; whether that is all.
    fn is_over(&mut self) -> bool {
        let mut part = [0; 4096];
        while self.printed.len() < MOST_BYTES {
            match self.output.read(&mut part) {
                Ok(0) => return true,
                Ok(count) => self.printed.extend(part.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn addresses(&self) -> Vec<String> {
        addresses_in(&String::from_utf8_lossy(&self.printed))
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// The first word of each line. One of IPv6 may have a scope.
fn addresses_in(printed: &str) -> Vec<String> {
    let first_words = printed.lines().filter_map(|line| {
        let address = line.split_whitespace().next()?;
        let (plain, _) = address.split_once('%').unwrap_or((address, ""));
        plain.parse::<IpAddr>().ok()?;
        Some(address.to_owned())
    });
    let mut found: Vec<String> = Vec::new();
    for address in first_words {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_once_each() {
        let printed = "192.0.2.1       STREAM db.example\n\
                       192.0.2.1       DGRAM  \n\
                       192.0.2.1       RAW    \n\
                       fe80::1%eth0    STREAM \n\
                       2001:db8::7     STREAM \n\
                       not an address\n\n";
        assert_eq!(
            addresses_in(printed),
            ["192.0.2.1", "fe80::1%eth0", "2001:db8::7"]
        );
    }
}
