//! What the hooks of the settings take, refuse and keep.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::guc::GucFlags;
use pgrx::pg_sys::GucSource;
use pgrx::prelude::*;

use super::caught::taken_back;
use super::settings::{FILE, SESSION, set, shown};
use crate::core::policy::Limit;
use crate::server::setting;
use crate::settings;

const TIMEOUT: &CStr = c"slot_self_heal.creation_timeout";
const WAL: &CStr = c"slot_self_heal.max_retained_wal";
const ROLES: &CStr = c"slot_self_heal.protected_roles";

fn creation_timeout() -> Limit<Duration> {
    settings::policy().limits.creation_timeout
}

fn protected_roles() -> Vec<String> {
    settings::policy().blockers.protected_roles
}

#[pg_test]
fn a_limit_is_refused_to_a_session_and_to_its_client() {
    set(TIMEOUT, "7s", FILE).expect("a file may set it");
    for (name, value) in [(TIMEOUT, "5s"), (WAL, "5MB")] {
        for source in [SESSION, GucSource::PGC_S_CLIENT] {
            let raised = set(name, value, source).expect_err("refused");
            let code = PgSqlErrorCode::ERRCODE_CANT_CHANGE_RUNTIME_PARAM;
            assert_eq!(raised.code, code, "{name:?}");
            assert!(raised.hint.contains("ALTER ROLE"), "{raised:?}");
        }
    }
    assert_eq!(creation_timeout(), Limit::Above(Duration::from_secs(7)));
    assert_eq!(shown(WAL), "-1");
}

#[pg_test]
fn a_stored_limit_is_taken_by_everybody_but_the_worker() {
    for source in [
        GucSource::PGC_S_GLOBAL,
        GucSource::PGC_S_DATABASE,
        GucSource::PGC_S_USER,
        GucSource::PGC_S_DATABASE_USER,
    ] {
        set(TIMEOUT, "9s", source).expect("it applies to sessions");
        setting::without_limits_of_database(|| {
            let raised = set(TIMEOUT, "8s", source).expect_err("not to the worker");
            assert_eq!(raised.code, PgSqlErrorCode::ERRCODE_WARNING);
            assert!(
                raised
                    .message
                    .contains("database or the role of its worker")
            );
        });
        assert_eq!(creation_timeout(), Limit::Above(Duration::from_secs(9)));
        set(TIMEOUT, "7s", source).expect("it has connected");
        assert_eq!(creation_timeout(), Limit::Above(Duration::from_secs(7)));
    }
    setting::without_limits_of_database(|| {
        set(TIMEOUT, "3s", FILE).expect("the worker reads the files as well");
    });
}

#[pg_test]
fn a_limit_of_zero_means_none_where_that_is_no_danger() {
    set(TIMEOUT, "0", FILE).expect("no limit");
    assert_eq!(creation_timeout(), Limit::Never);
    set(WAL, "1GB", FILE).expect("a limit");
    for source in [FILE, GucSource::PGC_S_DATABASE, SESSION] {
        let raised = set(WAL, "0", source).expect_err("every creation would exceed it");
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        assert_eq!(raised.code, code);
        assert_eq!(raised.hint, "-1 means no limit.");
    }
    let limits = settings::policy().limits;
    assert_eq!(limits.max_retained_wal, Limit::Above(1 << 30), "as before");
}

/// What ALTER ROLE stored is read by the worker, as the server would have read it.
#[pg_test]
fn a_stored_limit_is_read_as_the_server_reads_it() {
    let texts = [
        "5",
        " 5 ",
        "5s",
        "5 s",
        "1.5min",
        "0x10",
        "010",
        "1e3",
        "1e3s",
        "-1",
        "0",
        "5MB",
        "5kB",
        "",
        "s",
        "5x",
        "5 5",
        "2147483647",
        "2147483648",
        "99999999999999999999",
        "1d",
        "-5",
        "+5",
        "5S",
        "0.4",
        "0.5us",
        "1TB",
        "NaN",
        "inf",
    ];
    for (name, unit, least) in [
        (TIMEOUT, GucFlags::UNIT_MS, 0),
        (WAL, GucFlags::UNIT_MB, -1),
    ] {
        for text in texts {
            let read = setting::parse_limit(text, unit)
                .filter(|value| *value >= least && (name != WAL || *value != 0));
            let server = set(name, text, FILE).map(|()| stored_as_number(name));
            assert_eq!(server.ok(), read, "{name:?} = '{text}'");
        }
    }
}

/// The value in its own unit.
fn stored_as_number(name: &CStr) -> i32 {
    let sql = format!(
        "SELECT setting::int FROM pg_settings WHERE name = '{}'",
        name.to_str().expect("ASCII")
    );
    Spi::connect(|client| {
        let value = client.select(&sql, None, &[])?.first().get::<i32>(1)?;
        Ok::<_, pgrx::spi::SpiError>(value)
    })
    .expect("a query")
    .expect("a setting")
}

#[pg_test]
fn protected_roles_are_the_names_that_the_server_reads() {
    for (list, names) in [
        ("", &[][..]),
        ("a", &["a"][..]),
        ("a, B,c", &["a", "b", "c"]),
        ("\"A b\" , \"it's\",\"x\"\"y\"", &["A b", "it's", "x\"y"]),
        ("\"a,b\"", &["a,b"]),
        ("é", &["é"]),
        ("\"\"", &[""]),
    ] {
        set(ROLES, list, FILE).unwrap_or_else(|raised| panic!("{list}: {raised:?}"));
        assert_eq!(protected_roles(), names, "{list}");
    }
    set(ROLES, "kept", FILE).expect("a name");
    for list in ["a,", ",a", "a,,b", "a b", "\"a", ","] {
        let raised = set(ROLES, list, FILE).expect_err("no list");
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        assert_eq!(raised.code, code, "{list}");
        assert_eq!(protected_roles(), ["kept"], "{list}");
    }
}

/// Refused while it starts, a wrong list would be an empty one, and nobody protected.
#[pg_test]
fn a_list_that_the_server_starts_with_is_kept_and_protects_from_all() {
    starting(|| set(ROLES, "a b", FILE).expect("taken"));
    assert_eq!(protected_roles(), ["a b"]);
}

/// Runs `body` as if libraries were just being preloaded.
fn starting(body: impl FnOnce()) {
    // SAFETY: a flag of this process's own.
    unsafe {
        pgrx::pg_sys::process_shared_preload_libraries_in_progress = true;
        body();
        pgrx::pg_sys::process_shared_preload_libraries_in_progress = false;
    }
}

/// The names are taken apart once for a value: not only a new one counts, but an old one that is
/// back as well.
#[pg_test]
fn a_value_that_was_taken_back_no_longer_counts() {
    set(ROLES, "before", FILE).expect("a name");
    assert_eq!(protected_roles(), ["before"]);
    taken_back(|| {
        set(ROLES, "meanwhile", SESSION).expect("a name");
        assert_eq!(protected_roles(), ["meanwhile"]);
    });
    assert_eq!(protected_roles(), ["before"]);
}
