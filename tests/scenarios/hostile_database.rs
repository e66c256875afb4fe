//! A user of the worker's database who wants the worker, a superuser, to run
//! code of his: by names that shadow the catalog's, and by a search_path that
//! finds his first.

use harness::{Blocker, Creator, Session, Setup};

use crate::{Major, NO_WAL_WRITER, with_extension};

const SLOT: &str = "cdc_slot";

on_every_major!(
    shadowed_names_are_not_used,
    settings_of_its_owner,
    role_of_its_owner,
);

/// Says so in the log, where the prefix tells who fell into it.
const TRAP: &str = "
CREATE FUNCTION public.trap(what text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG 'trapped by %', what; RETURN 1; END $$;
";

fn shadowed_names_are_not_used(major: Major) {
    let cluster = with_extension(Setup::new(major).conf(NO_WAL_WRITER));
    // to look on from, where no trap is
    cluster.run("CREATE DATABASE watch");
    cluster.run("GRANT CREATE ON SCHEMA public TO PUBLIC");
    cluster.run("CREATE ROLE mallory LOGIN");
    let mut mallory = cluster.login().role("mallory").connect();
    mallory.run(TRAP);
    shadow_views(&mut mallory);
    shadow_functions(&mut mallory);
    shadow_operators(&mut mallory);
    // An administrator who means well. Now even catalog names are found in
    // public first, by all who do not say which they mean.
    cluster.run("ALTER DATABASE postgres SET search_path = public, pg_catalog");
    cluster.run("ALTER ROLE postgres SET search_path = public, pg_catalog");
    mallory.run("SET search_path = public, pg_catalog");
    mallory.run("SELECT 'a'::text = 'b'::text");
    let trapped = || -> Vec<String> {
        let is_worker = |line: &&str| line.contains(" slot_self_heal LOG:  trapped");
        cluster
            .log()
            .lines()
            .filter(is_worker)
            .map(str::to_owned)
            .collect()
    };
    assert!(
        cluster.log().contains("client backend LOG:  trapped by ="),
        "the trap does not work"
    );

    // the worker's next start takes these settings
    let mut watch = cluster.login().database("watch").connect();
    watch.run("SET search_path = pg_catalog");
    watch.run(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
         WHERE backend_type = 'slot_self_heal'",
    );
    let waiting =
        format!("logical replication slot \"{SLOT}\" is being created and waits for transactions");
    let blocking = Blocker::AnotherDatabase.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log(&waiting);
    blocking.rollback();
    creation.finish().unwrap();
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
    assert!(trapped().is_empty(), "{:#?}", trapped());
    assert!(!cluster.log().contains(" slot_self_heal ERROR:"));
}

fn shadow_views(mallory: &mut Session) {
    for view in [
        "pg_replication_slots",
        "pg_stat_activity",
        "pg_locks",
        "pg_prepared_xacts",
        "pg_settings",
        "pg_stat_replication",
        "pg_database",
        "pg_authid",
        "pg_roles",
    ] {
        mallory.run(&format!(
            "CREATE VIEW public.{view} AS SELECT c.*, public.trap('{view}') AS trap \
             FROM pg_catalog.{view} c"
        ));
    }
}

fn shadow_functions(mallory: &mut Session) {
    for (name, arguments, result) in [
        ("pg_log_standby_snapshot", "", "pg_lsn"),
        ("pg_current_wal_lsn", "", "pg_lsn"),
        ("pg_current_wal_insert_lsn", "", "pg_lsn"),
        ("pg_current_snapshot", "", "pg_snapshot"),
        ("pg_is_in_recovery", "", "boolean"),
        ("pg_backend_pid", "", "int"),
        ("pg_blocking_pids", "int", "int[]"),
        ("pg_wal_lsn_diff", "pg_lsn, pg_lsn", "numeric"),
        ("pg_get_replication_slots", "", "int"),
        ("pg_stat_get_activity", "int", "int"),
        ("pg_lock_status", "", "int"),
        ("pg_prepared_xact", "", "int"),
        ("now", "", "timestamptz"),
        ("clock_timestamp", "", "timestamptz"),
        ("current_setting", "text", "text"),
        ("age", "xid", "int"),
        ("host", "inet", "text"),
        ("\"left\"", "text, int", "text"),
        ("length", "text", "int"),
        ("octet_length", "text", "int"),
        ("substr", "text, int, int", "text"),
        ("quote_literal", "text", "text"),
        ("format", "text, text", "text"),
        ("to_jsonb", "text", "jsonb"),
        ("convert_to", "text, name", "bytea"),
        ("encode", "bytea, text", "text"),
        ("text", "name", "text"),
    ] {
        mallory.run(&format!(
            "CREATE FUNCTION public.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM public.trap($q${name}$q$); RETURN NULL; END $$"
        ));
    }
}

fn shadow_operators(mallory: &mut Session) {
    for types in [
        "text, text",
        "name, name",
        "name, text",
        "oid, oid",
        "xid, xid",
        "int, int",
        "pg_lsn, pg_lsn",
        "boolean, boolean",
    ] {
        let (left, right) = types.split_once(", ").expect("two types");
        for operator in ["=", "<>", "<", ">", ">=", "-", "||"] {
            mallory.run(&format!(
                "CREATE OR REPLACE FUNCTION public.operate({types}) RETURNS boolean \
                 LANGUAGE plpgsql AS \
                 $$ BEGIN PERFORM public.trap('='); RETURN NULL; END $$"
            ));
            mallory.run(&format!(
                "CREATE OPERATOR public.{operator} \
                 (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.operate)"
            ));
        }
    }
}

/// A database's owner need be nobody, and sets defaults for all who connect
/// to it: the worker, too.
fn settings_of_its_owner(major: Major) {
    let mut settings = vec![
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "default_transaction_deferrable = on",
        "bytea_output = 'escape'",
        "datestyle = 'German'",
        "intervalstyle = 'sql_standard'",
        "timezone = 'Asia/Kathmandu'",
        "enable_hashjoin = off",
        "work_mem = '64kB'",
        "client_encoding = 'LATIN1'",
        "quote_all_identifiers = on",
        "array_nulls = off",
        "transform_null_equals = on",
        "default_tablespace = 'nowhere'",
        "xmloption = 'document'",
        "plan_cache_mode = 'force_custom_plan'",
    ];
    settings.push(if major >= Major::V16 {
        "debug_parallel_query = on"
    } else {
        "force_parallel_mode = on"
    });
    if major < Major::V19 {
        settings.push("standard_conforming_strings = off");
    }
    if major >= Major::V17 {
        settings.push("transaction_timeout = '1ms'");
    }
    heals_with(major, &settings);
}

/// `role` is such a default, too: the worker, as the owner, would see nothing
/// of other roles' sessions.
fn role_of_its_owner(major: Major) {
    heals_with(major, &["role = 'mallory'"]);
}

/// With these defaults of its database the worker does all that it should.
fn heals_with(major: Major, settings: &[&str]) {
    let mut cluster = with_extension(Setup::new(major).conf(NO_WAL_WRITER));
    cluster.run("CREATE ROLE mallory LOGIN");
    cluster.run("CREATE DATABASE heal OWNER mallory");
    let mut mallory = cluster.login().role("mallory").connect();
    for setting in settings {
        mallory.run(&format!("ALTER DATABASE heal SET {setting}"));
    }
    cluster.run("ALTER SYSTEM SET slot_self_heal.database = 'heal'");
    cluster.restart();

    let pid = cluster
        .wait_for_worker("its database", |worker| {
            worker.database.as_deref() == Some("heal") && worker.pid.is_some()
        })
        .pid;
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    assert_eq!(
        status.blockers[0].application_name.as_deref(),
        Some(Blocker::APPLICATION)
    );
    let scans = cluster.worker().scans.unwrap();
    cluster.wait_for_worker("fifty more scans", |worker| {
        worker.scans.unwrap() >= scans + 50
    });
    blocking.rollback();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    let worker = cluster.wait_for_worker("a healed slot", |worker| worker.healed == Some(1));
    assert_eq!(worker.pid, pid, "the worker was restarted");
    assert_eq!(worker.last_error, None);
}
