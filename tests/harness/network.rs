//! Networks that let one down, on 127.0.0.1.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::process::{checked, command_as_ourselves, output_of};

/// A port behind which nobody answers.
pub struct DeadEnd {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl DeadEnd {
    /// Connections are made, by the kernel, and then nothing comes.
    pub fn silent() -> DeadEnd {
        DeadEnd {
            listener: listen(),
            _waiting: Vec::new(),
        }
    }

    /// Not even connections are made: the queue for them is full, and Linux
    /// drops what comes for a full queue. So does a firewall.
    pub fn unreachable() -> DeadEnd {
        const SOON: Duration = Duration::from_millis(300);
        let listener = listen();
        // called again, it changes the length of the queue
        let shortened = unsafe { libc::listen(listener.as_raw_fd(), 0) };
        assert_eq!(shortened, 0, "{}", std::io::Error::last_os_error());
        let address = address_of(&listener);
        let waiting = std::iter::from_fn(|| TcpStream::connect_timeout(&address, SOON).ok());
        let waiting = waiting.take(10).collect::<Vec<_>>();
        assert!(waiting.len() < 10, "the queue does not get full");
        DeadEnd {
            listener,
            _waiting: waiting,
        }
    }

    pub fn port(&self) -> u16 {
        address_of(&self.listener).port()
    }
}

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap_or_else(|e| panic!("no free port on 127.0.0.1: {e}"))
}

fn address_of(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("it is bound")
}

/// Passes bytes on to a server until it is frozen. Connections through it end
/// when it is dropped.
pub struct Proxy {
    port: u16,
    valve: Arc<Valve>,
}

#[derive(Default)]
struct Valve {
    state: Mutex<Flow>,
    changed: Condvar,
}

#[derive(Default)]
struct Flow {
    frozen: bool,
    ended: bool,
    streams: Vec<TcpStream>,
}

impl Proxy {
    /// To a port of 127.0.0.1.
    pub fn to(port: u16) -> Proxy {
        let listener = listen();
        let proxy = Proxy {
            port: address_of(&listener).port(),
            valve: Arc::default(),
        };
        let valve = Arc::clone(&proxy.valve);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !valve.pass() {
                    break;
                }
                // a server that is down: the client's connection ends at once
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    valve.join(client, server);
                }
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing gets through, in either direction: connections
    /// stay, and are silent.
    pub fn freeze(&self) {
        self.valve.set(|flow| flow.frozen = true);
    }

    /// What was held back gets through, and what comes then.
    pub fn thaw(&self) {
        self.valve.set(|flow| flow.frozen = false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.valve.set(|flow| {
            flow.ended = true;
            for stream in &flow.streams {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        // for the thread that waits for clients to see it
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Valve {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut Flow)) {
        change(&mut self.flow());
        self.changed.notify_all();
    }

    /// Waits while it is frozen; false when the proxy has ended.
    fn pass(&self) -> bool {
        let flow = self
            .changed
            .wait_while(self.flow(), |flow| flow.frozen && !flow.ended)
            .unwrap_or_else(PoisonError::into_inner);
        !flow.ended
    }

    fn join(self: &Arc<Valve>, client: TcpStream, server: TcpStream) {
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (Ok(from), Ok(to), Ok(kept)) = (from.try_clone(), to.try_clone(), from.try_clone())
            else {
                return;
            };
            self.flow().streams.push(kept);
            let valve = Arc::clone(self);
            thread::spawn(move || valve.pump(from, to));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = [0; 8192];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !self.pass() || to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        // that a side has gone is kept back, too
        if self.pass() {
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        }
    }
}

/// A network of its own for some processes: a namespace that has 127.0.0.1
/// and nothing else. It has no name and no process of its own, so it ends with
/// the last process in it and with us, however we end.
#[derive(Clone)]
pub(crate) struct Network(Arc<Namespaces>);

struct Namespaces {
    /// Not for root, who needs no other rights than he has.
    user: Option<File>,
    net: File,
}

impl Network {
    #[track_caller]
    pub(crate) fn new() -> Network {
        let ids = unsafe { (libc::geteuid(), libc::getegid()) };
        let unprivileged = ids.0 != 0;
        // Only who is somebody there, as whom he is here, gets at his files.
        let maps = [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("{0} {0} 1", ids.0)),
            ("/proc/self/gid_map", format!("{0} {0} 1", ids.1)),
        ];
        // lasts until it has nothing more to read
        let mut keeper = command_as_ourselves(Path::new("/bin/cat"));
        keeper.stdin(Stdio::piped()).stdout(Stdio::null());
        unsafe {
            keeper.pre_exec(move || {
                if unprivileged {
                    checked(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET))?;
                    for (file, text) in &maps {
                        fs::write(file, text)?;
                    }
                } else {
                    checked(libc::unshare(libc::CLONE_NEWNET))?;
                }
                set_loopback(true)
            })
        };
        let mut keeper = keeper.spawn().unwrap_or_else(|e| {
            panic!(
                "could not make a network namespace: {e}\n\
                 HINT: Run the tests as root (in a container: with CAP_SYS_ADMIN), or allow \
                 user namespaces: sudo sysctl user.max_user_namespaces=10000, and where there \
                 are such, kernel.unprivileged_userns_clone=1 (Debian) and \
                 kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)."
            )
        });
        let open = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", keeper.id());
            File::open(&path).unwrap_or_else(|e| panic!("could not open {path}: {e}"))
        };
        let namespaces = Namespaces {
            user: unprivileged.then(|| open("user")),
            net: open("net"),
        };
        drop(keeper.stdin.take());
        let _ = keeper.wait();
        Network(Arc::new(namespaces))
    }

    /// `command` is to run in it.
    pub(crate) fn enter(&self, command: &mut Command) {
        let namespaces = Arc::clone(&self.0);
        unsafe {
            command.pre_exec(move || {
                if let Some(user) = &namespaces.user {
                    checked(libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER))?;
                }
                checked(libc::setns(namespaces.net.as_raw_fd(), libc::CLONE_NEWNET))
            })
        };
    }

    /// From now on every packet is lost, and nobody is told: the kernel has no
    /// route for it. Connections stay, and time out as any do.
    pub(crate) fn cut(&self) {
        self.change(|| set_loopback(false));
    }

    /// What is sent again by then, or later, gets through.
    pub(crate) fn mend(&self) {
        self.change(|| set_loopback(true));
    }

    fn change(&self, change: fn() -> io::Result<()>) {
        let mut inside = command_as_ourselves(Path::new("/bin/true"));
        self.enter(&mut inside);
        unsafe { inside.pre_exec(change) };
        output_of(inside);
    }
}

/// Of the network that this process is in. No memory is allocated: it is for
/// between fork and exec.
fn set_loopback(up: bool) -> io::Result<()> {
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        checked(socket)?;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = match up {
            true => libc::IFF_UP as libc::c_short,
            false => 0,
        };
        checked(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &request,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_proxy_holds_back_what_it_is_given() {
        let echo = listen();
        let proxy = Proxy::to(address_of(&echo).port());
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let (mut server, _) = echo.accept().unwrap();
        let mut received = [0; 1];
        client.write_all(b"a").unwrap();
        server.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"a");

        proxy.freeze();
        client.write_all(b"b").unwrap();
        server
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        assert!(server.read_exact(&mut received).is_err());
        proxy.thaw();
        server.set_read_timeout(None).unwrap();
        server.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"b");

        drop(proxy);
        assert!(matches!(client.read(&mut received), Ok(0) | Err(_)));
    }

    #[test]
    fn dead_ends_are_dead() {
        let soon = Duration::from_millis(300);
        let connect =
            |dead_end: &DeadEnd| TcpStream::connect_timeout(&address_of(&dead_end.listener), soon);
        let unreachable = DeadEnd::unreachable();
        assert!(connect(&unreachable).is_err());
        let silent = DeadEnd::silent();
        let mut stream = connect(&silent).unwrap();
        stream.set_read_timeout(Some(soon)).unwrap();
        assert!(stream.read(&mut [0; 1]).is_err());
    }
}
