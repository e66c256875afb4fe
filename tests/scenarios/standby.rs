//! A standby: for now the worker watches.

use harness::{Blocker, Cluster, Creator, PATIENCE, wait_until};

use crate::{Major, primary};

const SLOT: &str = "cdc_slot";

on_every_major!(watches, promoted, created_on_a_standby);

fn watches(major: Major) {
    let primary = primary(major);
    let standby = Cluster::standby_of(&primary);
    let worker = standby.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(worker.role.as_deref(), Some("standby"));
    assert_eq!(
        standby.number("SELECT count(*) FROM slot_self_heal_status"),
        0
    );
    assert_eq!(primary.worker().role.as_deref(), Some("primary"));
}

fn promoted(major: Major) {
    let primary = primary(major);
    let standby = Cluster::standby_of(&primary);
    let before = standby.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert!(standby.is_true("SELECT pg_promote(true, 60)"));
    let after = standby.wait_for_worker("the new role", |worker| {
        worker.role.as_deref() == Some("primary")
    });
    assert_eq!(after.pid, before.pid, "the worker was restarted");

    let blocking = Blocker::IdleInTransaction.start(&standby);
    let mut creation = Creator::Walsender.start(&standby, SLOT);
    standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    standby.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// From 16 on. An idle primary writes no record; the operator can.
fn created_on_a_standby(major: Major) {
    let primary = primary(major);
    let standby = Cluster::standby_of(&primary);
    let mut creation = Creator::Walsender.start(&standby, SLOT);
    if major < Major::V16 {
        creation.finish().expect_err("there is no such feature");
        assert!(standby.status(SLOT).is_none());
        return;
    }
    standby.wait_for_status(SLOT, "a slot being built", |status| status.state != "ready");
    // a record counts once the slot has its restart_lsn
    wait_until("the slot to become ready", PATIENCE, || {
        primary.run("SELECT slot_self_heal_nudge()");
        standby
            .status(SLOT)
            .is_some_and(|status| status.state == "ready")
    });
    creation.finish().unwrap();
}
