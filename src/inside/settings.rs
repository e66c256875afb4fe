//! Setting settings as Postgres does for itself: from a file, from what is stored, for a session.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use pgrx::pg_sys::GucSource;
use pgrx::prelude::*;

use super::caught::{Raised, in_subtransaction};

/// Where a value comes from.
pub use pg_sys::GucSource::Type as Source;

pub const FILE: Source = GucSource::PGC_S_FILE;
pub const SESSION: Source = GucSource::PGC_S_SESSION;

/// Gives a setting a value as the configuration file does, or what a session begins with, or SET.
/// What the server would log is an error here.
pub fn set(name: &CStr, value: &str, source: Source) -> Result<(), Raised> {
    // Not 0 where it is taken, which is not to say that it counts: a session's outranks a file's.
    in_subtransaction(|| {
        assert!(
            option(name, value, source, false) != 0,
            "refused without an error"
        )
    })
}

/// As a reload does, which comes outside of a transaction.
pub fn reload(name: &CStr, value: &str) {
    option(name, value, FILE, true);
}

fn option(name: &CStr, value: &str, source: Source, is_reload: bool) -> i32 {
    let value = CString::new(value).expect("a text");
    // SAFETY: both are copied.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SIGHUP,
            source,
            pg_sys::GucAction::GUC_ACTION_SET,
            true,
            PgLogLevel::ERROR as i32,
            is_reload,
        )
    }
}

/// What SHOW says.
pub fn shown(name: &CStr) -> String {
    // SAFETY: a palloc'ed text.
    unsafe {
        CStr::from_ptr(pg_sys::GetConfigOptionByName(
            name.as_ptr(),
            std::ptr::null_mut(),
            false,
        ))
        .to_string_lossy()
        .into_owned()
    }
}
