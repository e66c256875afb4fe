//! The record is written, and the standby does not come to replay it.

use harness::{Creator, PATIENCE, Setup, free_port, wait_until};

use super::{
    Pair, RECEIVE_SOON, SLOT, ask, check_hint, startup_process_waits, wait_for_startup_process,
};
use crate::{Major, primary};

on_majors_with_standby_slots!(
    paused,
    paused_while_it_waits_for_a_transaction,
    delayed,
    delayed_a_little,
    cut_off,
    behind,
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
    check_hint(status.hint());

    pair.standby.set("recovery_min_apply_delay", "0");
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
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

    let conninfo = conninfo.replace('\'', "''");
    pair.standby
        .set("primary_conninfo", &format!("'{conninfo}'"));
    pair.finish(&mut creation);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
}

/// The startup process waits for a query that has nothing to do with the slot.
fn behind(major: Major) {
    let primary = primary(major);
    primary.run("CREATE TABLE orders AS SELECT generate_series(1, 100) AS id");
    let standby = Setup::new(major).conf("max_standby_streaming_delay = -1");
    let pair = Pair::of(primary, standby);
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
