//! A slot asked for over a connection that is there already: what is timed is
//! the command alone.

use std::{
    fmt,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use harness::{Cluster, PATIENCE, Process, Running, wait_until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Walsender,
    SqlFunction,
}

impl Command {
    pub const ALL: [Command; 2] = [Command::Walsender, Command::SqlFunction];
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Walsender => "`CREATE_REPLICATION_SLOT`",
            Command::SqlFunction => "`pg_create_logical_replication_slot()`",
        })
    }
}

/// A command under way. Its client ends on drop.
pub struct Request {
    pub slot: String,
    pub command: Command,
    begun: Instant,
    client: Client,
}

enum Client {
    Psql(Process),
    Session(Box<Running>),
}

impl Request {
    pub fn send(command: Command, server: &Cluster, slot: &str) -> Request {
        let login = server.login().application("cdc");
        let (begun, client) = match command {
            Command::Walsender => {
                let mut psql = server.client("psql");
                psql.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"])
                    .args([
                        "--dbname",
                        &format!("{} replication=database", login.conninfo()),
                    ])
                    .stdin(Stdio::piped());
                let mut psql = Process::start(psql, server.dir());
                psql.type_line("\\echo connected");
                wait_until("psql to connect", PATIENCE, || {
                    psql.printed().contains("connected")
                });
                let begun = Instant::now();
                psql.type_line(&format!(
                    "CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput;"
                ));
                (begun, Client::Psql(psql))
            }
            Command::SqlFunction => {
                let session = login.connect();
                let begun = Instant::now();
                let running = session.start(&format!(
                    "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
                ));
                (begun, Client::Session(Box::new(running)))
            }
        };
        Request {
            slot: slot.to_owned(),
            command,
            begun,
            client,
        }
    }

    /// How long ago the command was sent.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn is_answered(&mut self) -> bool {
        match &mut self.client {
            Client::Psql(psql) => {
                let printed = psql.printed();
                assert!(!printed.contains("ERROR"), "{}: {printed}", self.slot);
                // the result's last line
                printed.contains("(1 row)")
            }
            Client::Session(running) => {
                running.is_finished() && {
                    let result = running.result();
                    result.unwrap_or_else(|e| panic!("{}: {e}", self.slot));
                    true
                }
            }
        }
    }

    /// Waits for the answer; how long after the command it came.
    pub fn wait(&mut self) -> Duration {
        let begun = Instant::now();
        while !self.is_answered() {
            let waited = begun.elapsed();
            assert!(waited < PATIENCE, "{} is not ready", self.slot);
            // no finer than what is measured, to leave the processor to it
            sleep((waited / 500).max(Duration::from_micros(200)));
        }
        self.age()
    }
}
