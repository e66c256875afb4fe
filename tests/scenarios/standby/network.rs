//! A network that leaves the worker waiting. It must hold up nobody, least of
//! all the server's shutdown, which ends each of these scenarios.

use std::time::Duration;

use harness::{Blocker, Creator, DeadEnd, PATIENCE, Proxy, Setup, wait_for, wait_until};

use super::{
    Pair, SLOT, TRY_SOON, ask_now,
    upstream::{Trouble, is_over, meets},
};
use crate::{Major, open_to_all, primary, with_extension};

on_majors_with_standby_slots!(
    silent,
    unreachable,
    slow_name_lookup,
    slow_name_lookup_of_a_service,
    slow_name_lookup_in_a_session,
    name_that_moves,
    no_program_to_look_names_up,
    another_libpq_in_the_server,
    one_of_several_hosts_is_silent,
    one_of_several_names_is_not_found,
    frozen,
    promoted_meanwhile,
    promoted_during_a_name_lookup,
    drop_database_meanwhile,
    drop_database_during_a_name_lookup,
    shut_down_meanwhile,
    shut_down_while_it_connects,
    shut_down_during_a_name_lookup,
    terminated_during_a_name_lookup,
);

/// A standby whose worker is to ask at some address of 127.0.0.1.
#[track_caller]
fn pair_asking(major: Major, host: &str, port: u16) -> Pair {
    let standby = Setup::new(major)
        .conf(&format!(
            "slot_self_heal.primary_conninfo = 'host={host} port={port} user=postgres'"
        ))
        .conf(TRY_SOON)
        .slow_name_lookup();
    // DROP DATABASE's checkpoint removes WAL
    let primary = with_extension(Setup::new(major).conf("wal_keep_size = 64MB"));
    Pair::of(primary, standby)
}

/// The worker goes on looking, and the views answer.
#[track_caller]
pub(super) fn check_it_looks_on(pair: &Pair) {
    const SOON: Duration = Duration::from_secs(15);
    for _ in 0..3 {
        let before = pair.standby.worker().last_scan_at;
        wait_for("the worker to look again", SOON, || {
            match pair.standby.worker().last_scan_at {
                now if now != before => Ok(()),
                now => Err(format!("last at {now:?}")),
            }
        });
    }
    assert_ne!(pair.standby.status(SLOT).unwrap().state, "ready");
}

/// Those of the worker: what it gave up it should not hold on to.
#[track_caller]
fn open_files(pair: &Pair) -> usize {
    let worker = pair.standby.worker().pid.expect("it runs");
    std::fs::read_dir(format!("/proc/{}/fd", worker.0))
        .expect("Linux shows a process's files")
        .count()
}

/// Nobody answers; the worker is then told to ask its own upstream.
fn heals_elsewhere(pair: &Pair) {
    let trouble = meets(pair, "unreachable");
    let before = open_files(pair);
    check_it_looks_on(pair);
    let after = open_files(pair);
    assert!(after <= before + 1, "{before} open files, then {after}");
    ask_now(&pair.standby, "");
    is_over(pair, trouble);
}

fn silent(major: Major) {
    let dead_end = DeadEnd::silent();
    heals_elsewhere(&pair_asking(major, "127.0.0.1", dead_end.port()));
}

fn unreachable(major: Major) {
    let dead_end = DeadEnd::unreachable();
    heals_elsewhere(&pair_asking(major, "127.0.0.1", dead_end.port()));
}

fn slow_name_lookup(major: Major) {
    heals_elsewhere(&pair_asking(major, "slow.invalid", 5432));
}

/// The name stands in a file that libpq reads.
fn slow_name_lookup_of_a_service(major: Major) {
    let files = tempfile::tempdir().expect("a directory");
    open_to_all(files.path());
    let services = files.path().join("services");
    std::fs::write(&services, "[up]\nhost=slow.invalid\nuser=postgres\n").expect("it is ours");
    let standby = Setup::new(major)
        .conf("slot_self_heal.primary_conninfo = 'service=up'")
        .conf(TRY_SOON)
        .environment("PGSERVICEFILE", &services.to_string_lossy())
        .slow_name_lookup();
    let pair = Pair::of(primary(major), standby);
    let trouble = meets(&pair, "unreachable");
    check_it_looks_on(&pair);
    // what else the service says holds
    let place = format!(
        "[up]\nhost=localhost\nport={}\nuser=postgres\n",
        pair.primary.port()
    );
    std::fs::write(&services, place).expect("it is ours");
    is_over(&pair, trouble);
}

/// In which no thread is left behind either.
fn slow_name_lookup_in_a_session(major: Major) {
    const NUDGE: &str = "SELECT slot_self_heal_nudge()";
    let pair = pair_asking(major, "slow.invalid", 5432);
    let mut session = pair.standby.connect();
    let error = session.error(NUDGE);
    assert_eq!(error.code, "08006", "{error}");
    assert!(error.message.contains("slow.invalid"), "{error}");
    let pid = session.pid();
    assert_eq!(pid.threads(), 1);
    assert_eq!(pid.others_of_group(), []);

    let mut asking = session.start(NUDGE);
    wait_until("the look-up", PATIENCE, || {
        !pid.others_of_group().is_empty()
    });
    assert_eq!(pid.threads(), 1);
    asking.cancel();
    let error = asking.result().expect_err("it has no answer");
    assert!(["57014", "08006"].contains(&error.code.as_str()), "{error}");
    wait_until("its end", PATIENCE, || pid.others_of_group().is_empty());
}

/// To another address, where its server is from then on.
fn name_that_moves(major: Major) {
    let files = tempfile::tempdir().expect("a directory");
    open_to_all(files.path());
    let address = files.path().join("address");
    std::fs::write(&address, "127.0.0.2\n").expect("it is ours");
    let primary = primary(major);
    let standby = Setup::new(major)
        .conf(&format!(
            "slot_self_heal.primary_conninfo = 'host=moving.invalid port={} user=postgres'",
            primary.port()
        ))
        .conf(TRY_SOON)
        .environment("MOVING_INVALID", &address.to_string_lossy())
        .slow_name_lookup();
    let pair = Pair::of(primary, standby);
    let trouble = meets(&pair, "unreachable");
    let error = pair.standby.worker().last_error.unwrap_or_default();
    assert!(error.contains("127.0.0.2"), "{error}");
    std::fs::write(&address, "127.0.0.1\n").expect("it is ours");
    is_over(&pair, trouble);
}

fn no_program_to_look_names_up(major: Major) {
    let primary = primary(major);
    let standby = Setup::new(major)
        .conf(&format!(
            "slot_self_heal.primary_conninfo = 'host=localhost port={} user=postgres'",
            primary.port()
        ))
        .conf(TRY_SOON)
        .environment("PATH", "/nonexistent");
    let pair = Pair::of(primary, standby);
    let trouble = meets(&pair, "unreachable");
    assert!(trouble.hint.contains("getent"), "{}", trouble.hint);
    let port = pair.primary.port();
    ask_now(
        &pair.standby,
        &format!("host=127.0.0.1 port={port} user=postgres"),
    );
    is_over(&pair, trouble);
}

/// Which another extension brought, and which comes first.
fn another_libpq_in_the_server(major: Major) {
    let standby = Setup::new(major).conf("shared_preload_libraries = 'fake_libpq, slot_self_heal'");
    let pair = Pair::of(primary(major), standby);
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    assert_eq!(pair.standby.worker().last_error, None);
    pair.standby.run("SELECT slot_self_heal_nudge()");
}

#[track_caller]
fn heals_by_the_other(pair: &Pair) {
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    let worker = pair.standby.worker();
    assert_eq!(worker.upstream.as_deref(), Some("ok"), "{worker:#?}");
    assert_eq!(worker.last_error, None);
}

/// It gets its part of the time, and no more.
fn one_of_several_hosts_is_silent(major: Major) {
    let dead_end = DeadEnd::silent();
    let pair = Pair::of(primary(major), Setup::new(major));
    let (dead, alive) = (dead_end.port(), pair.primary.port());
    ask_now(
        &pair.standby,
        &format!("host=127.0.0.1,127.0.0.1 port={dead},{alive} user=postgres"),
    );
    heals_by_the_other(&pair);
}

fn one_of_several_names_is_not_found(major: Major) {
    let standby = Setup::new(major).slow_name_lookup();
    let pair = Pair::of(primary(major), standby);
    let port = pair.primary.port();
    ask_now(
        &pair.standby,
        &format!("host=slow.invalid,localhost port={port} user=postgres"),
    );
    heals_by_the_other(&pair);
}

/// The network goes while the worker is connected, and comes back.
fn frozen(major: Major) {
    let primary = primary(major);
    let proxy = Proxy::to(primary.port());
    let standby = Setup::new(major)
        .conf(&format!(
            "slot_self_heal.primary_conninfo = 'host=127.0.0.1 port={} user=postgres'",
            proxy.port()
        ))
        .conf(TRY_SOON);
    let pair = Pair::of(primary, standby);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    proxy.freeze();
    blocking.commit();
    pair.standby
        .wait_for_worker("an upstream that is gone", |worker| {
            worker.upstream.as_deref() == Some("unreachable")
        });
    check_it_looks_on(&pair);
    proxy.thaw();
    pair.finish(&mut creation);
    pair.standby
        .wait_for_worker("an upstream that is back", |worker| {
            worker.upstream.as_deref() == Some("ok")
        });
}

#[track_caller]
fn promoted_while_it_waits_for(pair: &Pair) {
    let Trouble { mut creation, .. } = meets(pair, "unreachable");
    let before = pair.standby.worker().pid;
    assert!(pair.standby.is_true("SELECT pg_promote(true, 60)"));
    let worker = pair.standby.wait_for_worker("the new role", |worker| {
        worker.role.as_deref() == Some("primary")
    });
    assert_eq!(worker.pid, before, "the worker was restarted");
    pair.finish(&mut creation);
}

fn promoted_meanwhile(major: Major) {
    let dead_end = DeadEnd::silent();
    promoted_while_it_waits_for(&pair_asking(major, "127.0.0.1", dead_end.port()));
}

fn promoted_during_a_name_lookup(major: Major) {
    promoted_while_it_waits_for(&pair_asking(major, "slow.invalid", 5432));
}

/// Replay of DROP DATABASE waits for all processes of the standby
/// (a ProcSignalBarrier), the worker among them.
#[track_caller]
fn drop_database_while_it_waits_for(mut pair: Pair) {
    // else a record of others might end the creation
    let blocking = pair.start_blocker_that_wrote();
    let _creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_worker("unreachable", |worker| {
        worker.upstream.as_deref() == Some("unreachable")
    });
    // DROP DATABASE waits for the primary's processes, too
    pair.frozen = None;
    pair.primary.run("CREATE DATABASE short_lived");
    pair.primary.run("DROP DATABASE short_lived");
    pair.standby.wait_for_replay_of(&pair.primary);
    assert_ne!(pair.standby.status(SLOT).unwrap().state, "ready");
    drop(blocking);
}

fn drop_database_meanwhile(major: Major) {
    let dead_end = DeadEnd::silent();
    drop_database_while_it_waits_for(pair_asking(major, "127.0.0.1", dead_end.port()));
}

fn drop_database_during_a_name_lookup(major: Major) {
    drop_database_while_it_waits_for(pair_asking(major, "slow.invalid", 5432));
}

#[track_caller]
fn shut_down_while_it_waits_for(mut pair: Pair) {
    let trouble = meets(&pair, "unreachable");
    pair.standby.stop_fast();
    drop(trouble);
}

fn shut_down_meanwhile(major: Major) {
    let dead_end = DeadEnd::silent();
    shut_down_while_it_waits_for(pair_asking(major, "127.0.0.1", dead_end.port()));
}

fn shut_down_while_it_connects(major: Major) {
    let dead_end = DeadEnd::unreachable();
    shut_down_while_it_waits_for(pair_asking(major, "127.0.0.1", dead_end.port()));
}

fn shut_down_during_a_name_lookup(major: Major) {
    shut_down_while_it_waits_for(pair_asking(major, "slow.invalid", 5432));
}

/// And its successor is held up no more than it was.
fn terminated_during_a_name_lookup(major: Major) {
    let pair = pair_asking(major, "slow.invalid", 5432);
    let Trouble { mut creation, .. } = meets(&pair, "unreachable");
    let old = pair.standby.worker().pid.expect("it runs");
    wait_until("the look-up", PATIENCE, || {
        !old.others_of_group().is_empty()
    });
    assert_eq!(old.threads(), 1);
    let terminated = pair
        .standby
        .is_true(&format!("SELECT pg_terminate_backend({old}, 10000)"));
    assert!(terminated, "it did not end");
    wait_until("the look-up to end with it", PATIENCE, || {
        old.others_of_group().is_empty()
    });
    pair.standby.wait_for_worker("a new worker", |worker| {
        worker.pid.is_some_and(|pid| pid != old)
    });
    check_it_looks_on(&pair);
    ask_now(&pair.standby, "");
    pair.finish(&mut creation);
}
