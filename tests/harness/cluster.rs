//! A throw-away server: started from a copy of a fresh data directory,
//! listening on 127.0.0.1 only, stopped and removed on drop.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{LazyLock, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    major::Major,
    network::Network,
    process::{
        Pid, Signal, as_server_user, command, command_as_ourselves, exits_within, limit_stack,
        output_of, spawn,
    },
    scratch,
    session::{Login, Row, Session},
    status::{Finished, Status, Worker},
    wait::{PATIENCE, wait_for, wait_until},
    wal::Lsn,
};

/// How long a fast shutdown may take. A worker that holds it up is a fault.
const FAST_SHUTDOWN: Duration = Duration::from_secs(30);

/// For all servers, whatever the scenario.
///
/// Autovacuum, checkpoints and JIT are kept out so that xids and WAL come from
/// the scenario alone; a scenario that wants them turns them on.
const BASE_CONF: &str = "
listen_addresses = '127.0.0.1'
wal_level = logical
max_prepared_transactions = 10
fsync = off
shared_buffers = 16MB
autovacuum = off
checkpoint_timeout = 1h
jit = off
log_line_prefix = '%m [%p] %b '
lc_messages = C
";

/// A server to be: what it has that others have not.
pub struct Setup {
    major: Major,
    preload: bool,
    conf: String,
    arguments: Vec<String>,
    template: Template,
    upstream_role: String,
    environment: Vec<(String, String)>,
    stack_limit: Option<u64>,
    network: Option<Network>,
}

/// Servers copied from one template are one cluster to Postgres: they have its
/// system identifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Template {
    Usual,
    AnotherCluster,
}

impl Setup {
    pub fn new(major: Major) -> Setup {
        Setup {
            major,
            preload: true,
            conf: String::new(),
            arguments: Vec::new(),
            template: Template::Usual,
            upstream_role: "postgres".to_owned(),
            environment: Vec::new(),
            stack_limit: None,
            network: None,
        }
    }

    /// Leaves the extension out of `shared_preload_libraries`.
    pub fn without_extension(mut self) -> Setup {
        self.preload = false;
        self
    }

    /// A line for postgresql.conf; the last one of a name counts.
    pub fn conf(mut self, line: &str) -> Setup {
        let _ = writeln!(self.conf, "{line}");
        self
    }

    /// For the postmaster's command line, where a setting overrides all files.
    pub fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A system identifier of its own, as a cluster that has nothing to do
    /// with the scenario's others.
    pub fn another_cluster(mut self) -> Setup {
        self.template = Template::AnotherCluster;
        self
    }

    /// The role in the `primary_conninfo` of a standby.
    pub fn upstream_role(mut self, role: &str) -> Setup {
        self.upstream_role = role.to_owned();
        self
    }

    /// A network of its own, which [`Cluster::cut_network`] cuts: the server is
    /// in it and so are its client programs. Sessions of the scenario, with
    /// [`Cluster::connect`] and the like, come by the Unix-domain socket.
    #[track_caller]
    pub fn own_network(mut self) -> Setup {
        self.network = Some(Network::new());
        self
    }

    /// The network that `other` is in.
    pub fn network_of(mut self, other: &Cluster) -> Setup {
        self.network = other.network.clone();
        self
    }

    /// A variable in the environment that the server is started in.
    pub fn environment(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The server's processes look the name `slow.invalid` up for a minute, and
    /// `moving.invalid` in a file; see `fixtures/slow_lookup.c`.
    #[track_caller]
    pub fn slow_name_lookup(self) -> Setup {
        self.before_the_c_library("slow_lookup.so")
    }

    /// Processes that begin late, as long as there is this file; see
    /// `fixtures/slow_start.c`.
    #[track_caller]
    pub fn slow_start(self, while_there_is: &Path) -> Setup {
        self.environment("SLOW_START", &while_there_is.to_string_lossy())
            .before_the_c_library("slow_start.so")
    }

    #[track_caller]
    fn before_the_c_library(self, library: &str) -> Setup {
        let mut pg_config = command(&self.major.program("pg_config"));
        pg_config.arg("--pkglibdir");
        let library = PathBuf::from(output_of(pg_config).trim()).join(library);
        assert!(library.exists(), "there is no {}", library.display());
        self.environment("LD_PRELOAD", &library.to_string_lossy())
    }

    /// What `ulimit -s` says where the server is started, in bytes here.
    pub fn stack_limit(mut self, bytes: u64) -> Setup {
        self.stack_limit = Some(bytes);
        self
    }

    #[track_caller]
    pub fn start(self) -> Cluster {
        let dir = scratch::directory("primary");
        let data = dir.path().join("data");
        let mut copy = command(Path::new("/bin/cp"));
        copy.args(["-a", "--reflink=auto"])
            .arg(template(self.major, self.template))
            .arg(&data);
        output_of(copy);
        let preload = match self.preload {
            true => "shared_preload_libraries = 'slot_self_heal'\n",
            false => "",
        };
        append(
            &data.join("postgresql.conf"),
            &format!("{BASE_CONF}{preload}{}", self.conf),
        );
        Cluster::launch(self, dir)
    }

    /// A streaming standby of `upstream`, with its configuration and the lines
    /// of this setup.
    #[track_caller]
    pub fn standby_of(self, upstream: &Cluster) -> Cluster {
        let dir = scratch::directory("standby");
        let data = dir.path().join("data");
        let login = upstream.login().role(&self.upstream_role);
        // between two networks there is a socket file only
        let conninfo = match (&self.network, &upstream.network) {
            (None, None) => login.application("standby").conninfo(),
            _ => login.application("standby").conninfo_by_socket(),
        };
        let mut backup = command(&self.major.program("pg_basebackup"));
        backup
            .args(["--write-recovery-conf", "--wal-method=stream"])
            .args(["--checkpoint=fast", "--no-sync"])
            .args(["--dbname", &conninfo])
            .arg("--pgdata")
            .arg(&data);
        output_of(backup);
        append(&data.join("postgresql.conf"), &self.conf);
        Cluster::launch(self, dir)
    }
}

/// A fresh data directory of this major, made once a process.
fn template(major: Major, template: Template) -> PathBuf {
    type Made = BTreeMap<(Major, Template), PathBuf>;
    static TEMPLATES: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);
    let mut templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
    templates
        .entry((major, template))
        .or_insert_with(|| {
            let data = scratch::lasting(&match template {
                Template::Usual => format!("template-{major}"),
                Template::AnotherCluster => format!("template-{major}-another"),
            });
            let mut initdb = command(&major.program("initdb"));
            initdb
                .args(["--no-sync", "--auth=trust", "--username=postgres"])
                .args(["--locale=C", "--encoding=UTF8"])
                // small segments: less to copy, and WAL limits are reached soon
                .arg("--wal-segsize=1")
                .arg("--pgdata")
                .arg(&data);
            output_of(initdb);
            data
        })
        .clone()
}

fn append(path: &Path, text: &str) {
    let old = fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("could not read {}: {e}", path.display()));
    fs::write(path, old + "\n" + text + "\n")
        .unwrap_or_else(|e| panic!("could not write {}: {e}", path.display()));
}

/// A running server.
pub struct Cluster {
    major: Major,
    dir: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    stack_limit: Option<u64>,
    network: Option<Network>,
    port: u16,
    postmaster: Option<Child>,
    /// For looking on: views are read over this session.
    observer: RefCell<Option<Session>>,
    /// Whether the scenario crashes the server on purpose.
    may_crash: Cell<bool>,
}

/// One of a server's processes, stopped. It goes on when this is dropped.
pub struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.signal(Signal::Cont);
    }
}

impl Cluster {
    /// A primary with the extension preloaded.
    #[track_caller]
    pub fn start(major: Major) -> Cluster {
        Setup::new(major).start()
    }

    /// A streaming standby with the primary's settings.
    #[track_caller]
    pub fn standby_of(primary: &Cluster) -> Cluster {
        Setup::new(primary.major).standby_of(primary)
    }

    #[track_caller]
    fn launch(setup: Setup, dir: TempDir) -> Cluster {
        let major = setup.major;
        let mut cluster = Cluster {
            major,
            dir,
            arguments: setup.arguments,
            environment: setup.environment,
            stack_limit: setup.stack_limit,
            network: setup.network,
            port: 0,
            postmaster: None,
            observer: RefCell::new(None),
            may_crash: Cell::new(false),
        };
        // Between asking for a free port and taking it, another may take it.
        for _ in 0..10 {
            cluster.port = free_port();
            match cluster.try_launch() {
                Ok(()) => return cluster,
                Err(()) if cluster.log().contains("Address already in use") => {
                    let _ = fs::remove_file(cluster.log_file());
                }
                Err(()) => break,
            }
        }
        panic!("PostgreSQL {major} did not start");
    }

    /// Starts the postmaster and waits until it takes connections; an error
    /// when it exits instead.
    fn try_launch(&mut self) -> Result<(), ()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap_or_else(|e| panic!("could not open {}: {e}", self.log_file().display()));
        let mut postgres = self.client("postgres");
        postgres
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.dir.path())
            .args(["-p", &self.port.to_string()])
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(bytes) = self.stack_limit {
            limit_stack(&mut postgres, bytes);
        }
        let child = spawn(postgres, Signal::Quit).unwrap_or_else(|e| panic!("postgres: {e}"));
        let pid = child.id().to_string();
        let child = self.postmaster.insert(child);

        // its eighth line, as pg_ctl reads it
        let pid_file = self.dir.path().join("data/postmaster.pid");
        wait_for("the server to start", PATIENCE, || {
            if !matches!(child.try_wait(), Ok(None)) {
                return Ok(Err(()));
            }
            let lines = fs::read_to_string(&pid_file).unwrap_or_default();
            let lines: Vec<&str> = lines.lines().map(str::trim).collect();
            match (lines.first(), lines.get(7)) {
                (Some(first), Some(&("ready" | "standby"))) if *first == pid => Ok(Ok(())),
                _ => Err(format!("postmaster.pid: {lines:?}")),
            }
        })
    }

    pub fn major(&self) -> Major {
        self.major
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn postmaster(&self) -> Pid {
        Pid(self
            .postmaster
            .as_ref()
            .expect("the server was started")
            .id() as i32)
    }

    /// A directory that goes with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program of this server's major, in this server's network.
    pub fn client(&self, program: &str) -> Command {
        as_server_user(self.other_client(&self.major.program(program)))
    }

    /// A program that is not Postgres's, in this server's network.
    pub fn other_client(&self, program: &Path) -> Command {
        let mut command = command_as_ourselves(program);
        if let Some(network) = &self.network {
            network.enter(&mut command);
        }
        command
    }

    // -- its network --

    /// From now on packets are lost: neither side's end reaches the other.
    #[track_caller]
    pub fn cut_network(&self) {
        self.network().cut();
    }

    #[track_caller]
    pub fn mend_network(&self) {
        self.network().mend();
    }

    #[track_caller]
    fn network(&self) -> &Network {
        let network = self.network.as_ref();
        network.expect("a network can be cut that was set up with own_network()")
    }

    // -- sessions --

    /// The superuser, in database postgres.
    pub fn login(&self) -> Login {
        Login {
            port: self.port,
            directory: self.dir.path().display().to_string(),
            by_socket: self.network.is_some(),
            database: "postgres".to_owned(),
            role: "postgres".to_owned(),
            application: "scenario".to_owned(),
        }
    }

    #[track_caller]
    pub fn connect(&self) -> Session {
        self.login().connect()
    }

    /// Looks on over a session that stays open.
    #[track_caller]
    pub fn observe<T>(&self, look: impl FnOnce(&mut Session) -> T) -> T {
        let mut observer = self.observer.borrow_mut();
        look(observer.get_or_insert_with(|| self.login().application("observer").connect()))
    }

    #[track_caller]
    pub fn run(&self, sql: &str) {
        self.observe(|session| session.run(sql));
    }

    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        self.observe(|session| session.value(sql))
    }

    #[track_caller]
    pub fn number(&self, sql: &str) -> i64 {
        self.observe(|session| session.number(sql))
    }

    #[track_caller]
    pub fn is_true(&self, sql: &str) -> bool {
        self.observe(|session| session.is_true(sql))
    }

    #[track_caller]
    pub fn rows(&self, sql: &str) -> Vec<Row> {
        self.observe(|session| session.rows(sql))
    }

    /// Pastes a hint as one string, which a driver or a window for queries sends
    /// as it is, in one implicit transaction; what psql prints.
    #[track_caller]
    pub fn paste_as_one(&self, database: &str, hint: &str) -> String {
        let mut psql = self.psql(database);
        psql.args(["--command", hint]);
        output_of(psql)
    }

    /// Pastes statements into psql's window: each is sent by itself, and `\gexec` is obeyed.
    #[track_caller]
    pub fn paste_into_psql(&self, database: &str, statements: &str) {
        let file = self.dir().join("pasted.sql");
        fs::write(&file, statements)
            .unwrap_or_else(|e| panic!("could not write {}: {e}", file.display()));
        let mut psql = self.psql(database);
        psql.arg("--file").arg(file);
        output_of(psql);
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--set", "ON_ERROR_STOP=1"])
            .args(["--host", self.login().host(), "--username=postgres"])
            .arg(format!("--port={}", self.port))
            // else psql would take a name with '=' for a connection string
            .env("PGDATABASE", database);
        psql
    }

    /// Waits until `condition`, a boolean expression, is true.
    #[track_caller]
    pub fn wait_until_sql(&self, what: &str, condition: &str) {
        wait_until(what, PATIENCE, || {
            self.is_true(&format!("SELECT {condition}"))
        });
    }

    /// Forgets the session for looking on, whose backend is gone.
    pub fn forget_observer(&self) {
        self.observer.replace(None);
    }

    // -- settings, start and stop --

    /// Changes a setting as an operator does, and reloads.
    #[track_caller]
    pub fn set(&self, name: &str, value: &str) {
        self.run(&format!("ALTER SYSTEM SET {name} = {value}"));
        self.reload();
    }

    /// Waits until it has reached a session: the worker was told as well by then,
    /// and reads the files before its next tick.
    #[track_caller]
    pub fn reload(&self) {
        let loaded = self.value("SELECT pg_conf_load_time()");
        self.run("SELECT pg_reload_conf()");
        self.wait_until_sql("the reload", &format!("pg_conf_load_time() > '{loaded}'"));
    }

    /// A line for postgresql.auto.conf, where it overrides the others of its
    /// name; for a stopped server.
    #[track_caller]
    pub fn append_to_auto_conf(&self, line: &str) {
        append(&self.data().join("postgresql.auto.conf"), line);
    }

    /// Replaces pg_hba.conf and waits until it is in force.
    #[track_caller]
    pub fn set_hba(&self, lines: &[&str]) {
        let path = self.data().join("pg_hba.conf");
        fs::write(&path, lines.join("\n") + "\n")
            .unwrap_or_else(|e| panic!("could not write {}: {e}", path.display()));
        // The postmaster tells its children to reload and then reads the file,
        // before it takes another connection (`process_pm_reload_request`).
        self.reload();
    }

    /// Stops the server; whether it ended before the deadline.
    pub fn stop(&mut self, signal: Signal, deadline: Duration) -> bool {
        self.forget_observer();
        let Some(child) = self.postmaster.as_mut() else {
            return true;
        };
        Pid(child.id() as i32).signal(signal);
        let ended = exits_within(child, deadline);
        if ended {
            self.postmaster = None;
        }
        ended
    }

    #[track_caller]
    pub fn stop_fast(&mut self) {
        assert!(
            self.stop(Signal::Int, FAST_SHUTDOWN),
            "a fast shutdown took more than {FAST_SHUTDOWN:?}"
        );
    }

    /// Starts the stopped server again, on the same port.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.postmaster.is_none(), "the server runs");
        assert!(self.try_launch().is_ok(), "the server did not start again");
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.stop_fast();
        self.start_again();
    }

    /// Says that a crash is part of the scenario.
    pub fn may_crash(&self) {
        self.may_crash.set(true);
    }

    /// Stops the bgwriter until the returned value is dropped. It writes a
    /// running-xacts record of its own 15 s after it started and every 15 s of a
    /// busy server (`BackgroundWriterMain`). Where a scenario counts records,
    /// only those of the extension and of Postgres's slot creation should be
    /// there.
    #[track_caller]
    pub fn freeze_bgwriter(&self) -> Frozen {
        self.freeze("background writer")
    }

    /// Stops the WAL writer: nothing is flushed but by those who wait for it.
    #[track_caller]
    pub fn freeze_wal_writer(&self) -> Frozen {
        self.freeze("walwriter")
    }

    /// Stops the WAL receiver, which stays connected and receives nothing.
    #[track_caller]
    pub fn freeze_wal_receiver(&self) -> Frozen {
        self.freeze("walreceiver")
    }

    /// Ends the WAL receiver, which pg_terminate_backend() does not.
    #[track_caller]
    pub fn end_wal_receiver(&self) {
        let receiver = self.wait_for_process(&Self::resting("walreceiver"));
        receiver.signal(Signal::Term);
        wait_until("the WAL receiver to end", PATIENCE, || !receiver.is_alive());
    }

    /// Stops the extension's worker.
    #[track_caller]
    pub fn freeze_worker(&self) -> Frozen {
        self.freeze("slot_self_heal")
    }

    /// Stops a session that waits for its client.
    #[track_caller]
    pub fn freeze_session(&self, pid: Pid) -> Frozen {
        self.freeze_one(&format!("pid = {pid} AND wait_event_type = 'Client'"))
    }

    #[track_caller]
    fn freeze(&self, process: &str) -> Frozen {
        self.freeze_one(&Self::resting(process))
    }

    /// While it rests, and so holds no lock.
    #[track_caller]
    fn freeze_one(&self, condition: &str) -> Frozen {
        let pid = self.wait_for_process(condition);
        pid.signal(Signal::Stop);
        Frozen(pid)
    }

    /// That a process of the server's own, or a worker, has nothing to do.
    fn resting(process: &str) -> String {
        format!("backend_type = '{process}' AND wait_event_type IN ('Activity', 'Extension')")
    }

    #[track_caller]
    fn wait_for_process(&self, condition: &str) -> Pid {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE {condition}");
        let pid = wait_for(&format!("a process with {condition}"), PATIENCE, || {
            self.observe(|session| session.maybe(&sql))
                .ok_or_else(|| "it does not".to_owned())
        });
        Pid(pid.parse().expect("a pid is a number"))
    }

    /// Waits until a walsender waits for a transaction, by what Postgres itself tells.
    #[track_caller]
    pub fn wait_for_waiting_creator(&self) {
        self.wait_until_sql(
            "the creator to wait",
            "EXISTS (SELECT FROM pg_stat_activity \
             WHERE backend_type = 'walsender' AND wait_event = 'transactionid')",
        );
    }

    // -- the extension --

    #[track_caller]
    pub fn create_extension(&self) {
        self.run("CREATE EXTENSION slot_self_heal");
    }

    /// The slot's row in `slot_self_heal_status`.
    #[track_caller]
    pub fn status(&self, slot: &str) -> Option<Status> {
        let sql =
            format!("SELECT to_jsonb(s) FROM slot_self_heal_status s WHERE slot_name = '{slot}'");
        let row = self.observe(|session| session.maybe(&sql))?;
        Some(serde_json::from_str(&row).unwrap_or_else(|e| panic!("{e} in {row}")))
    }

    /// Waits until the slot's row is as wanted.
    #[track_caller]
    pub fn wait_for_status(
        &self,
        slot: &str,
        what: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        let what = format!("{what} in the status of slot \"{slot}\"");
        wait_for(&what, PATIENCE, || match self.status(slot) {
            Some(status) if wanted(&status) => Ok(status),
            seen => Err(format!("{seen:#?}")),
        })
    }

    #[track_caller]
    pub fn wait_for_state(&self, slot: &str, state: &str) -> Status {
        self.wait_for_status(slot, &format!("state {state}"), |status| {
            status.state == state
        })
    }

    /// Waits until the slot can be used and the worker, which sees so a moment
    /// later, has taken note of how its creation ended.
    #[track_caller]
    pub fn wait_until_ready(&self, slot: &str) -> Status {
        self.wait_for_status(slot, "the end of its creation", |status| {
            status.state == "ready" && status.state_since.is_some()
        })
    }

    /// Creations that are over, newest first.
    #[track_caller]
    pub fn history(&self) -> Vec<Finished> {
        const SECONDS: &str = "jsonb_build_object(\
            'waited_for_transactions', extract(epoch FROM waited_for_transactions), \
            'waited_for_record', extract(epoch FROM waited_for_record), \
            'waited_for_replay', extract(epoch FROM waited_for_replay))";
        self.rows(&format!(
            "SELECT to_jsonb(h) || {SECONDS} FROM slot_self_heal_history h"
        ))
        .into_iter()
        .map(|row| {
            let row = row[0].as_deref().expect("a row is not NULL");
            serde_json::from_str(row).unwrap_or_else(|e| panic!("{e} in {row}"))
        })
        .collect()
    }

    /// Waits for the end of a creation, and tells how it ended.
    #[track_caller]
    pub fn wait_for_end_of(&self, slot: &str) -> Finished {
        wait_for(
            &format!("slot {slot} in slot_self_heal_history"),
            PATIENCE,
            || {
                let history = self.history();
                let found = history.iter().find(|finished| finished.slot_name == slot);
                found.cloned().ok_or_else(|| format!("{history:?}"))
            },
        )
    }

    #[track_caller]
    pub fn worker(&self) -> Worker {
        let row = self.value("SELECT to_jsonb(w) FROM slot_self_heal_worker w");
        serde_json::from_str(&row).unwrap_or_else(|e| panic!("{e} in {row}"))
    }

    #[track_caller]
    pub fn wait_for_worker(&self, what: &str, wanted: impl Fn(&Worker) -> bool) -> Worker {
        let what = format!("{what} in slot_self_heal_worker");
        wait_for(&what, PATIENCE, || match self.worker() {
            worker if wanted(&worker) => Ok(worker),
            seen => Err(format!("{seen:#?}")),
        })
    }

    // -- the log --

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How many lines of the log have `text`.
    pub fn count_in_log(&self, text: &str) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("\"{text}\" in the log"), PATIENCE, || {
            self.log().contains(text)
        });
    }

    /// The lines of the worker's messages, those of DETAIL and HINT included.
    pub fn worker_log(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| line.contains("] slot_self_heal "))
            .map(str::to_owned)
            .collect()
    }

    /// The hints in the worker's messages, each with all its lines.
    pub fn worker_hints(&self) -> Vec<String> {
        let log = self.log();
        let mut lines = log.lines().peekable();
        let mut hints = Vec::new();
        while let Some(line) = lines.next() {
            let hint = line.split_once("HINT:  ").map(|(_, hint)| hint.to_owned());
            let Some(mut hint) = hint.filter(|_| line.contains("] slot_self_heal ")) else {
                continue;
            };
            // the server indents what goes on (`send_message_to_server_log`)
            while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
                hint.push_str(&more.replacen('\t', "\n", 1));
            }
            hints.push(hint);
        }
        hints
    }

    fn print_log(&self) {
        const LINES: usize = 60;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LINES)..];
        eprintln!(
            "-- the end of the log of PostgreSQL {} on port {} --\n{}\n--",
            self.major,
            self.port,
            tail.join("\n")
        );
    }

    // -- the write-ahead log --

    #[track_caller]
    pub fn insert_lsn(&self) -> Lsn {
        self.value("SELECT pg_current_wal_insert_lsn()")
            .parse()
            .unwrap()
    }

    /// On a standby: waits until it has replayed what its upstream has flushed
    /// so far.
    #[track_caller]
    pub fn wait_for_replay_of(&self, primary: &Cluster) {
        const PAGE: u64 = 8192;
        let flushed = || -> Lsn {
            let flushed = primary.value("SELECT pg_current_wal_flush_lsn()");
            flushed.parse().expect("a pg_lsn")
        };
        let mut position = flushed();
        if position.0 % PAGE == 0 {
            // The WAL writer flushes whole pages. The last record may go on in the next one, and
            // be replayed only when a commit has flushed its rest.
            primary.run("SELECT pg_logical_emit_message(true, '', '')");
            position = flushed();
        }
        self.wait_until_sql(
            &format!("the standby to replay up to {position}"),
            &format!("pg_last_wal_replay_lsn() >= '{position}'"),
        );
    }

    /// The running-xacts records written since `start`, as pg_waldump prints
    /// them.
    #[track_caller]
    pub fn running_xacts_since(&self, start: Lsn) -> Vec<String> {
        // A commit flushes all before it, and there is a record to stop at.
        self.run("SELECT pg_logical_emit_message(true, '', '')");
        let end = self.value("SELECT pg_current_wal_flush_lsn()");
        let mut waldump = self.client("pg_waldump");
        waldump.arg("-p").arg(self.data().join("pg_wal")).args([
            "-r",
            "Standby",
            "-s",
            &start.to_string(),
            "-e",
            &end,
        ]);
        output_of(waldump)
            .lines()
            .filter(|line| line.contains("RUNNING_XACTS"))
            .map(str::to_owned)
            .collect()
    }

    /// Stops the server for good, whatever it takes.
    fn end(&mut self) -> bool {
        let fast = self.stop(Signal::Int, FAST_SHUTDOWN);
        if !fast && !self.stop(Signal::Quit, Duration::from_secs(10)) {
            self.stop(Signal::Kill, Duration::from_secs(10));
        }
        fast
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let fast = self.end();
        if thread::panicking() {
            return self.print_log();
        }
        // What must never happen, whatever the scenario.
        if !fast {
            self.print_log();
            panic!("a fast shutdown took more than {FAST_SHUTDOWN:?}");
        }
        let crashed = ["PANIC:", "was terminated by signal", "panicked at"]
            .into_iter()
            .find(|sign| self.log().contains(sign));
        if let (Some(sign), false) = (crashed, self.may_crash.get()) {
            self.print_log();
            panic!("\"{sign}\" in the server's log");
        }
    }
}

/// A port of 127.0.0.1 on which nobody listens.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .unwrap_or_else(|e| panic!("no free port on 127.0.0.1: {e}"))
}
