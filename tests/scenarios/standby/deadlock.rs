//! Replay waits for the creator, and the creator for replay: neither goes on,
//! and no record helps.

use harness::{Blocker, Creator, PATIENCE, Running, Setup, Status, wait_until};

use super::{Pair, SLOT, check_hint, wait_for_startup_process};
use crate::{Major, primary};

on_majors_with_standby_slots!(
    conflict_with_its_snapshot,
    conflict_with_its_lock,
    conflict_with_somebody_elses_snapshot,
);

/// A primary with a table, and a standby that waits for its sessions however
/// long they take.
#[track_caller]
fn patient_standby(major: Major) -> Pair {
    let primary = primary(major);
    primary.run("CREATE TABLE orders AS SELECT generate_series(1, 100) AS id");
    let standby = Setup::new(major)
        .conf("hot_standby_feedback = off")
        .conf("max_standby_streaming_delay = -1");
    Pair::of(primary, standby)
}

/// The hint ends the creation, and replay goes on.
#[track_caller]
fn ends_by_its_hint(pair: &Pair, status: &Status) {
    let hint = status.hint();
    let creator = status.creator_pid.expect("it is being created");
    let cancel = format!("SELECT pg_cancel_backend({creator});");
    assert!(hint.starts_with(&cancel), "{hint}");
    assert!(hint.contains("on this standby"), "{hint}");
    check_hint(hint);

    // nothing else gets it going
    pair.check_that_no_record_is_written();
    assert_eq!(pair.standby.status(SLOT).unwrap().state, "blocking_replay");

    pair.standby.paste("postgres", hint);
    wait_until("the slot to leave the view", PATIENCE, || {
        pair.standby.status(SLOT).is_none()
    });
    pair.standby.wait_for_replay_of(&pair.primary);
}

/// The SQL function holds a snapshot as any statement does. The blocker, of
/// another database, does not keep the rows from being removed
/// (`ComputeXidHorizons`).
fn conflict_with_its_snapshot(major: Major) {
    let pair = patient_standby(major);
    let blocking = Blocker::AnotherDatabase.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    pair.primary.run("DELETE FROM orders WHERE id < 50");
    pair.primary.run("VACUUM orders");
    pair.commit_something();
    wait_for_startup_process(&pair.standby, "RecoveryConflictSnapshot");

    let status = pair.standby.wait_for_state(SLOT, "blocking_replay");
    ends_by_its_hint(&pair, &status);
    creation.finish().expect_err("it was cancelled");
    drop(blocking);
}

/// The creator has read a table in the same transaction, and somebody changes
/// that table on the primary.
fn conflict_with_its_lock(major: Major) {
    let pair = patient_standby(major);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = create_after_reading(&pair);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    pair.primary.run("TRUNCATE orders");
    // It waits for a lock as any other process does.
    wait_for_startup_process(&pair.standby, "relation");

    let status = pair.standby.wait_for_state(SLOT, "blocking_replay");
    ends_by_its_hint(&pair, &status);
    creation.result().expect_err("it was cancelled");
    drop(blocking);
}

fn create_after_reading(pair: &Pair) -> Running {
    let mut session = pair.standby.login().application("cdc").connect();
    session.run("BEGIN");
    session.run("SELECT count(*) FROM orders");
    session.start(&format!(
        "SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
    ))
}

/// Replay waits for a session of another database. The creator has a snapshot
/// too, and nobody can tell whose is in the way: it is not accused.
fn conflict_with_somebody_elses_snapshot(major: Major) {
    let primary = primary(major);
    primary.run("CREATE DATABASE elsewhere");
    let login = primary.login().database("elsewhere");
    let mut elsewhere = login.connect();
    elsewhere.run("CREATE TABLE orders AS SELECT generate_series(1, 100) AS id");
    let standby = Setup::new(major)
        .conf("hot_standby_feedback = off")
        .conf("max_standby_streaming_delay = -1");
    let pair = Pair::of(primary, standby);
    let mut reader = pair.standby.login().database("elsewhere").connect();
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    reader.run("SELECT count(*) FROM orders");
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    elsewhere.run("DELETE FROM orders WHERE id < 50");
    elsewhere.run("VACUUM orders");
    pair.commit_something();
    wait_for_startup_process(&pair.standby, "RecoveryConflictSnapshot");

    let status = pair.standby.wait_for_status(SLOT, "the readers", |status| {
        status.state == "waiting_for_replay" && status.detail().contains(&reader.pid().to_string())
    });
    check_hint(status.hint());
    assert!(!status.hint().contains("_backend("), "{}", status.hint());
    reader.run("ROLLBACK");
    pair.standby.wait_for_replay_of(&pair.primary);
    blocking.commit();
    pair.finish(&mut creation);
}
