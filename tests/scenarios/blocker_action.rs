//! What `slot_self_heal.blocker_action` does to the sessions that block.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use harness::{
    Blocker, Blocking, Cluster, Creator, Login, PATIENCE, Process, Session, Setup, SqlError,
    for_a_while, psql, runs, statements, wait_for, wait_until,
};

use crate::{Major, primary, with_extension, worker::renew_worker};

const SLOT: &str = "cdc_slot";

on_every_major!(
    terminate,
    cancel,
    cancel_in_vain,
    cancel_that_a_savepoint_survives,
    cancel_and_then_terminate,
    report_by_default,
    changed_while_a_creation_waits,
    commits_just_then,
    grace_across_tries,
    grace_across_workers,
    no_cancel_beside_a_synchronous_standby,
    silent_copy,
    copy_that_goes_on,
    message_that_still_comes,
    switched_off_and_on,
    blocker_without_a_client,
    locks_of_another_server,
);

scenarios!(
    on_every_major:
    cancel_while_it_commits = commit_on_its_way("cancel"),
    terminate_while_it_commits = commit_on_its_way("terminate"),
);

/// Ended by the server on somebody's command.
pub(crate) const TERMINATED: &str = "57P01";
pub(crate) const CANCELLED: &str = "57014";

/// The SQLSTATE too, after the backend's type.
const LOG_CODES: &str = "log_line_prefix = '%m [%p] %b %e '";

/// A primary with a role that may do no more than log in, and this action.
#[track_caller]
pub(crate) fn acting_primary(action: &str, grace: &str, scope: &str, setup: Setup) -> Cluster {
    let setup = setup
        .conf(&format!("slot_self_heal.blocker_action = '{action}'"))
        .conf(&format!("slot_self_heal.blocker_grace = '{grace}'"))
        .conf(&format!("slot_self_heal.blocker_scope = '{scope}'"));
    let cluster = with_extension(setup);
    cluster.run("CREATE ROLE app LOGIN");
    cluster
}

/// The application of that role.
pub(crate) fn app(cluster: &Cluster) -> Login {
    cluster
        .login()
        .role("app")
        .application(Blocker::APPLICATION)
}

/// A batch job: short statements in one long transaction, between which its
/// client thinks. Whenever it is looked at, it is at work or has just been.
pub(crate) struct Batch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Batch {
    #[track_caller]
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let mut session = app(cluster).application("batch").connect();
        session.run("BEGIN");
        session.run("SELECT pg_current_xact_id()");
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                session.run("SELECT pg_sleep(0.05)");
                thread::sleep(Duration::from_millis(150));
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }

    /// It was not hurt.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is finished once");
        thread.join().expect("the batch job goes on");
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// What the log says of a session that was ended.
pub(crate) fn terminating(blocking: &Blocking) -> String {
    format!(
        "terminating the session of transaction {}, which held up",
        blocking.xid
    )
}

pub(crate) fn cancelling(blocking: &Blocking) -> String {
    format!(
        "cancelling the statement of transaction {}, which held up",
        blocking.xid
    )
}

/// What it says of one that is not.
pub(crate) fn sparing(blocking: &Blocking) -> String {
    format!("slot_self_heal does not end transaction {}: ", blocking.xid)
}

/// Nobody's session was told to end.
#[track_caller]
pub(crate) fn check_nobody_was_told(cluster: &Cluster) {
    for does in ["terminating the session", "cancelling the statement"] {
        assert_eq!(cluster.count_in_log(does), 0, "{does}");
    }
}

/// It was ended, and the log says so once.
#[track_caller]
pub(crate) fn check_terminated(cluster: &Cluster, blocking: &mut Blocking) {
    cluster.wait_for_log(&terminating(blocking));
    let error = blocking.error();
    // The connection's end may reach our client before the error does.
    assert!([TERMINATED, ""].contains(&error.code.as_str()), "{error}");
    assert_eq!(cluster.count_in_log(&terminating(blocking)), 1);
}

/// By hand, as the view says.
#[track_caller]
pub(crate) fn end_by_hint(cluster: &Cluster) {
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    paste_to_end("postgres", cluster, status.hint());
    cluster.wait_for_state(SLOT, "ready");
}

/// Pastes a hint; one that leaves it to the operator whether the blocker is to
/// be ended does nothing, and its statement is copied out of its comment.
#[track_caller]
pub(crate) fn paste_to_end(database: &str, cluster: &Cluster, hint: &str) {
    cluster.paste_as_one(database, hint);
    if !runs(hint) {
        let statement = &statements(hint)[0];
        cluster.paste_as_one(database, statement);
    }
}

fn terminate(major: Major) {
    let cluster = acting_primary("terminate", "1s", "idle", Setup::new(major).conf(LOG_CODES));
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    let error = blocking.error();
    assert_eq!(error.code, TERMINATED, "{error}");
    let finished = cluster.wait_for_end_of(SLOT);
    assert_eq!(finished.outcome, "ready");
    assert_eq!(finished.blockers[0].xid, blocking.xid);

    for_a_while();
    let lines = cluster.worker_log();
    let said: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains(&terminating(&blocking)))
        .collect();
    let [said] = said[..] else {
        panic!("not said once: {lines:#?}");
    };
    assert!(said.contains(&format!(" {TERMINATED} LOG: ")), "{said}");
    assert!(said.contains(SLOT), "{said}");
    let pid = blocking.pid.expect("a session");
    let who = format!("pid {pid} (role app, database postgres, application orders");
    let detail = lines
        .iter()
        .find(|line| line.contains("DETAIL: ") && line.contains("blocker_action says so"));
    assert!(detail.is_some_and(|line| line.contains(&who)), "{lines:#?}");
}

fn cancel(major: Major) {
    let cluster = acting_primary("cancel", "1s", "any", Setup::new(major).conf(LOG_CODES));
    let mut blocking = Blocker::Active.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    let error = blocking.error();
    assert_eq!(error.code, CANCELLED, "{error}");
    // the session lives on
    let pid = blocking.pid.expect("a session");
    assert!(cluster.is_true(&format!(
        "SELECT state = 'idle in transaction (aborted)' FROM pg_stat_activity WHERE pid = {pid}"
    )));
    let lines = cluster.worker_log();
    let said: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains(&cancelling(&blocking)))
        .collect();
    assert_eq!(said.len(), 1, "{lines:#?}");
    assert!(said[0].contains(&format!(" {CANCELLED} LOG: ")), "{said:?}");
}

/// Postgres ignores a cancel request in a session that runs nothing.
fn cancel_in_vain(major: Major) {
    let cluster = acting_primary("cancel", "100ms", "any", Setup::new(major));
    let blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let reason = "Postgres ignores a cancel request there";
    cluster.wait_for_log(&sparing(&blocking));
    let status = cluster.wait_for_status(SLOT, "the reason", |status| {
        status.detail().contains(reason)
    });
    assert!(status.detail().contains("does not end it"), "{status:#?}");
    for_a_while();
    assert_eq!(cluster.count_in_log(&sparing(&blocking)), 1);
    assert_eq!(cluster.count_in_log(reason), 1);
    check_nobody_was_told(&cluster);

    let cancelled = cancelling(&blocking);
    let mut statement = blocking.into_session().start("SELECT pg_sleep(3600)");
    let error = statement.result().expect_err("it was to be cancelled");
    assert_eq!(error.code, CANCELLED, "{error}");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.count_in_log(&cancelled), 1);
}

/// A psql that rolls a failed statement back, and no more, in a transaction of
/// the role's.
pub(crate) struct Stubborn {
    psql: Process,
    pub(crate) xid: String,
}

impl Stubborn {
    /// It runs one long statement after the other.
    #[track_caller]
    pub(crate) fn start(cluster: &Cluster) -> Stubborn {
        let mut psql = psql(cluster, &app(cluster).conninfo());
        psql.type_line("\\set ON_ERROR_ROLLBACK on");
        psql.type_line("BEGIN;");
        psql.type_line("SELECT 'holds', pg_current_xact_id()::xid \\g (format=csv)");
        psql.type_line("SELECT pg_sleep(3600);");
        psql.type_line("SELECT pg_sleep(7200);");
        let xid = wait_for("the xid of psql", PATIENCE, || {
            let printed = psql.printed();
            let line = printed.lines().find_map(|line| line.strip_prefix("holds,"));
            line.map(str::to_owned).ok_or(printed)
        });
        Stubborn { psql, xid }
    }

    /// Waits until the first statement was cancelled, and the second runs in the
    /// same transaction.
    #[track_caller]
    pub(crate) fn survives(&self, cluster: &Cluster) {
        cluster.wait_for_log("canceling statement due to user request");
        wait_until("its second statement", PATIENCE, || {
            self.goes_on(cluster, "SELECT pg_sleep(7200);")
        });
    }

    #[track_caller]
    pub(crate) fn goes_on(&self, cluster: &Cluster, query: &str) -> bool {
        cluster.is_true(&format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid = '{}' \
             AND query = '{query}' AND state = 'active')",
            self.xid
        ))
    }
}

/// Whoever sets savepoints goes on in the same transaction. One signal is
/// enough to see that.
fn cancel_that_a_savepoint_survives(major: Major) {
    let cluster = acting_primary("cancel", "100ms", "any", Setup::new(major));
    let stubborn = Stubborn::start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    stubborn.survives(&cluster);
    for_a_while();
    assert!(stubborn.goes_on(&cluster, "SELECT pg_sleep(7200);"));
    let said = format!("cancelling the statement of transaction {}", stubborn.xid);
    assert_eq!(cluster.count_in_log(&said), 1);
    assert_eq!(cluster.count_in_log("due to user request"), 1);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(
        status.detail().contains("has cancelled its statement"),
        "{status:#?}"
    );
    end_by_hint(&cluster);
    creation.finish().unwrap();
}

/// What it was told is known after a pause.
fn switched_off_and_on(major: Major) {
    let cluster = acting_primary("cancel", "100ms", "any", Setup::new(major));
    let stubborn = Stubborn::start(&cluster);
    let _creation = Creator::Walsender.start(&cluster, SLOT);
    stubborn.survives(&cluster);
    cluster.set("slot_self_heal.enabled", "off");
    for_a_while();
    cluster.set("slot_self_heal.enabled", "on");
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    for_a_while();
    assert_eq!(cluster.count_in_log("due to user request"), 1);
}

/// The operator sees that it did not help, and allows more.
fn cancel_and_then_terminate(major: Major) {
    let cluster = acting_primary("cancel", "100ms", "any", Setup::new(major));
    let mut stubborn = Stubborn::start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    stubborn.survives(&cluster);
    cluster.set("slot_self_heal.blocker_action", "'terminate'");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    stubborn.psql.finish();
    let printed = stubborn.psql.printed();
    assert!(printed.contains("terminating connection"), "{printed}");
}

fn report_by_default(major: Major) {
    let setup = Setup::new(major)
        .conf("slot_self_heal.blocker_grace = 0")
        .conf("slot_self_heal.blocker_scope = 'any'");
    let cluster = with_extension(setup);
    cluster.run("CREATE ROLE app LOGIN");
    let idle = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let active = Blocker::Active.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "both", |status| status.blockers.len() == 2);
    for_a_while();
    assert!(idle.goes_on(&cluster) && active.goes_on(&cluster));
    check_nobody_was_told(&cluster);
    assert_eq!(cluster.count_in_log("slot_self_heal does not end"), 0);
    assert!(!status.detail().contains("does not end"), "{status:#?}");
    end_by_hint(&cluster);
    creation.finish().unwrap();
}

/// Each setting counts at once, also for whom a creation waits for already.
fn changed_while_a_creation_waits(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE ROLE app LOGIN");
    let mut blocking = Blocker::Active.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    cluster.set("slot_self_heal.blocker_action", "'terminate'");
    for_a_while();
    assert!(blocking.goes_on(&cluster), "within its grace");
    assert_eq!(cluster.count_in_log(&sparing(&blocking)), 0);

    cluster.set("slot_self_heal.blocker_grace", "'1s'");
    cluster.wait_for_log(&sparing(&blocking));
    assert!(blocking.goes_on(&cluster), "active");

    cluster.set("slot_self_heal.blocker_scope", "'any'");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    check_terminated(&cluster, &mut blocking);
}

/// A session commits what blocked at about the end of its grace and works on in
/// transactions that block nothing. Either is told to end while the former
/// runs, or never.
fn commits_just_then(major: Major) {
    const GRACE: Duration = Duration::from_millis(200);
    const ROUNDS: i32 = 30;
    let cluster = acting_primary("terminate", "200ms", "any", Setup::new(major));
    cluster.run("CREATE TABLE written (round int)");
    cluster.run("GRANT INSERT ON written TO app");
    let mut told = 0;
    for round in 0..ROUNDS {
        let slot = format!("slot_{round}");
        let mut session = app(&cluster).connect();
        session.run("BEGIN");
        session.run(&format!("INSERT INTO written VALUES ({round})"));
        let xid = session.value("SELECT pg_current_xact_id()::xid");
        let mut creation = Creator::SqlFunction.start(&cluster, &slot);
        cluster.wait_for_state(&slot, "waiting_for_transactions");
        // from 30 ms before it to 30 ms after
        let early = Duration::from_millis(30);
        let later = Duration::from_millis(2 * round as u64);
        sleep_until(waits_since(&cluster, &slot) + GRACE - early + later);

        let ended = work_on(&mut session);
        creation.finish().unwrap();
        let line = format!("terminating the session of transaction {xid}, ");
        assert_eq!(cluster.count_in_log(&line), usize::from(ended.is_some()));
        told += usize::from(ended.is_some());
        if let Some(error) = ended {
            assert!(error.code == TERMINATED || error.code.is_empty(), "{error}");
        }
        cluster.run(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
    assert_eq!(cluster.count_in_log("terminating the session"), told);
    // Those that were ended without a commit have written nothing.
    let written = cluster.number("SELECT count(DISTINCT round) FROM written WHERE round >= 0");
    assert!(
        written + told as i64 >= i64::from(ROUNDS),
        "{written} {told}"
    );
}

/// Commits and does more. What ends the session, if anything does, comes at the
/// latest with the commit: no answer to a later statement precedes it.
#[track_caller]
fn work_on(session: &mut Session) -> Option<SqlError> {
    if let Err(error) = session.try_run("COMMIT") {
        return Some(error);
    }
    if let Err(error) = session.try_run("INSERT INTO written VALUES (-1)") {
        return Some(error);
    }
    for _ in 0..100 {
        session.run("INSERT INTO written VALUES (-1)");
    }
    None
}

fn sleep_until(time: SystemTime) {
    if let Ok(left) = time.duration_since(SystemTime::now()) {
        thread::sleep(left);
    }
}

/// A client whose tries end with this SQLSTATE, until one succeeds; how many it
/// took.
#[track_caller]
pub(crate) fn create_again_and_again(client: &mut Session, code: &str) -> usize {
    let create = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    let mut tries = 0;
    wait_for("a try that succeeds", PATIENCE, || {
        tries += 1;
        client.try_run(&create).map_err(|error| {
            assert_eq!(error.code, code, "{error}");
            format!("try {tries}: {error}")
        })
    });
    tries
}

/// A client that gives up long before the grace is over, and tries again.
fn grace_across_tries(major: Major) {
    let cluster = acting_primary("terminate", "5s", "idle", Setup::new(major));
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut client = cluster.login().application("cdc").connect();
    client.run("SET lock_timeout = '1s'");
    let tries = create_again_and_again(&mut client, "55P03");
    assert!(tries >= 4, "{tries} tries of a second at the most");
    check_terminated(&cluster, &mut blocking);
    let lines = cluster.worker_log();
    let said = lines
        .iter()
        .find(|line| line.contains(&terminating(&blocking)));
    let said = said.expect("it was ended");
    assert!(said.contains("for 5 s"), "{said}");
}

/// What is known of a blocker survives the worker that knew it.
fn grace_across_workers(major: Major) {
    let cluster = acting_primary("terminate", "6s", "idle", Setup::new(major));
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let waits_for = |seconds: u32| {
        cluster.wait_until_sql(
            "a creation that has waited for some time",
            &format!(
                "EXISTS (SELECT FROM slot_self_heal_status \
                 WHERE state_since < now() - interval '{seconds} s')"
            ),
        );
    };
    let creation = Creator::SqlFunction.start(&cluster, SLOT);
    waits_for(4);
    drop(creation);
    cluster.wait_until_sql("its end", "NOT EXISTS (SELECT FROM pg_replication_slots)");
    renew_worker(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    check_terminated(&cluster, &mut blocking);
    // Four seconds of the first try, and not all six of the second.
    cluster.wait_until_sql(
        "both tries to have taken less than the grace of each",
        "EXISTS (SELECT FROM slot_self_heal_history \
         WHERE outcome = 'ready' AND tries = 2 AND waited_for_transactions < interval '10 s')",
    );
}

/// Where the commit record takes its time to the disk, a session commits at the
/// end of its grace and goes on. Whoever has committed works on unharmed.
fn commit_on_its_way(action: &str, major: Major) {
    const GRACE: Duration = Duration::from_millis(500);
    let setup = Setup::new(major)
        .conf("fsync = on")
        .conf("commit_delay = 100000") // in microseconds
        .conf("commit_siblings = 0");
    let cluster = acting_primary(action, "500ms", "any", setup);
    cluster.run("CREATE TABLE written (round int, part int)");
    cluster.run("GRANT INSERT ON written TO app");
    for round in 0..8 {
        let slot = format!("slot_{round}");
        let mut session = app(&cluster).connect();
        session.run("BEGIN");
        session.run(&format!("INSERT INTO written VALUES ({round}, 1)"));
        let mut creation = Creator::SqlFunction.start(&cluster, &slot);
        cluster.wait_for_state(&slot, "waiting_for_transactions");
        sleep_until(waits_since(&cluster, &slot) + GRACE - Duration::from_millis(50));

        let went_on = session.try_run(&format!("COMMIT; INSERT INTO written VALUES ({round}, 2)"));
        let has_committed = cluster.is_true(&format!(
            "SELECT EXISTS (SELECT FROM written WHERE round = {round} AND part = 1)"
        ));
        if let Err(error) = went_on {
            assert!(!has_committed, "its next transaction was ended: {error}");
        }
        drop(session);
        creation.finish().unwrap();
        cluster.run(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
}

/// Since when a creation has waited for its transactions.
#[track_caller]
fn waits_since(cluster: &Cluster, slot: &str) -> SystemTime {
    let since = cluster.value(&format!(
        "SELECT (1000 * extract(epoch FROM state_since))::bigint \
         FROM slot_self_heal_status WHERE slot_name = '{slot}'"
    ));
    UNIX_EPOCH + Duration::from_millis(since.parse().expect("milliseconds"))
}

/// It could reach a commit that waits for the standby, and cut the wait short.
fn no_cancel_beside_a_synchronous_standby(major: Major) {
    let setup = Setup::new(major)
        .conf("synchronous_standby_names = 'away'")
        .conf("synchronous_commit = local");
    let cluster = acting_primary("cancel", "100ms", "any", setup);
    let mut blocking = Blocker::Active.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log(&format!(
        "{}synchronous_standby_names is set",
        sparing(&blocking)
    ));
    for_a_while();
    check_nobody_was_told(&cluster);
    cluster.set("synchronous_standby_names", "''");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(blocking.error().code, CANCELLED);
}

/// A psql of the role's in the middle of a COPY FROM STDIN, and its xid.
#[track_caller]
pub(crate) fn start_copy(cluster: &Cluster) -> (Process, String) {
    cluster.run("CREATE TABLE copied (filler text)");
    cluster.run("GRANT INSERT ON copied TO app");
    let mut psql = psql(cluster, &app(cluster).conninfo());
    psql.type_line("BEGIN;");
    psql.type_line("SELECT pg_current_xact_id();");
    psql.type_line("COPY copied FROM STDIN;");
    let copies = "SELECT backend_xid FROM pg_stat_activity WHERE state = 'active' \
                  AND wait_event = 'ClientRead' AND query LIKE 'COPY%'";
    let xid = wait_for("the COPY", PATIENCE, || {
        cluster
            .observe(|session| session.maybe(copies))
            .ok_or_else(|| psql.printed())
    });
    (psql, xid)
}

/// Whatever its state is called, it is idle.
fn silent_copy(major: Major) {
    let cluster = acting_primary("terminate", "100ms", "idle", Setup::new(major));
    let (_psql, xid) = start_copy(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log(&format!("terminating the session of transaction {xid}, "));
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// One whose client sends something now and then is not.
fn copy_that_goes_on(major: Major) {
    let cluster = acting_primary("terminate", "100ms", "idle", Setup::new(major));
    let (mut psql, xid) = start_copy(&cluster);
    let _creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    // More than psql keeps back.
    let line = "x".repeat(10_000);
    wait_until("a long time for so short a grace", PATIENCE, || {
        psql.type_line(&line);
        cluster.is_true(
            "SELECT EXISTS (SELECT FROM slot_self_heal_status \
             WHERE creation_started < now() - interval '4 s')",
        )
    });
    check_nobody_was_told(&cluster);
    assert!(cluster.is_true(&format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid = '{xid}')"
    )));
}

/// A client that sends one statement, and takes its time: to the server it is idle
/// until the last byte has come.
fn message_that_still_comes(major: Major) {
    let cluster = acting_primary("terminate", "100ms", "idle", Setup::new(major));
    let role = "app";
    let mut client = TcpStream::connect(("127.0.0.1", cluster.port())).unwrap();
    let parameters = format!("user\0{role}\0database\0postgres\0\0");
    send(
        &mut client,
        None,
        &[&196_608_u32.to_be_bytes(), parameters.as_bytes()].concat(),
    );
    wait_until_ready(&mut client);
    send(
        &mut client,
        Some(b'Q'),
        b"BEGIN; SELECT pg_current_xact_id()\0",
    );
    wait_until_ready(&mut client);
    let of_it =
        format!("FROM pg_stat_activity WHERE usename = '{role}' AND backend_xid IS NOT NULL");
    let xid = cluster.value(&format!("SELECT backend_xid {of_it}"));

    let _creation = Creator::Walsender.start(&cluster, SLOT);
    client.write_all(&[b'Q', 1, 0, 0, 0]).unwrap();
    wait_until("a long time for so short a grace", PATIENCE, || {
        client.write_all(&[b' '; 1000]).unwrap();
        cluster.is_true(
            "SELECT EXISTS (SELECT FROM slot_self_heal_status \
             WHERE creation_started < now() - interval '5 s')",
        )
    });
    check_nobody_was_told(&cluster);
    assert!(cluster.is_true(&format!("SELECT EXISTS (SELECT {of_it})")));
    // It stops in the middle.
    cluster.wait_for_log(&format!("terminating the session of transaction {xid}, "));
}

fn send(client: &mut TcpStream, kind: Option<u8>, body: &[u8]) {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    let message = [kind.as_slice(), &length, body].concat();
    client.write_all(&message).unwrap();
}

#[track_caller]
fn wait_until_ready(client: &mut TcpStream) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    loop {
        let mut head = [0; 5];
        client.read_exact(&mut head).unwrap();
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length) - 4;
        let mut body = vec![0; length.try_into().unwrap()];
        client.read_exact(&mut body).unwrap();
        if kind == b'Z' {
            return;
        }
    }
}

/// Its statement goes on for nobody, and the server does not notice.
fn blocker_without_a_client(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE ROLE app LOGIN");
    let mut psql = psql(&cluster, &app(&cluster).conninfo());
    psql.type_line("BEGIN;");
    psql.type_line("SELECT pg_current_xact_id();");
    psql.type_line("SELECT pg_sleep(3600);");
    cluster.wait_until_sql(
        "its statement",
        "EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
         AND wait_event = 'PgSleep')",
    );
    let _creation = Creator::Walsender.start(&cluster, SLOT);
    let is_gone = |gone: bool| {
        cluster.wait_for_status(SLOT, "its client", |status| {
            let blocker = status.blockers.first();
            let said = status.detail().contains("for a client that is gone");
            said == gone && blocker.is_some_and(|blocker| blocker.client_gone == Some(gone))
        })
    };
    is_gone(false);
    psql.kill();
    is_gone(true);
}

/// Nothing is signalled under a lock that may be another one.
fn locks_of_another_server(major: Major) {
    let setup = Setup::new(major)
        .conf("shared_preload_libraries = 'renamed_lock, slot_self_heal'")
        .conf("slot_self_heal.creation_timeout = '2s'");
    let cluster = acting_primary("terminate", "100ms", "idle", setup);
    let why = "slot_self_heal ends no session and no creation";
    cluster.wait_for_log(why);
    let blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log(&format!("{}this server's locks", sparing(&blocking)));
    for_a_while();
    check_nobody_was_told(&cluster);
    assert!(blocking.goes_on(&cluster), "it was ended");
    assert_eq!(cluster.count_in_log(why), 1);
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}
