//! Another session of this server: what `psql` would do, without a process and a library for it.
//!
//! It speaks the protocol (Postgres's manual, "Frontend/Backend Protocol") as far as simple queries
//! need it, so that a statement can be sent that waits, and its answer be read later. While this
//! process reads, it serves interrupts: another may wait for a barrier of it.

use std::ffi::CStr;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use pgrx::{check_for_interrupts, pg_sys};

use super::wait::PATIENCE;
use crate::core::observation::Pid;

/// How long one read may take before interrupts are served.
const BREATH: Duration = Duration::from_millis(5);

pub struct Session {
    stream: TcpStream,
    pid: Pid,
    has_ended: bool,
}

/// What a statement was answered with.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub sqlstate: String,
    pub message: String,
    pub hint: String,
}

type Rows = Vec<Vec<Option<String>>>;

impl Session {
    /// One of the same role and database as this one.
    pub fn open() -> Self {
        Self::of(&[("database", &current_database()), ("user", &current_role())])
            .unwrap_or_else(|refused| panic!("no session: {refused:?}"))
    }

    /// One of this startup packet.
    pub fn of(parameters: &[(&str, &str)]) -> Result<Self, Refused> {
        // SAFETY: set when the server started.
        let port = u16::try_from(unsafe { pg_sys::PostPortNumber }).expect("a port");
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
        stream.set_read_timeout(Some(BREATH)).expect("a time limit");
        let mut session = Self {
            stream,
            // Until it has told.
            pid: Pid::new(1).expect("a number"),
            has_ended: true,
        };
        let mut packet = 0x0003_0000_i32.to_be_bytes().to_vec();
        for (name, value) in parameters {
            packet.extend_from_slice(name.as_bytes());
            packet.push(0);
            packet.extend_from_slice(value.as_bytes());
            packet.push(0);
        }
        packet.push(0);
        session.send_with_length(&[], &packet);
        session.answer()?;
        Ok(session)
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The rows of a statement that must succeed.
    pub fn run(&mut self, sql: &str) -> Rows {
        self.try_run(sql)
            .unwrap_or_else(|refused| panic!("{sql}: {refused:?}"))
    }

    /// The one value of a query.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.run(sql);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_default(),
            rows => panic!("{sql}: {rows:?}"),
        }
    }

    pub fn try_run(&mut self, sql: &str) -> Result<Rows, Refused> {
        self.start(sql);
        self.finish()
    }

    /// Sends a statement, and leaves its answer for [`Self::finish`].
    pub fn start(&mut self, sql: &str) {
        let mut text = sql.as_bytes().to_vec();
        text.push(0);
        self.send_with_length(b"Q", &text);
    }

    pub fn finish(&mut self) -> Result<Rows, Refused> {
        self.answer()
    }

    /// Begins a transaction that has an id, and tells it.
    pub fn begin_with_xid(&mut self) -> crate::core::xid::Xid {
        self.run("BEGIN");
        let xid = self.value("SELECT pg_catalog.pg_current_xact_id()::pg_catalog.xid");
        xid.parse().expect("a transaction id")
    }

    fn send_with_length(&mut self, kind: &[u8], body: &[u8]) {
        let length = i32::try_from(body.len() + 4).expect("a length");
        let message = [kind, &length.to_be_bytes(), body].concat();
        self.stream.write_all(&message).expect("the server reads");
    }

    /// All that comes until the server waits for the next statement, or has gone.
    fn answer(&mut self) -> Result<Rows, Refused> {
        let deadline = Instant::now() + PATIENCE;
        let mut rows = Rows::new();
        let mut refused = None;
        loop {
            let Some((kind, body)) = self.message(deadline) else {
                self.has_ended = true;
                return Err(refused.expect("a session says why it ends"));
            };
            match kind {
                b'D' => rows.push(row(&body)),
                b'E' => refused = Some(refusal(&body)),
                b'K' => {
                    let pid = body.first_chunk().expect("a pid");
                    self.pid = Pid::new(i32::from_be_bytes(*pid)).expect("a pid");
                    self.has_ended = false;
                }
                b'R' => assert_eq!(body, [0; 4], "nobody is to be asked for a password"),
                b'Z' => return refused.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// `None` where the session has ended.
    fn message(&mut self, deadline: Instant) -> Option<(u8, Vec<u8>)> {
        let header: [u8; 5] = self.read(5, deadline)?.try_into().expect("five bytes");
        let [kind, length @ ..] = header;
        let length = usize::try_from(i32::from_be_bytes(length)).expect("a length");
        Some((kind, self.read(length - 4, deadline)?))
    }

    fn read(&mut self, count: usize, deadline: Instant) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut done = 0;
        while done < count {
            check_for_interrupts!();
            assert!(
                Instant::now() < deadline,
                "no answer of session {}",
                self.pid
            );
            match self.stream.read(&mut bytes[done..]) {
                Ok(0) => return None,
                Ok(read) => done += read,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return None,
                    _ => panic!("session {}: {error}", self.pid),
                },
            }
        }
        Some(bytes)
    }
}

/// Waits until the server has ended the session: it holds a slot, or a lock, until then.
impl Drop for Session {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        // Of one that runs a statement nobody would wait for the end.
        // SAFETY: a system call.
        unsafe { libc::kill(self.pid.get(), libc::SIGTERM) };
        let deadline = Instant::now() + PATIENCE;
        let mut rest = [0; 1024];
        while Instant::now() < deadline {
            match self.stream.read(&mut rest) {
                Ok(0) => break,
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    break;
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn row(body: &[u8]) -> Vec<Option<String>> {
    let (count, mut rest) = body.split_first_chunk().expect("a count");
    (0..i16::from_be_bytes(*count))
        .map(|_| {
            let (length, after) = rest.split_first_chunk().expect("a length");
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                rest = after;
                return None;
            };
            let (value, after) = after.split_at(length);
            rest = after;
            Some(String::from_utf8_lossy(value).into_owned())
        })
        .collect()
}

fn refusal(body: &[u8]) -> Refused {
    let field = |kind: u8| {
        body.split(|byte| *byte == 0)
            .find_map(|field| field.strip_prefix(&[kind]))
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .unwrap_or_default()
    };
    Refused {
        sqlstate: field(b'C'),
        message: field(b'M'),
        hint: field(b'H'),
    }
}

/// Runs statements in a session of its own when it goes: however a test ends, nothing that outlives
/// its transaction is in the next one's way.
pub struct Afterwards(&'static [&'static str]);

impl Afterwards {
    pub fn run(statements: &'static [&'static str]) -> Self {
        Self(statements)
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        let mut session = Session::open();
        for statement in self.0 {
            // What a test had made is not there if it failed before.
            let _ = session.try_run(statement);
        }
    }
}

pub fn current_database() -> String {
    // SAFETY: in a transaction; a palloc'ed name of a database that is there.
    unsafe {
        CStr::from_ptr(pg_sys::get_database_name(pg_sys::MyDatabaseId))
            .to_string_lossy()
            .into_owned()
    }
}

pub fn current_role() -> String {
    crate::server::session_role()
}
