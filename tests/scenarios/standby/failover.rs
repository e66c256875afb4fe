//! Servers that change their role, or go and come back, while a creation waits
//! on a standby. The worker lives through it all, and the slot becomes ready.

use harness::{Blocker, Cluster, Creator, Pid, Setup};

use super::{Pair, RECEIVE_SOON, SLOT, TRY_SOON};
use crate::{Major, primary, with_extension};

on_every_major!(promoted);

on_majors_with_standby_slots!(
    promoted_while_a_walsender_creates,
    promoted_while_it_waits_for_a_silent_transaction,
    promoted_while_the_sql_function_creates,
    upstream_promoted,
    upstream_switched,
    primary_restarted,
    primary_away_and_back,
    promoted_and_asked_itself,
);

#[track_caller]
fn worker_of(server: &Cluster) -> Pid {
    let worker = server.wait_for_worker("a pid", |worker| worker.pid.is_some());
    worker.pid.expect("waited for")
}

/// Promotes it; its worker must take the new role without a restart.
#[track_caller]
fn promote(standby: &Cluster) {
    let before = worker_of(standby);
    assert!(standby.is_true("SELECT pg_promote(true, 60)"));
    let worker = standby.wait_for_worker("the new role", |worker| {
        worker.role.as_deref() == Some("primary")
    });
    assert_eq!(worker.pid, Some(before), "the worker was restarted");
    assert_eq!(worker.hint, None, "{worker:#?}");
}

fn promoted(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major));
    promote(&pair.standby);
    let blocking = Blocker::IdleInTransaction.start(&pair.standby);
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    pair.finish(&mut creation);
    let worker = pair.standby.worker();
    assert_eq!(worker.upstream.as_deref(), Some("not needed"));
}

/// The old primary's blocker still runs there, and concerns nobody any more.
fn promoted_while_it_waits(major: Major, creator: Creator) {
    let pair = Pair::start(major);
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(creator);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    promote(&pair.standby);
    pair.finish(&mut creation);
    drop(blocking);
}

/// The last transaction of the old primary wrote nothing. The new one gives its
/// xid to its own first transaction, and until that has ended takes it for
/// running: the creation waits for a transaction that nobody has begun.
fn promoted_while_it_waits_for_a_silent_transaction(major: Major) {
    let pair = Pair::start(major);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    promote(&pair.standby);
    let way_out = "SELECT pg_current_xact_id();";
    let status = pair.standby.wait_for_status(SLOT, "the way out", |status| {
        status.state == "ready" || status.hint().contains(way_out)
    });
    pair.standby.paste_as_one("postgres", status.hint());
    pair.finish(&mut creation);
    drop(blocking);
}

fn promoted_while_a_walsender_creates(major: Major) {
    promoted_while_it_waits(major, Creator::Walsender);
}

fn promoted_while_the_sql_function_creates(major: Major) {
    promoted_while_it_waits(major, Creator::SqlFunction);
}

/// What was a standby writes records now, for those that followed it.
fn promoted_and_asked_itself(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major).conf(RECEIVE_SOON));
    let last = Setup::new(major).standby_of(&pair.standby);
    last.wait_for_replay_of(&pair.primary);
    promote(&pair.standby);
    let _frozen = pair.standby.freeze_bgwriter();
    // a promotion ends with one, which brings a record of its own
    pair.standby.run("CHECKPOINT");
    last.wait_for_replay_of(&pair.standby);
    let mut creation = Creator::Walsender.start(&last, SLOT);
    last.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    let worker = last.worker();
    assert_eq!(worker.upstream.as_deref(), Some("ok"), "{worker:#?}");
}

/// The primary is lost for good, and its standby takes over.
fn upstream_promoted(major: Major) {
    let standby = Setup::new(major).conf(RECEIVE_SOON).conf(TRY_SOON);
    let mut pair = Pair::of(primary(major), standby);
    let last = Setup::new(major).standby_of(&pair.standby);
    last.wait_for_replay_of(&pair.primary);
    let worker = worker_of(&last);
    let blocking = pair.start_blocker_that_wrote();
    last.wait_for_replay_of(&pair.primary);
    let mut creation = Creator::Walsender.start(&last, SLOT);
    last.wait_for_state(SLOT, "waiting_for_transactions");

    pair.frozen = None;
    pair.primary.stop_fast();
    drop(blocking);
    promote(&pair.standby);
    let _frozen = pair.standby.freeze_bgwriter();
    last.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    // and the next one
    let mut creation = Creator::SqlFunction.start(&last, "next_slot");
    last.wait_for_state("next_slot", "ready");
    creation.finish().unwrap();
    assert_eq!(worker_of(&last), worker, "the worker was restarted");
}

/// `primary_conninfo` is reloaded: the standby follows another one.
fn upstream_switched(major: Major) {
    // The other one's backup begins with a checkpoint, which removes WAL.
    let primary = with_extension(Setup::new(major).conf("wal_keep_size = 16MB"));
    let standby = Setup::new(major).conf(RECEIVE_SOON).conf(TRY_SOON);
    let pair = Pair::of(primary, standby);
    let other = Setup::new(major).standby_of(&pair.primary);
    other.wait_for_replay_of(&pair.primary);
    let worker = worker_of(&pair.standby);
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::Walsender);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");

    let conninfo = other.login().application("standby").conninfo();
    pair.standby
        .set("primary_conninfo", &format!("'{conninfo}'"));
    other.wait_until_sql(
        "the standby to follow the other one",
        "EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'standby')",
    );
    blocking.commit();
    pair.finish(&mut creation);
    assert_eq!(worker_of(&pair.standby), worker, "the worker was restarted");
}

fn primary_restarted(major: Major) {
    let standby = Setup::new(major).conf(RECEIVE_SOON).conf(TRY_SOON);
    let mut pair = Pair::of(primary(major), standby);
    let worker = worker_of(&pair.standby);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    pair.restart_primary();
    drop(blocking);
    pair.finish(&mut creation);
    assert_eq!(worker_of(&pair.standby), worker, "the worker was restarted");
}

/// It goes before the creation begins, and comes back while it waits.
fn primary_away_and_back(major: Major) {
    let standby = Setup::new(major).conf(RECEIVE_SOON).conf(TRY_SOON);
    let mut pair = Pair::of(primary(major), standby);
    pair.frozen = None;
    pair.primary.stop_fast();
    let mut creation = pair.create(Creator::SqlFunction);
    let worker = pair.standby.wait_for_worker("its absence", |worker| {
        worker.upstream.as_deref() == Some("unreachable")
    });
    pair.primary.start_again();
    pair.frozen = Some(pair.primary.freeze_bgwriter());
    pair.finish(&mut creation);
    assert_eq!(Some(worker_of(&pair.standby)), worker.pid);
}
