//! What the gate sees of slots in every phase, each made as clients make it.

use pgrx::prelude::*;

use super::session::{Session, current_database, current_role};
use super::slots::{Altered, Building, SLOTS, create, dropped_afterwards, named, restart_lsn};
use super::wait::until_true;
use crate::core::observation::SlotName;
use crate::server::gate::{Gate, look, usable_slot};
use crate::server::version;

fn mark() -> Option<u64> {
    match look() {
        Gate::Open(mark) => Some(mark),
        Gate::Closed => None,
    }
}

#[pg_test]
fn gate_is_closed_without_slots_and_with_physical_ones() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    assert_eq!(look(), Gate::Closed);
    // With WAL kept for it, so that it has a restart_lsn as one that is being built.
    session.run("SELECT pg_create_physical_replication_slot('p', true)");
    assert_eq!(look(), Gate::Closed);
    assert_eq!(usable_slot(&SlotName::new("p")), None);

    let flushed = session.value("SELECT pg_current_wal_flush_lsn()");
    let mut standby =
        Session::of(&[("user", &current_role()), ("replication", "true")]).expect("a walsender");
    standby.start(&format!("START_REPLICATION SLOT p PHYSICAL {flushed}"));
    until_true("a standby holds the slot", || {
        // SAFETY: the slot is there.
        let holder = unsafe { version::holder(named("p")) };
        holder == Some(standby.pid())
    });
    assert_eq!(look(), Gate::Closed);
}

#[pg_test]
fn gate_is_open_as_long_as_a_slot_is_built() {
    let _slots = dropped_afterwards();
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let mut building = Building::start("b");
    let first = mark();
    assert!(first.is_some());
    assert_eq!(mark(), first, "nothing has changed");
    assert_eq!(usable_slot(&SlotName::new("b")), None);

    blocker.run("COMMIT");
    building.finish().expect("the slot");
    assert_eq!(look(), Gate::Closed);
}

#[pg_test]
fn gate_is_open_for_a_walsender_that_builds_a_temporary_slot() {
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let mut walsender = Session::of(&[
        ("database", &current_database()),
        ("user", &current_role()),
        ("replication", "database"),
    ])
    .expect("a walsender");
    walsender.start("CREATE_REPLICATION_SLOT \"t\" TEMPORARY LOGICAL pgoutput");
    until_true("the slot is being built", || look() != Gate::Closed);

    blocker.run("COMMIT");
    walsender.finish().expect("the slot");
    assert_eq!(look(), Gate::Closed, "its session still holds it");
    assert!(usable_slot(&SlotName::new("t")).is_some());
}

#[pg_test]
fn gate_changes_its_mark_with_the_slots_that_are_built() {
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let mut marks = Vec::new();
    let mut building = Vec::new();
    for name in ["b1", "b2", "b3"] {
        building.push(Building::start(name));
        marks.push(mark());
    }
    building.remove(0).cancel();
    marks.push(mark());
    // Another creation in the place that the first one left.
    building.push(Building::start("b1"));
    marks.push(mark());

    let mut different = marks.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), marks.len(), "{marks:?}");
    assert!(!marks.contains(&None));
    for creation in building {
        creation.cancel();
    }
    assert_eq!(look(), Gate::Closed);
}

#[pg_test]
fn gate_sees_the_last_place_of_the_array_and_none_after_it() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    for place in 1..SLOTS {
        session.run(&format!(
            "SELECT pg_create_physical_replication_slot('p{place}')"
        ));
    }
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let last = Building::start("last");
    assert!(mark().is_some());
    let full = Session::open().try_run("SELECT pg_create_physical_replication_slot('more')");
    assert_eq!(
        full.map_err(|refused| refused.sqlstate),
        Err("53400".into())
    );
    last.cancel();
    assert_eq!(look(), Gate::Closed);

    blocker.run("COMMIT");
    create(&mut session, "last");
    let found = usable_slot(&SlotName::new("last"));
    assert_eq!(found, Some(restart_lsn(&mut session, "last")));
}

#[pg_test]
fn usable_slots_are_known_by_their_whole_names() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    let long = "x".repeat(63);
    for name in ["a", "ab", &long] {
        create(&mut session, name);
        let found = usable_slot(&SlotName::new(name));
        assert_eq!(found, Some(restart_lsn(&mut session, name)), "{name}");
    }
    for unknown in ["", "abc", "A", &long[1..]] {
        assert_eq!(usable_slot(&SlotName::new(unknown)), None, "{unknown}");
    }
    session.run("SELECT pg_drop_replication_slot('a')");
    assert_eq!(
        usable_slot(&SlotName::new("a")),
        None,
        "its name still stands in its place"
    );
}

/// As a crash between the two writes of a slot's file would leave it.
#[pg_test]
fn gate_is_closed_for_a_slot_that_was_left_behind() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    create(&mut session, "left");
    {
        let altered = Altered::of("left", |slot| slot.data.confirmed_flush = 0);
        assert_eq!(look(), Gate::Closed);
        assert_eq!(usable_slot(&SlotName::new("left")), None);
        drop(altered);
    }
    assert!(usable_slot(&SlotName::new("left")).is_some());
}

/// A failed temporary slot stays with its session if the error is caught: to the gate it is as one
/// that is being built, and the scan tells the difference.
#[pg_test]
fn gate_is_open_for_a_temporary_slot_whose_creation_failed() {
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let mut session = Session::open();
    session.run(
        "SET lock_timeout = '10ms';
         DO $$
         BEGIN
             PERFORM pg_create_logical_replication_slot('failed', 'pgoutput', true);
         EXCEPTION WHEN lock_not_available THEN
         END $$",
    );
    assert!(mark().is_some());
    drop(session);
    assert_eq!(look(), Gate::Closed);
}

/// A standby's copy of a failover slot, before it is ready.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
#[pg_test]
fn gate_is_open_for_a_copy_that_is_not_ready() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    create(&mut session, "copy");
    let altered = Altered::of("copy", |slot| {
        slot.data.synced = true as _;
        slot.data.persistency = pgrx::pg_sys::ReplicationSlotPersistency::RS_TEMPORARY;
    });
    assert!(mark().is_some());
    drop(altered);
    let altered = Altered::of("copy", |slot| slot.data.synced = true as _);
    assert_eq!(look(), Gate::Closed, "it was persisted");
    drop(altered);
}

#[pg_test]
fn the_holder_of_a_slot_is_the_process_that_works_on_it() {
    let _slots = dropped_afterwards();
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let building = Building::start("held");
    // SAFETY: the slot is there as long as its creation goes on.
    let holder = || unsafe { version::holder(named("held")) };
    assert_eq!(holder(), Some(building.pid()));

    blocker.run("COMMIT");
    let _creator = building.into_session().expect("the slot");
    assert_eq!(holder(), None, "nobody uses it");
}
