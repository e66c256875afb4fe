//! Replay is paused, and not because somebody asked for it: whoever resumes it
//! then shuts the server down, or promotes it.

use std::fs;

use harness::{Cluster, Creator, Setup};

use super::{Pair, RECEIVE_SOON, SLOT, check_hint};
use crate::{Major, primary};

scenarios!(
    on_majors_with_standby_slots:
    connections = lower_than_the_primarys("max_connections", 110),
    worker_processes = lower_than_the_primarys("max_worker_processes", 12),
    wal_senders = lower_than_the_primarys("max_wal_senders", 14),
    prepared_transactions = lower_than_the_primarys("max_prepared_transactions", 16),
    locks_per_transaction = lower_than_the_primarys("max_locks_per_transaction", 200),
);

on_majors_with_standby_slots!(
    two_of_them,
    on_the_command_line,
    at_its_target,
    asked_for_before_its_target,
    asked_for_and_over,
    half_written_control_file,
);

const RESUME: &str = "pg_wal_replay_resume()";

/// The settings are raised on the primary, which the standby's replay can't go
/// past (`RecoveryRequiresIntParameter`).
#[track_caller]
fn raise_on_the_primary(pair: &mut Pair, settings: &[(&str, u32)]) {
    for (name, value) in settings {
        pair.primary.set(name, &value.to_string());
    }
    pair.restart_primary();
    pair.standby.wait_until_sql(
        "replay to pause by itself",
        "pg_get_wal_replay_pause_state() = 'paused'",
    );
}

#[track_caller]
fn becomes_ready_after_a_restart(pair: &mut Pair) {
    pair.standby.restart();
    assert!(pair.standby.is_true("SELECT pg_is_in_recovery()"));
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    assert_eq!(pair.standby.count_in_log("recovery aborted"), 0);
}

fn lower_than_the_primarys(setting: &str, raised: u32, major: Major) {
    let mut pair = Pair::of(primary(major), Setup::new(major).conf(RECEIVE_SOON));
    let here = pair.standby.value(&format!("SHOW {setting}"));
    raise_on_the_primary(&mut pair, &[(setting, raised)]);
    let mut creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, "the setting", |status| {
        status.state == "waiting_for_replay" && status.detail().contains(setting)
    });
    let detail = status.detail();
    let both = format!("{setting} is {here} here and {raised} on the primary");
    assert!(detail.contains(&both), "{detail}");
    assert!(detail.contains("shut down"), "{detail}");
    let hint = status.hint();
    let raise = format!("ALTER SYSTEM SET {setting} = {raised};");
    assert!(hint.starts_with(&raise), "{hint}");
    assert!(hint.contains("restart"), "{hint}");
    assert!(!hint.contains(RESUME), "{hint}");
    check_hint(hint);

    pair.standby.paste_as_one("postgres", hint);
    let status = pair.standby.wait_for_status(SLOT, "the restart", |status| {
        status.hint().starts_with("-- restart this standby")
    });
    // Nothing is left to be run.
    pair.standby.paste_as_one("postgres", status.hint());
    pair.standby.stop_fast();
    creation.finish().expect_err("its server was restarted");
    pair.standby.start_again();
    becomes_ready_after_a_restart(&mut pair);
    // Pasted again, it changes nothing.
    pair.standby.paste_as_one("postgres", hint);
    assert_eq!(
        pair.standby.value(&format!("SHOW {setting}")),
        raised.to_string()
    );
}

/// One after the other, as each stands alone.
fn two_of_them(major: Major) {
    let mut pair = Pair::of(primary(major), Setup::new(major).conf(RECEIVE_SOON));
    let settings = [("max_connections", 110), ("max_locks_per_transaction", 200)];
    raise_on_the_primary(&mut pair, &settings);
    let creation = pair.create(Creator::SqlFunction);
    for (name, value) in settings {
        let raise = format!("ALTER SYSTEM SET {name} = {value};");
        let status = pair
            .standby
            .wait_for_status(SLOT, &raise, |status| status.hint().starts_with(&raise));
        for (name, _) in settings {
            assert!(status.detail().contains(name), "{status:#?}");
        }
        check_hint(status.hint());
        pair.standby.paste_as_one("postgres", status.hint());
    }
    pair.standby.wait_for_status(SLOT, "the restart", |status| {
        status.hint().starts_with("-- restart this standby")
    });
    drop(creation);
    becomes_ready_after_a_restart(&mut pair);
}

/// Patroni does so, say: what ALTER SYSTEM writes does not count then.
fn on_the_command_line(major: Major) {
    let standby = Setup::new(major)
        .conf(RECEIVE_SOON)
        .argument("--max_connections=100");
    let mut pair = Pair::of(primary(major), standby);
    raise_on_the_primary(&mut pair, &[("max_connections", 110)]);
    let creation = pair.create(Creator::Walsender);
    let status = pair.standby.wait_for_status(SLOT, "the setting", |status| {
        status.hint().contains("command line")
    });
    let hint = status.hint();
    assert!(hint.starts_with("-- ") && hint.contains("to 110"), "{hint}");
    check_hint(hint);
    pair.standby.paste_as_one("postgres", hint);
    drop(creation);
}

/// A standby that came to its target, as it is told with `recovery_target`.
#[track_caller]
fn standby_at_its_target(major: Major) -> Pair {
    let primary = primary(major);
    let frozen = Some(primary.freeze_bgwriter());
    let standby = Setup::new(major)
        .conf("recovery_target = 'immediate'")
        .standby_of(&primary);
    standby.wait_until_sql(
        "replay to pause at its target",
        "pg_get_wal_replay_pause_state() = 'paused'",
    );
    Pair {
        frozen,
        standby,
        primary,
    }
}

#[track_caller]
fn check_that_nothing_resumes(standby: &Cluster, why: &str) {
    let status = standby.wait_for_status(SLOT, "why it is paused", |status| {
        status.state == "waiting_for_replay" && status.detail().contains(why)
    });
    let hint = status.hint();
    assert!(hint.lines().all(|line| line.starts_with("-- ")), "{hint}");
    check_hint(hint);
    standby.paste_as_one("postgres", hint);
    assert!(standby.is_true("SELECT pg_is_in_recovery()"));
    assert!(standby.is_true("SELECT pg_get_wal_replay_pause_state() = 'paused'"));
}

fn would_promote(setting: &str, value: &str) -> String {
    format!(
        "{setting} is set, to {value}: if that is what it has come to, resuming it would promote \
         this server"
    )
}

fn at_its_target(major: Major) {
    let pair = standby_at_its_target(major);
    let creation = pair.create(Creator::Walsender);
    check_that_nothing_resumes(
        &pair.standby,
        &would_promote("recovery_target", "immediate"),
    );
    drop(creation);
}

/// Nothing tells that the target is still to come.
fn asked_for_before_its_target(major: Major) {
    let standby = Setup::new(major).conf("recovery_target_name = 'never'");
    let pair = Pair::of(primary(major), standby);
    pair.standby.run("SELECT pg_wal_replay_pause()");
    pair.standby.wait_until_sql(
        "replay to pause",
        "pg_get_wal_replay_pause_state() = 'paused'",
    );
    let creation = pair.create(Creator::SqlFunction);
    check_that_nothing_resumes(
        &pair.standby,
        &would_promote("recovery_target_name", "never"),
    );
    drop(creation);
}

/// Somebody else has resumed it, and it has paused again, for a reason that the
/// hint does not know: it does nothing.
fn asked_for_and_over(major: Major) {
    let mut pair = Pair::of(primary(major), Setup::new(major).conf(RECEIVE_SOON));
    pair.standby.run("SELECT pg_wal_replay_pause()");
    let creation = pair.create(Creator::Walsender);
    let status = pair
        .standby
        .wait_for_status(SLOT, "the way out", |status| status.hint().contains(RESUME));
    drop(creation);
    pair.standby.run("SELECT pg_wal_replay_resume()");
    pair.commit_something();
    pair.standby.wait_for_replay_of(&pair.primary);
    pair.standby.paste_as_one("postgres", status.hint());

    raise_on_the_primary(&mut pair, &[("max_connections", 110)]);
    pair.standby.paste_as_one("postgres", status.hint());
    assert!(
        pair.standby
            .is_true("SELECT pg_get_wal_replay_pause_state() = 'paused'")
    );
    assert_eq!(pair.standby.count_in_log("recovery aborted"), 0);
}

/// What would tell the reason is read without a lock: the server may be writing
/// it just now.
fn half_written_control_file(major: Major) {
    let pair = Pair::start(major);
    let control_file = pair.standby.data().join("global/pg_control");
    let whole = fs::read(&control_file).unwrap();
    let mut half = whole.clone();
    half[16] ^= 1;
    fs::write(&control_file, half).unwrap();
    pair.standby.run("SELECT pg_wal_replay_pause()");
    let mut creation = pair.create(Creator::Walsender);
    check_that_nothing_resumes(&pair.standby, "is paused; why, slot_self_heal cannot tell");
    fs::write(&control_file, whole).unwrap();
    let status = pair
        .standby
        .wait_for_status(SLOT, "the way out", |status| status.hint().contains(RESUME));
    pair.standby.paste_as_one("postgres", status.hint());
    pair.finish(&mut creation);
}
