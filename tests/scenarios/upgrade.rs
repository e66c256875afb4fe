//! ALTER EXTENSION … UPDATE. The library is the new one from the server's start
//! on; the SQL in a database is an old one until then.

use harness::{Blocker, Cluster, Creator, Session, output_of};

use crate::{Major, primary};

const SLOT: &str = "cdc_slot";
const VIEWS: [&str; 3] = [
    "slot_self_heal_status",
    "slot_self_heal_worker",
    "slot_self_heal_history",
];

on_every_major!(
    old_sql_and_new_library,
    as_a_fresh_install,
    what_users_made_stays,
    a_view_on_an_old_function_stays,
);

#[track_caller]
fn in_database(cluster: &Cluster, database: &str) -> Session {
    cluster.run(&format!("CREATE DATABASE {database}"));
    cluster.login().database(database).connect()
}

#[track_caller]
fn with_old_sql(cluster: &Cluster, database: &str) -> Session {
    let mut session = in_database(cluster, database);
    session.run("CREATE SCHEMA \"Heal me\"");
    session.run("CREATE EXTENSION slot_self_heal SCHEMA \"Heal me\" VERSION '0.1.0'");
    session.run("SET search_path = \"Heal me\", public");
    session
}

fn old_sql_and_new_library(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut gone = Creator::SqlFunction.start(&cluster, "gone");
    cluster.wait_for_state("gone", "waiting_for_transactions");
    gone.statement().expect("a statement").cancel();
    gone.finish().expect_err("it was cancelled");
    cluster.wait_for_end_of("gone");
    let creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");

    let mut session = with_old_sql(&cluster, "old");
    let row = |session: &mut Session, sql| session.rows(sql).concat();
    let xid = blocking.xid.clone();
    let status = "SELECT slot_name, state, blockers -> 0 ->> 'xid', hint IS NOT NULL \
                  FROM slot_self_heal_status";
    let history = "SELECT slot_name, outcome, jsonb_array_length(blockers) \
                   FROM slot_self_heal_history";
    let expected = |values: &[&str]| -> Vec<Option<String>> {
        values
            .iter()
            .map(|value| Some((*value).to_owned()))
            .collect()
    };
    for _ in 0..2 {
        let waiting = [SLOT, "waiting_for_transactions", &xid, "t"];
        assert_eq!(row(&mut session, status), expected(&waiting));
        assert_eq!(row(&mut session, history), expected(&["gone", "gone", "1"]));
        assert_eq!(
            session.number("SELECT count(*) FROM slot_self_heal_worker"),
            1
        );
        session.run("ALTER EXTENSION slot_self_heal UPDATE");
    }
    assert_eq!(
        row(&mut session, "SELECT tries FROM slot_self_heal_status"),
        expected(&["1"])
    );
    drop((creation, blocking));
}

/// What the catalogs have of the extension's objects, by name.
#[track_caller]
fn catalog(session: &mut Session) -> Vec<String> {
    let sql = "
        WITH members AS (
            SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
              FROM pg_depend d
              JOIN pg_extension e ON e.oid = d.refobjid
             WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
               AND e.extname = 'slot_self_heal'
        ), privileges AS (
            SELECT m.objid, string_agg(a::text, ' ' ORDER BY a::text) AS acl
              FROM members m
              LEFT JOIN pg_proc p ON p.oid = m.objid
              LEFT JOIN pg_class c ON c.oid = m.objid,
                   unnest(COALESCE(p.proacl, c.relacl)) a
             GROUP BY m.objid
        ), initial AS (
            SELECT i.objoid, string_agg(a::text, ' ' ORDER BY a::text) AS acl
              FROM pg_init_privs i, unnest(i.initprivs) a
             GROUP BY i.objoid
        )
        SELECT concat_ws(' | ', m.object, obj_description(m.objid, m.classid::regclass::name),
                         p.prosrc, p.probin, p.provolatile, p.proisstrict, p.proparallel,
                         p.prosecdef, p.proconfig, pg_get_function_arguments(p.oid),
                         pg_get_function_result(p.oid), pg_get_userbyid(p.proowner),
                         pg_get_viewdef(c.oid), pg_get_userbyid(c.relowner), r.acl, i.acl)
          FROM members m
          LEFT JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
          LEFT JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
          LEFT JOIN privileges r ON r.objid = m.objid
          LEFT JOIN initial i ON i.objoid = m.objid
         ORDER BY m.object";
    let rows = session.rows(sql).into_iter();
    let mut found: Vec<String> = rows.map(|row| row[0].clone().expect("a text")).collect();
    found.extend(session.rows(
        "SELECT attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) \
         FROM pg_attribute WHERE attrelid::regclass::text LIKE '%slot_self_heal%' AND attnum > 0 \
         ORDER BY attrelid::regclass::text, attnum",
    ).into_iter().map(|row| row[0].clone().expect("a text")));
    let version = "SELECT extversion FROM pg_extension WHERE extname = 'slot_self_heal'";
    found.push(session.value(version));
    found
}

fn as_a_fresh_install(major: Major) {
    let cluster = primary(major);
    let mut fresh = in_database(&cluster, "fresh");
    fresh.run("CREATE SCHEMA \"Heal me\"");
    fresh.run("CREATE EXTENSION slot_self_heal SCHEMA \"Heal me\"");
    let mut upgraded = with_old_sql(&cluster, "upgraded");
    upgraded.run("ALTER EXTENSION slot_self_heal UPDATE");
    upgraded.run("RESET search_path");
    let fresh = catalog(&mut fresh);
    assert_eq!(catalog(&mut upgraded), fresh);
    assert!(fresh.len() > 40, "{fresh:#?}");
    assert!(
        !fresh.iter().any(|line| line.contains("_0_1")),
        "{fresh:#?}"
    );
    assert_eq!(fresh.last().map(String::as_str), Some("0.2.0"));
}

fn what_users_made_stays(major: Major) {
    let cluster = primary(major);
    for role in ["dashboards", "\"Night Shift\""] {
        cluster.run(&format!("CREATE ROLE {role}"));
    }
    let mut session = with_old_sql(&cluster, "used");
    for sql in [
        "CREATE VIEW public.mine AS SELECT * FROM slot_self_heal_status",
        "GRANT SELECT ON public.mine TO dashboards",
        "GRANT USAGE ON SCHEMA \"Heal me\" TO dashboards, \"Night Shift\", pg_monitor",
        "GRANT SELECT ON slot_self_heal_status, slot_self_heal_history TO dashboards",
        "GRANT EXECUTE ON FUNCTION slot_self_heal_get_status() TO dashboards",
        "GRANT EXECUTE ON FUNCTION slot_self_heal_get_history() \
         TO \"Night Shift\" WITH GRANT OPTION",
        "REVOKE EXECUTE ON FUNCTION slot_self_heal_get_history() FROM pg_monitor",
        "ALTER EXTENSION slot_self_heal UPDATE",
    ] {
        session.run(sql);
    }
    session.run("SET ROLE dashboards");
    session.run("SELECT tries FROM slot_self_heal_status");
    session.run("SELECT hint FROM public.mine");
    assert_eq!(
        session
            .error("SELECT tries FROM slot_self_heal_history")
            .code,
        "42501"
    );
    session.run("SET ROLE \"Night Shift\"");
    session.run("GRANT EXECUTE ON FUNCTION slot_self_heal_get_history() TO dashboards");
    session.run("SET ROLE dashboards");
    session.run("SELECT tries FROM slot_self_heal_history");
    session.run("SET ROLE pg_monitor");
    session.run("SELECT tries FROM slot_self_heal_status");
    assert_eq!(
        session
            .error("SELECT tries FROM slot_self_heal_history")
            .code,
        "42501"
    );
    session.run("RESET ROLE");

    // A dump has what its users granted and revoked, and not what the extension does.
    let mut dump = cluster.client("pg_dump");
    dump.args(["--schema-only", "--dbname"])
        .arg(cluster.login().database("used").conninfo());
    let dump = output_of(dump);
    let mut found: Vec<String> = dump
        .lines()
        .filter_map(|line| {
            let (verb, rest) = line.split_once(" ALL ON FUNCTION ")?;
            let (_, rest) = rest.split_once("slot_self_heal_get_")?;
            let (function, rest) = rest.split_once('(')?;
            let (_, whose) = rest.rsplit_once(") ")?;
            Some(format!("{function}: {verb} {whose}"))
        })
        .collect();
    found.sort();
    let expected = [
        "history: GRANT TO \"Night Shift\" WITH GRANT OPTION;",
        "history: GRANT TO dashboards;",
        "history: REVOKE FROM pg_monitor;",
        "status: GRANT TO dashboards;",
    ];
    assert_eq!(found, expected, "{dump}");

    // and a role of theirs can go
    session.run(
        "REVOKE EXECUTE ON FUNCTION slot_self_heal_get_history() FROM \"Night Shift\" CASCADE",
    );
    session.run("REVOKE USAGE ON SCHEMA \"Heal me\" FROM \"Night Shift\"");
    session.run("DROP ROLE \"Night Shift\"");
}

/// It is the user's own from then on, and what it is built on.
fn a_view_on_an_old_function_stays(major: Major) {
    let cluster = primary(major);
    let mut session = with_old_sql(&cluster, "used");
    session.run("CREATE VIEW public.mine AS SELECT * FROM slot_self_heal_get_status()");
    session.run("ALTER EXTENSION slot_self_heal UPDATE");
    session.run("SELECT hint FROM public.mine");
    for view in VIEWS {
        session.run(&format!("SELECT * FROM {view}"));
    }
    session.run("DROP EXTENSION slot_self_heal");
    session.run("SELECT hint FROM public.mine");
}
