//! What a user sees of the extension, on real servers: one module a situation.
//!
//! A scenario is a function of the Postgres major. `on_every_major!` makes
//! tests of it: `several_blockers::oldest_first::pg16`. Those of a major that
//! was not asked for are not there.

/// The tests of a scenario on the majors that have what it needs. Each major
/// stands here once.
macro_rules! tests_on {
    (every_major: $scenario:ident) => {
        tests_on!(without_standby_slots: $scenario);
        tests_on!(with_standby_slots: $scenario);
    };
    (without_standby_slots: $scenario:ident) => {
        one_test!($scenario, "pg15", pg15 = V15);
    };
    (with_standby_slots: $scenario:ident) => {
        one_test!($scenario, "pg16", pg16 = V16);
        tests_on!(with_slot_sync: $scenario);
    };
    (with_slot_sync: $scenario:ident) => {
        one_test!($scenario, "pg17", pg17 = V17);
        one_test!($scenario, "pg18", pg18 = V18);
        tests_on!(since_19: $scenario);
    };
    (since_19: $scenario:ident) => {
        one_test!($scenario, "pg19", pg19 = V19);
    };
}

macro_rules! one_test {
    ($scenario:ident, $feature:literal, $test:ident = $major:ident) => {
        #[cfg(feature = $feature)]
        #[test]
        fn $test() {
            super::$scenario(harness::Major::$major);
        }
    };
}

macro_rules! module_of_tests {
    ($scenario:ident { $($tests:tt)+ }) => {
        mod $scenario {
            // No test is left of it where none of its majors was asked for.
            const _: fn(harness::Major) = super::$scenario;
            $($tests)+
        }
    };
}

/// Makes tests `pg15`, `pg16` … of each scenario named.
macro_rules! on_every_major {
    ($($scenario:ident),+ $(,)?) => {
        $( module_of_tests!($scenario { tests_on!(every_major: $scenario); }); )+
    };
}

/// The same for what needs logical slots on standbys: 16 and later.
macro_rules! on_majors_with_standby_slots {
    ($($scenario:ident),+ $(,)?) => {
        $( module_of_tests!($scenario { tests_on!(with_standby_slots: $scenario); }); )+
    };
}

/// The same for what came before that.
macro_rules! on_majors_without_standby_slots {
    ($($scenario:ident),+ $(,)?) => {
        $( module_of_tests!($scenario { tests_on!(without_standby_slots: $scenario); }); )+
    };
}

/// The same for what needs failover slots: 17 and later.
macro_rules! on_majors_with_slot_sync {
    ($($scenario:ident),+ $(,)?) => {
        $( module_of_tests!($scenario { tests_on!(with_slot_sync: $scenario); }); )+
    };
}

/// The same for what came with 19: REPACK (CONCURRENTLY), logical decoding
/// that is switched on by the first slot, the reasons of slot synchronization.
macro_rules! on_majors_since_19 {
    ($($scenario:ident),+ $(,)?) => {
        $( module_of_tests!($scenario { tests_on!(since_19: $scenario); }); )+
    };
}

/// The same for what needs dblink, which not every server at hand has.
macro_rules! on_majors_with_dblink {
    ($($scenario:ident),+ $(,)?) => {
        $( module_of_tests!($scenario {
            tests_on!(without_standby_slots: $scenario);
            tests_on!(with_slot_sync: $scenario);
        }); )+
    };
}

/// Makes scenarios of a function that takes more than the major, and tests of
/// them: `walsender = healed(Creator::Walsender)`.
macro_rules! scenarios {
    ($on_majors:ident: $($scenario:ident = $function:ident($($argument:expr),+)),+ $(,)?) => {
        $(
            fn $scenario(major: harness::Major) {
                $function($($argument),+, major);
            }
        )+
        $on_majors!($($scenario),+);
    };
}

mod abandoned;
mod all_limits;
mod at_risk;
mod backtraces;
mod blocker_action;
mod blockers;
mod contract;
mod defaults;
mod effective_wal_level;
mod encodings;
mod end_of_creation;
mod extension;
mod failures;
mod guards;
mod hints;
mod history;
mod hostile_database;
mod idle;
mod in_vain;
mod installation;
mod limits;
mod log_lines;
mod many_slots;
mod memory;
mod pasted;
mod peers;
mod privileges;
mod record;
mod repack;
mod same_cluster_subscription;
mod settings;
mod several_blockers;
mod slots;
mod standby;
mod tries;
mod upgrade;
mod worker;

use harness::{Cluster, Major, PATIENCE, Pid, Session, Setup, wait_until};

/// A primary with the extension preloaded and created in database postgres.
fn primary(major: Major) -> Cluster {
    with_extension(Setup::new(major))
}

fn with_extension(setup: Setup) -> Cluster {
    let cluster = setup.start();
    cluster.create_extension();
    cluster
}

/// With less than the `wal_level` that logical slots need. Less than `replica`
/// allows no walsenders either.
fn without_logical_slots(major: Major) -> Setup {
    let setup = Setup::new(major);
    if major >= Major::V19 {
        setup
            .conf("wal_level = minimal")
            .conf("max_wal_senders = 0")
    } else {
        setup.conf("wal_level = replica")
    }
}

/// Of a database: to be run, if anything of it leaves its literal or its comment.
fn hostile_database_name(major: Major) -> &'static str {
    if major >= Major::V19 {
        // Neither LF nor CR may be in it.
        "x\u{2028}; SELECT 'run by a name' --\u{85}; SELECT 'run by a name'; --"
    } else {
        "x\n; SELECT 'run by a name' --\r; SELECT 'run by a name'; --"
    }
}

fn open_to_all(path: &std::path::Path) {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
}

/// A backend was killed: the postmaster ends all others, this worker among them,
/// and begins anew.
#[track_caller]
fn wait_for_recovery(cluster: &Cluster, worker: Pid) {
    cluster.forget_observer();
    wait_until("the crashed server to recover", PATIENCE, || {
        !worker.is_alive() && cluster.login().try_connect().is_ok()
    });
}

/// Makes each scan fail: a catalog view of it gets another name. The session can
/// give it its own name back.
fn break_the_scan(cluster: &Cluster) -> Session {
    let mut superuser = cluster.connect();
    superuser.run("SET allow_system_table_mods = on");
    superuser.run("ALTER VIEW pg_catalog.pg_prepared_xacts RENAME TO pg_prepared_xacts_away");
    superuser
}

/// The WAL writer flushes what nobody else does, at the latest after
/// `wal_writer_delay`. With this line it does not, for as long as a scenario
/// takes: a creator whose blocker rolled back gets on by our record alone.
const NO_WAL_WRITER: &str = "wal_writer_delay = 10s";
