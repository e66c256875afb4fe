//! Those whom a slot's creation waits for.

use crate::{
    cluster::Cluster,
    creator::start_worker,
    process::Pid,
    session::{Running, Session},
    wait::{PATIENCE, wait_for},
};

/// A way to hold an xid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocker {
    IdleInTransaction,
    /// In the middle of a statement.
    Active,
    /// A failed transaction; its xid lives on because only a savepoint's
    /// subtransaction was rolled back (`AbortSubTransaction`).
    AbortedWithSavepoint,
    /// With a quote in its gid.
    Prepared,
    /// The server needs [`Blocker::AUTOVACUUM_CONF`].
    Autovacuum,
    AnotherDatabase,
    BackgroundWorker,
}

/// A transaction that blocks. Ends on drop, except for a prepared one, which
/// lasts as long as its server.
pub struct Blocking {
    pub xid: String,
    /// None for a prepared transaction.
    pub pid: Option<Pid>,
    pub gid: Option<String>,
    pub database: &'static str,
    holder: Holder,
}

enum Holder {
    Session(Session),
    Statement {
        _running: Running,
    },
    /// A prepared transaction or a process of the server's own.
    Server,
}

/// The gid of [`Blocker::Prepared`].
const GID: &str = "it's prepared";

impl Blocker {
    /// The application name of the blocking sessions.
    pub const APPLICATION: &str = "orders";

    /// Autovacuum at once; and no help from core, which cancels an autovacuum
    /// that somebody waits for, after deadlock_timeout.
    pub const AUTOVACUUM_CONF: &str = "
autovacuum = on
autovacuum_naptime = 1s
deadlock_timeout = 1h
";

    /// What the view says of its state; None for a server process, of which
    /// it need say nothing.
    pub fn state(self) -> Option<&'static str> {
        match self {
            Blocker::IdleInTransaction | Blocker::AnotherDatabase => Some("idle in transaction"),
            Blocker::AbortedWithSavepoint => Some("idle in transaction (aborted)"),
            Blocker::Active => Some("active"),
            Blocker::Prepared => Some("prepared"),
            Blocker::Autovacuum | Blocker::BackgroundWorker => None,
        }
    }

    /// Begins to hold an xid.
    #[track_caller]
    pub fn start(self, cluster: &Cluster) -> Blocking {
        match self {
            Blocker::IdleInTransaction => {
                let (session, xid) = begin(cluster, "postgres");
                Blocking::by_session(session, xid, "postgres")
            }
            Blocker::AnotherDatabase => {
                cluster.run("CREATE DATABASE elsewhere");
                let (session, xid) = begin(cluster, "elsewhere");
                Blocking::by_session(session, xid, "elsewhere")
            }
            Blocker::AbortedWithSavepoint => {
                let (mut session, xid) = begin(cluster, "postgres");
                session.run("SAVEPOINT s");
                session.error("SELECT 1/0");
                Blocking::by_session(session, xid, "postgres")
            }
            Blocker::Active => {
                let (session, _) = begin(cluster, "postgres");
                let running = session.start("SELECT pg_sleep(3600)");
                let (pid, xid) = xid_holder(
                    cluster,
                    &format!("pid = {} AND wait_event = 'PgSleep'", running.pid()),
                );
                Blocking {
                    holder: Holder::Statement { _running: running },
                    ..Blocking::by_server(pid, xid)
                }
            }
            Blocker::Prepared => {
                let (mut session, xid) = begin(cluster, "postgres");
                let gid = GID.replace('\'', "''");
                session.run(&format!("PREPARE TRANSACTION '{gid}'"));
                Blocking {
                    xid,
                    pid: None,
                    gid: Some(GID.to_owned()),
                    database: "postgres",
                    holder: Holder::Server,
                }
            }
            Blocker::Autovacuum => analyze_by_autovacuum(cluster),
            Blocker::BackgroundWorker => {
                let worker = start_worker(cluster, "SELECT pg_current_xact_id(), pg_sleep(3600)");
                let condition = format!("pid = {worker} AND wait_event = 'PgSleep'");
                let (pid, xid) = xid_holder(cluster, &condition);
                Blocking::by_server(pid, xid)
            }
        }
    }
}

impl Blocking {
    fn by_session(session: Session, xid: String, database: &'static str) -> Blocking {
        Blocking {
            xid,
            pid: Some(session.pid()),
            gid: None,
            database,
            holder: Holder::Session(session),
        }
    }

    fn by_server(pid: Pid, xid: String) -> Blocking {
        Blocking {
            xid,
            pid: Some(pid),
            gid: None,
            database: "postgres",
            holder: Holder::Server,
        }
    }

    /// The session whose transaction it is.
    #[track_caller]
    pub fn session(&mut self) -> &mut Session {
        match &mut self.holder {
            Holder::Session(session) => session,
            Holder::Statement { .. } | Holder::Server => panic!("no session to speak through"),
        }
    }

    #[track_caller]
    pub fn commit(mut self) {
        self.session().run("COMMIT");
    }

    #[track_caller]
    pub fn rollback(mut self) {
        self.session().run("ROLLBACK");
    }
}

/// A session with a transaction that has an xid.
#[track_caller]
fn begin(cluster: &Cluster, database: &str) -> (Session, String) {
    let login = cluster.login().application(Blocker::APPLICATION);
    let mut session = login.database(database).connect();
    session.run("BEGIN");
    // without the epoch, as pg_stat_activity.backend_xid has it
    let xid = session.value("SELECT pg_current_xact_id()::xid");
    (session, xid)
}

/// Waits for a process that holds an xid; for such as do not tell us.
#[track_caller]
fn xid_holder(cluster: &Cluster, condition: &str) -> (Pid, String) {
    let sql = format!(
        "SELECT pid, backend_xid FROM pg_stat_activity \
         WHERE backend_xid IS NOT NULL AND {condition}"
    );
    wait_for(
        &format!("an xid of {condition}"),
        PATIENCE,
        || match cluster.rows(&sql).first().map(Vec::as_slice) {
            Some([Some(pid), Some(xid)]) => {
                Ok((Pid(pid.parse().expect("a pid is a number")), xid.to_owned()))
            }
            _ => Err(format!(
                "{:?}",
                cluster.rows("SELECT backend_type, state, wait_event, query FROM pg_stat_activity")
            )),
        },
    )
}

/// An autovacuum that holds an xid for minutes.
///
/// VACUUM takes one only at its end, and so does ANALYZE (`update_attstats`),
/// except of a table with children: their common statistics come after the
/// table's own, in the same transaction, and here reading the child's pages
/// takes 100 ms each.
fn analyze_by_autovacuum(cluster: &Cluster) -> Blocking {
    let mut session = cluster.connect();
    session.run("CREATE TABLE child (filler text) WITH (autovacuum_enabled = off)");
    session.run("ALTER TABLE child ALTER filler SET STORAGE PLAIN");
    session.run("INSERT INTO child SELECT repeat('x', 7000) FROM generate_series(1, 2000)");
    session.run(
        "CREATE TABLE parent (filler text) WITH \
         (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0, \
          autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
    );
    session.run("ALTER TABLE child INHERIT parent");
    session.run("INSERT INTO parent SELECT 'x' FROM generate_series(1, 100)");
    // a session reports what it changed at its end, else up to 10 s later
    drop(session);
    let (pid, xid) = xid_holder(cluster, "query = 'autovacuum: ANALYZE public.parent'");
    Blocking::by_server(pid, xid)
}
