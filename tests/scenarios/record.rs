//! The running-xacts record: written when it helps, and only then.

use harness::{Blocker, Creator, Lsn, Setup, for_a_while};

use crate::{Major, NO_WAL_WRITER, primary, with_extension};

const SLOT: &str = "cdc_slot";

on_every_major!(
    rollback_on_an_idle_server,
    none_while_a_transaction_is_in_the_way,
    one_serves_twenty_slots,
    healing_needs_no_extension,
    nudge_by_hand,
    no_nudge_while_disabled,
);

/// A rollback flushes nothing, and neither does the record the creator writes
/// for itself (`SnapBuildWaitSnapshot`): it waits for the WAL writer, or us.
fn rollback_on_an_idle_server(major: Major) {
    let cluster = with_extension(Setup::new(major).conf(NO_WAL_WRITER));
    let _frozen = cluster.freeze_bgwriter();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let before = cluster.insert_lsn();
    blocking.rollback();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();

    let worker = cluster.wait_for_worker("a healed slot", |worker| worker.healed == Some(1));
    let nudges = worker.nudges.unwrap();
    assert!(nudges >= 1, "{worker:#?}");
    let records = cluster.running_xacts_since(before);
    assert_eq!(
        records.len() as i64,
        nudges + 1,
        "ours and the creator's: {records:#?}"
    );
}

/// The builder makes nothing of a record written while it must still wait.
fn none_while_a_transaction_is_in_the_way(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("slot_self_heal.nudge_interval = 1s"));
    let _frozen = cluster.freeze_bgwriter();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let before = cluster.insert_lsn();
    for_a_while();
    assert_eq!(cluster.insert_lsn(), before, "WAL was written");
    blocking.rollback();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

fn one_serves_twenty_slots(major: Major) {
    const SLOTS: usize = 20;
    let cluster = with_extension(Setup::new(major).conf("max_replication_slots = 20"));
    let _frozen = [cluster.freeze_bgwriter(), cluster.freeze_wal_writer()];
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creations: Vec<_> = (0..SLOTS)
        .map(|n| Creator::SqlFunction.start(&cluster, &format!("slot_{n}")))
        .collect();
    cluster.wait_until_sql(
        "all slots to wait",
        &format!(
            "count(*) = {SLOTS} FROM slot_self_heal_status \
             WHERE state = 'waiting_for_transactions' AND jsonb_array_length(blockers) = 1"
        ),
    );
    let nudges = cluster.worker().nudges.unwrap();
    let before = cluster.insert_lsn();
    blocking.rollback();
    cluster.wait_until_sql(
        "all slots to be ready",
        &format!("count(*) = {SLOTS} FROM slot_self_heal_status WHERE state = 'ready'"),
    );
    for creation in &mut creations {
        creation.finish().unwrap();
    }

    // Each creator writes one record after its wait, and we write one a tick,
    // for as many ticks as the slowest creator takes to wait for WAL.
    let worker = cluster.wait_for_worker("healed slots", |worker| worker.healed > Some(0));
    let written = worker.nudges.unwrap() - nudges;
    assert!((1..=5).contains(&written), "{written} records by us");
    let records = cluster.running_xacts_since(before).len();
    assert!(records <= SLOTS + 5, "{records} records");
}

/// The library alone heals; the views are for the operator.
fn healing_needs_no_extension(major: Major) {
    let cluster = Setup::new(major).conf(NO_WAL_WRITER).start();
    let _frozen = cluster.freeze_bgwriter();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log(&format!(
        "logical replication slot \"{SLOT}\" is being created and waits for transactions"
    ));
    blocking.rollback();
    creation.finish().unwrap();
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
    cluster.create_extension();
    assert!(cluster.worker().nudges.unwrap() >= 1);
}

fn nudge_by_hand(major: Major) {
    let cluster = primary(major);
    let _frozen = cluster.freeze_bgwriter();
    let before = cluster.insert_lsn();
    let nudged: Lsn = cluster
        .value("SELECT slot_self_heal_nudge()")
        .parse()
        .unwrap();
    assert!(before < nudged);
    let flushed: Lsn = cluster
        .value("SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    assert!(nudged <= flushed, "{nudged} is not flushed: {flushed}");
    let records = cluster.running_xacts_since(before);
    assert_eq!(records.len(), 1, "{records:#?}");
}

fn no_nudge_while_disabled(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("slot_self_heal.enabled = off"));
    let _frozen = cluster.freeze_bgwriter();
    let refused = || cluster.observe(|session| session.error("SELECT slot_self_heal_nudge()"));
    // What a session's first look at the catalogs leaves behind.
    refused();
    for_a_while();
    let before = cluster.insert_lsn();
    let error = refused();
    assert_eq!(error.code, "55000", "{error}");
    assert_eq!(error.message, "slot_self_heal.enabled is off");
    assert!(
        error.hint.contains("slot_self_heal.enabled = on;"),
        "{error}"
    );
    assert_eq!(cluster.insert_lsn(), before, "WAL was written");
}
