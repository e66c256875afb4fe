//! Sessions: SQL as a client sends it. Everything is text, as in psql.

use std::{
    fmt,
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
    time::Duration,
};

use postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::{
    process::Pid,
    wait::{PATIENCE, wait_for},
};

const LOOPBACK: &str = "127.0.0.1";

/// Who connects, and where to.
#[derive(Clone)]
pub struct Login {
    pub(crate) port: u16,
    /// Where the server's Unix-domain socket is.
    pub(crate) directory: String,
    /// Whether our sessions come by that one.
    pub(crate) by_socket: bool,
    pub(crate) database: String,
    pub(crate) role: String,
    pub(crate) application: String,
}

impl Login {
    pub fn database(mut self, database: &str) -> Login {
        self.database = database.to_owned();
        self
    }

    pub fn role(mut self, role: &str) -> Login {
        self.role = role.to_owned();
        self
    }

    pub fn application(mut self, application: &str) -> Login {
        self.application = application.to_owned();
        self
    }

    /// As a libpq connection string, for a program in the server's network.
    pub fn conninfo(&self) -> String {
        self.conninfo_to(LOOPBACK)
    }

    /// The same, for a program anywhere.
    pub fn conninfo_by_socket(&self) -> String {
        self.conninfo_to(&self.directory)
    }

    fn conninfo_to(&self, host: &str) -> String {
        format!(
            "host={host} port={} dbname={} user={} application_name={}",
            self.port, self.database, self.role, self.application
        )
    }

    /// Where our sessions connect to.
    pub(crate) fn host(&self) -> &str {
        match self.by_socket {
            true => &self.directory,
            false => LOOPBACK,
        }
    }

    #[track_caller]
    pub fn connect(&self) -> Session {
        self.try_connect()
            .unwrap_or_else(|e| panic!("could not connect ({}): {e}", self.conninfo()))
    }

    pub fn try_connect(&self) -> Result<Session, SqlError> {
        let client = Config::new()
            .host(self.host())
            .port(self.port)
            .dbname(&self.database)
            .user(&self.role)
            .application_name(&self.application)
            .connect_timeout(Duration::from_secs(20))
            .connect(NoTls)?;
        let mut session = Session {
            client,
            pid: Pid(0),
        };
        let pid = session.try_rows("SELECT pg_catalog.pg_backend_pid()")?;
        session.pid = match pid.first().map(Vec::as_slice) {
            Some([Some(pid)]) => Pid(pid.parse().expect("a pid is a number")),
            _ => unreachable!("pg_backend_pid() returns one value"),
        };
        Ok(session)
    }

    /// Runs `sql` in a session of its own and comes back at once.
    #[track_caller]
    pub fn start(&self, sql: &str) -> Running {
        self.connect().start(sql)
    }
}

/// What the server said no with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SqlError {
    /// SQLSTATE; empty when the connection broke.
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
    /// CONTEXT
    pub context: String,
}

impl From<postgres::Error> for SqlError {
    fn from(error: postgres::Error) -> SqlError {
        match error.as_db_error() {
            Some(db) => SqlError {
                code: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().unwrap_or_default().to_owned(),
                hint: db.hint().unwrap_or_default().to_owned(),
                context: db.where_().unwrap_or_default().to_owned(),
            },
            None => SqlError {
                message: error.to_string(),
                ..SqlError::default()
            },
        }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.message)?;
        for (label, text) in [
            ("DETAIL", &self.detail),
            ("HINT", &self.hint),
            ("CONTEXT", &self.context),
        ] {
            if !text.is_empty() {
                write!(f, "\n{label}: {text}")?;
            }
        }
        Ok(())
    }
}

pub type Row = Vec<Option<String>>;

/// An open session. Ends, its transaction with it, on drop.
pub struct Session {
    client: Client,
    pid: Pid,
}

impl Session {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        self.rows(sql);
    }

    pub fn try_run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.try_rows(sql).map(drop)
    }

    /// The error that `sql` must end with.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> SqlError {
        match self.try_rows(sql) {
            Err(error) => error,
            Ok(rows) => panic!("expected an error from {sql}, got {rows:?}"),
        }
    }

    #[track_caller]
    pub fn rows(&mut self, sql: &str) -> Vec<Row> {
        self.try_rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<Row>, SqlError> {
        let mut rows = Vec::new();
        for message in self.client.simple_query(sql)? {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push(
                    (0..row.len())
                        .map(|column| row.get(column).map(str::to_owned))
                        .collect(),
                );
            }
        }
        Ok(rows)
    }

    /// The first column of the one row that `sql` gives, which is not NULL.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        self.maybe(sql).unwrap_or_else(|| panic!("{sql}: no value"))
    }

    /// The first column of the first row; None when NULL or no row.
    #[track_caller]
    pub fn maybe(&mut self, sql: &str) -> Option<String> {
        self.rows(sql).into_iter().next()?.into_iter().next()?
    }

    #[track_caller]
    pub fn number(&mut self, sql: &str) -> i64 {
        let value = self.value(sql);
        value
            .parse()
            .unwrap_or_else(|_| panic!("{sql}: {value} is no number"))
    }

    #[track_caller]
    pub fn is_true(&mut self, sql: &str) -> bool {
        self.value(sql) == "t"
    }

    /// Runs `sql` and comes back at once; the session stays open until the
    /// [`Running`] is dropped.
    pub fn start(mut self, sql: &str) -> Running {
        let pid = self.pid;
        let cancel = self.client.cancel_token();
        let sql = sql.to_owned();
        let (sender, result) = mpsc::channel();
        let (keep_open, closed) = mpsc::channel::<()>();
        thread::spawn(move || {
            let _ = sender.send(self.try_rows(&sql));
            let _ = closed.recv();
        });
        Running {
            pid,
            cancel,
            result,
            seen: None,
            _keep_open: keep_open,
        }
    }
}

/// A statement under way in a session of its own. Cancelled on drop.
pub struct Running {
    pid: Pid,
    cancel: postgres::CancelToken,
    result: Receiver<Result<Vec<Row>, SqlError>>,
    seen: Option<Result<Vec<Row>, SqlError>>,
    _keep_open: mpsc::Sender<()>,
}

impl Running {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn is_finished(&mut self) -> bool {
        self.look().is_some()
    }

    fn look(&mut self) -> Option<&Result<Vec<Row>, SqlError>> {
        if self.seen.is_none() {
            match self.result.try_recv() {
                Ok(result) => self.seen = Some(result),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => unreachable!("its thread sends before it ends"),
            }
        }
        self.seen.as_ref()
    }

    /// Waits for the statement's end.
    #[track_caller]
    pub fn result(&mut self) -> Result<Vec<Row>, SqlError> {
        let what = format!("the statement of backend {} to end", self.pid);
        wait_for(&what, PATIENCE, || {
            self.look().cloned().ok_or_else(|| "still runs".to_owned())
        })
    }

    /// As a client's cancel key does: `Ctrl-C` in psql.
    pub fn cancel(&self) {
        let _ = self.cancel.cancel_query(NoTls);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its thread ends with the statement, or with the server at the latest.
        if self.look().is_none() {
            self.cancel();
        }
    }
}
