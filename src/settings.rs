//! The settings, `slot_self_heal.*`.

use std::ffi::CString;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::core::decision::Policy;
use crate::server::{self, secret};

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static DATABASE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"postgres"));
/// Milliseconds.
static SCAN_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(100);
/// Milliseconds.
static NUDGE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_000);

const HOUR: i32 = 3_600_000;

/// Defines the settings; each default is its static's first value.
pub fn init() {
    GucRegistry::define_bool_guc(
        c"slot_self_heal.enabled",
        c"Watches the creation of logical replication slots and lets it go on.",
        c"When off, the worker looks at nothing and writes nothing.",
        &ENABLED,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"slot_self_heal.database",
        c"Sets the database that the worker connects to.",
        c"Any database will do: slots and transactions of all databases are seen from it.",
        &DATABASE,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"slot_self_heal.scan_interval",
        c"Sets the time between two looks for a slot that is being created.",
        c"The look reads shared memory only. While a slot is being created it comes every 20 ms, \
          or as often as this says if that is more often.",
        &SCAN_INTERVAL,
        10,
        HOUR,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"slot_self_heal.nudge_interval",
        c"Sets the least time before another running-xacts record for a slot that the last one did not move.",
        c"",
        &NUDGE_INTERVAL,
        100,
        24 * HOUR,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    secret::define(
        c"slot_self_heal.primary_conninfo",
        c"Sets the connection string by which a standby reaches a server that can write the record \
          a slot needs.",
        c"Empty: the server's own primary_conninfo, with slot_self_heal.database as dbname.",
    );
    server::reserve_setting_prefix(c"slot_self_heal");
}

pub fn enabled() -> bool {
    ENABLED.get()
}

pub fn database() -> CString {
    DATABASE.get().unwrap_or_default()
}

pub fn scan_interval() -> Duration {
    milliseconds(&SCAN_INTERVAL)
}

/// What the operator allows.
pub fn policy() -> Policy {
    Policy {
        nudge_interval: milliseconds(&NUDGE_INTERVAL),
    }
}

fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(u64::try_from(setting.get()).unwrap_or(0))
}
