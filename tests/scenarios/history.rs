//! Creations that are over.

use harness::{Blocker, Cluster, Creator, Finished, PATIENCE, Running, Setup, wait_until};

use crate::{Major, limits::check_untouched, primary, with_extension, worker::renew_worker};

const SLOT: &str = "cdc_slot";

/// As many as are remembered.
const REMEMBERED: usize = 128;

on_every_major!(
    outcomes_newest_first,
    a_ring,
    survives_the_worker,
    not_the_server,
    reset,
    blockers_that_blocked_longest,
    nothing_of_a_quick_creation,
);

fn names(history: &[Finished]) -> Vec<&str> {
    let names = history.iter().map(|finished| finished.slot_name.as_str());
    names.collect()
}

fn create(cluster: &Cluster, slot: &str) -> Running {
    let login = cluster.login().application("cdc");
    login.start(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))
}

/// Begins a creation, and waits until it is seen to wait.
#[track_caller]
fn create_waiting(cluster: &Cluster, slot: &str) -> Running {
    let running = create(cluster, slot);
    cluster.wait_for_state(slot, "waiting_for_transactions");
    running
}

fn outcomes_newest_first(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.creation_timeout = '20s'");
    let cluster = with_extension(setup);
    cluster.run("CREATE ROLE hasty LOGIN REPLICATION");
    cluster.run("ALTER ROLE hasty SET slot_self_heal.creation_timeout = '3s'");
    let blocking = Blocker::IdleInTransaction.start(&cluster);

    let mut hasty = cluster
        .login()
        .role("hasty")
        .application("a hasty one")
        .start("SELECT pg_create_logical_replication_slot('cancelled', 'pgoutput')");
    hasty.result().expect_err("it was cancelled");
    cluster.wait_for_end_of("cancelled");

    let mut impatient = create_waiting(&cluster, "gone");
    impatient.cancel();
    impatient.result().expect_err("its client cancelled it");
    cluster.wait_for_end_of("gone");

    let mut patient = create_waiting(&cluster, "ready");
    blocking.commit();
    patient.result().unwrap();
    let ready = cluster.wait_for_end_of("ready");

    let history = cluster.history();
    assert_eq!(names(&history), ["ready", "gone", "cancelled"]);
    let outcomes: Vec<&str> = history.iter().map(|h| h.outcome.as_str()).collect();
    assert_eq!(outcomes, ["ready", "gone", "cancelled by slot_self_heal"]);
    assert!(history.is_sorted_by(|newer, older| newer.ended_at >= older.ended_at));
    for finished in &history {
        assert_eq!(finished.database, "postgres");
        assert_eq!(finished.creator_type.as_deref(), Some("client backend"));
        assert!(finished.waited_for_transactions > 0.0, "{finished:#?}");
        assert_eq!(finished.waited_for_replay, 0.0);
        assert!(finished.max_retained_wal.is_some());
        assert_eq!(finished.blockers.len(), 1, "{finished:#?}");
        let blocker = &finished.blockers[0];
        assert_eq!(blocker.application_name.as_deref(), Some("orders"));
        assert_eq!(blocker.is_creator_peer, Some(false));
    }
    let application = history[2].creator_application.as_deref();
    assert_eq!(application, Some("a hasty one"));

    // and the slot that was made is the one of the history
    let status = cluster.status("ready").unwrap();
    assert_eq!(status.state_since, ready.ended_at);
}

/// So many at a time.
const MANY: usize = 68;

fn a_ring(major: Major) {
    let setup = Setup::new(major)
        .conf("max_connections = 150")
        .conf("max_replication_slots = 150");
    let cluster = with_extension(setup);
    let begin = |round: &str| -> Vec<(String, Running)> {
        let creations: Vec<_> = (0..MANY)
            .map(|n| {
                let slot = format!("{round}_{n}");
                let running = create(&cluster, &slot);
                (slot, running)
            })
            .collect();
        for (slot, _) in &creations {
            cluster.wait_for_state(slot, "waiting_for_transactions");
        }
        creations
    };
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut first = create_waiting(&cluster, "the_first");
    first.cancel();
    first.result().expect_err("it was cancelled");
    cluster.wait_for_end_of("the_first");
    for (_, mut running) in begin("cancelled") {
        running.cancel();
        running.result().expect_err("it was cancelled");
    }
    wait_until("them to be history", PATIENCE, || {
        cluster.history().len() == MANY + 1
    });
    let mut creations = begin("made");
    blocking.commit();
    for (slot, running) in &mut creations {
        running.result().expect(slot);
    }

    let count = |outcome: &str| {
        let history = cluster.history();
        history.iter().filter(|h| h.outcome == outcome).count()
    };
    wait_until("the last of them to be history", PATIENCE, || {
        count("ready") == MANY
    });
    let history = cluster.history();
    assert_eq!(history.len(), REMEMBERED);
    assert!(
        names(&history[..MANY])
            .iter()
            .all(|name| name.starts_with("made_"))
    );
    assert!(history[MANY..].iter().all(|h| h.outcome == "gone"));
    assert!(
        !names(&history).contains(&"the_first"),
        "the oldest goes first"
    );
    assert!(history.is_sorted_by(|newer, older| newer.ended_at >= older.ended_at));
    assert_eq!(cluster.worker().last_error, None);
}

fn survives_the_worker(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = create_waiting(&cluster, SLOT);
    creation.cancel();
    creation.result().expect_err("it was cancelled");
    cluster.wait_for_end_of(SLOT);
    let mut going_on = create_waiting(&cluster, "going_on");
    renew_worker(&cluster);
    assert_eq!(names(&cluster.history()), [SLOT]);
    blocking.commit();
    going_on.result().unwrap();
    cluster.wait_for_end_of("going_on");
    assert_eq!(names(&cluster.history()), ["going_on", SLOT]);
}

fn not_the_server(major: Major) {
    let mut cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = create_waiting(&cluster, SLOT);
    blocking.commit();
    creation.result().unwrap();
    cluster.wait_for_end_of(SLOT);
    drop(creation);
    cluster.restart();
    assert!(cluster.history().is_empty());
    assert_eq!(cluster.status(SLOT).unwrap().state, "ready");
}

fn reset(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.creation_timeout = '3s'");
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    creation.finish().expect_err("it was cancelled");
    cluster.wait_for_end_of(SLOT);
    assert_eq!(cluster.worker().cancelled, Some(1));
    cluster.run("SELECT slot_self_heal_reset()");
    assert!(cluster.history().is_empty());
    assert_eq!(cluster.worker().cancelled, Some(0));

    // what comes after that is remembered again
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    creation.finish().expect_err("it was cancelled");
    cluster.wait_for_end_of(SLOT);
    assert_eq!(cluster.history().len(), 1);
    check_untouched(&cluster, blocking);
}

/// Ten of them.
fn blockers_that_blocked_longest(major: Major) {
    let cluster = primary(major);
    let mut blocking: Vec<_> = (0..12)
        .map(|_| Blocker::IdleInTransaction.start(&cluster))
        .collect();
    let mut creation = create_waiting(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "all blockers", |status| status.blockers.len() == 12);
    // of the oldest, and of the youngest, one ends early
    blocking.remove(11).commit();
    blocking.remove(0).commit();
    cluster.wait_for_status(SLOT, "ten blockers", |status| status.blockers.len() == 10);
    let longest: Vec<String> = blocking.iter().map(|b| b.xid.clone()).collect();
    for blocking in blocking {
        blocking.commit();
    }
    creation.result().unwrap();
    let finished = cluster.wait_for_end_of(SLOT);
    let xids: Vec<String> = finished.blockers.iter().map(|b| b.xid.clone()).collect();
    assert_eq!(xids, longest, "the oldest first");
}

/// One that was never in trouble may be missed, and need not be told.
fn nothing_of_a_quick_creation(major: Major) {
    let cluster = primary(major);
    Creator::SqlFunction.start(&cluster, SLOT).finish().unwrap();
    cluster.wait_for_state(SLOT, "ready");
    harness::for_a_while();
    for finished in cluster.history() {
        assert_eq!(finished.outcome, "ready");
        assert!(finished.blockers.is_empty(), "{finished:#?}");
    }
}
