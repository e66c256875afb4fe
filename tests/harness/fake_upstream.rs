//! A server that stands in front of a real one and passes on what both sides
//! say, until the scenario has it misbehave: it speaks the wire protocol, as
//! far as a scenario needs it to.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// A client's message that the fake may answer itself.
#[derive(Debug)]
pub enum Asked<'a> {
    /// To be let in: the parameters of the startup packet, as they came.
    Startup(&'a [u8]),
    Query(&'a str),
}

/// What the fake did about it.
pub enum Done {
    /// Nothing: the real server gets it.
    PassOn,
    /// It answered in the real server's place.
    Answered,
}

type Answer = dyn Fn(&Asked<'_>, &mut Wire) -> io::Result<Done> + Send + Sync;

pub struct FakeUpstream {
    port: u16,
    state: Arc<State>,
}

struct State {
    /// The real server's.
    port: u16,
    answer: Box<Answer>,
    answered: AtomicUsize,
    ended: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl FakeUpstream {
    /// In front of the server on a port of 127.0.0.1. `answer` is asked for each
    /// message that is its to answer; an error of it closes the connection, as
    /// does the client's end.
    pub fn before(
        port: u16,
        answer: impl Fn(&Asked<'_>, &mut Wire) -> io::Result<Done> + Send + Sync + 'static,
    ) -> FakeUpstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap_or_else(|e| panic!("no free port on 127.0.0.1: {e}"));
        let own_port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            port,
            answer: Box::new(answer),
            answered: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let closing = client.try_clone();
                    // A client that goes away is its own affair.
                    let _ = shared.serve(client);
                    let _ = closing.map(|client| client.shutdown(Shutdown::Both));
                });
            }
        });
        FakeUpstream {
            port: own_port,
            state,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many messages it has begun to answer itself.
    pub fn answered(&self) -> usize {
        self.state.answered.load(Ordering::Relaxed)
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        for stream in self.state.streams().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // for the thread that waits for clients to see it
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl State {
    fn streams(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<State>, mut client: TcpStream) -> io::Result<()> {
        self.streams().push(client.try_clone()?);
        let startup = loop {
            const SSL: u32 = 80_877_103;
            const GSS: u32 = 80_877_104;
            const CANCEL: u32 = 80_877_102;
            let packet = read_body(&mut client)?;
            match number(&packet) {
                SSL | GSS => client.write_all(b"N")?,
                CANCEL => return Ok(()),
                _ => break packet,
            }
        };
        let mut wire = Wire(client.try_clone()?, Arc::clone(self));
        if let Done::Answered = (self.answer)(&Asked::Startup(&startup), &mut wire)? {
            return Ok(());
        }
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        self.streams().push(server.try_clone()?);
        server.write_all(&framed(&startup))?;
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let outcome = self.pass_on(&mut client, &mut server, &mut wire);
        let _ = server.shutdown(Shutdown::Both);
        outcome
    }

    fn pass_on(
        &self,
        client: &mut TcpStream,
        server: &mut TcpStream,
        wire: &mut Wire,
    ) -> io::Result<()> {
        loop {
            let mut kind = [0; 1];
            client.read_exact(&mut kind)?;
            let body = read_body(client)?;
            if kind == *b"Q" {
                let text = String::from_utf8_lossy(&body);
                let query = Asked::Query(text.trim_end_matches('\0'));
                if let Done::Answered = (self.answer)(&query, wire)? {
                    continue;
                }
            }
            server.write_all(&kind)?;
            server.write_all(&framed(&body))?;
        }
    }
}

/// A message without its kind: its length, which counts itself, and the rest.
fn read_body(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length).saturating_sub(4);
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32 + 4;
    [&length.to_be_bytes(), body].concat()
}

fn number(bytes: &[u8]) -> u32 {
    let first = bytes.first_chunk().copied().unwrap_or_default();
    u32::from_be_bytes(first)
}

/// The way to the client. Each method sends one message of the protocol.
pub struct Wire(TcpStream, Arc<State>);

impl Wire {
    /// To be called when the misdeed begins.
    pub fn begins(&self) {
        self.1.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    pub fn message(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        self.bytes(&[&[kind], framed(body).as_slice()].concat())
    }

    /// AuthenticationOk, and all that lets the client ask.
    pub fn let_in(&mut self) -> io::Result<()> {
        self.message(b'R', &[0; 4])?;
        self.ready()
    }

    /// ParameterStatus
    pub fn parameter(&mut self, name: &str, value: &str) -> io::Result<()> {
        self.message(b'S', format!("{name}\0{value}\0").as_bytes())
    }

    /// ErrorResponse
    pub fn error(&mut self, severity: &str, sqlstate: &str, text: &str) -> io::Result<()> {
        self.message(b'E', &fields(severity, sqlstate, text))
    }

    /// NoticeResponse
    pub fn notice(&mut self, text: &str) -> io::Result<()> {
        self.message(b'N', &fields("WARNING", "01000", text))
    }

    /// NotificationResponse
    pub fn notification(&mut self, channel: &str, payload: &str) -> io::Result<()> {
        let pid = [0; 4];
        let text = format!("{channel}\0{payload}\0");
        self.message(b'A', &[&pid, text.as_bytes()].concat())
    }

    /// RowDescription, of text columns.
    pub fn columns(&mut self, names: &[&str]) -> io::Result<()> {
        let mut body = (names.len() as u16).to_be_bytes().to_vec();
        for name in names {
            body.extend([name.as_bytes(), &[0]].concat());
            let text: [&[u8]; 6] = [
                &[0; 4],
                &[0; 2],
                &[0, 0, 0, 25],
                &[255; 2],
                &[255; 4],
                &[0; 2],
            ];
            body.extend(text.concat());
        }
        self.message(b'T', &body)
    }

    /// DataRow; `None` for NULL.
    pub fn row(&mut self, values: &[Option<&str>]) -> io::Result<()> {
        let mut body = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            match value {
                Some(value) => {
                    body.extend((value.len() as u32).to_be_bytes());
                    body.extend(value.as_bytes());
                }
                None => body.extend([255; 4]),
            }
        }
        self.message(b'D', &body)
    }

    /// CommandComplete
    pub fn complete(&mut self, tag: &str) -> io::Result<()> {
        self.message(b'C', format!("{tag}\0").as_bytes())
    }

    /// ReadyForQuery
    pub fn ready(&mut self) -> io::Result<()> {
        self.message(b'Z', b"I")
    }

    /// Waits until the client closes the connection, or this fake ends.
    pub fn wait_for_end(&mut self) -> io::Result<()> {
        io::copy(&mut self.0, &mut io::sink()).map(drop)
    }
}

fn fields(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    format!("S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0\0").into_bytes()
}
