//! The only code that touches the server: its shared memory, its functions, its SQL.
#![allow(unsafe_code)]

pub mod auto_conf;
#[cfg(target_os = "linux")]
mod client_process;
pub mod clients;
#[cfg_attr(not(target_os = "linux"), path = "connection_elsewhere.rs")]
pub mod connection;
mod conninfo;
mod control_file;
pub mod gate;
pub mod hearing;
mod libpq;
mod lookup;
pub mod process;
pub mod record;
pub mod report;
pub mod scan;
pub mod secret;
pub mod setting;
pub mod signal;
pub mod transaction;
#[cfg(target_os = "linux")]
mod unix_diag;
pub mod upstream;
pub mod version;

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;

use crate::core::observation::Role;
use crate::core::time::Timestamp;

/// Set in the postmaster; each process has its copy by fork.
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether `shared_preload_libraries` are just being loaded.
pub fn is_preloading() -> bool {
    // SAFETY: a flag that only the main thread writes.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether this server runs background workers other than core's own: neither single-user mode nor
/// pg_upgrade's servers do (`ApplyLauncherRegister`, `launcher.c`, decides likewise).
pub fn runs_workers() -> bool {
    // SAFETY: both are set before libraries are loaded.
    unsafe { pg_sys::IsPostmasterEnvironment && !pg_sys::IsBinaryUpgrade }
}

pub fn note_preloaded() {
    PRELOADED.store(true, Ordering::Relaxed);
}

pub fn was_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Makes Postgres refuse settings of this prefix that nobody defined.
pub fn reserve_setting_prefix(prefix: &'static CStr) {
    // SAFETY: copies the name.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) }
}

pub fn now() -> Timestamp {
    // SAFETY: reads the clock.
    Timestamp::new(unsafe { pg_sys::GetCurrentTimestamp() })
}

/// Of the current session.
pub fn application_name() -> String {
    // SAFETY: a setting's value, copied.
    unsafe {
        let name = pg_sys::application_name;
        if name.is_null() {
            String::new()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

/// The role that the current session was opened as.
pub fn session_role() -> String {
    // SAFETY: null for a role that was dropped; else a text that is copied.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetSessionUserId(), true);
        if name.is_null() {
            String::new()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

pub fn role() -> Role {
    // SAFETY: reads shared memory, without a lock.
    if unsafe { pg_sys::RecoveryInProgress() } {
        Role::Standby
    } else {
        Role::Primary
    }
}

/// Whether this server, being a standby, copies its primary's slots by itself (17 and later).
pub fn syncs_slots() -> bool {
    setting_is(c"sync_replication_slots", c"on") && role() == Role::Standby
}

/// Whether a setting, which some majors lack, has this value.
fn setting_is(name: &CStr, value: &CStr) -> bool {
    // SAFETY: null where there is no such setting; else a text that stays as it is until settings
    // are read again.
    unsafe {
        let found = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        !found.is_null() && CStr::from_ptr(found) == value
    }
}

/// `wal_level`, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    Minimal,
    Replica,
    Logical,
}

impl WalLevel {
    fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        }
    }
}

/// The level that logical slots need, if it is set to less.
pub fn wal_level_to_raise() -> Option<&'static str> {
    let least = version::LEAST_WAL_LEVEL;
    (wal_level() < least).then(|| least.as_str())
}

pub fn wal_level() -> WalLevel {
    use pg_sys::WalLevel::{WAL_LEVEL_LOGICAL, WAL_LEVEL_REPLICA};
    // SAFETY: a setting that changes only when the server starts.
    let level = u32::try_from(unsafe { pg_sys::wal_level }).unwrap_or(0);
    if level >= WAL_LEVEL_LOGICAL {
        WalLevel::Logical
    } else if level >= WAL_LEVEL_REPLICA {
        WalLevel::Replica
    } else {
        WalLevel::Minimal
    }
}

pub fn max_worker_processes() -> u32 {
    // SAFETY: a setting that changes only when the server starts.
    u32::try_from(unsafe { pg_sys::max_worker_processes }).unwrap_or(0)
}

/// Whether the current database's encoding is UTF-8, which Rust's strings are.
pub fn database_is_utf8() -> bool {
    // SAFETY: reads a value that is set when a process connects to its database.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    u32::try_from(encoding) == Ok(pg_sys::pg_enc::PG_UTF8)
}

/// A mark of the list of background workers that are registered while libraries are preloaded.
///
/// `RegisterBackgroundWorker` says nothing when there is no room for one more; it pushes a new one
/// to the front of the list, which changes this mark.
pub fn registered_workers() -> [usize; version::LIST_HEAD_WORDS] {
    unsafe extern "C" {
        /// Not bound by pgrx (`bgworker_internals.h`).
        static BackgroundWorkerList: [usize; version::LIST_HEAD_WORDS];
    }
    // SAFETY: a list head of this size, which only the postmaster changes, and this is it.
    unsafe { std::ptr::read_volatile(&raw const BackgroundWorkerList) }
}
