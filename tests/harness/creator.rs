//! Those who create a logical slot.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{
    cluster::{Cluster, Setup},
    process::{Pid, Process},
    session::{Login, Running},
    wait::{PATIENCE, wait_for, wait_until},
};

/// A way to create a logical slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// `CREATE_REPLICATION_SLOT`, as Debezium and its like send it.
    Walsender,
    /// The same, with a temporary slot: gone when the session ends.
    TemporaryWalsender,
    /// `pg_recvlogical --create-slot`
    PgRecvlogical,
    /// `pg_create_logical_replication_slot()`
    SqlFunction,
    /// The same, with a temporary slot.
    TemporarySqlFunction,
    /// `CREATE SUBSCRIPTION` in another cluster.
    Subscription,
    /// `CREATE SUBSCRIPTION` in the cluster that has the publication, too: it
    /// waits for its own transaction.
    SameClusterSubscription,
    /// The SQL function, called by a background worker.
    BackgroundWorker,
    /// The SQL function, called by an application in Python. It may
    /// [leave](Creation::leave).
    Psycopg,
    /// The same application, with `CREATE_REPLICATION_SLOT`.
    PsycopgWalsender,
}

/// How a client's connection ends while its program lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It is closed: the server's socket is in CLOSE_WAIT.
    Close,
    /// It is closed one way, and the client still reads: so is the server's.
    Shutdown,
    /// It is broken off: the server's kernel has dropped it.
    Reset,
}

/// A creation under way.
///
/// Dropping it ends the client; a temporary slot goes with it.
pub struct Creation {
    creator: Creator,
    guard: Guard,
}

enum Guard {
    Program(Process),
    Statement(Running),
    /// The subscriber is dropped after its session.
    Subscription(Running, #[allow(dead_code)] Box<Cluster>),
    /// The worker's pid; it ends by itself or with its server.
    Worker(Pid),
}

impl Creator {
    /// `pg_stat_activity.backend_type` of the process that builds the slot.
    pub fn backend_type(self) -> &'static str {
        match self {
            Creator::Walsender
            | Creator::TemporaryWalsender
            | Creator::PgRecvlogical
            | Creator::Subscription
            | Creator::SameClusterSubscription
            | Creator::PsycopgWalsender => "walsender",
            Creator::SqlFunction | Creator::TemporarySqlFunction | Creator::Psycopg => {
                "client backend"
            }
            Creator::BackgroundWorker => "background_creator",
        }
    }

    /// Begins to create `slot` and comes back at once.
    #[track_caller]
    pub fn start(self, cluster: &Cluster, slot: &str) -> Creation {
        let guard = match self {
            Creator::Walsender => Guard::Program(walsender(cluster, slot, "")),
            Creator::TemporaryWalsender => Guard::Program(walsender(cluster, slot, "TEMPORARY")),
            Creator::PgRecvlogical => {
                let mut program = cluster.client("pg_recvlogical");
                program
                    .args(["--create-slot", "--slot", slot, "--plugin", "pgoutput"])
                    .args(["--dbname", &cluster.login().conninfo()]);
                Guard::Program(Process::start(program, cluster.dir()))
            }
            Creator::SqlFunction => Guard::Statement(sql_function(cluster, slot, "false")),
            Creator::TemporarySqlFunction => Guard::Statement(sql_function(cluster, slot, "true")),
            Creator::Subscription => {
                let subscriber = Setup::new(cluster.major())
                    .without_extension()
                    .network_of(cluster)
                    .start();
                let running = subscription(cluster, &subscriber, slot);
                Guard::Subscription(running, Box::new(subscriber))
            }
            Creator::SameClusterSubscription => {
                Guard::Statement(subscription(cluster, cluster, slot))
            }
            Creator::BackgroundWorker => Guard::Worker(start_worker(
                cluster,
                &cluster.login(),
                &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
            )),
            Creator::Psycopg => Guard::Program(psycopg(
                cluster,
                "",
                &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
            )),
            Creator::PsycopgWalsender => Guard::Program(psycopg(
                cluster,
                "replication=database",
                &format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput"),
            )),
        };
        Creation {
            creator: self,
            guard,
        }
    }
}

fn walsender(cluster: &Cluster, slot: &str, temporary: &str) -> Process {
    let mut psql = replication_psql(cluster, &cluster.login().application("cdc"));
    psql.type_line(&format!(
        "CREATE_REPLICATION_SLOT \"{slot}\" {temporary} LOGICAL pgoutput;"
    ));
    psql
}

/// A psql that waits for lines, connected to a walsender.
pub fn replication_psql(cluster: &Cluster, login: &Login) -> Process {
    let mut psql = psql(
        cluster,
        &format!("{} replication=database", login.conninfo()),
    );
    psql.type_line("\\set ON_ERROR_STOP 1");
    psql
}

/// A psql that waits for lines.
pub fn psql(cluster: &Cluster, conninfo: &str) -> Process {
    let mut psql = cluster.client("psql");
    psql.args(["--no-psqlrc", "--quiet", "--dbname", conninfo])
        .stdin(Stdio::piped());
    Process::start(psql, cluster.dir())
}

fn sql_function(cluster: &Cluster, slot: &str, temporary: &str) -> Running {
    cluster.login().application("cdc").start(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', {temporary})"
    ))
}

/// See `fixtures/psycopg_creator.py`. It runs as ourselves: the servers' user
/// may have no access to this checkout nor to our python3.
#[track_caller]
fn psycopg(cluster: &Cluster, replication: &str, statement: &str) -> Process {
    const VARIABLE: &str = "SLOT_SELF_HEAL_PYTHON";
    let python = env::var_os(VARIABLE).map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "{VARIABLE} is not set\n\
             HINT: Run \"make test\", which sets psycopg up, or let it name a python3 that \
             has psycopg 3."
        )
    });
    assert!(
        python.exists(),
        "{VARIABLE} names no program: {}\nHINT: Run \"make test\" again.",
        python.display()
    );
    let conninfo = cluster.login().application("cdc").conninfo();
    let mut program = cluster.other_client(&python);
    program
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/psycopg_creator.py"))
        .arg(format!("{conninfo} {replication}"))
        .arg(statement)
        .stdin(Stdio::piped());
    Process::start(program, cluster.dir())
}

/// On a standby the publication must be there already.
fn subscription(publisher: &Cluster, subscriber: &Cluster, slot: &str) -> Running {
    let mut session = publisher.connect();
    if !session.is_true("SELECT pg_is_in_recovery()") {
        session.run(&format!("CREATE PUBLICATION {slot}"));
    }
    let conninfo = publisher.login().application(slot).conninfo();
    subscriber.login().start(&format!(
        "CREATE SUBSCRIPTION {slot} CONNECTION '{conninfo}' PUBLICATION {slot} \
         WITH (enabled = false, copy_data = false)"
    ))
}

/// What [`Creator::BackgroundWorker`] needs; a standby has it of its primary.
#[track_caller]
pub fn prepare_background_creator(cluster: &Cluster) {
    cluster.connect().run(
        "CREATE FUNCTION public.background_creator_start(text) RETURNS int \
         AS 'background_creator' LANGUAGE C STRICT",
    );
}

/// Runs `sql` in a background worker, as the role of `login`; see
/// `fixtures/background_creator.c`.
#[track_caller]
pub fn start_worker(cluster: &Cluster, login: &Login, sql: &str) -> Pid {
    let mut session = login.connect();
    if session.is_true("SELECT to_regproc('public.background_creator_start') IS NULL") {
        prepare_background_creator(cluster);
    }
    let sql = sql.replace('\'', "''");
    let pid = session.number(&format!("SELECT public.background_creator_start('{sql}')"));
    Pid(pid as i32)
}

impl Creation {
    pub fn creator(&self) -> Creator {
        self.creator
    }

    /// The client program, where the client is one.
    pub fn program(&mut self) -> Option<&mut Process> {
        match &mut self.guard {
            Guard::Program(program) => Some(program),
            Guard::Statement(_) | Guard::Subscription(..) | Guard::Worker(_) => None,
        }
    }

    /// The application's connection ends, and its program lives on.
    #[track_caller]
    pub fn leave(&mut self, how: Leaving) {
        let application = match (self.creator, &mut self.guard) {
            (Creator::Psycopg | Creator::PsycopgWalsender, Guard::Program(program)) => program,
            (creator, _) => panic!("{creator:?} cannot leave and live on"),
        };
        let word = match how {
            Leaving::Close => "close",
            Leaving::Shutdown => "shutdown",
            Leaving::Reset => "reset",
        };
        application.type_line(word);
        let done = format!("done {word}\n");
        wait_until(&done, PATIENCE, || application.printed().contains(&done));
    }

    /// The statement under way, where the client is a session of ours.
    pub fn statement(&mut self) -> Option<&mut Running> {
        match &mut self.guard {
            Guard::Statement(running) | Guard::Subscription(running, _) => Some(running),
            Guard::Program(_) | Guard::Worker(_) => None,
        }
    }

    /// Waits until the client has its slot, or an error.
    #[track_caller]
    pub fn finish(&mut self) -> Result<(), String> {
        match &mut self.guard {
            Guard::Program(program) => match program.finish() {
                status if status.success() => Ok(()),
                status => Err(format!("{status}: {}", program.printed())),
            },
            Guard::Statement(running) | Guard::Subscription(running, _) => {
                running.result().map(drop).map_err(|e| e.to_string())
            }
            Guard::Worker(pid) => wait_for("the background worker to end", PATIENCE, || match pid
                .is_alive()
            {
                true => Err("it runs".to_owned()),
                false => Ok(Ok(())),
            }),
        }
    }
}
