//! Creations that end before their time.

use harness::{Blocker, Creator, PATIENCE, Signal, wait_until};

use crate::{Major, primary, wait_for_recovery};

const SLOT: &str = "cdc_slot";

on_every_major!(
    slot_dropped_by_its_creator,
    creator_terminated,
    creator_cancelled,
    session_of_temporary_slot_ends,
    created_again,
    creator_killed,
);

/// What the log says of all of these.
fn gone() -> String {
    format!("logical replication slot \"{SLOT}\" is gone before it became ready")
}

/// Waits for a creation to show its blocker, ends it with `end`, and expects
/// it to leave the view.
fn creation_ended(major: Major, creator: Creator, end: &str) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = creator.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let pid = status.creator_pid.unwrap();
    assert!(cluster.is_true(&format!("SELECT {end}({pid})")));
    creation.finish().expect_err("the client gets no slot");
    wait_until("the slot to leave the view", PATIENCE, || {
        cluster.status(SLOT).is_none()
    });
    cluster.wait_for_log(&gone());
    assert_eq!(cluster.count_in_log(&gone()), 1);
    assert_eq!(cluster.worker().last_error, None);
    drop(blocking);
}

fn creator_terminated(major: Major) {
    creation_ended(major, Creator::Walsender, "pg_terminate_backend");
}

fn creator_cancelled(major: Major) {
    creation_ended(major, Creator::SqlFunction, "pg_cancel_backend");
}

fn session_of_temporary_slot_ends(major: Major) {
    creation_ended(major, Creator::TemporarySqlFunction, "pg_terminate_backend");
}

/// A slot being built is its creator's: nobody else can drop it.
fn slot_dropped_by_its_creator(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::PgRecvlogical.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let error = cluster
        .observe(|session| session.error(&format!("SELECT pg_drop_replication_slot('{SLOT}')")));
    assert_eq!(error.code, "55006", "{error}");
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    cluster.run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    assert!(cluster.status(SLOT).is_none());
}

/// The same name, another creation: nothing of the first is left.
fn created_again(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut first = Creator::SqlFunction.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    first.statement().unwrap().cancel();
    first.finish().expect_err("it was cancelled");

    let mut second = Creator::Walsender.start(&cluster, SLOT);
    let again = cluster.wait_for_status(SLOT, "the second creation", |again| {
        again.state == "waiting_for_transactions" && again.creator_pid != status.creator_pid
    });
    assert_eq!(again.creator_type.as_deref(), Some("walsender"));
    assert_ne!(again.creation_started, status.creation_started);
    assert_eq!(again.blocker_pids(), [blocking.pid]);
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    second.finish().unwrap();
}

/// SIGKILL of a backend makes the postmaster restart them all.
fn creator_killed(major: Major) {
    let cluster = primary(major);
    cluster.may_crash();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let worker = cluster.worker().pid.unwrap();
    status.creator_pid.unwrap().signal(Signal::Kill);
    creation.finish().expect_err("its connection broke");
    drop(blocking);
    wait_for_recovery(&cluster, worker);

    assert!(cluster.status(SLOT).is_none());
    cluster.wait_for_worker("a new worker", |seen| {
        seen.pid.is_some_and(|pid| pid != worker)
    });
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "the blocker after the crash", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}
