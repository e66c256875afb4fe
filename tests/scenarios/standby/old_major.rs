//! Before PostgreSQL 16 a standby has no logical slots; a record can be asked
//! for all the same.

use harness::{Creator, Lsn, Setup};

use super::{Pair, SLOT, check_hint};
use crate::{Major, primary};

on_majors_without_standby_slots!(
    no_slot_is_created,
    nudge_by_hand,
    nudge_of_an_upstream_without_extension,
);

fn no_slot_is_created(major: Major) {
    let pair = Pair::start(major);
    let mut creation = pair.create(Creator::Walsender);
    creation.finish().expect_err("there is no such feature");
    assert!(pair.standby.status(SLOT).is_none());
    assert_eq!(pair.standby.worker().last_error, None);
}

fn nudge_by_hand(major: Major) {
    let pair = Pair::start(major);
    let before = pair.primary.insert_lsn();
    let nudged = pair.standby.value("SELECT slot_self_heal_nudge()");
    assert!(before < nudged.parse::<Lsn>().unwrap(), "{before} {nudged}");
    assert_eq!(pair.records_since(before), 1);
}

/// `pg_log_standby_snapshot()` came with 16.
fn nudge_of_an_upstream_without_extension(major: Major) {
    let primary = primary(major);
    primary.run("CREATE DATABASE plain");
    let standby = Setup::new(major).conf("slot_self_heal.database = 'plain'");
    let pair = Pair::of(primary, standby);
    let before = pair.primary.insert_lsn();
    let error = pair
        .standby
        .connect()
        .error("SELECT slot_self_heal_nudge()");
    check_hint(&error.hint);
    assert!(
        error.hint.contains("CREATE EXTENSION slot_self_heal"),
        "{error}"
    );
    assert!(error.hint.contains("plain"), "{error}");

    pair.primary.paste_as_one("plain", &error.hint);
    pair.standby.wait_for_replay_of(&pair.primary);
    pair.standby.run("SELECT slot_self_heal_nudge()");
    assert_eq!(pair.records_since(before), 1);
}
