//! Settings: reloaded, refused, and what `enabled = off` means.

use std::fs;

use harness::{Blocker, Creator, PATIENCE, Setup, Signal, for_a_while, wait_until};

use crate::{Major, open_to_all, primary, with_extension};

const SLOT: &str = "cdc_slot";

on_every_major!(
    disabled,
    scan_interval_reloaded,
    malformed_values_are_refused,
    unknown_names_are_refused,
    not_for_sessions,
    changed_while_the_worker_starts,
);

fn disabled(major: Major) {
    let cluster = primary(major);
    Creator::SqlFunction
        .start(&cluster, "ready_slot")
        .finish()
        .unwrap();
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    cluster.set("slot_self_heal.enabled", "off");
    for_a_while();
    let scans = cluster.worker().scans;
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);

    let status = cluster.wait_for_state(SLOT, "starting");
    assert!(
        status.detail().contains("slot_self_heal.enabled"),
        "{status:#?}"
    );
    assert!(status.blockers.is_empty());
    assert_eq!(cluster.status("ready_slot").unwrap().state, "ready");
    for_a_while();
    assert_eq!(cluster.status(SLOT).unwrap().state, "starting");
    assert_eq!(cluster.worker().scans, scans, "it scans while disabled");

    cluster.set("slot_self_heal.enabled", "on");
    cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// What a background worker is told of before it has made itself ready is lost
/// (`BackgroundWorkerMain` ignores SIGHUP): it must look itself.
fn changed_while_the_worker_starts(major: Major) {
    let files = tempfile::tempdir().expect("a directory");
    open_to_all(files.path());
    let hold = files.path().join("hold");
    let cluster = with_extension(Setup::new(major).slow_start(&hold));
    let worker = cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    let before = cluster.postmaster().children();
    fs::write(&hold, "").expect("it is ours");
    worker.pid.expect("waited for").signal(Signal::Term);
    wait_until("the next worker's process", PATIENCE, || {
        let children = cluster.postmaster().children();
        children.iter().any(|child| !before.contains(child))
    });
    cluster.set("slot_self_heal.enabled", "off");
    fs::remove_file(&hold).expect("it is there");
    cluster.wait_for_worker("another pid", |next| {
        next.pid.is_some() && next.pid != worker.pid
    });
    let scans = cluster.worker().scans;
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    let _creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_waiting_creator();
    for_a_while();
    assert_eq!(cluster.worker().scans, scans, "it scans while disabled");
}

fn scan_interval_reloaded(major: Major) {
    let cluster = primary(major);
    cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    cluster.set("slot_self_heal.scan_interval", "'1h'");
    for_a_while();
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_waiting_creator();
    for_a_while();
    let status = cluster.status(SLOT).expect("the view itself sees it");
    assert!(status.blockers.is_empty(), "scanned too soon: {status:#?}");

    cluster.set("slot_self_heal.scan_interval", "'10ms'");
    cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

fn malformed_values_are_refused(major: Major) {
    let cluster = primary(major);
    let mut session = cluster.connect();
    let mut refused = |name: &str, value: &str| {
        let error = session.error(&format!(
            "ALTER SYSTEM SET slot_self_heal.{name} = '{value}'"
        ));
        assert_eq!(error.code, "22023", "{name} = {value}: {error}");
        error
    };
    for value in ["9ms", "2h", "-1"] {
        let error = refused("scan_interval", value);
        // 18 says the units, too: (10 ms .. 3600000 ms)
        assert!(error.message.contains("(10 "), "{error}");
        assert!(error.message.contains(".. 3600000"), "{error}");
    }
    refused("scan_interval", "soon");
    refused("nudge_interval", "-1");
    refused("nudge_interval", "10 parsecs");
    refused("enabled", "perhaps");
    refused("cancel_abandoned", "perhaps");
    refused("creation_timeout", "-1");
    refused("creation_timeout", "soon");
    refused("max_retained_wal", "-2");
    refused("max_retained_wal", "1min");
}

fn unknown_names_are_refused(major: Major) {
    let cluster = primary(major);
    let error = cluster.connect().error("SET slot_self_heal.nonsense = 1");
    assert_eq!(error.code, "42602", "{error}");
    assert!(error.detail.contains("slot_self_heal"), "{error}");
}

/// They are the server's, whoever asks.
fn not_for_sessions(major: Major) {
    let cluster = primary(major);
    let mut session = cluster.connect();
    for setting in [
        "enabled = off",
        "scan_interval = '1s'",
        "database = 'x'",
        "cancel_abandoned = off",
        "primary_conninfo = 'host=x'",
    ] {
        let error = session.error(&format!("SET slot_self_heal.{setting}"));
        assert_eq!(error.code, "55P02", "{error}");
    }
}
