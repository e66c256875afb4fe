//! A password is nobody's business, and no more is a conninfo.

use harness::{Cluster, Creator, Setup, for_a_while};

use super::{Pair, TRY_SOON};
use crate::{Major, primary};

on_majors_with_standby_slots!(
    of_a_conninfo_that_works,
    of_a_conninfo_that_is_refused,
    of_a_conninfo_that_cannot_be_parsed,
    of_the_servers_own_conninfo,
);

const PASSWORD: &str = "open-sesame";

const HBA: [&str; 6] = [
    "local all postgres trust",
    "host all postgres 127.0.0.1/32 trust",
    "host replication postgres 127.0.0.1/32 trust",
    "host replication replicator 127.0.0.1/32 scram-sha-256",
    "host all replicator 127.0.0.1/32 scram-sha-256",
    "host all monitor 127.0.0.1/32 trust",
];

/// A primary that lets a role in with its password alone.
#[track_caller]
fn primary_with_password(major: Major, password: &str) -> Cluster {
    let primary = primary(major);
    primary.run("CREATE ROLE replicator LOGIN REPLICATION");
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    primary.run(&format!("ALTER ROLE replicator PASSWORD '{password}'"));
    primary.set_hba(&HBA);
    primary
}

#[track_caller]
fn check_that_nobody_tells(pair: &Pair) {
    let told = |text: &str| text.contains(PASSWORD);
    for server in [&pair.standby, &pair.primary] {
        assert!(!told(&server.log()), "in the log");
        for sql in [
            "SELECT to_jsonb(s) FROM slot_self_heal_status s",
            "SELECT to_jsonb(w) FROM slot_self_heal_worker w",
            "SELECT to_jsonb(a) FROM pg_stat_activity a",
            "SELECT to_jsonb(s) FROM pg_settings s WHERE name LIKE 'slot_self_heal.%'",
            "SHOW slot_self_heal.primary_conninfo",
            "SELECT current_setting('slot_self_heal.primary_conninfo')",
        ] {
            let rows = server.rows(sql);
            let mut values = rows.iter().flatten().flatten();
            assert!(!values.any(|value| told(value)), "{sql}: {rows:?}");
        }
    }
}

/// A superuser reads it in the file it stands in, and others nowhere.
#[track_caller]
fn check_that_monitors_see_nothing(pair: &Pair) {
    pair.primary
        .run("CREATE ROLE monitor LOGIN IN ROLE pg_monitor");
    pair.commit_something();
    pair.standby.wait_for_replay_of(&pair.primary);
    let mut monitor = pair.standby.login().role("monitor").connect();
    if let Ok(rows) = monitor.try_rows("SHOW slot_self_heal.primary_conninfo") {
        let shown = rows[0][0].clone().unwrap_or_default();
        assert!(!shown.contains("127.0.0.1"), "{shown}");
    }
}

/// One that stands in the file from the start: of one that is reloaded
/// Postgres itself logs the new value.
#[track_caller]
fn pair_with_conninfo(primary: Cluster, conninfo: &str) -> Pair {
    let standby = Setup::new(primary.major())
        .conf(&format!("slot_self_heal.primary_conninfo = '{conninfo}'"))
        .conf(TRY_SOON);
    Pair::of(primary, standby)
}

fn of_a_conninfo_that_works(major: Major) {
    let primary = primary_with_password(major, PASSWORD);
    let login = primary.login().role("replicator").conninfo();
    let pair = pair_with_conninfo(primary, &format!("{login} password={PASSWORD}"));
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    check_that_nobody_tells(&pair);
    check_that_monitors_see_nothing(&pair);
}

fn of_a_conninfo_that_is_refused(major: Major) {
    let primary = primary_with_password(major, "another");
    let login = primary.login().role("replicator").conninfo();
    let pair = pair_with_conninfo(primary, &format!("{login} password={PASSWORD}"));
    let mut creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_worker("a refusal", |worker| {
        worker.upstream.as_deref() == Some("unreachable")
    });
    for_a_while();
    check_that_nobody_tells(&pair);

    // what it has is right, after all
    let verifier = {
        let other = Setup::new(major).start();
        other.run(&format!("CREATE ROLE replicator PASSWORD '{PASSWORD}'"));
        other.value("SELECT rolpassword FROM pg_authid WHERE rolname = 'replicator'")
    };
    pair.primary
        .run(&format!("ALTER ROLE replicator PASSWORD '{verifier}'"));
    pair.finish(&mut creation);
    check_that_nobody_tells(&pair);
}

/// libpq repeats a URI that it can't parse, whole.
fn of_a_conninfo_that_cannot_be_parsed(major: Major) {
    let conninfo = format!("postgresql://replicator:{PASSWORD}@[::1");
    let pair = pair_with_conninfo(primary(major), &conninfo);
    let creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_worker("the trouble", |worker| {
        worker.upstream.as_deref() == Some("not configured")
    });
    for_a_while();
    check_that_nobody_tells(&pair);
    drop(creation);
}

/// The one that the WAL receiver uses.
fn of_the_servers_own_conninfo(major: Major) {
    let primary = primary_with_password(major, PASSWORD);
    let login = primary.login().role("replicator").application("standby");
    let conninfo = format!("{} password={PASSWORD}", login.conninfo());
    let standby = Setup::new(major).conf("wal_retrieve_retry_interval = 200ms");
    let mut pair = Pair::of(primary, standby);
    // the last line of a name counts
    pair.standby.stop_fast();
    pair.standby
        .append_to_auto_conf(&format!("primary_conninfo = '{conninfo}'"));
    pair.standby.start_again();
    pair.primary.wait_until_sql(
        "the standby to connect with its password",
        "EXISTS (SELECT FROM pg_stat_replication WHERE usename = 'replicator')",
    );
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    check_that_nobody_tells(&pair);
}
