//! Whether the client of a backend has closed its connection, by what the kernel knows of the
//! backend's socket.
//!
//! A backend that waits for something else than its client learns of that only when it next has
//! something to send, unless `client_connection_check_interval` is set. The kernel knows at once
//! when a client closes its connection or dies, and tells whoever runs as the same user.
//!
//! What counts is what Postgres itself goes by where it does look (`pq_check_connection`,
//! `pqcomm.c`: `WL_SOCKET_CLOSED`, which is `EPOLLRDHUP`): that the client will send nothing more.
//! A TCP client that closed its sending side alone looks the same, and no client does that which
//! still waits for an answer: not libpq, and none of the drivers that speak the protocol
//! themselves. Whatever can't be told for certain is unknown. The client is whoever made the
//! connection: a proxy's is open for as long as the proxy keeps it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use procfs::ProcResult;
use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};

use super::client_process;
use super::unix_diag::UnixDiag;
use crate::core::observation::{Client, ClientProcess, Connection, Pid};

pub const SUPPORTED: bool = true;

/// Remembers the backends' sockets from one look to the next.
#[derive(Default)]
pub struct Connections {
    sockets: HashMap<Pid, Socket>,
    processes: HashMap<(Pid, Client), ClientProcess>,
}

/// The socket over which a backend talks to its client: the same one, at the same descriptor, for
/// as long as the backend lives.
struct Socket {
    client: Client,
    /// In `/proc`.
    descriptor: PathBuf,
    inode: u64,
    /// As of the last look that could tell.
    was_open: bool,
}

impl Connections {
    /// Looks at the connections of backends, each with its client, and forgets all others.
    pub fn look(&mut self, clients: &HashMap<Pid, Client>) -> HashMap<Pid, Connection> {
        self.sockets.retain(|pid, _| clients.contains_key(pid));
        // Before any backend's descriptors: a socket that is still open after the tables were read
        // was open while they were.
        let kernel = Kernel::ask(clients);
        let look = |(&pid, &client)| (pid, self.look_at(pid, client, &kernel));
        clients.iter().map(look).collect()
    }

    /// The processes at the other ends of these connections, after they were looked at. An end
    /// stays with its process, so each is looked up once.
    pub fn client_processes(
        &mut self,
        clients: &HashMap<Pid, Client>,
    ) -> HashMap<Pid, ClientProcess> {
        let is_of_interest = |&(pid, client): &(Pid, Client)| clients.get(&pid) == Some(&client);
        self.processes.retain(|session, _| is_of_interest(session));
        let unknown: HashMap<Pid, Client> = clients
            .iter()
            .filter(|(pid, client)| !self.processes.contains_key(&(**pid, **client)))
            .map(|(pid, client)| (*pid, *client))
            .collect();
        let backend_inode = |pid| self.sockets.get(&pid).map(|socket| socket.inode);
        let mut found = client_process::find(&unknown, backend_inode);
        // What is found now counts as long as the session lives, and a look may miss a connection
        // (see `look_at`).
        let missed: HashMap<Pid, Client> = unknown
            .iter()
            .filter(|(pid, _)| !found.contains_key(*pid))
            .map(|(pid, client)| (*pid, *client))
            .collect();
        found.extend(client_process::find(&missed, backend_inode));
        for (pid, client) in unknown {
            let process = found.get(&pid).copied();
            let process = process.map_or(ClientProcess::Unknown, ClientProcess::Known);
            self.processes.insert((pid, client), process);
        }
        let processes = self.processes.iter();
        processes
            .map(|((pid, _), process)| (*pid, *process))
            .collect()
    }

    fn look_at(&mut self, pid: Pid, client: Client, kernel: &Kernel) -> Connection {
        let known = self.sockets.remove(&pid);
        let socket = known
            .filter(|socket| socket.client == client && socket.is_held())
            .or_else(|| kernel.find(pid, client));
        let Some(mut socket) = socket else {
            return Connection::Unknown;
        };
        let connection = match kernel.see(client, socket.inode) {
            Sight::Listed(connection) => {
                socket.was_open = connection != Connection::Closed;
                connection
            }
            // The kernel has dropped the connection, or passed it over: it tells a table piece by
            // piece and finds its place again by counting, so that what goes away in between makes
            // it skip others (`tcp_seek_last_pos`, `tcp_ipv4.c`). The next look tells which.
            Sight::Missing if socket.was_open => {
                socket.was_open = false;
                Connection::Unknown
            }
            Sight::Missing => Connection::Closed,
            Sight::Unreadable => Connection::Unknown,
        };
        self.sockets.insert(pid, socket);
        connection
    }
}

impl Socket {
    /// Whether the process still has it open. A later one that got the same pid does not.
    fn is_held(&self) -> bool {
        inode_at(&self.descriptor) == Some(self.inode)
    }
}

/// The inode of the socket at a descriptor; `None` if there is none, or we may not know.
pub(super) fn inode_at(descriptor: &Path) -> Option<u64> {
    let target = fs::read_link(descriptor).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// What the kernel tells at one look: each table is read once, and only if it is of interest.
struct Kernel {
    ipv4: Option<Table>,
    ipv6: Option<Table>,
    unix: Option<UnixDiag>,
}

/// TCP connections, by the inode of this end's socket.
type Table = HashMap<u64, TcpNetEntry>;

/// What the kernel says of a socket that a process has open.
enum Sight {
    /// The client's, in this state.
    Listed(Connection),
    /// There is no connection with that client any more, or it is not the client's socket.
    Missing,
    Unreadable,
}

impl Kernel {
    /// In the worker's network namespace, which every backend shares with it.
    fn ask(clients: &HashMap<Pid, Client>) -> Self {
        let clients: HashSet<Client> = clients.values().copied().collect();
        Self {
            // To an IPv6 socket an IPv4 client is an IPv6 one (::ffff:…), in the table as in
            // `pg_stat_activity`.
            ipv4: table(&clients, SocketAddr::is_ipv4, tcp),
            ipv6: table(&clients, SocketAddr::is_ipv6, tcp6),
            unix: clients
                .contains(&Client::UnixSocket)
                .then(UnixDiag::open)
                .flatten(),
        }
    }

    /// The backend's socket that has this client at its other end. `None` if there is more than
    /// one, which could not be told apart.
    fn find(&self, pid: Pid, client: Client) -> Option<Socket> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut sockets = descriptors.flatten().filter_map(|descriptor| {
            let descriptor = descriptor.path();
            let inode = inode_at(&descriptor)?;
            matches!(self.see(client, inode), Sight::Listed(_)).then_some(Socket {
                client,
                descriptor,
                inode,
                was_open: true,
            })
        });
        let socket = sockets.next()?;
        sockets
            .all(|other| other.inode == socket.inode)
            .then_some(socket)
    }

    fn see(&self, client: Client, inode: u64) -> Sight {
        match client {
            Client::Tcp(address) => {
                let table = if address.is_ipv4() {
                    &self.ipv4
                } else {
                    &self.ipv6
                };
                match table.as_ref().map(|table| table.get(&inode)) {
                    Some(Some(entry)) if entry.remote_address == address => {
                        Sight::Listed(judge(&entry.state))
                    }
                    Some(_) => Sight::Missing,
                    None => Sight::Unreadable,
                }
            }
            Client::UnixSocket => match self.unix.as_ref().and_then(|unix| unix.ask(inode)) {
                Some(stream) if stream.is_named && stream.is_shut => {
                    Sight::Listed(Connection::Closed)
                }
                Some(stream) if stream.is_named => Sight::Listed(Connection::Open),
                // Such a socket stays known for as long as it is open.
                Some(_) | None => Sight::Unreadable,
            },
        }
    }
}

/// The connections with these clients; `None` if the table can't be read or is of no interest.
fn table(
    clients: &HashSet<Client>,
    is_listed_there: fn(&SocketAddr) -> bool,
    read: fn() -> ProcResult<Vec<TcpNetEntry>>,
) -> Option<Table> {
    let is_of_interest = clients.iter().any(|client| match client {
        Client::Tcp(address) => is_listed_there(address),
        Client::UnixSocket => false,
    });
    let mut entries = is_of_interest.then(read)?.ok()?;
    entries.retain(|entry| clients.contains(&Client::Tcp(entry.remote_address)));
    let by_inode = entries.into_iter().map(|entry| (entry.inode, entry));
    Some(by_inode.collect())
}

/// The state of the server's end (RFC 9293, 3.3.2): what matters is whether the client's FIN has
/// come.
fn judge(state: &TcpState) -> Connection {
    match state {
        TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2 => Connection::Open,
        // In all but the first the server has closed its end too, which a backend does by ending.
        TcpState::CloseWait | TcpState::LastAck | TcpState::Closing => Connection::Closed,
        // Not yet or no longer a connection, nor a socket that a backend has open.
        TcpState::SynSent
        | TcpState::SynRecv
        | TcpState::NewSynRecv
        | TcpState::Listen
        | TcpState::TimeWait
        | TcpState::Close => Connection::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Child, Command};
    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};
    use std::{fs, io, process, thread};

    use super::*;

    /// The backend in these tests is this very process. It must have one client over a Unix-domain
    /// socket at a time, as a backend has.
    static UNIX_CLIENT: Mutex<()> = Mutex::new(());

    fn pid(id: u32) -> Pid {
        Pid::new(id.try_into().expect("a pid")).expect("a pid")
    }

    impl Connections {
        fn look_at_one(&mut self, pid: Pid, client: Client) -> Connection {
            self.look(&HashMap::from([(pid, client)]))[&pid]
        }

        /// As this process's client.
        fn look_here(&mut self, client: Client) -> Connection {
            self.look_at_one(pid(process::id()), client)
        }

        /// What the looks say, without repetitions, until one says "closed".
        fn look_until_closed(&mut self, client: Client) -> Vec<Connection> {
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut seen = Vec::new();
            while seen.last() != Some(&Connection::Closed) {
                assert!(Instant::now() < deadline, "not closed, but {seen:?}");
                seen.push(self.look_here(client));
                seen.dedup();
                thread::sleep(Duration::from_millis(1));
            }
            seen
        }
    }

    /// A client and its backend's end.
    fn connect(listen: &str, address: &str) -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind((listen, 0))?;
        let client = TcpStream::connect((address, listener.local_addr()?.port()))?;
        let (backend, _) = listener.accept()?;
        Ok((client, backend))
    }

    fn client_of(backend: &TcpStream) -> Client {
        Client::Tcp(backend.peer_addr().expect("a client"))
    }

    /// Has the kernel drop the connection: that is how it ends one with data that nobody has read.
    fn reset(client: TcpStream, mut backend: &TcpStream) -> io::Result<()> {
        backend.write_all(b"x")?;
        client.peek(&mut [0])?;
        Ok(())
    }

    #[test]
    fn a_client_that_closes_is_seen() -> io::Result<()> {
        for (listen, address) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("::", "127.0.0.1"),
        ] {
            let (stream, backend) = connect(listen, address)?;
            let client = client_of(&backend);
            let mut connections = Connections::default();
            assert_eq!(
                connections.look_here(client),
                Connection::Open,
                "{client:?}"
            );
            drop(stream);
            assert!(connections.look_until_closed(client).len() <= 2);
            // It need not have been seen before.
            assert_eq!(Connections::default().look_here(client), Connection::Closed);
        }
        Ok(())
    }

    #[test]
    fn a_connection_that_the_kernel_dropped_is_missed_twice() -> io::Result<()> {
        let (stream, backend) = connect("127.0.0.1", "127.0.0.1")?;
        let client = client_of(&backend);
        let mut connections = Connections::default();
        assert_eq!(connections.look_here(client), Connection::Open);
        reset(stream, &backend)?;
        let seen = connections.look_until_closed(client);
        let seen = seen.strip_prefix(&[Connection::Open]).unwrap_or(&seen);
        assert_eq!(seen, [Connection::Unknown, Connection::Closed]);
        // Nothing tells which socket it was to one who comes later.
        let mut late = Connections::default();
        for _ in 0..3 {
            assert_eq!(late.look_here(client), Connection::Unknown);
        }
        Ok(())
    }

    #[test]
    fn what_was_closed_stays_so_when_it_is_dropped() -> io::Result<()> {
        let (stream, mut backend) = connect("127.0.0.1", "127.0.0.1")?;
        let client = client_of(&backend);
        let mut connections = Connections::default();
        drop(stream);
        connections.look_until_closed(client);
        // The answer to this is a reset.
        backend.write_all(b"x")?;
        let clients = HashMap::from([(pid(process::id()), client)]);
        // An earlier client with this port may be listed, without a socket.
        let has_socket = |table: Table| table.keys().any(|&inode| inode != 0);
        let is_listed = || Kernel::ask(&clients).ipv4.is_none_or(has_socket);
        while is_listed() {
            assert_eq!(connections.look_here(client), Connection::Closed);
        }
        assert_eq!(connections.look_here(client), Connection::Closed);
        Ok(())
    }

    #[test]
    fn other_connections_of_the_backend_do_not_count() -> io::Result<()> {
        let (other_stream, other_backend) = connect("127.0.0.1", "127.0.0.1")?;
        let (_stream, backend) = connect("127.0.0.1", "127.0.0.1")?;
        let (client, other) = (client_of(&backend), client_of(&other_backend));
        let mut connections = Connections::default();
        drop(other_stream);
        connections.look_until_closed(other);
        // As a later process with the same pid would have another client.
        assert_eq!(connections.look_here(client), Connection::Open);

        let nobody = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        for _ in 0..3 {
            let nobody = connections.look_here(Client::Tcp(nobody));
            assert_eq!(nobody, Connection::Unknown);
        }
        Ok(())
    }

    /// Without any socket.
    fn other_process() -> io::Result<Child> {
        Command::new("sleep").arg("60").spawn()
    }

    #[test]
    fn connections_of_other_processes_do_not_count() -> io::Result<()> {
        let (stream, backend) = connect("127.0.0.1", "127.0.0.1")?;
        let client = client_of(&backend);
        drop(stream);
        let mut connections = Connections::default();
        connections.look_until_closed(client);
        let mut other = other_process()?;
        let other_pid = pid(other.id());
        let seen = connections.look_at_one(other_pid, client);
        assert_eq!(seen, Connection::Unknown);
        other.kill()?;
        other.wait()?;
        let seen = connections.look_at_one(other_pid, client);
        assert_eq!(seen, Connection::Unknown);
        Ok(())
    }

    #[test]
    fn a_backend_that_closed_its_own_end_is_not_judged() -> io::Result<()> {
        let (_stream, backend) = connect("127.0.0.1", "127.0.0.1")?;
        let client = client_of(&backend);
        let mut connections = Connections::default();
        assert_eq!(connections.look_here(client), Connection::Open);
        drop(backend);
        for _ in 0..3 {
            assert_eq!(connections.look_here(client), Connection::Unknown);
        }
        Ok(())
    }

    #[test]
    fn several_backends_are_told_apart() -> io::Result<()> {
        let (stream, backend) = connect("127.0.0.1", "127.0.0.1")?;
        let (_other_stream, other_backend) = connect("127.0.0.1", "127.0.0.1")?;
        let mut other_process = other_process()?;
        let (here, other) = (pid(process::id()), pid(other_process.id()));
        let (client, other_client) = (client_of(&backend), client_of(&other_backend));
        let clients = HashMap::from([(here, client), (other, other_client)]);
        let mut connections = Connections::default();
        let expected = HashMap::from([(here, Connection::Open), (other, Connection::Unknown)]);
        assert_eq!(connections.look(&clients), expected);
        drop(stream);
        connections.look_until_closed(client);
        let expected = HashMap::from([(here, Connection::Closed), (other, Connection::Unknown)]);
        assert_eq!(connections.look(&clients), expected);
        assert_eq!(connections.look(&HashMap::new()), HashMap::new());
        assert!(connections.sockets.is_empty());
        other_process.kill()?;
        other_process.wait()?;
        Ok(())
    }

    /// Clients and their backends' ends.
    fn connect_unix(count: usize) -> io::Result<Vec<(UnixStream, UnixStream)>> {
        let name = format!("slot_self_heal-{}.sock", process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path)?;
        let pair = || Ok((UnixStream::connect(&path)?, listener.accept()?.0));
        let pairs = (0..count).map(|_| pair()).collect();
        fs::remove_file(&path)?;
        pairs
    }

    #[test]
    fn a_client_that_closes_its_unix_socket_is_seen() -> io::Result<()> {
        let _alone = UNIX_CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
        let client = Client::UnixSocket;
        let (stream, _backend) = connect_unix(1)?.remove(0);
        let mut connections = Connections::default();
        assert_eq!(connections.look_here(client), Connection::Open);
        stream.shutdown(Shutdown::Write)?;
        assert_eq!(connections.look_here(client), Connection::Open);
        drop(stream);
        assert!(connections.look_until_closed(client).len() <= 2);
        assert_eq!(Connections::default().look_here(client), Connection::Closed);
        Ok(())
    }

    #[test]
    fn other_unix_sockets_of_the_backend_do_not_count() -> io::Result<()> {
        let _alone = UNIX_CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
        let client = Client::UnixSocket;
        let (kept, dropped) = UnixStream::pair()?;
        drop(dropped);
        let mut connections = Connections::default();
        assert_eq!(connections.look_here(client), Connection::Unknown);
        let mut pairs = connect_unix(2)?;
        assert_eq!(connections.look_here(client), Connection::Unknown);
        pairs.remove(0);
        assert_eq!(connections.look_here(client), Connection::Open);
        drop((kept, pairs));
        assert_eq!(connections.look_here(client), Connection::Unknown);
        Ok(())
    }
}
