//! What the server pays while all is well: nothing.

use harness::{Creator, Login, PATIENCE, Session, Setup, for_a_while, wait_for, wait_until};

use crate::{Major, primary};

on_every_major!(writes_nothing, opens_no_transaction, holds_no_snapshot);

/// A look from a database that the worker is not in.
fn create_watch_database(cluster: &harness::Cluster) -> Login {
    cluster.run("CREATE DATABASE watch");
    cluster.login().database("watch")
}

fn writes_nothing(major: Major) {
    let cluster = Setup::new(major).start();
    let _frozen = cluster.freeze_bgwriter();
    Creator::SqlFunction
        .start(&cluster, "ready_slot")
        .finish()
        .unwrap();
    cluster.wait_for_log("slot_self_heal");
    // what the creation itself and its log lines leave to be done
    for_a_while();

    let before = cluster.insert_lsn();
    for_a_while();
    assert_eq!(cluster.insert_lsn(), before, "WAL was written");
}

fn opens_no_transaction(major: Major) {
    let cluster = Setup::new(major).start();
    let mut watch = create_watch_database(&cluster).connect();
    cluster.forget_observer();
    Creator::SqlFunction
        .start(&cluster, "ready_slot")
        .finish()
        .unwrap();
    check_no_transaction_at_rest(&mut watch);
}

/// Statistics are flushed at a process's end at the latest: a worker that
/// opened transactions while it idled shows them when it is terminated.
///
/// `watch` is a session in a database that the worker is not in; no other
/// session may be in the worker's.
#[track_caller]
pub(crate) fn check_no_transaction_at_rest(watch: &mut Session) {
    // Who has ended has flushed before it leaves pg_stat_activity: the one in
    // before_shmem_exit, the other in on_shmem_exit.
    wait_until("the worker to be alone", PATIENCE, || {
        watch.is_true(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity \
             WHERE datname = 'postgres' AND backend_type <> 'slot_self_heal')",
        )
    });

    // The one that was there before the scenario has done all kinds of things.
    transactions_of_worker(watch, || {});
    let at_once = transactions_of_worker(watch, || {});
    let after_a_while = transactions_of_worker(watch, for_a_while);
    assert!(at_once > 0, "a worker's start is not counted");
    assert_eq!(
        after_a_while, at_once,
        "transactions, and of a worker that ends once it has started"
    );
}

/// Ends the worker once it has started and `meanwhile` is over. Its transactions,
/// those of its start among them.
#[track_caller]
fn transactions_of_worker(watch: &mut Session, meanwhile: impl FnOnce()) -> i64 {
    // It shows that it is idle as soon as it has connected, which takes one.
    let worker = wait_for("a worker that has started", PATIENCE, || {
        let idle = "SELECT pid FROM pg_stat_activity \
                    WHERE backend_type = 'slot_self_heal' AND state = 'idle'";
        watch.maybe(idle).ok_or_else(|| "none yet".to_owned())
    });
    let counted = "SELECT xact_commit + xact_rollback FROM pg_stat_database \
                   WHERE datname = 'postgres'";
    // Its predecessor has flushed its own, and this one flushes while it scans
    // only, or at its end.
    let before = watch.number(counted);
    meanwhile();
    assert!(watch.is_true(&format!("SELECT pg_terminate_backend({worker}, 60000)")));
    watch.number(counted) - before
}

fn holds_no_snapshot(major: Major) {
    let cluster = primary(major);
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    // the worker's own start is done once it naps
    let held = "SELECT count(*) FROM pg_stat_activity \
                WHERE backend_type = 'slot_self_heal' \
                AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL \
                     OR xact_start IS NOT NULL)";
    wait_until("the worker to rest", PATIENCE, || cluster.number(held) == 0);
    for_a_while();
    for _ in 0..200 {
        assert_eq!(cluster.number(held), 0);
    }
}
