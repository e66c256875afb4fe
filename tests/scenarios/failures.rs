//! What can be wrong with the server, each with its message and remedy.

use harness::{Blocker, Creator, Setup, for_a_while};

use crate::{Major, break_the_scan, primary, with_extension, without_logical_slots};

const SLOT: &str = "cdc_slot";

on_every_major!(
    error_in_a_tick,
    database_that_is_not_there,
    database_with_a_name_to_quote,
    wal_level_too_low,
    no_worker_slot,
);

/// Said once, shown, and over once its cause is.
fn error_in_a_tick(major: Major) {
    let cluster = primary(major);
    let mut superuser = break_the_scan(&cluster);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let worker = cluster.wait_for_worker("the error", |worker| worker.last_error.is_some());
    let error = worker.last_error.unwrap();
    assert!(error.contains("pg_prepared_xacts"), "{error}");
    assert!(worker.last_error_at.is_some());

    // said once, not each tick
    for_a_while();
    let said = "relation \"pg_catalog.pg_prepared_xacts\" does not exist";
    let count = cluster.count_in_log(said);
    assert_eq!(count, 1, "said {count} times");
    assert_eq!(cluster.worker().pid, worker.pid, "the worker was restarted");

    superuser.run("ALTER VIEW pg_catalog.pg_prepared_xacts_away RENAME TO pg_prepared_xacts");
    cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().pid, worker.pid);
}

fn database_that_is_not_there(major: Major) {
    let cluster = Setup::new(major)
        .conf("slot_self_heal.database = 'nowhere'")
        .start();
    cluster.wait_for_log("database \"nowhere\" does not exist");
    cluster.wait_for_log("slot_self_heal.database");
    assert!(cluster.log().contains("HINT"), "no remedy");
    let tries = cluster.count_in_log("\"nowhere\"");
    for_a_while();
    assert!(
        cluster.count_in_log("\"nowhere\"") <= tries + 1,
        "it tries again and again"
    );

    cluster.create_extension();
    let worker = cluster.worker();
    assert_eq!(worker.pid, None);
    assert!(
        worker
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("slot_self_heal.database")),
        "{worker:#?}"
    );
}

fn database_with_a_name_to_quote(major: Major) {
    let mut cluster = primary(major);
    cluster.run("CREATE DATABASE \"Don't; \"\"panic\"\"\"");
    cluster.run("ALTER SYSTEM SET slot_self_heal.database = 'Don''t; \"panic\"'");
    cluster.restart();
    let worker = cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(worker.database.as_deref(), Some("Don't; \"panic\""));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

fn wal_level_too_low(major: Major) {
    let cluster = with_extension(without_logical_slots(major));
    cluster.wait_for_log("wal_level");
    let log = cluster.log();
    assert!(
        log.lines()
            .any(|line| line.contains("HINT") && line.contains("wal_level")),
        "no remedy"
    );
    assert_eq!(
        cluster.number("SELECT count(*) FROM slot_self_heal_status"),
        0
    );
    assert!(
        cluster
            .worker()
            .hint
            .is_some_and(|hint| hint.contains("wal_level")),
        "{:#?}",
        cluster.worker()
    );
}

/// The one slot goes to the logical replication launcher.
fn no_worker_slot(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("max_worker_processes = 1"));
    cluster.wait_for_log("max_worker_processes");
    let worker = cluster.worker();
    assert_eq!(worker.pid, None);
    assert!(
        worker
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("max_worker_processes")),
        "{worker:#?}"
    );
}
