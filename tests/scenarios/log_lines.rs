//! The log: said when it begins, when it changes and when it ends; not each
//! tick.

use harness::{Blocker, Blocking, Creator, for_a_while};

use crate::{Major, primary};

const SLOT: &str = "cdc_slot";

on_every_major!(
    a_creation_that_waits,
    blockers_that_change,
    nothing_of_a_quick_creation
);

fn begins(line: &&String) -> bool {
    line.contains(&format!(
        "LOG:  logical replication slot \"{SLOT}\" is being created and waits for transactions"
    ))
}

fn is_ready(line: &&String) -> bool {
    line.contains(&format!(
        "LOG:  logical replication slot \"{SLOT}\" is ready"
    ))
}

fn terminate(blocking: &Blocking) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = '{}';",
        blocking.xid
    )
}

fn a_creation_that_waits(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    for_a_while();
    let lines = cluster.worker_log();
    assert_eq!(lines.iter().filter(begins).count(), 1, "{lines:#?}");
    let pid = blocking.pid.unwrap();
    let has = |label: &str, text: &str| {
        lines
            .iter()
            .any(|line| line.contains(label) && line.contains(text))
    };
    assert!(has("DETAIL:", &pid.to_string()), "{lines:#?}");
    assert!(has("HINT:", &terminate(&blocking)), "{lines:#?}");

    blocking.commit();
    creation.finish().unwrap();
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
    for_a_while();
    let lines = cluster.worker_log();
    assert_eq!(lines.iter().filter(begins).count(), 1, "{lines:#?}");
    assert_eq!(lines.iter().filter(is_ready).count(), 1, "{lines:#?}");
}

fn blockers_that_change(major: Major) {
    let cluster = primary(major);
    let first = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let second = Blocker::IdleInTransaction.start(&cluster);
    first.commit();
    cluster.wait_for_status(SLOT, "the second blocker alone", |status| {
        status.blocker_pids() == [second.pid]
    });
    // later than the view: the log says a change once a second at most
    cluster.wait_for_log(&terminate(&second));
    second.commit();
    creation.finish().unwrap();
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
}

fn nothing_of_a_quick_creation(major: Major) {
    let cluster = primary(major);
    Creator::Walsender.start(&cluster, SLOT).finish().unwrap();
    cluster.wait_for_state(SLOT, "ready");
    for_a_while();
    let lines = cluster.worker_log();
    assert_eq!(lines.iter().filter(begins).count(), 0, "{lines:#?}");
}
