//! Slots that are not being built.

use harness::{Blocker, Creator, PATIENCE, Setup, wait_until};

use crate::{Major, primary, with_extension};

on_every_major!(
    ready,
    lost,
    left_behind,
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
        status.hint().starts_with(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE \
                 slot_name = 'lost_slot' AND wal_status = 'lost' AND NOT active;"
        ),
        "{status:#?}"
    );
}

/// A creation that fails under a savepoint leaves its slot with the session,
/// whatever that does next.
fn left_behind(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut session = cluster.login().connect();
    session.run("SET lock_timeout = '100ms'");
    session.run(
        "DO $$ BEGIN
             PERFORM pg_create_logical_replication_slot('left_slot', 'pgoutput', true);
         EXCEPTION WHEN lock_not_available THEN
             NULL;
         END $$",
    );
    let left = |when: &str| {
        let status = cluster.wait_for_state("left_slot", "lost");
        assert!(status.blockers.is_empty(), "{when}: {status:#?}");
        status
    };
    left("idle");

    let holder = session.pid();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    let mut busy = session.start("SELECT pg_advisory_lock(1), pg_sleep(600)");
    cluster.wait_until_sql(
        "the session to be busy",
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted)",
    );
    let status = left("busy in a transaction of its own");
    let hint = status.hint();
    assert!(
        hint.starts_with(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = \
             'left_slot' AND restart_lsn = '"
        ) && hint.contains(&format!(" AND active_pid = {holder};")),
        "hint: {hint}"
    );
    cluster.paste_as_one("postgres", hint);
    busy.result().expect_err("its session was ended");
    wait_until("the slot to go", PATIENCE, || {
        cluster.status("left_slot").is_none()
    });
    blocking.rollback();
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
    let blocking = Blocker::IdleInTransaction.start(&cluster);
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
