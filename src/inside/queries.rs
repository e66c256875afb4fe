//! Nothing that somebody planted is called by the worker's queries, and the right rows come.
//!
//! What they call, read and compare with is planted beside the catalog's own, for the same types: each
//! such thing raises an error when it is used. Two fences are tried one by one: the queries name
//! `pg_catalog` wherever the syntax lets them, and the worker pins its search_path.

use std::collections::BTreeSet;
use std::collections::HashSet;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::caught::in_subtransaction;
use super::session::{Afterwards, Session};
use super::slots::Building;
use super::worker;
use crate::core::observation::UnreadableRow;
use crate::server::scan::{Scanner, query};

const OWN_LIMITS: &str = include_str!("../../sql/own_limits.sql");
const LOCK_HOLDERS: &str = include_str!("../../sql/lock_holders.sql");
const PAUSE: &str = include_str!("../../sql/pause.sql");
const REPLAY: &str = include_str!("../../sql/replay.sql");
const REMOTE_SLOTS: &str = include_str!("../../sql/remote_slots.sql");
const SLOTS: &str = include_str!("../../sql/slots.sql");
const STANDING: &str = include_str!("../../sql/standing.sql");
const SUBSCRIPTIONS: &str = include_str!("../../sql/subscriptions.sql");
const TRANSACTIONS: &str = include_str!("../../sql/transactions.sql");
const UPSTREAM: &str = include_str!("../../sql/upstream.sql");

/// With whether each has rows in what these tests set up.
const QUERIES: [(&str, bool); 10] = [
    (OWN_LIMITS, true),
    (LOCK_HOLDERS, true),
    (PAUSE, true),
    (REMOTE_SLOTS, true),
    (REPLAY, true),
    (SLOTS, true),
    (STANDING, true),
    (SUBSCRIPTIONS, false),
    (TRANSACTIONS, true),
    (UPSTREAM, true),
];

/// The words of a query that are not in its comments.
fn words(sql: &str) -> BTreeSet<String> {
    let code: String = sql
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    code.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// SQL that plants, in the schema `evil`: a function for each overload of each function that a
/// word of the queries names, a view for each relation, a domain for each type, and an operator for
/// each pair of types.
fn plants(operators: &str) -> String {
    let words: BTreeSet<_> = QUERIES.iter().flat_map(|(sql, _)| words(sql)).collect();
    let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let words = words.join(", ");
    format!(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.planted(what text) RETURNS bool LANGUAGE plpgsql VOLATILE AS
             $$ BEGIN RAISE EXCEPTION 'planted %', what; END $$;
         DO $do$
         DECLARE
             p record;
         BEGIN
             FOR p IN
                 SELECT proname, oidvectortypes(proargtypes) AS arguments,
                        pg_get_function_result(oid) AS result
                   FROM pg_proc
                  WHERE proname IN ({words})
                    AND pronamespace = 'pg_catalog'::regnamespace
                    AND NOT 'internal'::regtype = ANY (proargtypes::oid[])
                    AND NOT '\"any\"'::regtype = ANY (proargtypes::oid[])
                    AND NOT prorettype = 'trigger'::regtype
             LOOP
                 EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
                     p.proname, p.arguments, p.result,
                     format('BEGIN PERFORM evil.planted(%L); END', p.proname));
             END LOOP;
             -- Those that take anything have a rival that takes anything of one type.
             FOR p IN
                 SELECT DISTINCT proname FROM pg_proc
                  WHERE proname IN ({words})
                    AND pronamespace = 'pg_catalog'::regnamespace
                    AND '\"any\"'::regtype = ANY (proargtypes::oid[])
             LOOP
                 EXECUTE format('CREATE FUNCTION evil.%I(VARIADIC anyarray) RETURNS text
                     LANGUAGE plpgsql AS %L', p.proname,
                     format('BEGIN PERFORM evil.planted(%L); END', p.proname));
             END LOOP;
             FOR p IN
                 SELECT relname FROM pg_class
                  WHERE relname IN ({words}) AND relnamespace = 'pg_catalog'::regnamespace
                    AND relkind IN ('r', 'v')
             LOOP
                 EXECUTE format('CREATE VIEW evil.%1$I AS
                     SELECT * FROM pg_catalog.%1$I WHERE evil.planted(%1$L)', p.relname);
             END LOOP;
             FOR p IN
                 SELECT typname FROM pg_type
                  WHERE typname IN ({words}) AND typnamespace = 'pg_catalog'::regnamespace
                    AND typtype = 'b'
             LOOP
                 EXECUTE format('CREATE DOMAIN evil.%1$I AS pg_catalog.%1$I
                     CHECK (evil.planted(%1$L))', p.typname);
             END LOOP;
             FOR p IN
                 SELECT oprname, oprleft::regtype AS l, oprright::regtype AS r,
                        row_number() OVER () AS number
                   FROM pg_operator
                  WHERE oprname IN ({operators}) AND oprkind = 'b'
                    AND oprnamespace = 'pg_catalog'::regnamespace
             LOOP
                 EXECUTE format('CREATE FUNCTION evil.operator_%s(%s, %s) RETURNS bool
                     LANGUAGE plpgsql AS %L', p.number, p.l, p.r,
                     format('BEGIN PERFORM evil.planted(%L); END', p.oprname));
                 EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.operator_%s,
                     LEFTARG = %s, RIGHTARG = %s)', p.oprname, p.number, p.l, p.r);
             END LOOP;
         END
         $do$"
    )
}

/// Those that the queries name with their schema.
const OPERATORS: &str = "'<>', '->>', '-', '*', '<=', '<', '~~'";
const ALL_OPERATORS: &str = "'=', '<>', '->>', '-', '*', '<=', '<', '~~'";

/// What each fence is for: as an unqualified name of each kind is read.
fn falls_into_each_trap() {
    for sql in [
        "SELECT host('127.0.0.1'::pg_catalog.inet)",
        "SELECT 1 FROM pg_replication_slots",
        "SELECT 'a'::text",
        "SELECT 1::pg_catalog.int8 - 1::pg_catalog.int8",
        "SELECT 'a'::pg_catalog.text <> 'b'::pg_catalog.text",
    ] {
        let raised = in_subtransaction(|| rows(sql, &[])).expect_err("a trap");
        assert!(raised.message.starts_with("planted "), "{sql}: {raised:?}");
    }
}

fn rows(sql: &str, arguments: &[DatumWithOid<'_>]) -> usize {
    let read = |_: crate::core::observation::Row<'_>| Ok::<_, UnreadableRow>(());
    // What was committed since the test began is to be seen.
    // SAFETY: in a transaction; where an error comes, its end pops the snapshot.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let rows = query(sql, arguments, read).expect("a query").len();
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    rows
}

/// A slot that is built, a session and a prepared transaction that block it, and who waits for these.
struct Scene {
    waiting: [Session; 2],
    _building: Building,
    _blocker: Session,
    _afterwards: Afterwards,
}

impl Scene {
    fn set() -> Self {
        let afterwards = Afterwards::run(&[
            "ROLLBACK PREPARED 'scene'",
            "DROP TABLE public.scene",
            "ALTER ROLE CURRENT_USER RESET ALL",
            "ALTER DATABASE pgrx_tests RESET ALL",
            "DROP SCHEMA evil CASCADE",
        ]);
        let mut blocker = Session::open();
        blocker.run(
            "CREATE TABLE public.scene (n int);
             ALTER ROLE CURRENT_USER SET slot_self_heal.creation_timeout = '1h'",
        );
        blocker.run("BEGIN; INSERT INTO public.scene VALUES (1)");
        blocker.run("PREPARE TRANSACTION 'scene'");
        blocker.begin_with_xid();
        blocker.run("LOCK TABLE pg_catalog.pg_largeobject IN SHARE MODE");
        // Of two that wait, one does for the prepared one, which has no process.
        let waiting = ["pg_catalog.pg_largeobject", "public.scene"].map(|table| {
            let mut session = Session::open();
            session.begin_with_xid();
            session.start(&format!("LOCK TABLE {table} IN EXCLUSIVE MODE"));
            session
        });
        Self {
            waiting,
            _building: Building::start("scene"),
            _blocker: blocker,
            _afterwards: afterwards,
        }
    }

    /// How many rows each query has.
    fn rows(&self) -> Vec<usize> {
        let xid = Spi::connect(|client| {
            let sql = "SELECT pg_catalog.string_agg(xid, ',') FROM (SELECT backend_xid::pg_catalog.text
                         FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL) AS x (xid)";
            client.select(sql, None, &[])?.first().get::<String>(1)
        })
        .expect("a query")
        .expect("an id");
        let xids: Vec<_> = xid.split(',').map(str::to_owned).collect();
        let pids: Vec<_> = self
            .waiting
            .iter()
            .map(|session| session.pid().get())
            .collect();
        QUERIES
            .iter()
            .map(|(sql, _)| match *sql {
                LOCK_HOLDERS => {
                    // SAFETY: int4[] is what these are turned into.
                    let pids = unsafe { DatumWithOid::new(pids.clone(), pg_sys::INT4ARRAYOID) };
                    rows(sql, &[pids])
                }
                STANDING => {
                    let roles = vec!["nobody".to_owned()];
                    // SAFETY: text[] is what these are turned into.
                    let arguments = unsafe {
                        [
                            DatumWithOid::new(xids.clone(), pg_sys::TEXTARRAYOID),
                            DatumWithOid::new(roles, pg_sys::TEXTARRAYOID),
                        ]
                    };
                    rows(sql, &arguments)
                }
                _ => rows(sql, &[]),
            })
            .collect()
    }
}

fn set_path(path: &str) {
    super::settings::set(c"search_path", path, super::settings::SESSION).expect("a path");
}

/// IS DISTINCT FROM can't name the `=` that it means; it is all that is left to the pin.
#[pg_test]
fn queries_call_nothing_that_comes_first_in_the_path() {
    let scene = Scene::set();
    let expected = scene.rows();
    for ((sql, has_rows), rows) in QUERIES.iter().zip(&expected) {
        assert_eq!(*rows > 0, *has_rows, "{sql}");
    }
    Spi::run(&plants(OPERATORS)).expect("planted");
    set_path("evil, pg_catalog");
    falls_into_each_trap();
    assert_eq!(scene.rows(), expected);
}

/// As above, of the parts as well that are not reached here: on a standby, in a queue.
#[pg_test]
fn queries_name_nothing_that_comes_first_in_the_path() {
    Spi::run(&plants(ALL_OPERATORS)).expect("planted");
    set_path("evil, pg_catalog");
    let view = |sql: &str| {
        Spi::run(&format!("CREATE VIEW evil.query AS {sql}")).expect("a view");
        let named = "SELECT pg_catalog.string_agg(o.identity, ', ')
              FROM pg_catalog.pg_depend AS d
                   JOIN pg_catalog.pg_rewrite AS r ON r.oid OPERATOR(pg_catalog.=) d.objid,
                   pg_catalog.pg_identify_object(d.refclassid, d.refobjid, 0) AS o
             WHERE r.ev_class OPERATOR(pg_catalog.=) 'evil.query'::pg_catalog.regclass
               AND r.ev_class OPERATOR(pg_catalog.<>) d.refobjid
               AND o.schema OPERATOR(pg_catalog.=) 'evil'";
        let named = Spi::get_one::<String>(named).expect("a query");
        Spi::run("DROP VIEW evil.query").expect("dropped");
        named.unwrap_or_default()
    };
    assert_eq!(view("SELECT 1 FROM pg_locks"), "evil.pg_locks");
    assert_eq!(
        view("SELECT pid <> 1 AS other FROM pg_catalog.pg_locks"),
        "evil.<>(integer,integer)"
    );
    for (sql, _) in QUERIES {
        // A view has no parameters. And what can't be qualified is left to the pin.
        let sql = sql
            .replace("IS NOT DISTINCT FROM", "OPERATOR(pg_catalog.=)")
            .replace("IS DISTINCT FROM", "OPERATOR(pg_catalog.<>)")
            .replace("$1::pg_catalog.int4[]", "'{}'::pg_catalog.int4[]")
            .replace("$1", "'{}'::pg_catalog.text[]")
            .replace("$2", "'{}'::pg_catalog.text[]");
        assert_eq!(view(&sql), "", "{sql}");
    }
}

/// The functions under the views bring the pinned path with them.
#[pg_test]
fn views_call_nothing_that_comes_first_in_the_path() {
    let _scene = Scene::set();
    Spi::run(&plants(ALL_OPERATORS)).expect("planted");
    // A session's temporary relations come first, unless the path names their place.
    for view in ["pg_stat_activity", "pg_replication_slots", "pg_locks"] {
        let planted = format!("CREATE TEMP VIEW {view} AS SELECT * FROM evil.{view}");
        Spi::run(&planted).expect("planted");
    }
    set_path("evil, pg_catalog");
    falls_into_each_trap();
    for (view, least) in [("status", 1), ("worker", 1), ("history", 0)] {
        let found = rows(&format!("SELECT FROM public.slot_self_heal_{view}"), &[]);
        assert!(found >= least, "{view}: {found}");
    }
}

#[pg_test]
fn the_worker_falls_into_no_trap_of_its_database() {
    let _scene = Scene::set();
    let mut mallory = Session::open();
    mallory.run(&plants(ALL_OPERATORS));
    mallory.run("ALTER DATABASE pgrx_tests SET search_path = evil, pg_catalog");
    let trapped = Session::open().try_run("SELECT 1 FROM pg_replication_slots");
    assert!(trapped.is_err_and(|refused| refused.message.starts_with("planted ")));
    worker::run(|| {
        let observation = Scanner::default().observe(&HashSet::new()).expect("a scan");
        assert!(observation.sees_a_creation());
        let creator = observation.slots.iter().find_map(|slot| slot.creator());
        let limits = &creator.expect("a creator").own_limits;
        assert!(limits.creation_timeout.is_some(), "what ALTER ROLE set");
        // The blocker, those that wait, and the prepared one.
        assert_eq!(observation.transactions.len(), 4);
    });
}
