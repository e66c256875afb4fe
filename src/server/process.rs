//! The worker as a server process: its signals, its connection, its sleep, its end.

use std::ffi::{CStr, c_int};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::{check_for_interrupts, pg_sys};

pub use super::version::wait_event;
use super::{setting, version};
use crate::core::observation::Pid;
use crate::core::time::Timestamp;

static TOLD_TO_END: AtomicBool = AtomicBool::new(false);

/// Makes the process end on SIGTERM at its next interrupt check and take up changed settings on
/// SIGHUP, as core's own workers do.
///
/// A SIGHUP that came before is lost: every background worker begins with ignoring it
/// (`BackgroundWorkerMain`, `bgworker.c`), which drops one that waits to be delivered. So the settings
/// are loaded once more, or the worker might go by old ones until the next reload.
///
/// `die` ends it with exit status 1, which the postmaster takes as "start it again"; it also
/// interrupts queries and waits.
pub fn handle_signals() {
    let end = version::signal_handler!(die, after { TOLD_TO_END.store(true, Ordering::Relaxed) });
    let reload = version::signal_handler!(SignalHandlerForConfigReload);
    // SAFETY: core's own handlers, installed before signals are unblocked; ours stores a flag.
    unsafe {
        version::handle_signal(pg_sys::SIGTERM, end);
        version::handle_signal(pg_sys::SIGHUP, reload);
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
}

/// Whether the process ends because it was told to.
pub fn was_told_to_end() -> bool {
    TOLD_TO_END.load(Ordering::Relaxed)
}

/// Connects to a database as the bootstrap superuser. The process ends if it can't.
pub fn connect(database: &CStr) {
    setting::without_limits_of_database(|| {
        // SAFETY: called once in a background worker, with a valid name.
        unsafe {
            pg_sys::BackgroundWorkerInitializeConnection(database.as_ptr(), ptr::null(), 0);
        }
    });
    // No object that a user made may ever be found by a query of the worker's, nor may what a
    // database's owner can set with ALTER DATABASE change as whom or how it is run.
    pin(c"role", c"none");
    // SAFETY: outside a transaction, so that no abort takes it back.
    unsafe { pg_sys::SetUserIdAndSecContext(pg_sys::BOOTSTRAP_SUPERUSERID.into(), 0) };
    pin(c"search_path", c"pg_catalog, pg_temp");
    pin(c"default_transaction_isolation", c"read committed");
    pin(c"default_transaction_deferrable", c"off");
    pin(c"max_parallel_workers_per_gather", c"0");
    for (setting, value) in version::SETTINGS {
        pin(setting, value);
    }
    // Compiling would take far longer than these queries do.
    pin(c"jit", c"off");
    // A lock on a catalog is waited for, by whoever's order, no longer than this.
    pin(c"lock_timeout", c"1s");
}

fn pin(setting: &CStr, value: &CStr) {
    // SAFETY: both are copied. PGC_S_OVERRIDE outranks the configuration file, so that a reload
    // does not undo it.
    unsafe {
        pg_sys::SetConfigOption(
            setting.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

pub fn my_pid() -> Option<Pid> {
    // SAFETY: set when the process starts.
    Pid::new(unsafe { pg_sys::MyProcPid })
}

/// Runs `callback` when the process ends, while shared memory is still there.
pub fn before_exit(callback: unsafe extern "C-unwind" fn(c_int, pg_sys::Datum)) {
    // SAFETY: the list of callbacks has room for some, and ours is one.
    unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::null()) }
}

/// Sleeps until `nap` is over or the latch is set, then serves interrupts (the end of the process,
/// barriers) and a changed configuration. Ends the process if the postmaster is gone.
pub fn sleep(nap: Duration, wait_event: u32) {
    wait(nap, wait_event);
    reload_if_asked();
}

/// As [`sleep`], but leaves the configuration as it is: for a session in its statement.
pub fn wait(nap: Duration, wait_event: u32) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = i64::try_from(nap.as_millis()).unwrap_or(i64::MAX);
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events.cast_signed(),
            milliseconds,
            wait_event,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts!();
}

fn reload_if_asked() {
    // SAFETY: a flag of this process that its signal handler sets.
    unsafe {
        if ptr::read_volatile(&raw const pg_sys::ConfigReloadPending) != 0 {
            ptr::write_volatile(&raw mut pg_sys::ConfigReloadPending, 0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// How much memory of its own this process has: what it allocated, touched or not, in bytes. Zero
/// where nobody tells.
pub fn memory() -> usize {
    // The sixth number, in pages (proc(5)).
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|numbers| numbers.split_whitespace().nth(5)?.parse::<usize>().ok());
    // SAFETY: asks for a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * usize::try_from(page).unwrap_or(0)
}

/// When this process last loaded the configuration, as `pg_conf_load_time()` says.
pub fn configured_at() -> Timestamp {
    // SAFETY: written by this process alone, when it reloads.
    Timestamp::new(unsafe { pg_sys::PgReloadTime })
}

/// Shows in `pg_stat_activity` whether the worker works.
pub fn show_activity(activity: Activity) {
    use pg_sys::BackendState::{STATE_IDLE, STATE_RUNNING};
    let (state, text) = match activity {
        Activity::Scanning => (STATE_RUNNING, c"scanning replication slots".as_ptr()),
        Activity::Asking => (STATE_RUNNING, c"asking the upstream".as_ptr()),
        Activity::Idle => (STATE_IDLE, ptr::null()),
    };
    // SAFETY: copies the text.
    unsafe { pg_sys::pgstat_report_activity(state, text) }
}

#[derive(Clone, Copy, Debug)]
pub enum Activity {
    Scanning,
    Asking,
    Idle,
}

/// Hands the counts of the worker's own transactions to the statistics, at most once a second.
pub fn report_statistics() {
    // SAFETY: called outside a transaction, as it must be.
    unsafe {
        pg_sys::pgstat_report_stat(false);
    }
}
