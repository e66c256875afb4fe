//! `slot_self_heal.primary_conninfo`, whose value lies beside the variable that Postgres shows: in
//! the memory that the settings' machinery keeps for a hook.

use std::ffi::CStr;

use pgrx::prelude::*;

use super::caught::taken_back;
use super::settings::{FILE, SESSION, set, shown};
use crate::server::{process, secret};

const NAME: &CStr = c"slot_self_heal.primary_conninfo";

fn value() -> String {
    secret::value().map_or(String::new(), |value| value.to_string_lossy().into_owned())
}

#[pg_test]
fn a_conninfo_is_known_here_and_shown_nowhere() {
    assert_eq!((value(), shown(NAME)), (String::new(), String::new()));
    set(NAME, "host=h password=geheim", FILE).expect("a value");
    assert_eq!(value(), "host=h password=geheim");
    assert_eq!(shown(NAME), "********");
    let everywhere = "SELECT count(*) FROM pg_settings s WHERE s::text LIKE '%geheim%'";
    assert_eq!(Spi::get_one::<i64>(everywhere), Ok(Some(0)));
    set(NAME, "", FILE).expect("no value");
    assert_eq!((value(), shown(NAME)), (String::new(), String::new()));
}

#[pg_test]
fn a_conninfo_that_was_taken_back_gives_way_to_the_one_before() {
    set(NAME, "host=file", FILE).expect("a value");
    taken_back(|| {
        set(NAME, "host=session", SESSION).expect("a value");
        assert_eq!(value(), "host=session");
        taken_back(|| {
            set(NAME, "", SESSION).expect("no value");
            assert_eq!((value(), shown(NAME)), (String::new(), String::new()));
        });
        assert_eq!(value(), "host=session");
        // A reload meanwhile.
        set(NAME, "host=reloaded", FILE).expect("a value");
        assert_eq!(value(), "host=session", "it outranks a file's");
    });
    assert_eq!(value(), "host=reloaded");
    set(NAME, "", FILE).expect("no value");
    assert_eq!(value(), "");
}

/// Each value is a copy that somebody has to free: the setting, when no level of it needs it.
#[pg_test]
fn a_conninfo_that_changes_a_thousand_times_takes_no_memory() {
    const LONG: usize = 64 << 10;
    let long = |round: usize| format!("host={round} options={}", "x".repeat(LONG));
    let rounds = |from: usize| {
        for round in from..from + 500 {
            set(NAME, &long(round), FILE).expect("a value");
            taken_back(|| set(NAME, &long(round + 1), SESSION).expect("a value"));
            assert_eq!(value(), long(round));
        }
    };
    rounds(0);
    let before = process::memory();
    assert!(before > 0, "nobody tells");
    rounds(1000);
    let grown = process::memory().saturating_sub(before);
    // All that was set comes to sixty times as much.
    assert!(grown < 1 << 20, "{grown} bytes");
}
