//! Slots that a standby copies from its primary, to have them after a
//! failover. It can make no use of one until the primary's own has moved on
//! past what the standby still has; and on a primary at rest a slot moves on
//! no more than a creation does.

use harness::{Cluster, Creator, PATIENCE, Process, Setup, Signal, for_a_while, wait_until};

use super::{Pair, SLOT, ask_now, check_hint};
use crate::{Major, primary};

on_majors_with_slot_sync!(
    with_a_consumer,
    without_a_consumer,
    without_an_upstream_to_ask,
    with_a_silent_consumer,
    with_a_consumer_that_waits_for_standbys,
    with_a_consumer_that_waits_and_is_not_seen_to,
    where_a_slot_has_its_name,
    called_by_hand,
    called_by_hand_for_a_slot_that_is_gone,
    called_by_hand_once,
    switched_off,
);

on_majors_since_19!(call_that_tries_until_it_is_done);

/// A primary with a failover slot that lags behind, and a standby that copies
/// it.
#[track_caller]
fn standby_that_syncs(major: Major) -> Pair {
    let pair = lagging_pair(major);
    pair.standby.set("sync_replication_slots", "on");
    pair.standby.wait_until_sql(
        "a copy of the slot that is not kept",
        "EXISTS (SELECT FROM pg_replication_slots WHERE synced AND temporary)",
    );
    pair
}

/// A primary with a physical slot for its standby.
#[track_caller]
fn primary_with_standby_slot(major: Major) -> Cluster {
    let primary = primary(major);
    primary.run("SELECT pg_create_physical_replication_slot('standby')");
    primary
}

#[track_caller]
fn lagging_pair(major: Major) -> Pair {
    let primary = primary_with_standby_slot(major);
    create_failover_slot(&primary);
    let pair = Pair::of(primary, syncing(major));
    // xids that the slot's catalog_xmin is behind, and the standby's is not
    for _ in 0..5 {
        pair.commit_something();
    }
    pair.standby.wait_for_replay_of(&pair.primary);
    pair
}

#[track_caller]
fn create_failover_slot(primary: &Cluster) {
    primary.run(&format!(
        "SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput', failover => true)"
    ));
    primary.run("CREATE PUBLICATION orders");
}

/// A standby that may copy slots, and does not yet.
fn syncing(major: Major) -> Setup {
    Setup::new(major)
        .conf("hot_standby_feedback = on")
        .conf("primary_slot_name = 'standby'")
}

#[track_caller]
fn is_kept(standby: &Cluster) -> bool {
    standby
        .is_true("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE synced AND NOT temporary)")
}

/// Confirms what it is sent, and what it is not sent.
fn consume(pair: &Pair) -> Process {
    let mut program = pair.primary.client("pg_recvlogical");
    program
        .args(["--start", "--slot", SLOT, "--file=-"])
        .args(["--status-interval=1", "--fsync-interval=1"])
        .args(["--option=proto_version=1"])
        .args(["--option=publication_names=orders"])
        .args(["--dbname", &pair.primary.login().conninfo()]);
    Process::start(program, pair.primary.dir())
}

fn with_a_consumer(major: Major) {
    let pair = standby_that_syncs(major);
    let before = pair.primary.insert_lsn();
    let consumer = consume(&pair);
    wait_until("the slot's copy to be kept", 2 * PATIENCE, || {
        is_kept(&pair.standby)
    });
    let status = pair.standby.wait_for_state(SLOT, "ready");
    assert_eq!(status.hint, None);
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
    drop(consumer);
}

/// No record moves a slot that nobody reads from.
fn without_a_consumer(major: Major) {
    let pair = standby_that_syncs(major);
    let status = pair
        .standby
        .wait_for_status(SLOT, "what is the matter", |status| {
            status.state == "not_sync_ready" && status.hint.is_some()
        });
    check_hint(status.hint());
    assert!(status.hint().contains("primary"), "{status:#?}");
    assert!(status.detail.is_some(), "{status:#?}");
    pair.check_that_no_record_is_written();
    assert!(!is_kept(&pair.standby));

    // its consumer comes
    let consumer = consume(&pair);
    wait_until("the slot's copy to be kept", 2 * PATIENCE, || {
        is_kept(&pair.standby)
    });
    pair.standby.wait_for_state(SLOT, "ready");
    drop(consumer);
}

/// A copy can wait for days: the worker does not knock at the door all the
/// while.
fn without_an_upstream_to_ask(major: Major) {
    let pair = standby_that_syncs(major);
    ask_now(
        &pair.standby,
        &pair.primary.login().role("nobody").conninfo(),
    );
    let refused = || pair.primary.count_in_log("role \"nobody\" does not exist");
    wait_until("a refusal", PATIENCE, || refused() > 0);
    let status = pair.standby.wait_for_status(SLOT, "the remedy", |status| {
        status.state == "not_sync_ready" && status.hint().contains("nobody")
    });
    check_hint(status.hint());
    // longer and longer rests, of which the first are short
    for_a_while();
    for_a_while();
    let before = refused();
    for_a_while();
    for_a_while();
    for_a_while();
    assert!(refused() - before <= 2, "{before}, then {}", refused());
}

/// Often enough for more records than are of use.
const OFTEN: (&str, &str) = ("slot_self_heal.nudge_interval", "'500ms'");

/// It is connected, and confirms nothing.
fn with_a_silent_consumer(major: Major) {
    let pair = standby_that_syncs(major);
    let consumer = consume(&pair);
    pair.primary.wait_until_sql(
        "the consumer to be connected",
        "EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical' AND active)",
    );
    consumer.pid().signal(Signal::Stop);
    let before = pair.primary.insert_lsn();
    pair.standby.set(OFTEN.0, OFTEN.1);
    let status = pair
        .standby
        .wait_for_status(SLOT, "that it is in vain", |status| {
            status.detail().contains("has confirmed nothing for")
        });
    assert!(status.detail().contains("3 running-xacts records"));
    assert_eq!(status.nudges, Some(3));
    check_hint(status.hint());
    let told = pair.primary.paste_as_one("postgres", status.hint());
    assert!(told.contains("streaming"), "{told}");
    for_a_while();
    assert_eq!(pair.records_since(before), 3);

    consumer.pid().signal(Signal::Cont);
    wait_until("the slot's copy to be kept", 2 * PATIENCE, || {
        is_kept(&pair.standby)
    });
    pair.standby.wait_for_state(SLOT, "ready");
    // Pasted too late, it only looks.
    pair.primary.paste_as_one("postgres", status.hint());
}

/// Of which one is away for good.
fn with_a_consumer_that_waits_for_standbys(major: Major) {
    consumer_waits(standby_that_syncs(major));
}

/// By a role that sees no wait events: it sees which standby is away.
fn with_a_consumer_that_waits_and_is_not_seen_to(major: Major) {
    let pair = standby_that_syncs(major);
    pair.primary.run("CREATE ROLE asker LOGIN REPLICATION");
    pair.primary
        .run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO asker");
    let login = pair.primary.login().role("asker");
    ask_now(&pair.standby, &login.conninfo());
    consumer_waits(pair);
}

#[track_caller]
fn consumer_waits(pair: Pair) {
    pair.primary
        .run("SELECT pg_create_physical_replication_slot('away', true)");
    pair.primary
        .set("synchronized_standby_slots", "'standby, away'");
    let consumer = consume(&pair);
    pair.commit_something();
    pair.primary.wait_until_sql(
        "the consumer to wait for standbys",
        "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'WaitForStandbyConfirmation')",
    );
    pair.standby.set(OFTEN.0, OFTEN.1);
    let status = pair
        .standby
        .wait_for_status(SLOT, "what it waits for", |status| {
            status.detail().contains("synchronized_standby_slots")
        });
    check_hint(status.hint());
    let told = pair.primary.paste_as_one("postgres", status.hint());
    for name in ["away", "standby, away"] {
        assert!(told.contains(name), "{told}");
    }
    pair.check_that_no_record_is_written();

    pair.primary.set("synchronized_standby_slots", "'standby'");
    wait_until("the slot's copy to be kept", 2 * PATIENCE, || {
        is_kept(&pair.standby)
    });
    pair.standby.wait_for_state(SLOT, "ready");
    drop(consumer);
}

/// One that was created on the standby. The slot sync worker ends at it, and is
/// started again to no other end: no copy is there that could be shown.
fn where_a_slot_has_its_name(major: Major) {
    let pair = Pair::of(primary_with_standby_slot(major), syncing(major));
    let mut creation = pair.create(Creator::SqlFunction);
    pair.finish(&mut creation);
    create_failover_slot(&pair.primary);
    for (name, value) in [OFTEN, ("sync_replication_slots", "on")] {
        pair.standby.set(name, value);
    }
    let status = pair
        .standby
        .wait_for_status(SLOT, "what it keeps from being made", |status| {
            status.detail().contains("slot synchronization")
        });
    assert_eq!(status.state, "ready");
    pair.standby.wait_for_log("same name slot");
    let hint = status.hint();
    check_hint(hint);
    // Whether somebody needs it, only a person knows.
    pair.standby.paste_as_one("postgres", hint);
    pair.standby
        .run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    wait_until("a copy in its place", 2 * PATIENCE, || {
        // A connection wakes the postmaster, which starts the worker again 10 s
        // after its last start, and at rest looks once a minute only.
        let mut session = pair.standby.connect();
        session.is_true("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE synced)")
    });
    pair.standby
        .wait_for_status(SLOT, "nothing in the way", |status| {
            !status.detail().contains("was created here")
        });
    // The copy is not what it names.
    pair.standby.paste_as_one("postgres", hint);
    assert!(
        pair.standby
            .is_true("SELECT count(*) = 1 FROM pg_replication_slots")
    );
}

const CALL: &str = "SELECT pg_sync_replication_slots()";

/// Synchronizes once. From 19 on a call tries until all copies are kept; it is
/// given up here while it waits for its next try.
#[track_caller]
fn call(standby: &Cluster) {
    let mut call = standby.login().start(CALL);
    let waits = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity \
         WHERE pid = {} AND wait_event = 'ReplicationSlotsyncMain')",
        call.pid()
    );
    wait_until("the end of a call", PATIENCE, || {
        call.is_finished() || standby.is_true(&waits)
    });
    call.cancel();
    if let Err(error) = call.result() {
        assert_eq!(error.code, "57014", "{error:#?}");
    }
}

/// As cron does. A call makes a copy and drops it within milliseconds; what was
/// the matter is to be read afterwards, and the next call keeps its own.
fn called_by_hand(major: Major) {
    let pair = lagging_pair(major);
    call(&pair.standby);
    assert!(
        pair.standby
            .is_true("SELECT NOT EXISTS (SELECT FROM pg_replication_slots)")
    );
    let status = pair
        .standby
        .wait_for_status(SLOT, "that no consumer is there", |status| {
            status.detail().contains("has no consumer connected")
        });
    assert_eq!(status.state, "not_sync_ready");
    assert!(
        status
            .detail()
            .contains("pg_sync_replication_slots() made it, and dropped it when it ended"),
        "{status:#?}"
    );
    check_hint(status.hint());
    pair.standby.paste_as_one("postgres", status.hint());

    let before = pair.primary.insert_lsn();
    let consumer = consume(&pair);
    wait_until("a call to keep its copy", 2 * PATIENCE, || {
        call(&pair.standby);
        is_kept(&pair.standby)
    });
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
    pair.standby.wait_for_state(SLOT, "ready");
    drop(consumer);
}

/// From 19 on: it needs no other call, once our record has brought the slot on
/// the primary forward.
fn call_that_tries_until_it_is_done(major: Major) {
    let pair = lagging_pair(major);
    let mut call = pair.standby.login().start(CALL);
    let status = pair
        .standby
        .wait_for_status(SLOT, "that no consumer is there", |status| {
            status.detail().contains("has no consumer connected")
                && status.detail().contains("wal_or_rows_removed")
        });
    assert!(
        status
            .detail()
            .contains("pg_sync_replication_slots() made it, and drops it if it ends before"),
        "{status:#?}"
    );
    assert!(!status.hint().contains("call pg_sync"), "{status:#?}");
    let consumer = consume(&pair);
    call.result().unwrap();
    assert!(is_kept(&pair.standby));
    pair.standby.wait_for_state(SLOT, "ready");
    drop(consumer);
}

/// Nothing brings its copy back.
fn called_by_hand_for_a_slot_that_is_gone(major: Major) {
    let pair = lagging_pair(major);
    pair.standby.set(OFTEN.0, OFTEN.1);
    call(&pair.standby);
    pair.standby
        .wait_for_status(SLOT, "that no consumer is there", |status| {
            status.detail().contains("has no consumer connected")
        });
    pair.primary
        .run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    let status = pair.standby.wait_for_status(SLOT, "its end", |status| {
        status
            .detail()
            .contains("has no failover slot of its name any more")
    });
    assert_eq!(status.hint, None);
    pair.check_that_no_record_is_written();
    pair.standby.run("SELECT pg_promote()");
    wait_until("the row's end", PATIENCE, || {
        pair.standby.status(SLOT).is_none()
    });
}

/// Each record moves the slot on the primary, and once it has come far enough no
/// more are of use, whether somebody calls again or not.
fn called_by_hand_once(major: Major) {
    let pair = lagging_pair(major);
    let consumer = consume(&pair);
    pair.standby.set(OFTEN.0, OFTEN.1);
    let before = pair.primary.insert_lsn();
    call(&pair.standby);
    let status = pair
        .standby
        .wait_for_status(SLOT, "that it has come forward", |status| {
            status
                .detail()
                .contains("has come as far as this standby requires")
        });
    check_hint(status.hint());
    for _ in 0..5 {
        for_a_while();
    }
    let records = pair.records_since(before);
    assert!((1..=3).contains(&records), "{records} records");
    wait_until("a call to keep its copy", PATIENCE, || {
        call(&pair.standby);
        is_kept(&pair.standby)
    });
    drop(consumer);
}

/// The worker's copy ends with it, and nobody has called.
fn switched_off(major: Major) {
    let pair = standby_that_syncs(major);
    pair.standby.set("sync_replication_slots", "off");
    wait_until("the copy's end", PATIENCE, || {
        pair.standby.status(SLOT).is_none()
    });
    for_a_while();
    assert!(pair.standby.status(SLOT).is_none());
}
