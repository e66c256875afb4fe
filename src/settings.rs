//! The settings, `slot_self_heal.*`.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use crate::core::policy::{self, BlockerRule, Limit, Limits, OwnLimits, Policy};
use crate::core::upstream::Introduction;
use crate::server::{self, connection, secret, setting};

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static DATABASE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"postgres"));
/// Milliseconds.
static SCAN_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(100);
/// Milliseconds.
static NUDGE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// Off where nobody can tell.
static CANCEL_ABANDONED: GucSetting<bool> = GucSetting::<bool>::new(connection::SUPPORTED);
static CANCEL_BLOCKING_REPLAY: GucSetting<bool> = GucSetting::<bool>::new(false);
/// Milliseconds; 0 for never.
static CREATION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
/// Megabytes; -1 for never.
static MAX_RETAINED_WAL: GucSetting<i32> = GucSetting::<i32>::new(-1);
static BLOCKER_ACTION: GucSetting<BlockerAction> =
    GucSetting::<BlockerAction>::new(BlockerAction::Report);
/// Milliseconds.
static BLOCKER_GRACE: GucSetting<i32> = GucSetting::<i32>::new(300_000);
static BLOCKER_SCOPE: GucSetting<BlockerScope> =
    GucSetting::<BlockerScope>::new(BlockerScope::Idle);
static PROTECTED_ROLES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

const HOUR: i32 = 3_600_000;
const TIMEOUT_UNIT: GucFlags = GucFlags::UNIT_MS;
const WAL_UNIT: GucFlags = GucFlags::UNIT_MB;

#[derive(Clone, Copy, PostgresGucEnum)]
enum BlockerAction {
    #[name = c"report"]
    Report,
    #[name = c"cancel"]
    Cancel,
    #[name = c"terminate"]
    Terminate,
}

#[derive(Clone, Copy, PostgresGucEnum)]
enum BlockerScope {
    #[name = c"idle"]
    Idle,
    #[name = c"any"]
    Any,
}

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
    init_limits();
    server::reserve_setting_prefix(c"slot_self_heal");
}

/// Those that let slot_self_heal end something.
fn init_limits() {
    GucRegistry::define_bool_guc(
        c"slot_self_heal.cancel_abandoned",
        c"Cancels the creation of a slot whose client has been gone for 10 s.",
        c"Only where the system tells for certain that the client has closed its connection.",
        &CANCEL_ABANDONED,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"slot_self_heal.cancel_blocking_replay",
        c"Cancels the creation of a slot on a standby that replay has waited for for 30 s.",
        c"Only if replay would wait without end: max_standby_streaming_delay, or for WAL from an archive max_standby_archive_delay, is -1.",
        &CANCEL_BLOCKING_REPLAY,
        GucContext::Sighup,
        GucFlags::default(),
    );
    setting::define_limit(
        c"slot_self_heal.creation_timeout",
        c"Sets the longest time that the creation of a slot may take before it is cancelled.",
        c"0 means no limit.",
        &CREATION_TIMEOUT,
        0,
        TIMEOUT_UNIT,
    );
    setting::define_limit(
        c"slot_self_heal.max_retained_wal",
        c"Sets the most WAL that a slot may hold back before its creation is cancelled.",
        c"-1 means no limit.",
        &MAX_RETAINED_WAL,
        -1,
        WAL_UNIT,
    );
    GucRegistry::define_enum_guc(
        c"slot_self_heal.blocker_action",
        c"Sets what is done to a session that blocks the creation of a slot.",
        c"",
        &BLOCKER_ACTION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"slot_self_heal.blocker_grace",
        c"Sets how long a transaction must have blocked creations of slots, in all, before blocker_action.",
        c"",
        &BLOCKER_GRACE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_enum_guc(
        c"slot_self_heal.blocker_scope",
        c"Sets which sessions blocker_action is for: those idle in transaction, or any.",
        c"",
        &BLOCKER_SCOPE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    setting::define_names(
        c"slot_self_heal.protected_roles",
        c"Lists the roles whose sessions blocker_action is never for, nor their members' sessions.",
        c"",
        &PROTECTED_ROLES,
    );
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
        limits: Limits {
            cancel_abandoned: CANCEL_ABANDONED.get(),
            cancel_blocking_replay: CANCEL_BLOCKING_REPLAY.get(),
            creation_timeout: timeout(CREATION_TIMEOUT.get()),
            max_retained_wal: wal(MAX_RETAINED_WAL.get()),
        },
        blockers: BlockerRule {
            action: match BLOCKER_ACTION.get() {
                BlockerAction::Report => policy::BlockerAction::Report,
                BlockerAction::Cancel => policy::BlockerAction::Cancel,
                BlockerAction::Terminate => policy::BlockerAction::Terminate,
            },
            grace: milliseconds(&BLOCKER_GRACE),
            scope: match BLOCKER_SCOPE.get() {
                BlockerScope::Idle => policy::BlockerScope::Idle,
                BlockerScope::Any => policy::BlockerScope::Any,
            },
            protected_roles: protected_roles(),
        },
    }
}

/// Taken apart once for each value, not at each tick.
fn protected_roles() -> Vec<String> {
    thread_local! {
        /// The value, and the names in it.
        static KNOWN: RefCell<(CString, Vec<String>)> = RefCell::default();
    }
    let list = PROTECTED_ROLES.get().unwrap_or_default();
    KNOWN.with_borrow_mut(|(known, names)| {
        if *known != list {
            *names = roles_in(&list);
            *known = list;
        }
        names.clone()
    })
}

/// What is not a list is taken for one name: no role has it, and so nobody is ended until it is
/// mended. Such a value is refused, unless the server starts with it.
fn roles_in(list: &CStr) -> Vec<String> {
    setting::names(list).unwrap_or_else(|| vec![list.to_string_lossy().into_owned()])
}

/// What another server's settings say, as it has told them. What is not understood allows nothing.
pub fn blocker_rule_of(upstream: &Introduction) -> BlockerRule {
    let roles = CString::new(upstream.protected_roles.as_str()).unwrap_or_default();
    BlockerRule {
        action: match upstream.blocker_action.as_str() {
            "cancel" => policy::BlockerAction::Cancel,
            "terminate" => policy::BlockerAction::Terminate,
            _ => policy::BlockerAction::Report,
        },
        // Only that server knows whether it is the time.
        grace: Duration::ZERO,
        scope: match upstream.blocker_scope.as_str() {
            "any" => policy::BlockerScope::Any,
            _ => policy::BlockerScope::Idle,
        },
        protected_roles: roles_in(&roles),
    }
}

/// What ALTER DATABASE and ALTER ROLE set, as `pg_db_role_setting` has it. A value that was stored
/// while the library was not loaded was never checked; it counts for nothing.
pub fn own_limits<'a>(stored: impl Fn(&str) -> Option<&'a str>) -> OwnLimits {
    OwnLimits {
        creation_timeout: stored("slot_self_heal.creation_timeout")
            .and_then(|text| setting::parse_limit(text, TIMEOUT_UNIT))
            .filter(|milliseconds| *milliseconds >= 0)
            .map(timeout),
        max_retained_wal: stored("slot_self_heal.max_retained_wal")
            .and_then(|text| setting::parse_limit(text, WAL_UNIT))
            .filter(|megabytes| *megabytes == -1 || *megabytes > 0)
            .map(wal),
    }
}

fn timeout(milliseconds: i32) -> Limit<Duration> {
    match u64::try_from(milliseconds) {
        Ok(0) | Err(_) => Limit::Never,
        Ok(milliseconds) => Limit::Above(Duration::from_millis(milliseconds)),
    }
}

fn wal(megabytes: i32) -> Limit<u64> {
    match u64::try_from(megabytes) {
        Ok(0) | Err(_) => Limit::Never,
        Ok(megabytes) => Limit::Above(megabytes << 20),
    }
}

fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(u64::try_from(setting.get()).unwrap_or(0))
}
