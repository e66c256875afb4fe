//! `CREATE SUBSCRIPTION` to a database of the same cluster waits for its own
//! transaction, for ever. Postgres's manual warns of it; here it is named.

use harness::{Creator, PATIENCE, statements, wait_until};

use crate::{Major, primary};

const SLOT: &str = "loop_slot";

on_every_major!(waits_for_itself, and_for_another);

fn waits_for_itself(major: Major) {
    let cluster = primary(major);
    let mut creation = Creator::SameClusterSubscription.start(&cluster, SLOT);
    let subscriber = creation.statement().unwrap().pid();

    let status = cluster.wait_for_status(SLOT, "the subscriber's own transaction", |status| {
        status.has_blocker(subscriber)
    });
    assert_eq!(status.state, "waiting_for_transactions");
    assert_eq!(status.creator_type.as_deref(), Some("walsender"));
    assert_eq!(status.creator_application.as_deref(), Some(SLOT));
    assert_eq!(status.blockers.len(), 1);
    assert_eq!(
        status.blockers[0].is_creator_peer,
        Some(true),
        "{status:#?}"
    );

    // What the hint offers must end the waiting for good, and the hint must
    // name the way to get such a subscription.
    let hint = status.hint();
    assert!(hint.contains("create_slot = false"), "hint: {hint}");
    let remedy = statements(hint).into_iter().next();
    cluster.run(&remedy.unwrap_or_else(|| panic!("nothing to paste: {hint}")));
    creation
        .finish()
        .expect_err("the subscription was given up");
    wait_until("the creation to end", PATIENCE, || {
        cluster
            .status(SLOT)
            .is_none_or(|status| status.state == "ready")
    });
}

/// The peer is marked among others, and so is nobody else.
fn and_for_another(major: Major) {
    let cluster = primary(major);
    let other = harness::Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::SameClusterSubscription.start(&cluster, SLOT);
    let subscriber = creation.statement().unwrap().pid();

    let status = cluster.wait_for_status(SLOT, "both blockers", |status| {
        status.has_blocker(subscriber) && status.blockers.len() == 2
    });
    let peers: Vec<_> = status
        .blockers
        .iter()
        .map(|blocker| (blocker.pid, blocker.is_creator_peer))
        .collect();
    assert_eq!(
        peers,
        [(other.pid, Some(false)), (Some(subscriber), Some(true))]
    );
}
