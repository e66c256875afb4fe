//! The worker as a citizen of the server.

use std::time::Duration;

use harness::{Blocker, Cluster, Creator, Pid, Setup, Signal};

use crate::{Major, NO_WAL_WRITER, break_the_scan, primary, wait_for_recovery, with_extension};

const SLOT: &str = "cdc_slot";

on_every_major!(
    shows_itself,
    small_stack,
    takes_no_xid_while_it_watches,
    terminated_while_a_slot_waits,
    terminated_again_and_again,
    fast_shutdown_while_a_slot_waits,
    immediate_shutdown_while_a_slot_waits,
    restart_forgets_what_is_gone,
    reset_counters,
    idle_after_a_failed_scan,
    drop_database_does_not_wait_for_it,
);

fn shows_itself(major: Major) {
    let cluster = primary(major);
    let worker = cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(worker.role.as_deref(), Some("primary"));
    assert_eq!(worker.database.as_deref(), Some("postgres"));
    assert!(worker.started_at.is_some());
    assert_eq!(worker.last_error, None);
    assert_eq!(worker.last_error_at, None);
    assert_eq!(worker.cancelled, Some(0));
    assert_eq!(worker.hint, None);
    let activity = "SELECT pid FROM pg_stat_activity \
                    WHERE backend_type = 'slot_self_heal' AND datname = 'postgres'";
    assert_eq!(cluster.value(activity), worker.pid.unwrap().to_string());
    if major >= Major::V17 {
        cluster.wait_until_sql(
            "the worker's own wait event",
            "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'slot_self_heal' \
             AND wait_event_type = 'Extension' AND wait_event ILIKE '%slot%heal%')",
        );
    }
}

/// Where `ulimit -s` is small the postmaster has as little: what it makes in
/// shared memory must not be made on its stack first.
fn small_stack(major: Major) {
    let cluster = with_extension(Setup::new(major).stack_limit(1 << 20));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    blocking.commit();
    creation.finish().unwrap();
    assert_eq!(cluster.wait_for_end_of(SLOT).outcome, "ready");

    // and once more, when the memory is made anew after a crash
    cluster.may_crash();
    let worker = cluster.worker().pid.unwrap();
    cluster.connect().pid().signal(Signal::Kill);
    wait_for_recovery(&cluster, worker);
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(cluster.history().len(), 0);
}

/// Nothing is left to be scanned once the creation has ended, and the worker
/// must not look as if it were still at it.
fn idle_after_a_failed_scan(major: Major) {
    let cluster = primary(major);
    let _superuser = break_the_scan(&cluster);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_worker("the error", |worker| worker.last_error.is_some());
    cluster.run("SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots");
    creation.finish().expect_err("it was cancelled");
    cluster.wait_until_sql(
        "the worker to be idle",
        "state = 'idle' FROM pg_stat_activity WHERE backend_type = 'slot_self_heal'",
    );
    blocking.rollback();
}

/// A worker with an xid would be a transaction the builder waits for.
fn takes_no_xid_while_it_watches(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let xid = blocking.xid.clone();
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let next_xid = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
    let before = cluster.value(next_xid);
    let scans = cluster.worker().scans.unwrap();
    cluster.wait_for_worker("twenty more scans", |worker| {
        worker.scans.unwrap() >= scans + 20
    });
    assert_eq!(cluster.value(next_xid), before);

    // and its snapshots are for the length of a scan
    cluster.wait_until_sql(
        "the worker without a snapshot",
        "NOT EXISTS (SELECT FROM pg_stat_activity \
         WHERE backend_type = 'slot_self_heal' AND backend_xmin IS NOT NULL)",
    );
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    let blocker_xid: u32 = xid.parse().unwrap();
    assert_eq!(cluster.value(next_xid), (blocker_xid + 1).to_string());
}

/// Terminates the worker and waits for the next.
pub(crate) fn renew_worker(cluster: &Cluster) -> Pid {
    let old = cluster
        .wait_for_worker("a pid", |worker| worker.pid.is_some())
        .pid
        .unwrap();
    assert!(cluster.is_true(&format!("SELECT pg_terminate_backend({old}, 10000)")));
    cluster
        .wait_for_worker("a new pid", |worker| {
            worker.pid.is_some_and(|pid| pid != old)
        })
        .pid
        .unwrap()
}

/// What it knows is in shared memory: the creation began when it began.
fn terminated_while_a_slot_waits(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let before = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    renew_worker(&cluster);
    let scans = cluster.worker().scans.unwrap();
    cluster.wait_for_worker("scans by the new worker", |worker| {
        worker.scans.unwrap() > scans + 2
    });
    let after = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert_eq!(after.creation_started, before.creation_started);
    assert_eq!(after.blocker_pids(), [blocking.pid]);

    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
}

fn terminated_again_and_again(major: Major) {
    let cluster = primary(major);
    for _ in 0..3 {
        renew_worker(&cluster);
    }
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

fn fast_shutdown_while_a_slot_waits(major: Major) {
    let mut cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    cluster.stop_fast();
    drop((blocking, creation));

    cluster.start_again();
    assert!(cluster.status(SLOT).is_none());
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
}

fn immediate_shutdown_while_a_slot_waits(major: Major) {
    let mut cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(cluster.stop(Signal::Quit, Duration::from_secs(30)));
    drop((blocking, creation));

    cluster.start_again();
    assert!(cluster.status(SLOT).is_none());
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
}

fn restart_forgets_what_is_gone(major: Major) {
    let mut cluster = primary(major);
    let blocking = Blocker::Prepared.start(&cluster);
    let creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    drop(creation);
    cluster.restart();

    // the prepared transaction is still there, and blocks the next one
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_xids() == [blocking.xid.as_str()]
    });
    cluster.run("COMMIT PREPARED 'it''s prepared'");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

fn reset_counters(major: Major) {
    let cluster = with_extension(Setup::new(major).conf(NO_WAL_WRITER));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    blocking.rollback();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    let worker = cluster.wait_for_worker("a healed slot", |worker| worker.healed == Some(1));
    assert!(worker.scans.unwrap() > 0);
    assert!(worker.nudges.unwrap() > 0);

    cluster.run("SELECT slot_self_heal_reset()");
    let worker = cluster.worker();
    assert_eq!(worker.scans, Some(0));
    assert_eq!(worker.nudges, Some(0));
    assert_eq!(worker.healed, Some(0));
    assert!(worker.pid.is_some());
}

/// DROP DATABASE waits until all processes have closed the database's files
/// (a ProcSignalBarrier): a worker that naps too deeply would hold it up.
fn drop_database_does_not_wait_for_it(major: Major) {
    let cluster = primary(major);
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    let mut session = cluster.connect();
    session.run("SET statement_timeout = '30s'");
    session.run("CREATE DATABASE idle_time");
    session.run("DROP DATABASE idle_time");

    session.run("CREATE DATABASE busy_time");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    session.run("DROP DATABASE busy_time");
    drop((creation, blocking));

    // the longest nap there is
    cluster.set("slot_self_heal.scan_interval", "'1h'");
    session.run("CREATE DATABASE sleepy_time");
    session.run("DROP DATABASE sleepy_time");
}
