//! Healed, whoever creates the slot.

use harness::{Blocker, Creator, Setup, prepare_background_creator};

use super::{Pair, SLOT, TWENTY, create_twenty, roomy_pair, strangers, wait_until_left_alone};
use crate::{Major, primary, with_extension};

on_every_major!(watches);

on_majors_with_standby_slots!(
    with_hot_standby_feedback,
    twenty_at_once,
    one_after_another,
    healing_needs_no_extension,
    disabled,
    enabled_on_the_standby_alone,
    connected_only_while_a_slot_is_built,
    connected_no_longer_than_its_creation_lasts,
    in_another_database,
);

/// What there is to see when nothing has happened yet.
fn watches(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major));
    for (server, role) in [(&pair.primary, "primary"), (&pair.standby, "standby")] {
        let worker = server.wait_for_worker("a pid", |worker| worker.pid.is_some());
        assert_eq!(worker.role.as_deref(), Some(role));
        assert_eq!(worker.upstream.as_deref(), Some("not needed"));
        assert_eq!(worker.hint, None);
        assert_eq!(worker.last_error, None);
        let slots = server.number("SELECT count(*) FROM slot_self_heal_status");
        assert_eq!(slots, 0);
    }
}

/// On a primary at rest one record is enough: it names no running transaction
/// (`SnapBuildFindSnapshot`).
fn healed(creator: Creator, major: Major) {
    let primary = primary(major);
    prepare_background_creator(&primary);
    primary.run(&format!("CREATE PUBLICATION {SLOT}"));
    let pair = Pair::of(primary, Setup::new(major));
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(creator);

    let status = pair.standby.wait_until_ready(SLOT);
    assert_eq!(status.nudges, Some(1), "{status:#?}");
    assert!(status.last_nudge_at.is_some(), "{status:#?}");
    let nudged = status.last_nudge_lsn.expect("it was nudged");
    assert!(before < nudged.parse().unwrap(), "{before} {nudged}");
    assert_eq!(status.hint, None);
    // a temporary slot is gone with its client
    let worker = pair
        .standby
        .wait_for_worker("a healed slot", |worker| worker.healed == Some(1));
    creation.finish().expect("the client has its slot");
    assert_eq!(worker.nudges, Some(1), "{worker:#?}");
    assert_eq!(worker.upstream.as_deref(), Some("ok"));
    assert_eq!(worker.hint, None);
    assert_eq!(worker.last_error, None);
    assert_eq!(pair.records_since(before), 1);
}

/// Tests `by::<creator>::pg16`.
mod by {
    use super::{Creator, healed};

    scenarios!(
        on_majors_with_standby_slots:
        walsender = healed(Creator::Walsender),
        temporary_walsender = healed(Creator::TemporaryWalsender),
        pg_recvlogical = healed(Creator::PgRecvlogical),
        sql_function = healed(Creator::SqlFunction),
        temporary_sql_function = healed(Creator::TemporarySqlFunction),
        subscription = healed(Creator::Subscription),
        background_worker = healed(Creator::BackgroundWorker),
    );
}

/// As standbys with logical slots should be set up.
fn with_hot_standby_feedback(major: Major) {
    let primary = primary(major);
    primary.run("SELECT pg_create_physical_replication_slot('standby')");
    let standby = Setup::new(major)
        .conf("hot_standby_feedback = on")
        .conf("primary_slot_name = 'standby'");
    let pair = Pair::of(primary, standby);
    pair.primary.wait_until_sql(
        "the standby's feedback",
        "EXISTS (SELECT FROM pg_replication_slots WHERE xmin IS NOT NULL)",
    );
    let before = pair.primary.insert_lsn();
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    assert!(pair.records_since(before) <= 3);
}

fn twenty_at_once(major: Major) {
    let pair = roomy_pair(major);
    let mut creations = create_twenty(&pair);
    for creation in &mut creations {
        creation.finish().unwrap();
    }
    pair.standby.wait_until_sql(
        "all slots to be ready",
        &format!("count(*) = {TWENTY} FROM slot_self_heal_status WHERE state = 'ready'"),
    );
    assert_eq!(pair.standby.worker().last_error, None);
}

/// Each has its own restart_lsn, after which its record must come.
fn one_after_another(major: Major) {
    let pair = Pair::start(major);
    let before = pair.primary.insert_lsn();
    for n in 0..3 {
        let slot = format!("slot_{n}");
        let mut creation = Creator::SqlFunction.start(&pair.standby, &slot);
        creation.finish().unwrap();
        pair.standby.wait_for_state(&slot, "ready");
    }
    assert_eq!(pair.records_since(before), 3);
}

/// The library alone heals; the views are for the operator. The primary has
/// not even the library.
fn healing_needs_no_extension(major: Major) {
    let primary = Setup::new(major).without_extension().start();
    let standby = Setup::new(major).conf("shared_preload_libraries = 'slot_self_heal'");
    let pair = Pair::of(primary, standby);
    let mut creation = pair.create(Creator::Walsender);
    creation.finish().unwrap();
    pair.standby
        .wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
}

/// What happens without us: nothing.
fn disabled(major: Major) {
    let standby = Setup::new(major).conf("slot_self_heal.enabled = off");
    let pair = Pair::of(primary(major), standby);
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_state(SLOT, "starting");
    pair.check_that_no_record_is_written();
    assert_eq!(pair.standby.status(SLOT).unwrap().state, "starting");
    assert_eq!(strangers(&pair.primary), [""; 0]);

    pair.standby.set("slot_self_heal.enabled", "on");
    pair.finish(&mut creation);
}

/// To be asked for a record is not to look for slots.
fn enabled_on_the_standby_alone(major: Major) {
    let primary = with_extension(Setup::new(major).conf("slot_self_heal.enabled = off"));
    let standby = Setup::new(major).conf("slot_self_heal.enabled = on");
    let pair = Pair::of(primary, standby);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.finish(&mut creation);
}

fn connected_only_while_a_slot_is_built(major: Major) {
    let pair = Pair::start(major);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    let found = strangers(&pair.primary);
    let blocker = format!("client backend {}", Blocker::APPLICATION);
    assert!(
        found
            .iter()
            .all(|stranger| *stranger == blocker || stranger.ends_with(" slot_self_heal")),
        "{found:?}"
    );
    blocking.commit();
    pair.finish(&mut creation);
    wait_until_left_alone(&pair.primary);
}

fn connected_no_longer_than_its_creation_lasts(major: Major) {
    let pair = Pair::start(major);
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby.wait_for_log(&format!(
        "logical replication slot \"{SLOT}\" is being created and waits for transactions"
    ));
    creation.statement().expect("it is one").cancel();
    creation.finish().expect_err("it was cancelled");
    drop(blocking);
    wait_until_left_alone(&pair.primary);
}

/// One worker does for all databases of its server.
fn in_another_database(major: Major) {
    let primary = primary(major);
    primary.run("CREATE DATABASE elsewhere");
    let pair = Pair::of(primary, Setup::new(major));
    let login = pair.standby.login().database("elsewhere");
    let mut creation = login.start(&format!(
        "SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
    ));
    let status = pair.standby.wait_until_ready(SLOT);
    assert_eq!(status.database, "elsewhere");
    creation.result().expect("the client has its slot");
}
