//! A hint is pasted as it stands, by someone with a superuser's rights.

use harness::{Blocker, Creator};

use crate::{Major, hostile_database_name, primary};

const SLOT: &str = "cdc_slot";

on_every_major!(
    three_blockers,
    prepared_in_another_database,
    names_that_would_like_to_be_run,
);

fn three_blockers(major: Major) {
    let cluster = primary(major);
    let blocking = [
        Blocker::IdleInTransaction,
        Blocker::Prepared,
        Blocker::AbortedWithSavepoint,
    ]
    .map(|blocker| blocker.start(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status =
        cluster.wait_for_status(SLOT, "three blockers", |status| status.blockers.len() == 3);
    // the prepared one runs in one string with no other
    let rest = "-- then look again: 1 more stand in slot_self_heal_status.blockers";
    assert!(status.hint().ends_with(rest), "{status:#?}");
    cluster.paste_as_one("postgres", status.hint());
    let status = cluster.wait_for_status(SLOT, "the rest", |status| status.blockers.len() == 1);
    cluster.paste_as_one("postgres", status.hint());
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    drop(blocking);
}

/// `ROLLBACK PREPARED` works in the transaction's own database only.
fn prepared_in_another_database(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE DATABASE elsewhere");
    let mut session = cluster.login().database("elsewhere").connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    session.run("PREPARE TRANSACTION 'far away'");
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(status.hint().contains("elsewhere"), "{status:#?}");
    cluster.paste_as_one("elsewhere", status.hint());
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// Names that their owners chose with care.
fn names_that_would_like_to_be_run(major: Major) {
    let cluster = primary(major);
    let database = hostile_database_name(major);
    let gid = "x\\'; SELECT 'run by a name'; --\n; SELECT 'run by a name'; --";
    cluster.run(&format!("CREATE DATABASE \"{database}\""));
    let mut session = cluster.login().database(database).connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    let literal = gid.replace('\'', "''");
    session.run(&format!("PREPARE TRANSACTION '{literal}'"));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert_eq!(status.blockers[0].gid.as_deref(), Some(gid));
    assert_eq!(status.blockers[0].database.as_deref(), Some(database));
    assert_eq!(
        cluster.paste_as_one(database, status.hint()),
        "ROLLBACK PREPARED\n"
    );
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}
