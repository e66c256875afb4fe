//! What the server pays while all is well: nothing.

use harness::{Creator, Login, PATIENCE, Session, Setup, for_a_while, wait_until};

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
    let worker = "FROM pg_stat_activity WHERE backend_type = 'slot_self_heal'";
    let mut renew_worker = || {
        let mut pid = || watch.maybe(&format!("SELECT pid {worker}"));
        let mut old = None;
        wait_until("the worker to run", PATIENCE, || {
            old = pid();
            old.is_some()
        });
        watch.run(&format!("SELECT pg_terminate_backend(pid, 10000) {worker}"));
        let mut pid = || watch.maybe(&format!("SELECT pid {worker}"));
        wait_until("a new worker", PATIENCE, || {
            let new = pid();
            new.is_some() && new != old
        });
        watch.number(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database \
             WHERE datname = 'postgres'",
        )
    };

    let first = renew_worker();
    let at_once = renew_worker() - first;
    for_a_while();
    let after_a_while = renew_worker() - first - at_once;
    assert!(
        after_a_while <= at_once,
        "{after_a_while} transactions, of which {at_once} belong to a worker's start"
    );
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
