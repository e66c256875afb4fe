//! More slots at once than anybody should have.

use harness::{Blocker, Creator, PATIENCE, Setup, wait_until};

use crate::{Major, with_extension};

on_every_major!(five_hundred, in_haste);

fn five_hundred(major: Major) {
    const SLOTS: usize = 500;
    let cluster = with_extension(
        Setup::new(major)
            .conf("max_connections = 550")
            .conf("max_replication_slots = 510"),
    );
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creations: Vec<_> = (0..SLOTS)
        .map(|n| Creator::SqlFunction.start(&cluster, &format!("slot_{n}")))
        .collect();
    cluster.wait_until_sql(
        "all slots to wait",
        "count(*) = 500 FROM pg_stat_activity WHERE wait_event = 'transactionid'",
    );
    // What does not fit into the ledger is still a row, of a slot that starts.
    cluster.wait_until_sql(
        "a row for each slot",
        "count(*) = 500 AND bool_and(state IN ('waiting_for_transactions', 'starting')) \
         AND bool_or(state = 'waiting_for_transactions') FROM slot_self_heal_status",
    );
    blocking.rollback();
    for creation in &mut creations {
        creation.finish().unwrap();
    }
    cluster.wait_until_sql(
        "all slots to be ready",
        "count(*) = 500 FROM slot_self_heal_status WHERE state = 'ready'",
    );
    let worker = cluster.worker();
    assert!(worker.pid.is_some());
    assert_eq!(worker.last_error, None);
}

/// Creations that come and go between two ticks, and under one name.
fn in_haste(major: Major) {
    let cluster = with_extension(Setup::new(major));
    let pid = cluster
        .wait_for_worker("a pid", |worker| worker.pid.is_some())
        .pid;
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    for _ in 0..20 {
        for creator in [Creator::SqlFunction, Creator::TemporarySqlFunction] {
            let mut creation = creator.start(&cluster, "hasty_slot");
            let statement = creation.statement().unwrap();
            // a cancel that comes before the statement is lost
            wait_until("the creation to be cancelled", PATIENCE, || {
                statement.cancel();
                statement.is_finished()
            });
        }
    }
    blocking.rollback();
    for _ in 0..50 {
        let mut session = cluster.connect();
        session.run("SELECT pg_create_logical_replication_slot('hasty_slot', 'pgoutput')");
        session.run("SELECT pg_drop_replication_slot('hasty_slot')");
    }
    cluster.wait_until_sql(
        "no slot to be left",
        "NOT EXISTS (SELECT FROM slot_self_heal_status)",
    );
    let worker = cluster.worker();
    assert_eq!(worker.pid, pid);
    assert_eq!(worker.last_error, None);
}
