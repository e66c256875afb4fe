//! The record is written, and the standby does not come to replay it.

use harness::{Creator, PATIENCE, Pid, Session, Setup, free_port, psql, statements, wait_until};

use super::{
    Pair, RECEIVE_SOON, SLOT, ask, check_hint, startup_process_waits, wait_for_startup_process,
};
use crate::{Major, pasted::load_as_told, primary, with_extension};

on_majors_with_standby_slots!(
    paused,
    paused_while_it_waits_for_a_transaction,
    delayed,
    delayed_a_little,
    cut_off,
    not_received,
    behind,
    fed_by_an_archive,
    restore_command_that_hangs,
    buffer_pin,
    tablespace,
    backup,
    conflict_ended_by_its_hint,
    lock_on_another_database,
);

#[track_caller]
fn pause(pair: &Pair) {
    pair.standby.run("SELECT pg_wal_replay_pause()");
    pair.standby.wait_until_sql(
        "replay to pause",
        "pg_get_wal_replay_pause_state() = 'paused'",
    );
}

fn paused(major: Major) {
    let pair = Pair::start(major);
    pause(&pair);
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_state(SLOT, "waiting_for_replay");
    assert!(status.detail().contains("paused"), "{status:#?}");
    assert!(status.blockers.is_empty(), "{status:#?}");
    let hint = status.hint();
    assert!(hint.starts_with("SELECT pg_wal_replay_resume() "), "{hint}");
    assert!(hint.contains("on this standby"), "{hint}");
    check_hint(hint);
    pair.standby.paste_as_one("postgres", hint);
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");

    // Somebody pauses it for another reason.
    pair.standby.wait_for_replay_of(&pair.primary);
    pause(&pair);
    pair.standby.paste_as_one("postgres", hint);
    assert!(pair.standby.is_true("SELECT pg_is_wal_replay_paused()"));
}

fn paused_while_it_waits_for_a_transaction(major: Major) {
    let pair = Pair::start(major);
    let before = pair.primary.insert_lsn();
    let blocking = harness::Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_status(SLOT, "the first record", |status| {
            status.state == "waiting_for_transactions" && status.nudges == Some(1)
        });
    pause(&pair);
    blocking.commit();
    let status = pair.standby.wait_for_state(SLOT, "waiting_for_replay");
    pair.standby.paste_as_one("postgres", status.hint());
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((2..=3).contains(&records), "{records} records");
}

/// Sets `recovery_min_apply_delay`, and has a commit wait for it. Only commits
/// do (`recoveryApplyDelay`), and all that comes after them.
#[track_caller]
fn delay(pair: &Pair, delay: &str) {
    pair.standby
        .set("recovery_min_apply_delay", &format!("'{delay}'"));
    wait_until("a commit to be delayed", PATIENCE, || {
        pair.commit_something();
        pair.standby.is_true(&format!(
            "SELECT {}",
            startup_process_waits("RecoveryApplyDelay")
        ))
    });
}

fn delayed(major: Major) {
    let pair = Pair::start(major);
    delay(&pair, "1h");
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::SqlFunction);
    let status = pair.standby.wait_for_state(SLOT, "waiting_for_replay");
    let detail = status.detail();
    assert!(detail.contains("recovery_min_apply_delay"), "{status:#?}");
    let hint = status.hint();
    check_hint(hint);

    // It is there to undo what was done on the primary.
    pair.standby.paste_as_one("postgres", hint);
    assert_eq!(pair.standby.value("SHOW recovery_min_apply_delay"), "1h");
    let [set, _load] = statements(hint).try_into().expect("two statements");
    pair.standby.paste_as_one("postgres", &set);
    load_as_told(&pair.standby, SLOT, "recovery_min_apply_delay");
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
    pair.standby.paste_as_one("postgres", hint);
    assert_eq!(pair.standby.value("SHOW recovery_min_apply_delay"), "0");
}

/// Nobody does anything: it takes what it takes, and no more records.
fn delayed_a_little(major: Major) {
    let pair = Pair::start(major);
    delay(&pair, "4s");
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
}

/// The worker can ask, and the WAL receiver can't receive.
fn cut_off(major: Major) {
    let primary = primary(major);
    let standby = Setup::new(major)
        .conf(&ask(primary.login()))
        .conf(RECEIVE_SOON);
    let pair = Pair::of(primary, standby);
    let conninfo = pair.standby.value("SHOW primary_conninfo");
    let nobody = format!("'host=127.0.0.1 port={} user=postgres'", free_port());
    pair.standby.set("primary_conninfo", &nobody);
    pair.standby.wait_until_sql(
        "the WAL receiver to end",
        "NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')",
    );
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_state(SLOT, "waiting_for_replay");
    assert!(status.detail().contains("WAL receiver"), "{status:#?}");
    check_hint(status.hint());
    pair.standby.paste_as_one("postgres", status.hint());

    let conninfo = conninfo.replace('\'', "''");
    pair.standby
        .set("primary_conninfo", &format!("'{conninfo}'"));
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
}

/// The WAL receiver is connected, and stands still.
fn not_received(major: Major) {
    let pair = Pair::start(major);
    let frozen = pair.standby.freeze_wal_receiver();
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, "the way", |status| {
        status.detail().contains("has not come here yet")
    });
    check_hint(status.hint());
    let told = pair.primary.paste_as_one("postgres", status.hint());
    assert!(told.contains("streaming"), "{told}");
    drop(frozen);
    pair.finish(&mut creation);
    pair.primary.paste_as_one("postgres", status.hint());
}

/// Replay there waits for sessions however long they take.
#[track_caller]
fn pair_with_a_table(major: Major) -> Pair {
    let primary = primary(major);
    primary.run("CREATE TABLE orders AS SELECT generate_series(1, 100) AS id");
    let standby = Setup::new(major).conf("max_standby_streaming_delay = -1");
    Pair::of(primary, standby)
}

/// The startup process waits for a query that has nothing to do with the slot.
fn behind(major: Major) {
    let pair = pair_with_a_table(major);
    let mut reader = pair.standby.login().application("report").connect();
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    reader.run("SELECT count(*) FROM orders");
    pair.primary.run("DELETE FROM orders WHERE id < 50");
    pair.primary.run("VACUUM orders");
    pair.commit_something();
    wait_for_startup_process(&pair.standby, "RecoveryConflictSnapshot");

    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_state(SLOT, "waiting_for_replay");
    let detail = status.detail();
    for other in ["paused", "recovery_min_apply_delay", "WAL receiver"] {
        assert!(!detail.contains(other), "{status:#?}");
    }
    check_hint(status.hint());

    reader.run("COMMIT");
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
}

/// Has the primary archive, and the standby take all it gets from there.
///
/// A walsender that has read from a segment does not see what the archive then
/// brings in its place: it is told to open it anew, and only a physical one does
/// (`WalSndRqstFileReload`). So a creation is to begin in the first page of one,
/// where it waits before it reads.
#[track_caller]
fn feed_by_archive(pair: &Pair) {
    pair.primary.run("SELECT pg_switch_wal()");
    pair.standby.wait_for_replay_of(&pair.primary);
    let archive = pair.primary.dir().join("archive");
    pair.standby.set(
        "restore_command",
        &format!("'cp {}/%f %p'", archive.display()),
    );
    stop_receiving(pair);
}

#[track_caller]
fn stop_receiving(pair: &Pair) {
    pair.standby.set("primary_conninfo", "''");
    pair.standby.wait_until_sql(
        "the WAL receiver to end",
        "NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')",
    );
}

/// A record alone stays in the primary's last segment, and a segment that ends
/// before it is written does not bring it.
fn fed_by_an_archive(major: Major) {
    let primary = with_extension(
        Setup::new(major)
            .conf("archive_mode = on")
            .conf("archive_command = 'mkdir -p ../archive && cp %p ../archive/%f'"),
    );
    let standby = Setup::new(major)
        .conf("archive_mode = off")
        .conf(RECEIVE_SOON);
    let pair = Pair::of(primary, standby);
    feed_by_archive(&pair);
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, "the archive", |status| {
        status.state == "waiting_for_replay" && status.detail().contains("restore_command")
    });
    let hint = status.hint();
    let both = "SELECT pg_log_standby_snapshot(); SELECT pg_switch_wal(); -- on the primary";
    assert!(hint.starts_with(both), "{hint}");
    check_hint(hint);
    pair.primary.paste_as_one("postgres", hint);
    pair.finish(&mut creation);
    // Once more it costs a segment, and nothing else.
    pair.primary.paste_as_one("postgres", hint);
}

/// As long as a file is there that the scenario takes away.
fn restore_command_that_hangs(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major).conf(RECEIVE_SOON));
    let conninfo = pair.standby.value("SHOW primary_conninfo");
    let hangs = pair.standby.data().join("hangs");
    std::fs::write(&hangs, "").unwrap();
    pair.standby.set(
        "restore_command",
        "'while test -e hangs; do sleep 0.1; done; false'",
    );
    stop_receiving(&pair);
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    let status = pair
        .standby
        .wait_for_status(SLOT, "that it hangs", |status| {
            status.detail().contains("which has run for")
        });
    assert_eq!(status.state, "waiting_for_replay");
    let hint = status.hint();
    assert!(!hint.contains("pg_switch_wal"), "{hint}");
    check_hint(hint);
    let told = pair.standby.paste_as_one("postgres", hint);
    assert!(told.contains("test -e hangs"), "{told}");

    std::fs::remove_file(hangs).unwrap();
    let conninfo = conninfo.replace('\'', "''");
    pair.standby
        .set("primary_conninfo", &format!("'{conninfo}'"));
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
}

/// The hint lists a session, whose end lets the slot be made.
#[track_caller]
fn ends_with_a_session(pair: &Pair, mut session: Session, what: &str) {
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, what, |status| {
        status.state == "waiting_for_replay" && status.detail().contains(what)
    });
    assert!(status.detail().contains("does not end by itself"));
    check_hint(status.hint());
    let told = pair.standby.paste_as_one("postgres", status.hint());
    assert!(told.contains(&session.pid().to_string()), "{told}");
    session.run("ROLLBACK");
    pair.finish(&mut creation);
    let told = pair.standby.paste_as_one("postgres", status.hint());
    assert!(!told.contains(&session.pid().to_string()), "{told}");
}

/// A row that was never committed is nobody's to see, and no snapshot keeps it.
fn buffer_pin(major: Major) {
    let primary = primary(major);
    primary.run("CREATE TABLE orders AS SELECT 1 AS id");
    let standby = Setup::new(major)
        .conf("hot_standby_feedback = off")
        .conf("max_standby_streaming_delay = -1");
    let pair = Pair::of(primary, standby);
    let mut aborted = pair.primary.connect();
    aborted.run("BEGIN");
    aborted.run("INSERT INTO orders VALUES (2)");
    aborted.run("ROLLBACK");
    pair.commit_something();
    pair.standby.wait_for_replay_of(&pair.primary);
    let mut reader = pair.standby.login().application("report").connect();
    reader.run("BEGIN");
    reader.run("DECLARE c CURSOR FOR SELECT id FROM orders");
    reader.run("FETCH c");
    pair.primary.run("VACUUM (FREEZE) orders");
    pair.commit_something();
    let wait_event = match major {
        Major::V15 | Major::V16 | Major::V17 | Major::V18 => "BufferPin",
        Major::V19 => "BufferCleanup",
    };
    wait_for_startup_process(&pair.standby, wait_event);
    ends_with_a_session(&pair, reader, "a page that a session here has in use");
}

fn tablespace(major: Major) {
    let primary = primary(major);
    // Both servers are on this machine.
    let mut session = primary.connect();
    session.run("SET allow_in_place_tablespaces = on");
    session.run("CREATE TABLESPACE scratch LOCATION ''");
    let standby = Setup::new(major)
        .conf("allow_in_place_tablespaces = on")
        .conf("max_standby_streaming_delay = -1");
    let pair = Pair::of(primary, standby);
    let mut sorter = pair.standby.login().application("report").connect();
    sorter.run("SET work_mem = '64kB'");
    sorter.run("SET temp_tablespaces = 'scratch'");
    sorter.run("BEGIN");
    sorter.run(
        "DECLARE c CURSOR FOR SELECT * FROM generate_series(1, 100000) AS i ORDER BY random()",
    );
    sorter.run("FETCH c");
    pair.primary.run("DROP TABLESPACE scratch");
    pair.commit_something();
    wait_for_startup_process(&pair.standby, "RecoveryConflictTablespace");
    ends_with_a_session(&pair, sorter, "drop a tablespace");
}

/// Replay of DROP DATABASE waits for whoever is just connecting to that database
/// (`dbase_redo`), and for nobody who is connecting to another one: the locks
/// are on two objects of one class.
fn lock_on_another_database(major: Major) {
    const GONE: &str = "short_lived";
    let primary = primary(major);
    primary.run(&format!("CREATE DATABASE {GONE}"));
    let standby = Setup::new(major)
        .conf("max_standby_streaming_delay = -1")
        // Looking for one, the startup process would wake them.
        .conf("deadlock_timeout = '1h'");
    let mut pair = Pair::of(primary, standby);
    let standby = &pair.standby;
    let connect = |database: &str| {
        let login = standby.login().database(database).application("slow");
        // Slept with the lock held (`InitPostgres`).
        let conninfo = format!("{} options='-c post_auth_delay=2000'", login.conninfo());
        let client = psql(standby, &conninfo);
        let holder = format!(
            "FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_database'::regclass \
             AND objid = (SELECT oid FROM pg_database WHERE datname = '{database}')"
        );
        standby.wait_until_sql("its lock", &format!("count(*) = 1 {holder}"));
        let pid: i32 = standby
            .value(&format!("SELECT pid {holder}"))
            .parse()
            .unwrap();
        (client, Pid(pid))
    };
    let (_in_the_way, in_the_way) = connect(GONE);
    let (_beside, beside) = connect("template1");
    // DROP DATABASE waits for the primary's processes.
    pair.frozen = None;
    pair.primary.run(&format!("DROP DATABASE {GONE}"));
    wait_for_startup_process(&pair.standby, "object");

    let mut creation = pair.create(Creator::Walsender);
    let named = format!("waits for other sessions here (pid {in_the_way})");
    let status = pair
        .standby
        .wait_for_status(SLOT, "whom it waits for", |status| {
            status.state == "waiting_for_replay" && status.detail().contains("waits for other")
        });
    assert!(status.detail().contains(&named), "{status:#?}");
    let hint = status.hint();
    assert!(!hint.contains(&beside.to_string()), "{hint}");
    check_hint(hint);
    pair.standby
        .run(&format!("SELECT pg_terminate_backend({in_the_way})"));
    pair.finish(&mut creation);
}

/// A backup is told for what it is.
fn backup(major: Major) {
    let pair = pair_with_a_table(major);
    // As its first session begins (`setup_connection`, `pg_dump.c`).
    let mut pg_dump = pair.standby.login().application("pg_dump").connect();
    pg_dump.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    pg_dump.run("LOCK TABLE orders IN ACCESS SHARE MODE");
    pair.primary.run("ALTER TABLE orders ADD note text");
    wait_for_startup_process(&pair.standby, "relation");
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, "the backup", |status| {
        status.state == "waiting_for_replay" && status.hint().contains("is a pg_dump")
    });
    check_hint(status.hint());
    pair.standby.paste_as_one("postgres", status.hint());
    pg_dump.run("COMMIT");
    pair.finish(&mut creation);
    pair.standby.paste_as_one("postgres", status.hint());
}

/// Who is in the way is ended in that transaction only.
fn conflict_ended_by_its_hint(major: Major) {
    let pair = pair_with_a_table(major);
    let mut readers = [(), ()].map(|()| pair.standby.login().application("report").connect());
    for reader in &mut readers {
        reader.run("BEGIN");
        reader.run("SELECT count(*) FROM orders");
    }
    pair.primary.run("TRUNCATE orders");
    wait_for_startup_process(&pair.standby, "relation");
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, "both", |status| {
        let names = |reader: &Session| status.detail().contains(&reader.pid().to_string());
        status.state == "waiting_for_replay" && readers.iter().all(names)
    });
    let hint = status.hint();
    check_hint(hint);
    // One has gone on to its next transaction meanwhile.
    let [mut next, mut there] = readers;
    next.run("COMMIT");
    next.run("BEGIN");
    next.run("SELECT 1");
    pair.standby.paste_as_one("postgres", hint);
    there.error("SELECT 1");
    pair.finish(&mut creation);
    pair.standby.paste_as_one("postgres", hint);
    next.run("COMMIT");
}
