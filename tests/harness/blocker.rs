//! Those whom a slot's creation waits for.

use crate::{
    cluster::Cluster,
    creator::{replication_psql, start_worker},
    process::{Pid, Process},
    session::{Login, Running, Session, SqlError},
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
    /// The same, for an autovacuum to prevent wraparound.
    WraparoundAutovacuum,
    AnotherDatabase,
    BackgroundWorker,
    /// Idle in a transaction over the replication protocol.
    Walsender,
}

/// A transaction that blocks. Ends on drop, except for a prepared one, which
/// lasts as long as its server.
pub struct Blocking {
    pub xid: String,
    /// None for a prepared transaction.
    pub pid: Option<Pid>,
    pub gid: Option<String>,
    pub database: String,
    holder: Holder,
}

enum Holder {
    Session(Session),
    Statement(Running),
    Program(Process),
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
            Blocker::IdleInTransaction | Blocker::AnotherDatabase | Blocker::Walsender => {
                Some("idle in transaction")
            }
            Blocker::AbortedWithSavepoint => Some("idle in transaction (aborted)"),
            Blocker::Active => Some("active"),
            Blocker::Prepared => Some("prepared"),
            Blocker::Autovacuum | Blocker::WraparoundAutovacuum | Blocker::BackgroundWorker => None,
        }
    }

    /// Begins to hold an xid.
    #[track_caller]
    pub fn start(self, cluster: &Cluster) -> Blocking {
        self.start_as(cluster, &cluster.login().application(Self::APPLICATION))
    }

    /// The same, for a session of somebody else. An autovacuum worker is
    /// nobody's.
    #[track_caller]
    pub fn start_as(self, cluster: &Cluster, login: &Login) -> Blocking {
        match self {
            Blocker::IdleInTransaction => Blocking::by_session(begin(login), login),
            Blocker::AnotherDatabase => {
                cluster.run("CREATE DATABASE elsewhere");
                let login = login.clone().database("elsewhere");
                Blocking::by_session(begin(&login), &login)
            }
            Blocker::AbortedWithSavepoint => {
                let (mut session, xid) = begin(login);
                session.run("SAVEPOINT s");
                session.error("SELECT 1/0");
                Blocking::by_session((session, xid), login)
            }
            Blocker::Active => {
                let (session, _) = begin(login);
                let running = session.start("SELECT pg_sleep(3600)");
                let (pid, xid) = xid_holder(
                    cluster,
                    &format!("pid = {} AND wait_event = 'PgSleep'", running.pid()),
                );
                Blocking {
                    database: login.database.clone(),
                    holder: Holder::Statement(running),
                    ..Blocking::by_server(pid, xid)
                }
            }
            Blocker::Walsender => begin_over_replication(cluster, login),
            Blocker::Prepared => {
                let (mut session, xid) = begin(login);
                let gid = GID.replace('\'', "''");
                session.run(&format!("PREPARE TRANSACTION '{gid}'"));
                Blocking {
                    xid,
                    pid: None,
                    gid: Some(GID.to_owned()),
                    database: login.database.clone(),
                    holder: Holder::Server,
                }
            }
            Blocker::Autovacuum => analyze_by_autovacuum(cluster),
            Blocker::WraparoundAutovacuum => vacuum_to_prevent_wraparound(cluster),
            Blocker::BackgroundWorker => {
                let worker = start_worker(
                    cluster,
                    login,
                    "SELECT pg_current_xact_id(), pg_sleep(3600)",
                );
                let condition = format!("pid = {worker} AND wait_event = 'PgSleep'");
                let (pid, xid) = xid_holder(cluster, &condition);
                Blocking::by_server(pid, xid)
            }
        }
    }
}

impl Blocking {
    fn by_session((session, xid): (Session, String), login: &Login) -> Blocking {
        Blocking {
            xid,
            pid: Some(session.pid()),
            gid: None,
            database: login.database.clone(),
            holder: Holder::Session(session),
        }
    }

    fn by_server(pid: Pid, xid: String) -> Blocking {
        Blocking {
            xid,
            pid: Some(pid),
            gid: None,
            database: "postgres".to_owned(),
            holder: Holder::Server,
        }
    }

    /// The session whose transaction it is.
    #[track_caller]
    pub fn session(&mut self) -> &mut Session {
        match &mut self.holder {
            Holder::Session(session) => session,
            Holder::Statement(_) | Holder::Program(_) | Holder::Server => {
                panic!("no session to speak through")
            }
        }
    }

    /// The same, to go on with.
    #[track_caller]
    pub fn into_session(self) -> Session {
        match self.holder {
            Holder::Session(session) => session,
            Holder::Statement(_) | Holder::Program(_) | Holder::Server => {
                panic!("no session to speak through")
            }
        }
    }

    /// Whether its transaction goes on.
    #[track_caller]
    pub fn goes_on(&self, cluster: &Cluster) -> bool {
        cluster.is_true(&format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid = '{xid}') \
             OR EXISTS (SELECT FROM pg_prepared_xacts WHERE transaction = '{xid}')",
            xid = self.xid
        ))
    }

    /// What its client is told, which somebody has ended.
    #[track_caller]
    pub fn error(&mut self) -> SqlError {
        match &mut self.holder {
            Holder::Session(session) => session.error("SELECT 1"),
            Holder::Statement(running) => running.result().expect_err("it was to be ended"),
            Holder::Program(_) | Holder::Server => panic!("no session to speak through"),
        }
    }

    #[track_caller]
    pub fn commit(self) {
        self.end_with("COMMIT");
    }

    #[track_caller]
    pub fn rollback(self) {
        self.end_with("ROLLBACK");
    }

    #[track_caller]
    fn end_with(mut self, sql: &str) {
        match &mut self.holder {
            Holder::Program(psql) => {
                psql.type_line(&format!("{sql};"));
                assert!(psql.finish().success(), "{}", psql.printed());
            }
            Holder::Session(_) | Holder::Statement(_) | Holder::Server => {
                self.session().run(sql);
            }
        }
    }
}

/// A session with a transaction that has an xid.
#[track_caller]
fn begin(login: &Login) -> (Session, String) {
    let mut session = login.connect();
    session.run("BEGIN");
    // without the epoch, as pg_stat_activity.backend_xid has it
    let xid = session.value("SELECT pg_current_xact_id()::xid");
    (session, xid)
}

/// The same in a walsender, which takes SQL as well.
#[track_caller]
fn begin_over_replication(cluster: &Cluster, login: &Login) -> Blocking {
    let mut psql = replication_psql(cluster, login);
    psql.type_line("BEGIN;");
    psql.type_line("SELECT 'holds', pg_backend_pid(), pg_current_xact_id()::xid \\g (format=csv)");
    let (pid, xid) = wait_for("the walsender's xid", PATIENCE, || {
        let printed = psql.printed();
        let line = printed.lines().find_map(|line| line.strip_prefix("holds,"));
        match line.and_then(|line| line.split_once(',')) {
            Some((pid, xid)) => Ok((pid.to_owned(), xid.to_owned())),
            None => Err(printed),
        }
    });
    Blocking {
        database: login.database.clone(),
        holder: Holder::Program(psql),
        ..Blocking::by_server(Pid(pid.parse().expect("a pid is a number")), xid)
    }
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
#[track_caller]
fn analyze_by_autovacuum(cluster: &Cluster) -> Blocking {
    create_slow_to_analyze(cluster);
    let (pid, xid) = xid_holder(cluster, "query = 'autovacuum: ANALYZE public.parent'");
    Blocking::by_server(pid, xid)
}

/// The same, of a table that is not looked at until it must be, for its age:
/// then it is vacuumed, which summarizes what its BRIN index has not seen yet
/// (`brinvacuumcleanup`), by the index's expression.
#[track_caller]
fn vacuum_to_prevent_wraparound(cluster: &Cluster) -> Blocking {
    let mut session = cluster.connect();
    session.run(
        "CREATE FUNCTION slow_for_autovacuum(filler text) RETURNS text IMMUTABLE \
         LANGUAGE plpgsql AS $$ BEGIN \
         IF EXISTS (SELECT FROM pg_catalog.pg_stat_activity \
                    WHERE pid = pg_backend_pid() AND backend_type = 'autovacuum worker') THEN \
             PERFORM pg_current_xact_id(), pg_sleep(3600); \
         END IF; \
         RETURN left(filler, 1); END $$",
    );
    session.run(
        "CREATE TABLE old (filler text) WITH \
         (autovacuum_enabled = off, autovacuum_freeze_max_age = 100000)", // the least there may be
    );
    session.run("ALTER TABLE old ALTER filler SET STORAGE PLAIN");
    session.run(
        "CREATE INDEX ON old USING brin (slow_for_autovacuum(filler)) WITH (pages_per_range = 1)",
    );
    session.run("INSERT INTO old SELECT repeat('x', 7000) FROM generate_series(1, 10)");
    session.run(
        "DO $$ BEGIN FOR i IN 0..100000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    );
    let query = "autovacuum: VACUUM public.old (to prevent wraparound)";
    let (pid, xid) = xid_holder(cluster, &format!("query = '{query}'"));
    Blocking::by_server(pid, xid)
}

#[track_caller]
fn create_slow_to_analyze(cluster: &Cluster) {
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
}
