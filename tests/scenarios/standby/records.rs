//! The records that the primary writes for slots on its standby: counted in
//! its WAL, three for a slot at most, each only when it can move the builder.

use harness::{Blocker, Creator, Lsn, PATIENCE, Setup, for_a_while, wait_until};

use super::{Pair, SLOT, TWENTY, create_twenty, roomy_pair};
use crate::{Major, primary, with_extension};

on_majors_with_standby_slots!(
    none_while_a_transaction_is_in_the_way,
    none_that_the_builder_passes_over,
    three_at_most,
    one_serves_twenty_slots,
    of_others_in_between,
    of_others_alone,
    nudge_by_hand,
);

/// The first record moves the builder, and the second, of a server at rest, is
/// the last. In between none does.
fn none_while_a_transaction_is_in_the_way(major: Major) {
    let primary = with_extension(Setup::new(major).conf("slot_self_heal.nudge_interval = 1s"));
    let pair = Pair::of(primary, Setup::new(major));
    let start = pair.primary.insert_lsn();
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_status(SLOT, "the first record", |status| {
            status.state == "waiting_for_transactions" && status.nudges == Some(1)
        });
    pair.check_that_no_record_is_written();
    blocking.commit();
    pair.finish(&mut creation);
    assert_eq!(pair.records_since(start), 2);
}

/// No record that names a transaction older than the slot's catalog_xmin does
/// anything; the first after its end is the only one needed.
fn none_that_the_builder_passes_over(major: Major) {
    let primary = with_extension(Setup::new(major).conf("slot_self_heal.nudge_interval = 1s"));
    let pair = Pair::of(primary, Setup::new(major));
    let blocking = pair.start_blocker_that_wrote();
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    pair.check_that_no_record_is_written();
    blocking.commit();
    pair.finish(&mut creation);
    assert_eq!(pair.records_since(before), 1);
}

/// Overlapping transactions, so that each phase takes a record of its own.
fn three_at_most(major: Major) {
    let pair = Pair::start(major);
    let start = pair.primary.insert_lsn();
    let mut running = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    for records in 1..=2 {
        pair.standby.wait_for_status(SLOT, "a record", |status| {
            status.nudges == Some(records) && status.state == "waiting_for_transactions"
        });
        let next = Blocker::IdleInTransaction.start(&pair.primary);
        running.commit();
        running = next;
    }
    // The third is the last, whatever still runs.
    pair.finish(&mut creation);
    for_a_while();
    assert_eq!(pair.records_since(start), 3);
    drop(running);
}

fn one_serves_twenty_slots(major: Major) {
    let pair = roomy_pair(major);
    let blocking = pair.start_blocker_that_wrote();
    let before = pair.primary.insert_lsn();
    let mut creations = create_twenty(&pair);
    pair.standby.wait_until_sql(
        "all slots to wait",
        &format!(
            "count(*) = {TWENTY} FROM slot_self_heal_status \
             WHERE state = 'waiting_for_transactions' AND jsonb_array_length(blockers) = 1"
        ),
    );
    blocking.rollback();
    for creation in &mut creations {
        creation.finish().unwrap();
    }
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
}

/// A record of somebody else's, at the wrong time, must not lead us astray.
fn of_others_in_between(major: Major) {
    let pair = Pair::start(major);
    let start = pair.primary.insert_lsn();
    let first = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    let second = Blocker::IdleInTransaction.start(&pair.primary);
    // moves nothing: the first still runs
    pair.primary.run("CHECKPOINT");
    first.commit();
    pair.primary.run("CHECKPOINT");
    pair.standby
        .wait_for_status(SLOT, "the second blocker alone", |status| {
            status.blocker_pids() == [second.pid]
        });
    pair.primary.run("CHECKPOINT");
    second.commit();
    pair.finish(&mut creation);
    const OF_OTHERS: usize = 3;
    let records = pair.records_since(start);
    assert!(records <= 3 + OF_OTHERS, "{records} records");
}

/// On a server that writes enough of them none of ours is missed: nor is one
/// needed, as the worker may not ask.
fn of_others_alone(major: Major) {
    let primary = primary(major);
    primary.run("CREATE ROLE replicator LOGIN REPLICATION");
    let pair = Pair::of(primary, Setup::new(major).upstream_role("replicator"));
    let mut creation = pair.create(Creator::Walsender);
    pair.standby
        .wait_for_status(SLOT, "a slot that the worker watches", |status| {
            status.creation_started.is_some()
        });
    wait_until("the slot to become ready", PATIENCE, || {
        pair.primary.run("SELECT slot_self_heal_nudge()");
        pair.standby
            .status(SLOT)
            .is_some_and(|status| status.state == "ready")
    });
    let status = pair.finish(&mut creation);
    assert_eq!(status.nudges, Some(0), "{status:#?}");
    assert_eq!(pair.standby.worker().healed, Some(0));
}

/// On a standby the function passes the request on.
fn nudge_by_hand(major: Major) {
    let pair = Pair::start(major);
    let before = pair.primary.insert_lsn();
    let nudged: Lsn = pair
        .standby
        .value("SELECT slot_self_heal_nudge()")
        .parse()
        .unwrap();
    assert!(before < nudged, "{before} {nudged}");
    let flushed: Lsn = pair
        .primary
        .value("SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    assert!(nudged <= flushed, "{nudged} is not flushed: {flushed}");
    assert_eq!(pair.records_since(before), 1);
}
