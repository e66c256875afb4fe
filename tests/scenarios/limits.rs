//! Creations that take too long or hold back too much WAL, where the operator
//! has set a limit: they are cancelled, and nothing else is.

use harness::{
    Blocker, Blocking, Cluster, Creator, Finished, Login, Running, Setup, Status, for_a_while,
};

use crate::{Major, primary, with_extension, worker::renew_worker};

pub(crate) const SLOT: &str = "cdc_slot";

pub(crate) const TIMEOUT: &str = "slot_self_heal.creation_timeout";
pub(crate) const RETAINED_WAL: &str = "slot_self_heal.max_retained_wal";

/// With the SQLSTATE in each line of the log.
pub(crate) const LOG_CODES: &str = "log_line_prefix = '%m [%p] %b %e '";

const CANCEL_ERROR: &str = "canceling statement due to user request";

scenarios!(
    on_every_major:
    walsender = cancelled_after_its_time(Creator::Walsender),
    temporary_walsender = cancelled_after_its_time(Creator::TemporaryWalsender),
    pg_recvlogical = cancelled_after_its_time(Creator::PgRecvlogical),
    sql_function = cancelled_after_its_time(Creator::SqlFunction),
    temporary_sql_function = cancelled_after_its_time(Creator::TemporarySqlFunction),
    subscription = cancelled_after_its_time(Creator::Subscription),
    background_worker = cancelled_after_its_time(Creator::BackgroundWorker),
    psycopg = cancelled_after_its_time(Creator::Psycopg),
    psycopg_walsender = cancelled_after_its_time(Creator::PsycopgWalsender),
);

on_every_major!(
    ends_in_time,
    begun_before_the_limit,
    begun_before_a_limit_of_its_own,
    the_most_special_counts,
    for_all_roles,
    not_what_is_set_for_the_workers_own_session,
    stored_unchecked,
    too_much_wal,
    too_much_wal_of_a_role,
    set_by_a_session,
    set_by_an_ordinary_role,
    no_wal_at_all,
);

/// What is seen of a creation that was cancelled because of a setting.
#[track_caller]
pub(crate) fn check_cancelled(cluster: &Cluster, status: &Status, setting: &str) -> Finished {
    let slot = &status.slot_name;
    let finished = cluster.wait_for_end_of(slot);
    assert_eq!(
        finished.outcome, "cancelled by slot_self_heal",
        "{finished:#?}"
    );
    assert_eq!(finished.creator_type, status.creator_type);
    assert_eq!(finished.creator_application, status.creator_application);
    assert_eq!(finished.started_at, status.creation_started);
    assert!(finished.ended_at.is_some());
    // another may have begun
    let left = cluster.status(slot);
    assert!(left.is_none_or(|other| other.creator_pid != status.creator_pid));

    let whole = format!("the creation of logical replication slot \"{slot}\" was cancelled after");
    cluster.wait_for_log(&whole);
    let log = cluster.worker_log();
    let count = |begins: &str| log.iter().filter(|line| line.contains(begins)).count();
    let cancelling =
        format!("57014 LOG:  cancelling the creation of logical replication slot \"{slot}\" after");
    assert_eq!(count(&cancelling), 1, "{log:#?}");
    assert_eq!(count(&format!("57014 LOG:  {whole}")), 1, "{log:#?}");
    let creator = status.creator_pid.expect("it was being created");
    let detail = format!("DETAIL:  {setting} says so. Its creator was pid {creator} ");
    assert_eq!(count(&detail), 1, "{log:#?}");

    // Postgres's own words, once
    let said = format!("57014 ERROR:  {CANCEL_ERROR}");
    let creators = format!("[{creator}] ");
    let log = cluster.log();
    let said = log
        .lines()
        .filter(|line| line.contains(&creators) && line.contains(&said));
    assert_eq!(said.count(), 1, "{log}");
    finished
}

/// It goes on as if nothing had happened.
#[track_caller]
pub(crate) fn check_untouched(cluster: &Cluster, mut blocking: Blocking) {
    let (pid, xid) = (blocking.pid.unwrap(), &blocking.xid);
    assert!(cluster.is_true(&format!(
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND backend_xid = '{xid}'"
    )));
    blocking.session().run("CREATE TABLE untouched ()");
    blocking.commit();
}

fn cancelled_after_its_time(creator: Creator, major: Major) {
    let setup = Setup::new(major)
        .conf("slot_self_heal.creation_timeout = '5s'")
        .conf(LOG_CODES);
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = creator.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let announced = "It is cancelled after 5 s (slot_self_heal.creation_timeout).";
    assert!(status.detail().contains(announced), "{status:#?}");

    let result = creation.finish();
    // of a background worker the log tells
    if creator != Creator::BackgroundWorker {
        let error = result.expect_err("the client gets no slot");
        assert!(error.contains(CANCEL_ERROR), "{error}");
    }
    let finished = check_cancelled(&cluster, &status, TIMEOUT);
    assert_eq!(finished.blockers.len(), 1, "{finished:#?}");
    assert_eq!(finished.blockers[0].pid, blocking.pid);
    assert_eq!(finished.blockers[0].xid, blocking.xid);
    assert!(finished.waited_for_transactions > 0.0, "{finished:#?}");
    assert!(cluster.is_true(
        "SELECT ended_at - started_at >= '5s' AND waited_for_transactions <= ended_at - started_at \
         FROM slot_self_heal_history"
    ));
    let pid = blocking.pid.unwrap();
    let log = cluster.worker_log();
    let has = |label: &str, text: &str| {
        let mut lines = log.iter();
        lines.any(|line| line.contains(label) && line.contains(text))
    };
    let setting = format!("DETAIL:  {TIMEOUT} says so.");
    assert!(has(&setting, &format!("held by pid {pid} ")) || has(&setting, &format!("pid {pid} ")));
    let worker = cluster.worker();
    assert_eq!(worker.cancelled, Some(1));
    assert_eq!(worker.healed, Some(0));
    assert_eq!(worker.last_error, None);
    check_untouched(&cluster, blocking);
    assert_eq!(
        cluster.number("SELECT count(*) FROM pg_replication_slots"),
        0
    );

    // once the blocker has ended there is time enough
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    creation.finish().unwrap();
}

fn ends_in_time(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.creation_timeout = '1min'");
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    for_a_while();
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.wait_for_end_of(SLOT).outcome, "ready");
    assert_eq!(cluster.worker().cancelled, Some(0));
}

fn begun_before_the_limit(major: Major) {
    let cluster = with_extension(Setup::new(major).conf(LOG_CODES));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    for_a_while();
    assert!(cluster.status(SLOT).is_some());
    cluster.set(TIMEOUT, "'1s'");
    let error = creation.statement().unwrap().result().unwrap_err();
    assert_eq!(error.code, "57014", "{error}");
    assert_eq!(error.message, CANCEL_ERROR);
    check_cancelled(&cluster, &status, TIMEOUT);
    check_untouched(&cluster, blocking);
}

/// Unlike Postgres's own settings, which such a command changes for sessions
/// that begin later.
fn begun_before_a_limit_of_its_own(major: Major) {
    let cluster = with_extension(Setup::new(major).conf(LOG_CODES));
    create_role(&cluster, "cdc");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = create(&cluster.login().role("cdc"), SLOT);
    let mut other = create(&cluster.login(), "another");
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    cluster.wait_for_state("another", "waiting_for_transactions");
    cluster.run("ALTER ROLE cdc IN DATABASE postgres SET slot_self_heal.creation_timeout = '1s'");
    let error = creation.result().unwrap_err();
    assert_eq!(error.code, "57014", "{error}");
    check_cancelled(&cluster, &status, TIMEOUT);
    for_a_while();
    assert!(!other.is_finished());
    blocking.commit();
    other.result().unwrap();
}

fn create_role(cluster: &Cluster, role: &str) {
    cluster.run(&format!("CREATE ROLE {role} LOGIN REPLICATION"));
}

/// [`Creator::SqlFunction`], by somebody else or elsewhere.
fn create(login: &Login, slot: &str) -> Running {
    login.clone().application("cdc").start(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))
}

/// What the detail of a status says of a limit of time.
fn announced(limit: &str) -> String {
    format!("It is cancelled after {limit} (slot_self_heal.creation_timeout).")
}

/// As with any setting: a role in a database, a role, a database, and the
/// server at last.
fn the_most_special_counts(major: Major) {
    const NEVER: &str = "";
    let setup = Setup::new(major).conf("slot_self_heal.creation_timeout = '8s'");
    let cluster = with_extension(setup);
    for sql in [
        "CREATE DATABASE shop",
        "CREATE DATABASE attic",
        "ALTER DATABASE attic SET slot_self_heal.creation_timeout = 0",
        "CREATE ROLE anybody LOGIN REPLICATION",
        "CREATE ROLE patient LOGIN REPLICATION",
        "ALTER ROLE patient SET slot_self_heal.creation_timeout = 0",
        "ALTER ROLE patient IN DATABASE shop SET slot_self_heal.creation_timeout = '7s'",
        "CREATE ROLE hasty LOGIN REPLICATION",
        "ALTER ROLE hasty SET slot_self_heal.creation_timeout = 6000",
        "ALTER ROLE hasty IN DATABASE shop SET slot_self_heal.creation_timeout = '2h'",
    ] {
        cluster.run(sql);
    }
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creations: Vec<(String, &str, Running)> = [
        ("anybody", "postgres", "8 s"),
        ("anybody", "shop", "8 s"),
        ("anybody", "attic", NEVER),
        ("patient", "postgres", NEVER),
        ("patient", "shop", "7 s"),
        ("hasty", "postgres", "6 s"),
        ("hasty", "attic", "6 s"),
        ("hasty", "shop", "2 h"),
    ]
    .into_iter()
    .map(|(role, database, limit)| {
        let slot = format!("{role}_{database}");
        let login = cluster.login().role(role).database(database);
        let running = create(&login, &slot);
        (slot, limit, running)
    })
    .collect();
    for (slot, limit, _) in &creations {
        let status = cluster.wait_for_state(slot, "waiting_for_transactions");
        let detail = status.detail();
        match *limit {
            NEVER => assert!(!detail.contains("cancelled"), "{slot}: {detail}"),
            limit => assert!(detail.contains(&announced(limit)), "{slot}: {detail}"),
        }
    }
    let is_short = |limit: &str| limit.ends_with(" s");
    for (slot, limit, running) in &mut creations {
        if is_short(limit) {
            let error = running.result().expect_err(slot);
            assert_eq!(error.code, "57014", "{slot}: {error}");
        }
    }
    for_a_while();
    blocking.commit();
    for (slot, limit, running) in &mut creations {
        if !is_short(limit) {
            running.result().expect(slot);
        }
    }
    cluster.wait_for_worker("the ends of five", |worker| worker.cancelled == Some(5));
}

fn for_all_roles(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.creation_timeout = '1h'");
    let cluster = with_extension(setup);
    cluster.run("CREATE DATABASE shop");
    create_role(&cluster, "patient");
    cluster.run("ALTER ROLE ALL SET slot_self_heal.creation_timeout = '4s'");
    cluster.run("ALTER ROLE patient SET slot_self_heal.creation_timeout = 0");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut patient = create(&cluster.login().role("patient"), "patient");
    let mut other = create(&cluster.login().database("shop"), "another");
    let error = other.result().unwrap_err();
    assert_eq!(error.code, "57014", "{error}");
    for_a_while();
    assert!(!patient.is_finished());
    blocking.commit();
    patient.result().unwrap();
}

/// The worker is a session of this role in this database, which are not
/// everybody's.
fn not_what_is_set_for_the_workers_own_session(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE DATABASE shop");
    create_role(&cluster, "anybody");
    cluster.run("ALTER DATABASE postgres SET slot_self_heal.creation_timeout = '4s'");
    cluster.run("ALTER ROLE postgres SET slot_self_heal.max_retained_wal = '1MB'");
    // what the scenario sees of it, a session sees that began after that
    cluster.forget_observer();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let elsewhere = cluster.login().role("anybody").database("shop");
    let mut going_on = create(&elsewhere, "going_on");
    let goes_on = |running: &mut Running, slot: &str| {
        for_a_while();
        let status = cluster.wait_for_state(slot, "waiting_for_transactions");
        assert!(!status.detail().contains("cancelled"), "{status:#?}");
        assert!(!running.is_finished());
    };
    goes_on(&mut going_on, "going_on");
    cluster.reload();
    goes_on(&mut going_on, "going_on");
    renew_worker(&cluster);
    goes_on(&mut going_on, "going_on");
    cluster.reload();
    write_wal(&cluster, 3);
    let mut another = create(&elsewhere, "another");
    goes_on(&mut going_on, "going_on");
    goes_on(&mut another, "another");

    // for whom it is set it counts
    let mut here = create(&cluster.login().role("anybody"), "here");
    let error = here.result().unwrap_err();
    assert_eq!(error.code, "57014", "{error}");
    goes_on(&mut going_on, "going_on");
    blocking.commit();
    going_on.result().unwrap();
    another.result().unwrap();
    cluster.wait_until_ready("going_on");
    assert_eq!(cluster.worker().cancelled, Some(1));
}

/// Without the library a setting is any text. What is no limit counts for
/// nothing, and the worker goes on.
fn stored_unchecked(major: Major) {
    let mut cluster = Setup::new(major).without_extension().start();
    create_role(&cluster, "careless");
    create_role(&cluster, "mistaken");
    cluster.run("ALTER ROLE careless SET slot_self_heal.creation_timeout = 'soon'");
    cluster.run("ALTER ROLE careless SET slot_self_heal.max_retained_wal = '5 parsecs'");
    cluster.run("ALTER ROLE mistaken SET slot_self_heal.creation_timeout = '-5s'");
    cluster.run("ALTER ROLE mistaken SET slot_self_heal.max_retained_wal = '0'");
    cluster.stop_fast();
    cluster.append_to_auto_conf("shared_preload_libraries = 'slot_self_heal'");
    cluster.append_to_auto_conf("slot_self_heal.creation_timeout = '6s'");
    cluster.start_again();
    cluster.create_extension();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    for role in ["careless", "mistaken"] {
        let mut creation = create(&cluster.login().role(role), role);
        let status = cluster.wait_for_state(role, "waiting_for_transactions");
        assert!(status.detail().contains(&announced("6 s")), "{status:#?}");
        assert!(!status.detail().contains(RETAINED_WAL), "{status:#?}");
        let error = creation.result().unwrap_err();
        assert_eq!(error.code, "57014", "{error}");
    }
    assert_eq!(cluster.worker().last_error, None);
    blocking.commit();
}

/// Writes about so many megabytes, and flushes them.
#[track_caller]
pub(crate) fn write_wal(cluster: &Cluster, megabytes: usize) {
    for _ in 0..megabytes {
        cluster.run("SELECT pg_logical_emit_message(true, '', repeat('x', 1024 * 1024))");
    }
}

fn too_much_wal(major: Major) {
    let setup = Setup::new(major)
        .conf("slot_self_heal.max_retained_wal = '3MB'")
        .conf(LOG_CODES);
    let cluster = with_extension(setup);
    // what was written before is not held back
    write_wal(&cluster, 4);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    write_wal(&cluster, 2);
    for_a_while();
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let announced = "It is cancelled when it holds back more than 3 MB of WAL \
                     (slot_self_heal.max_retained_wal).";
    assert!(status.detail().contains(announced), "{status:#?}");
    assert!(status.retained_wal.unwrap() > 2 << 20, "{status:#?}");

    write_wal(&cluster, 2);
    let error = creation.finish().expect_err("it was cancelled");
    assert!(error.contains(CANCEL_ERROR), "{error}");
    let finished = check_cancelled(&cluster, &status, RETAINED_WAL);
    assert!(finished.max_retained_wal > Some(3 << 20), "{finished:#?}");
    assert_eq!(finished.blockers[0].pid, blocking.pid);
    assert_eq!(cluster.worker().cancelled, Some(1));
    assert_eq!(cluster.count_in_log("of WAL, more than 3 MB"), 1);
    check_untouched(&cluster, blocking);
}

fn too_much_wal_of_a_role(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.max_retained_wal = '1MB'");
    let cluster = with_extension(setup);
    create_role(&cluster, "anybody");
    create_role(&cluster, "patient");
    create_role(&cluster, "frugal");
    cluster.run("ALTER ROLE patient SET slot_self_heal.max_retained_wal = -1");
    cluster.run("ALTER ROLE frugal SET slot_self_heal.max_retained_wal = '8MB'");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let [mut anybody, mut patient, mut frugal] = ["anybody", "patient", "frugal"].map(|role| {
        let running = create(&cluster.login().role(role), role);
        cluster.wait_for_state(role, "waiting_for_transactions");
        running
    });
    write_wal(&cluster, 2);
    assert_eq!(anybody.result().unwrap_err().code, "57014");
    for_a_while();
    assert!(!frugal.is_finished());
    write_wal(&cluster, 8);
    assert_eq!(frugal.result().unwrap_err().code, "57014");
    for_a_while();
    assert!(!patient.is_finished());
    blocking.commit();
    patient.result().unwrap();
}

/// The worker would not see it.
fn set_by_a_session(major: Major) {
    let cluster = primary(major);
    let mut session = cluster.connect();
    let message = "invalid value for parameter \"slot_self_heal.";
    let hint = "Set it in postgresql.conf, or with ALTER DATABASE or ALTER ROLE.";
    for sql in [
        "SET slot_self_heal.creation_timeout = '1s'",
        "SET LOCAL slot_self_heal.max_retained_wal = '1MB'",
        "SELECT set_config('slot_self_heal.creation_timeout', '1s', false)",
    ] {
        let error = session.error(sql);
        assert_eq!(error.code, "55P02", "{sql}: {error}");
        assert!(error.message.starts_with(message), "{error}");
        assert!(error.detail.contains("does not see"), "{error}");
        assert_eq!(error.hint, hint);
    }
    let mut psql = cluster.client("psql");
    psql.args(["--no-psqlrc", "--dbname", &cluster.login().conninfo()])
        .env("PGOPTIONS", "-c slot_self_heal.creation_timeout=1s");
    let output = psql.output().expect("it runs");
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains(message), "{printed}");
    assert!(printed.contains(&format!("HINT:  {hint}")), "{printed}");
}

/// Nor may who owns a database.
fn set_by_an_ordinary_role(major: Major) {
    let cluster = primary(major);
    create_role(&cluster, "owner");
    cluster.run("CREATE DATABASE owned OWNER owner");
    let mut session = cluster.login().role("owner").database("owned").connect();
    for sql in [
        "ALTER ROLE owner SET slot_self_heal.creation_timeout = 0",
        "ALTER ROLE owner IN DATABASE owned SET slot_self_heal.creation_timeout = 0",
        "ALTER DATABASE owned SET slot_self_heal.max_retained_wal = -1",
        "SET slot_self_heal.creation_timeout = 0",
    ] {
        assert_eq!(session.error(sql).code, "42501", "{sql}");
    }
}

/// It would end every creation, and who means "none" writes so.
fn no_wal_at_all(major: Major) {
    let cluster = primary(major);
    let mut session = cluster.connect();
    for sql in [
        "ALTER SYSTEM SET slot_self_heal.max_retained_wal = 0",
        "ALTER DATABASE postgres SET slot_self_heal.max_retained_wal = '0MB'",
        "ALTER ROLE postgres SET slot_self_heal.max_retained_wal = 0",
    ] {
        let error = session.error(sql);
        assert_eq!(error.code, "22023", "{sql}: {error}");
        let message = "invalid value for parameter \"slot_self_heal.max_retained_wal\"";
        assert!(error.message.starts_with(message), "{error}");
        assert!(error.detail.contains("zero"), "{error}");
        assert_eq!(error.hint, "-1 means no limit.");
    }
}
