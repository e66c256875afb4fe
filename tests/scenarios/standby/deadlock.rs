//! Replay waits for the creator, and the creator for replay: neither goes on,
//! and no record helps.

use harness::{
    Blocker, Blocking, Creation, Creator, PATIENCE, Running, Setup, Status, for_a_while, wait_until,
};

use super::{Pair, SLOT, check_hint, wait_for_startup_process};
use crate::{Major, primary};

on_majors_with_standby_slots!(
    conflict_with_its_snapshot,
    conflict_with_its_lock,
    conflict_with_somebody_elses_snapshot,
    cancelled_where_that_is_allowed,
    left_alone_where_it_may_end,
    left_to_postgres,
    ended_by_creation_timeout,
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
    assert!(hint.starts_with("SELECT pg_cancel_backend("), "{hint}");
    let only_it = format!("AND active_pid = {creator};");
    assert!(hint.contains(&only_it), "{hint}");
    assert!(hint.contains("on this standby"), "{hint}");
    check_hint(hint);

    // nothing else gets it going
    pair.check_that_no_record_is_written();
    assert_eq!(pair.standby.status(SLOT).unwrap().state, "blocking_replay");

    pair.standby.paste_as_one("postgres", hint);
    wait_until("the slot to leave the view", PATIENCE, || {
        pair.standby.status(SLOT).is_none()
    });
    pair.standby.wait_for_replay_of(&pair.primary);

    // The next one, by another session, is none of its business.
    let next = pair.create(Creator::Walsender);
    let status = pair
        .standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    pair.standby.paste_as_one("postgres", hint);
    for_a_while();
    let later = pair.standby.status(SLOT).expect("it goes on");
    assert_eq!(later.creator_pid, status.creator_pid);
    drop(next);
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
    let told = pair.standby.paste_as_one("postgres", status.hint());
    assert!(told.contains("elsewhere"), "{told}");
    reader.run("ROLLBACK");
    pair.standby.wait_for_replay_of(&pair.primary);
    blocking.commit();
    pair.finish(&mut creation);
}

/// A deadlock with replay, whoever ends it.
struct Deadlock {
    pair: Pair,
    creation: Creation,
    _blocking: Blocking,
}

impl Deadlock {
    #[track_caller]
    fn start(pair: Pair) -> Deadlock {
        let blocking = Blocker::AnotherDatabase.start(&pair.primary);
        let creation = pair.create(Creator::SqlFunction);
        pair.standby
            .wait_for_state(SLOT, "waiting_for_transactions");
        pair.primary.run("DELETE FROM orders WHERE id < 50");
        pair.primary.run("VACUUM orders");
        pair.commit_something();
        pair.standby.wait_for_state(SLOT, "blocking_replay");
        Deadlock {
            pair,
            creation,
            _blocking: blocking,
        }
    }

    /// The creation was ended, and replay goes on; the creator's error.
    #[track_caller]
    fn is_over(&mut self) -> String {
        let error = self.creation.finish().expect_err("it was cancelled");
        let standby = &self.pair.standby;
        standby.wait_for_replay_of(&self.pair.primary);
        assert!(standby.status(SLOT).is_none());
        error
    }

    fn cancellations(&self) -> Vec<String> {
        let mut lines = self.pair.standby.worker_log();
        lines.retain(|line| line.contains("LOG:  cancelling the creation of logical"));
        lines
    }
}

/// By default it is not, however long it takes.
fn cancelled_where_that_is_allowed(major: Major) {
    let mut deadlock = Deadlock::start(patient_standby(major));
    let standby = &deadlock.pair.standby;
    standby.wait_until_sql(
        "a long deadlock",
        "EXISTS (SELECT FROM slot_self_heal_status WHERE now() - state_since > '33s')",
    );
    for_a_while();
    assert_eq!(standby.status(SLOT).unwrap().state, "blocking_replay");
    assert_eq!(deadlock.cancellations(), [""; 0]);
    assert_eq!(standby.count_in_log("blocks replay"), 1, "it is said once");

    standby.set("slot_self_heal.cancel_blocking_replay", "on");
    let error = deadlock.is_over();
    assert!(error.contains("57014"), "{error}");
    let finished = deadlock.pair.standby.wait_for_end_of(SLOT);
    assert_eq!(finished.outcome, "cancelled by slot_self_heal");
    let lines = deadlock.cancellations();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("it holds replay up"), "{lines:#?}");
}

/// Without a WAL receiver nothing tells whether the WAL came from an archive,
/// whose delay is another. One that ends meanwhile does not come again: the
/// process that would start it waits.
fn left_alone_where_it_may_end(major: Major) {
    let mut deadlock = Deadlock::start(patient_standby(major));
    let standby = &deadlock.pair.standby;
    standby.end_wal_receiver();
    standby.wait_for_status(SLOT, "the setting that may count", |status| {
        status.state == "blocking_replay" && status.detail().contains("max_standby_archive_delay")
    });
    standby.set("slot_self_heal.cancel_blocking_replay", "on");
    standby.wait_until_sql(
        "a long deadlock",
        "EXISTS (SELECT FROM slot_self_heal_status WHERE now() - state_since > '33s')",
    );
    for_a_while();
    assert_eq!(deadlock.cancellations(), [""; 0]);

    standby.set("max_standby_archive_delay", "-1");
    let error = deadlock.is_over();
    assert!(error.contains("57014"), "{error}");
    assert_eq!(deadlock.cancellations().len(), 1);
}

/// It has a remedy of its own, and its own time for it.
fn left_to_postgres(major: Major) {
    let primary = primary(major);
    primary.run("CREATE TABLE orders AS SELECT generate_series(1, 100) AS id");
    let standby = Setup::new(major)
        .conf("hot_standby_feedback = off")
        .conf("max_standby_streaming_delay = '40s'")
        .conf("slot_self_heal.cancel_blocking_replay = on");
    let mut deadlock = Deadlock::start(Pair::of(primary, standby));
    let error = deadlock.is_over();
    assert!(error.contains("conflict with recovery"), "{error}");
    assert_eq!(deadlock.cancellations(), [""; 0]);
    let finished = deadlock.pair.standby.wait_for_end_of(SLOT);
    assert_eq!(finished.outcome, "gone");
}

fn ended_by_creation_timeout(major: Major) {
    let mut deadlock = Deadlock::start(patient_standby(major));
    deadlock
        .pair
        .standby
        .set("slot_self_heal.creation_timeout", "'1s'");
    let error = deadlock.is_over();
    assert!(error.contains("57014"), "{error}");
    let lines = deadlock.cancellations();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("it takes longer than 1 s"), "{lines:#?}");
}
