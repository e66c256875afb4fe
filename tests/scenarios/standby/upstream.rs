//! An upstream that writes no record when asked: each trouble with its name
//! and its remedy, said once, and over once it is mended.

use harness::{
    Asked, Cluster, Creation, Creator, Done, FakeUpstream, PATIENCE, Setup, for_a_while, free_port,
    wait_until,
};

use super::{Pair, RECEIVE_SOON, SLOT, TRY_SOON, ask, ask_now, check_hint};
use crate::{Major, primary, with_extension};

on_majors_with_standby_slots!(
    not_permitted_to_log_a_snapshot,
    not_permitted_to_nudge,
    not_permitted_with_names_to_quote,
    not_preloaded,
    not_preloaded_and_not_permitted,
    switched_off,
    switched_off_and_not_permitted,
    refused_by_pg_hba,
    wrong_password,
    nobody_listens,
    no_conninfo,
    malformed_conninfo,
    another_cluster,
    mended_while_a_transaction_is_in_the_way,
    connection_terminated,
    functions_of_our_names,
    role_with_settings_of_its_own,
    refusals_become_rare,
    reload_ends_the_pause,
    request_by_hand_ends_the_pause,
    retrying_client_does_not_make_them_frequent,
    server_that_starts_is_asked_again_soon,
);

/// A GRANT on the primary leaves dead rows in its catalogs. Once these are
/// pruned there, Postgres takes the standby's slot away, which may need them.
const KEEP_ROWS: &str = "hot_standby_feedback = on";

const HBA_WITHOUT_REPLICATOR: [&str; 3] = [
    "local all postgres trust",
    "host all postgres 127.0.0.1/32 trust",
    "host replication all 127.0.0.1/32 trust",
];

/// A slot on the standby that waits because of its upstream.
pub(super) struct Trouble {
    pub creation: Creation,
    /// The worker's hint.
    pub hint: String,
}

/// Creates a slot and waits for the trouble that this meets.
#[track_caller]
pub(super) fn meets(pair: &Pair, upstream: &str) -> Trouble {
    let creation = pair.create(Creator::Walsender);
    let worker = pair.standby.wait_for_worker(upstream, |worker| {
        worker.upstream.as_deref() == Some(upstream) && worker.hint.is_some()
    });
    let hint = worker.hint.expect("waited for");
    check_hint(&hint);
    let status = pair.standby.wait_for_status(SLOT, "the remedy", |status| {
        status.state == "waiting_for_record" && status.hint.is_some()
    });
    check_hint(status.hint());
    // said once, not at each try
    for_a_while();
    let warnings = warnings(&pair.standby);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    Trouble { creation, hint }
}

/// Waits until the slot is healed, as nothing is the matter any more.
#[track_caller]
pub(super) fn is_over(pair: &Pair, mut trouble: Trouble) {
    pair.finish(&mut trouble.creation);
    is_well(&pair.standby);
    pair.standby
        .wait_for_worker("a healed slot", |worker| worker.healed == Some(1));
    check_said_once(&pair.standby);
}

#[track_caller]
fn is_well(standby: &Cluster) {
    standby.wait_for_worker("an upstream that is well", |worker| {
        worker.upstream.as_deref() == Some("ok") && worker.hint.is_none()
    });
}

fn warnings(standby: &Cluster) -> Vec<String> {
    let mut lines = standby.worker_log();
    lines.retain(|line| line.contains(" WARNING:  "));
    lines
}

/// One line when it began and one when it was over.
#[track_caller]
pub(super) fn check_said_once(standby: &Cluster) {
    let lines = standby.worker_log();
    let warnings: Vec<usize> = (0..lines.len())
        .filter(|&n| lines[n].contains(" WARNING:  "))
        .collect();
    let [began] = warnings[..] else {
        panic!("not one warning: {lines:#?}");
    };
    let over = lines[began..]
        .iter()
        .filter(|line| line.contains(" LOG:  ") && line.contains("upstream"));
    assert_eq!(over.count(), 1, "{lines:#?}");
}

/// The trouble's hint has these words and, pasted into a database of the
/// primary, mends it.
#[track_caller]
fn mended_by_hint(pair: &Pair, upstream: &str, database: &str, words: &[&str]) {
    let trouble = meets(pair, upstream);
    for word in words {
        assert!(trouble.hint.contains(word), "no {word}: {}", trouble.hint);
    }
    let hint = trouble.hint.clone();
    pair.primary.paste_as_one(database, &hint);
    is_over(pair, trouble);
    // Once more it gives what is given.
    let granted = privileges(pair, database);
    pair.primary.paste_as_one(database, &hint);
    assert_eq!(privileges(pair, database), granted);
}

/// All that is granted on functions, schemas and roles.
fn privileges(pair: &Pair, database: &str) -> String {
    let login = pair.primary.login().database(database);
    login.connect().value(
        "SELECT concat((SELECT string_agg(proacl::text, ',' ORDER BY oid) FROM pg_proc), \
                       (SELECT string_agg(nspacl::text, ',' ORDER BY oid) FROM pg_namespace), \
                       (SELECT count(*) FROM pg_auth_members))",
    )
}

/// A role for standbys, which may do no more than it must.
fn create_replicator(primary: &Cluster) {
    primary.run("CREATE ROLE replicator LOGIN REPLICATION");
}

/// A standby that connects as this role, on whose privileges it depends.
fn standby_as(role: &str, major: Major) -> Setup {
    Setup::new(major)
        .upstream_role(role)
        .conf(KEEP_ROWS)
        .conf(TRY_SOON)
}

/// The worker is in a database without the extension, so it needs the server's
/// own function there: privileges on functions are a database's.
fn not_permitted_to_log_a_snapshot(major: Major) {
    let primary = primary(major);
    primary.run("CREATE DATABASE plain");
    create_replicator(&primary);
    let standby = standby_as("replicator", major).conf("slot_self_heal.database = 'plain'");
    let pair = Pair::of(primary, standby);
    let grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_log_standby_snapshot() TO replicator;";
    let words = [grant, "plain", "primary"];
    mended_by_hint(&pair, "not permitted", "plain", &words);
}

fn not_permitted_to_nudge(major: Major) {
    let primary = primary(major);
    create_replicator(&primary);
    let pair = Pair::of(primary, standby_as("replicator", major));
    let grant = "GRANT EXECUTE ON FUNCTION public.slot_self_heal_nudge() TO replicator;";
    let words = [grant, "postgres", "primary"];
    mended_by_hint(&pair, "not permitted", "postgres", &words);
}

/// What is pasted mends it, whatever the names are. A function in a schema of
/// its own takes a privilege on that schema, too.
fn not_permitted_with_names_to_quote(major: Major) {
    let primary = Setup::new(major).start();
    primary.run("CREATE SCHEMA \"Slot Home\"");
    primary.run("CREATE EXTENSION slot_self_heal SCHEMA \"Slot Home\"");
    primary.run("ALTER ROLE postgres SET search_path = \"Slot Home\"");
    primary.forget_observer();
    primary.run("CREATE ROLE \"Repli\"\"cator\" LOGIN REPLICATION");
    let pair = Pair::of(primary, standby_as("Repli\"cator", major));
    mended_by_hint(&pair, "not permitted", "postgres", &[]);
}

/// The extension is there, and its library is not: the server's own function
/// does.
fn not_preloaded(major: Major) {
    let pair = primary_without_library(major, Setup::new(major));
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    is_well(&pair.standby);
}

/// `enabled = off` stops the function there, and not the server's own.
fn switched_off(major: Major) {
    let primary = with_extension(Setup::new(major).conf("slot_self_heal.enabled = off"));
    let pair = Pair::of(
        primary,
        Setup::new(major).conf("slot_self_heal.enabled = on"),
    );
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    is_well(&pair.standby);
    // The former was not even tried.
    assert_eq!(pair.primary.count_in_log("enabled is off"), 0);
}

fn switched_off_and_not_permitted(major: Major) {
    let primary = with_extension(Setup::new(major).conf("slot_self_heal.enabled = off"));
    create_replicator(&primary);
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    let standby = standby_as("replicator", major).conf("slot_self_heal.enabled = on");
    let pair = Pair::of(primary, standby);
    let grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_log_standby_snapshot() TO replicator;";
    let words = [grant, "the server's own function"];
    mended_by_hint(&pair, "not configured", "postgres", &words);
}

fn not_preloaded_and_not_permitted(major: Major) {
    let pair = primary_without_library(major, standby_as("replicator", major));
    let words = ["shared_preload_libraries"];
    mended_by_hint(&pair, "not configured", "postgres", &words);
}

#[track_caller]
fn primary_without_library(major: Major, standby: Setup) -> Pair {
    let primary = with_extension(Setup::new(major).without_extension());
    create_replicator(&primary);
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    let standby = standby.conf("shared_preload_libraries = 'slot_self_heal'");
    Pair::of(primary, standby)
}

/// pg_hba.conf lets the WAL receiver in by the word `replication`, and the
/// worker's connection by the database's name.
fn refused_by_pg_hba(major: Major) {
    let primary = primary(major);
    create_replicator(&primary);
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    primary.set_hba(&HBA_WITHOUT_REPLICATOR);
    let pair = Pair::of(primary, standby_as("replicator", major));
    let trouble = meets(&pair, "unreachable");
    let line = hba_line(&trouble.hint);
    let line: Vec<&str> = line.split_whitespace().collect();
    let [database, role, address] = ["postgres", "replicator", "127.0.0.1/32"];
    assert_eq!(line[..4], ["host", database, role, address]);
    assert!(line.len() >= 5, "no method: {line:?}");

    // fifty times a second it looks at the slot, and knocks now and then
    let refusals = pair.primary.count_in_log("no pg_hba.conf entry");
    assert!((1..20).contains(&refusals), "{refusals} refusals");

    // a password is another story
    let line = format!("host {database} {role} {address} trust");
    let mut hba = HBA_WITHOUT_REPLICATOR.to_vec();
    hba.push(&line);
    pair.primary.set_hba(&hba);
    is_over(&pair, trouble);
}

/// The line for pg_hba.conf in a hint, which is a comment of it.
#[track_caller]
fn hba_line(hint: &str) -> &str {
    hint.lines()
        .map(|line| line.trim_start_matches(['-', ' ']))
        .find(|line| line.starts_with("host "))
        .unwrap_or_else(|| panic!("no line for pg_hba.conf: {hint}"))
}

fn wrong_password(major: Major) {
    let primary = primary(major);
    create_replicator(&primary);
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    primary.run("ALTER ROLE replicator PASSWORD 'right'");
    let mut hba = HBA_WITHOUT_REPLICATOR.to_vec();
    hba.push("host postgres replicator 127.0.0.1/32 scram-sha-256");
    primary.set_hba(&hba);
    let login = primary.login().role("replicator").conninfo();
    let standby = Setup::new(major)
        .conf(&format!(
            "slot_self_heal.primary_conninfo = '{login} password=wrong'"
        ))
        .conf(TRY_SOON);
    let pair = Pair::of(primary, standby);
    let trouble = meets(&pair, "unreachable");
    assert!(trouble.hint.contains("replicator"), "{}", trouble.hint);
    ask_now(&pair.standby, &format!("{login} password=right"));
    is_over(&pair, trouble);
}

fn nobody_listens(major: Major) {
    let primary = primary(major);
    let login = primary.login();
    let nobody = format!("host=127.0.0.1 port={} user=postgres", free_port());
    let standby = Setup::new(major)
        .conf(&format!("slot_self_heal.primary_conninfo = '{nobody}'"))
        .conf(TRY_SOON);
    let pair = Pair::of(primary, standby);
    let trouble = meets(&pair, "unreachable");
    let error = pair.standby.worker().last_error.unwrap_or_default();
    assert!(error.contains("refused"), "libpq's message: {error}");
    ask_now(&pair.standby, &login.conninfo());
    is_over(&pair, trouble);
}

/// As of a standby that is fed from an archive.
fn no_conninfo(major: Major) {
    let standby = Setup::new(major).conf(TRY_SOON).conf(RECEIVE_SOON);
    let pair = Pair::of(primary(major), standby);
    let conninfo = pair.standby.value("SHOW primary_conninfo");
    pair.standby.set("primary_conninfo", "''");
    pair.standby.wait_until_sql(
        "the WAL receiver to end",
        "NOT EXISTS (SELECT FROM pg_stat_wal_receiver)",
    );
    let mut creation = pair.create(Creator::SqlFunction);
    let worker = pair.standby.wait_for_worker("no conninfo", |worker| {
        worker.upstream.as_deref() == Some("not configured")
    });
    let hint = worker.hint.expect("a remedy");
    check_hint(&hint);
    assert!(hint.contains("slot_self_heal.primary_conninfo"), "{hint}");

    let conninfo = conninfo.replace('\'', "''");
    pair.standby
        .set("primary_conninfo", &format!("'{conninfo}'"));
    pair.finish(&mut creation);
    is_well(&pair.standby);
}

fn malformed_conninfo(major: Major) {
    let standby = Setup::new(major)
        .conf("slot_self_heal.primary_conninfo = 'the server over there'")
        .conf(TRY_SOON);
    let pair = Pair::of(primary(major), standby);
    let trouble = meets(&pair, "not configured");
    let hint = &trouble.hint;
    assert!(hint.contains("slot_self_heal.primary_conninfo"), "{hint}");
    ask_now(&pair.standby, "");
    is_over(&pair, trouble);
}

/// A record in somebody else's WAL helps nobody.
fn another_cluster(major: Major) {
    let other = with_extension(Setup::new(major).another_cluster());
    let _frozen = other.freeze_bgwriter();
    let before = other.insert_lsn();
    let standby = Setup::new(major).conf(&ask(other.login())).conf(TRY_SOON);
    let pair = Pair::of(primary(major), standby);
    let trouble = meets(&pair, "not configured");
    let hint = &trouble.hint;
    assert!(hint.contains("slot_self_heal.primary_conninfo"), "{hint}");
    ask_now(&pair.standby, "");
    is_over(&pair, trouble);
    assert_eq!(other.running_xacts_since(before), [""; 0]);
}

/// The trouble comes and goes while there is nothing to ask for.
fn mended_while_a_transaction_is_in_the_way(major: Major) {
    let primary = primary(major);
    create_replicator(&primary);
    let pair = Pair::of(primary, standby_as("replicator", major));
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_worker("not permitted", |worker| {
        worker.upstream.as_deref() == Some("not permitted")
    });
    pair.primary
        .run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    blocking.commit();
    pair.finish(&mut creation);
    is_well(&pair.standby);
}

/// By an administrator of the primary, say: the worker connects again.
fn connection_terminated(major: Major) {
    let standby = Setup::new(major).conf(TRY_SOON);
    let pair = Pair::of(primary(major), standby);
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    pair.primary.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'slot_self_heal'",
    );
    blocking.commit();
    pair.finish(&mut creation);
    is_well(&pair.standby);
}

/// Somebody on the primary may create in the extension's schema. What is not
/// the extension's own is nobody to us.
fn functions_of_our_names(major: Major) {
    let pair = Pair::start(major);
    for arguments in ["int", "text", "int, text"] {
        pair.primary.run(&format!(
            "CREATE FUNCTION public.slot_self_heal_end_blocker({arguments}) RETURNS int \
             LANGUAGE sql AS 'SELECT 1'"
        ));
    }
    pair.standby.wait_for_replay_of(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    is_well(&pair.standby);
}

/// What ALTER ROLE sets for the role's sessions is not for ours.
fn role_with_settings_of_its_own(major: Major) {
    let primary = primary(major);
    create_replicator(&primary);
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    let mut settings = vec![
        "idle_session_timeout = '100ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "search_path = nowhere",
        "client_encoding = 'LATIN1'",
        "quote_all_identifiers = on",
    ];
    if primary.number("SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'") > 0 {
        settings.push("transaction_timeout = '2s'");
    }
    for setting in settings {
        primary.run(&format!("ALTER ROLE replicator SET {setting}"));
    }
    let pair = Pair::of(primary, standby_as("replicator", major));
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    for_a_while();
    blocking.commit();
    pair.finish(&mut creation);
    is_well(&pair.standby);
    assert_eq!(pair.standby.worker().last_error, None);
    // each session was ended by us
    let ended = ["idle-session timeout", "transaction timeout"];
    assert!(ended.iter().all(|why| pair.primary.count_in_log(why) == 0));
}

/// A standby that is turned away by its upstream, as a server says it, unless
/// it is a session that asks.
#[track_caller]
fn pair_turned_away(sqlstate: &'static str, major: Major) -> (Pair, FakeUpstream) {
    let primary = primary(major);
    let fake = FakeUpstream::before(primary.port(), move |asked, to| match asked {
        Asked::Startup(parameters) if !is_for_a_session(parameters) => {
            to.begins();
            to.error("FATAL", sqlstate, "not you")?;
            Ok(Done::Answered)
        }
        Asked::Startup(_) | Asked::Query(_) => Ok(Done::PassOn),
    });
    // the pause after any other failure is a third of it
    let standby = Setup::new(major)
        .conf("slot_self_heal.nudge_interval = 100ms")
        .conf(&format!(
            "slot_self_heal.primary_conninfo = 'host=127.0.0.1 port={} user=postgres'",
            fake.port()
        ));
    (Pair::of(primary, standby), fake)
}

/// Its application's name tells how far the request has come.
fn is_for_a_session(parameters: &[u8]) -> bool {
    const NAME: &[u8] = b"slot_self_heal/1\0";
    parameters.windows(NAME.len()).any(|part| part == NAME)
}

const NOT_IN_PG_HBA: &str = "28000";

/// More than there are in a minute when the pauses double from 250 ms on, and
/// far fewer than there are in two seconds when they do not.
const FEW: usize = 12;

fn refusals_become_rare(major: Major) {
    let (pair, fake) = pair_turned_away(NOT_IN_PG_HBA, major);
    let creation = pair.create(Creator::Walsender);
    let worker = pair.standby.wait_for_worker("a refusal", |worker| {
        worker.upstream.as_deref() == Some("unreachable") && worker.hint.is_some()
    });
    let error = worker.last_error.unwrap_or_default();
    assert!(error.contains(&fake.port().to_string()), "{error}");
    assert!(error.ends_with("FATAL:  not you"), "{error}");
    let hint = worker.hint.unwrap_or_default();
    check_hint(&hint);
    assert!(
        hint.contains("5 min") && hint.contains("pg_reload_conf"),
        "{hint}"
    );
    for_a_while();
    assert!(fake.answered() < FEW, "{} refusals", fake.answered());
    drop(creation);
}

/// Does something that lets the standby try at once, again and again: were it
/// to wait for the end of its pauses, the last of them would take too long.
#[track_caller]
fn is_tried_at_once_after(fake: &FakeUpstream, mut act: impl FnMut()) {
    const TIMES: usize = 10;
    wait_until("a refusal", PATIENCE, || fake.answered() > 0);
    for _ in 0..TIMES {
        let before = fake.answered();
        act();
        wait_until("another try", PATIENCE, || fake.answered() > before);
    }
}

fn reload_ends_the_pause(major: Major) {
    let (pair, fake) = pair_turned_away(NOT_IN_PG_HBA, major);
    let creation = pair.create(Creator::Walsender);
    is_tried_at_once_after(&fake, || pair.standby.run("SELECT pg_reload_conf()"));
    drop(creation);
}

fn request_by_hand_ends_the_pause(major: Major) {
    let (pair, fake) = pair_turned_away(NOT_IN_PG_HBA, major);
    // which keeps the creation waiting, whatever is written meanwhile
    let blocking = pair.start_blocker_that_wrote();
    let creation = pair.create(Creator::Walsender);
    is_tried_at_once_after(&fake, || pair.standby.run("SELECT slot_self_heal_nudge()"));
    drop((creation, blocking));
}

fn retrying_client_does_not_make_them_frequent(major: Major) {
    let (pair, fake) = pair_turned_away(NOT_IN_PG_HBA, major);
    for n in 0..FEW {
        let slot = format!("slot_{n}");
        let creation = Creator::Walsender.start(&pair.standby, &slot);
        pair.standby
            .wait_for_status(&slot, "its creation", |status| {
                status.creation_started.is_some()
            });
        drop(creation);
        pair.standby.wait_for_end_of(&slot);
    }
    let refusals = fake.answered();
    assert!((1..FEW).contains(&refusals), "{refusals} refusals");
}

/// One that says it will take connections in a moment will do so in a moment.
fn server_that_starts_is_asked_again_soon(major: Major) {
    let (pair, fake) = pair_turned_away("57P03", major);
    let creation = pair.create(Creator::Walsender);
    wait_until("many tries", PATIENCE, || fake.answered() > 2 * FEW);
    drop(creation);
}
