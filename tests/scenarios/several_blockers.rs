//! More than one transaction in the way.

use harness::{Blocker, Creator, for_a_while};

use crate::{Major, primary};

const SLOT: &str = "cdc_slot";

on_every_major!(
    oldest_first,
    second_blocker_meanwhile,
    later_transactions_do_not_block,
    transactions_that_only_read_do_not_block,
    long_query_is_cut,
    a_hundred,
);

fn oldest_first(major: Major) {
    let cluster = primary(major);
    let oldest = Blocker::IdleInTransaction.start(&cluster);
    let prepared = Blocker::Prepared.start(&cluster);
    let youngest = Blocker::Active.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);

    let all = [&oldest, &prepared, &youngest].map(|blocking| blocking.xid.clone());
    let status = cluster.wait_for_status(SLOT, "three blockers", |status| {
        status.blocker_xids() == all
    });
    assert_eq!(status.state, "waiting_for_transactions");
    assert_eq!(status.blocker_pids(), [oldest.pid, None, youngest.pid]);

    // whoever ends first goes from the list, whatever its place
    cluster.run("ROLLBACK PREPARED 'it''s prepared'");
    cluster.wait_for_status(SLOT, "two blockers", |status| {
        status.blocker_pids() == [oldest.pid, youngest.pid]
    });
    oldest.commit();
    cluster.wait_for_status(SLOT, "one blocker", |status| {
        status.blocker_pids() == [youngest.pid]
    });
    drop(youngest);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// A transaction that began before the builder's next phase must end, too.
fn second_blocker_meanwhile(major: Major) {
    let cluster = primary(major);
    let first = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "the first blocker", |status| {
        status.blocker_pids() == [first.pid]
    });

    let second = Blocker::IdleInTransaction.start(&cluster);
    cluster.wait_for_status(SLOT, "both blockers", |status| {
        status.blocker_pids() == [first.pid, second.pid]
    });
    first.commit();
    let status = cluster.wait_for_status(SLOT, "the second blocker alone", |status| {
        status.blocker_pids() == [second.pid]
    });
    assert_eq!(status.state, "waiting_for_transactions");
    second.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// In its last phase the builder waits for no transaction that began after it
/// (`SnapBuildFindSnapshot`): naming such a one would send the operator after
/// the wrong session.
fn later_transactions_do_not_block(major: Major) {
    let cluster = primary(major);
    let first = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "the first blocker", |status| {
        status.blocker_pids() == [first.pid]
    });
    let second = Blocker::IdleInTransaction.start(&cluster);
    first.commit();
    // that the creator is in its last phase, its lock says first, and then the view
    let second_pid = second.pid.unwrap();
    cluster.wait_until_sql(
        "the creator to wait for the second blocker",
        &format!(
            "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walsender' \
             AND pg_blocking_pids(pid) = ARRAY[{second_pid}])"
        ),
    );
    cluster.wait_for_status(SLOT, "the second blocker alone", |status| {
        status.blocker_pids() == [second.pid]
    });

    let later = Blocker::IdleInTransaction.start(&cluster);
    for_a_while();
    let status = cluster.status(SLOT).expect("it is being created");
    assert_eq!(status.blocker_pids(), [second.pid], "{status:#?}");

    second.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    drop(later);
}

fn transactions_that_only_read_do_not_block(major: Major) {
    let cluster = primary(major);
    let mut reader = cluster.connect();
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    reader.run("SELECT count(*) FROM pg_class");
    let writer = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(!status.has_blocker(reader.pid()), "{status:#?}");
    writer.commit();
    let status = cluster.wait_for_state(SLOT, "ready");
    assert!(status.blockers.is_empty());
    creation.finish().unwrap();
}

/// A query of a megabyte of two-byte characters: what is shown of it is cut
/// within a kilobyte and is still text.
fn long_query_is_cut(major: Major) {
    let setup = harness::Setup::new(major).conf("track_activity_query_size = 1MB");
    let cluster = crate::with_extension(setup);
    let mut session = cluster.connect();
    session.run("BEGIN");
    let padding = "é".repeat(512 * 1024);
    session.run(&format!("SELECT pg_current_xact_id() /* {padding} */"));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);

    let status = cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.has_blocker(session.pid())
    });
    let query = status.blockers[0].query.as_deref().unwrap();
    assert!(query.starts_with("SELECT pg_current_xact_id() /* éé"));
    assert!(query.len() <= 1024, "{} bytes", query.len());

    session.run("COMMIT");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().last_error, None);
}

/// More than anybody reads: what is not listed is counted.
fn a_hundred(major: Major) {
    let setup = harness::Setup::new(major).conf("max_connections = 150");
    let cluster = crate::with_extension(setup);
    let blocking: Vec<_> = (0..100)
        .map(|_| Blocker::IdleInTransaction.start(&cluster))
        .collect();
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "a hundred blockers", |status| {
        status.detail().contains("100 transactions")
    });
    assert_eq!(status.state, "waiting_for_transactions");
    let oldest_first = blocking.iter().map(|blocking| blocking.xid.as_str());
    let listed = status.blocker_xids();
    assert!(!listed.is_empty());
    assert!(
        oldest_first.take(listed.len()).eq(listed.iter().copied()),
        "{listed:?}"
    );
    drop(blocking);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().last_error, None);
}
