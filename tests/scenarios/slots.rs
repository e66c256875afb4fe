//! Slots that are not being built.

use harness::{Creator, Setup};

use crate::{Major, primary, with_extension};

on_every_major!(
    ready,
    lost,
    physical_slots_are_not_listed,
    slots_of_other_databases
);

fn ready(major: Major) {
    let cluster = primary(major);
    Creator::SqlFunction
        .start(&cluster, "ready_slot")
        .finish()
        .unwrap();
    let status = cluster.wait_for_state("ready_slot", "ready");
    assert_eq!(status.database, "postgres");
    assert_eq!(status.plugin, "pgoutput");
    assert!(status.blockers.is_empty());
    assert_eq!(status.creation_started, None);
    assert_eq!(status.hint, None);
    assert_eq!(status.wal_status.as_deref(), Some("reserved"));
    assert!(status.retained_wal.unwrap() >= 0, "{status:#?}");

    cluster.run("SELECT pg_logical_emit_message(true, '', repeat('x', 100000))");
    let status = cluster.status("ready_slot").unwrap();
    assert!(status.retained_wal.unwrap() > 100_000, "{status:#?}");
}

/// WAL segments are 1 MB here: a few of them and a checkpoint are enough.
fn lost(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("max_slot_wal_keep_size = 1MB"));
    Creator::SqlFunction
        .start(&cluster, "lost_slot")
        .finish()
        .unwrap();
    let status = cluster.wait_for_state("lost_slot", "ready");
    assert!(status.safe_wal_size.is_some(), "{status:#?}");
    for _ in 0..5 {
        cluster.run("SELECT pg_logical_emit_message(false, '', 'x')");
        cluster.run("SELECT pg_switch_wal()");
    }
    cluster.run("CHECKPOINT");

    let status = cluster.wait_for_state("lost_slot", "lost");
    assert_eq!(status.wal_status.as_deref(), Some("lost"));
    assert!(status.detail.is_some(), "{status:#?}");
    assert!(
        status
            .hint()
            .contains("pg_drop_replication_slot('lost_slot')"),
        "{status:#?}"
    );
}

fn physical_slots_are_not_listed(major: Major) {
    let cluster = primary(major);
    cluster.run("SELECT pg_create_physical_replication_slot('physical', true)");
    assert_eq!(
        cluster.number("SELECT count(*) FROM slot_self_heal_status"),
        0
    );
}

fn slots_of_other_databases(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE DATABASE elsewhere");
    let blocking = harness::Blocker::IdleInTransaction.start(&cluster);
    let mut creation = cluster
        .login()
        .database("elsewhere")
        .start("SELECT pg_create_logical_replication_slot('far_slot', 'pgoutput')");
    let status = cluster.wait_for_state("far_slot", "waiting_for_transactions");
    assert_eq!(status.database, "elsewhere");
    assert_eq!(status.blocker_pids(), [blocking.pid]);
    blocking.commit();
    cluster.wait_for_state("far_slot", "ready");
    creation.result().unwrap();
}
