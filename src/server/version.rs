//! Everything that differs between majors of Postgres, but for what SQL itself evens out.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use pgrx::pg_sys;
use pgrx::spi::SpiResult;

use super::WalLevel;
use crate::core::observation::Pid;
use crate::core::time::Timestamp;

/// What core calls when a signal arrives (`SIGNAL_ARGS`, `c.h`).
#[cfg(not(feature = "pg19"))]
pub type SignalHandler = unsafe extern "C-unwind" fn(c_int);

/// What core calls when a signal arrives (`SIGNAL_ARGS`, `c.h`): from PostgreSQL 19 on also with who
/// sent it, which core's own handlers read.
#[cfg(feature = "pg19")]
pub type SignalHandler = unsafe extern "C-unwind" fn(c_int, *const pg_sys::pg_signal_info);

/// `signal_handler!(die, after { ours })`: a [`SignalHandler`] that calls one of core's with all that
/// it was called with, and does something of ours before.
///
/// Core's are declared here: pgrx's are wrapped to catch errors, which has no place in a signal
/// handler.
#[cfg(not(feature = "pg19"))]
macro_rules! signal_handler {
    ($core:ident $(, after $ours:block)?) => {{
        unsafe extern "C-unwind" {
            fn $core(signal: std::ffi::c_int);
        }
        unsafe extern "C-unwind" fn handler(signal: std::ffi::c_int) {
            $($ours)?
            // SAFETY: made for this place.
            unsafe { $core(signal) }
        }
        handler as $crate::server::version::SignalHandler
    }};
}
#[cfg(feature = "pg19")]
macro_rules! signal_handler {
    ($core:ident $(, after $ours:block)?) => {{
        use pgrx::pg_sys::pg_signal_info;
        unsafe extern "C-unwind" {
            fn $core(signal: std::ffi::c_int, sender: *const pg_signal_info);
        }
        unsafe extern "C-unwind" fn handler(
            signal: std::ffi::c_int,
            sender: *const pg_signal_info,
        ) {
            $($ours)?
            // SAFETY: made for this place.
            unsafe { $core(signal, sender) }
        }
        handler as $crate::server::version::SignalHandler
    }};
}
pub(super) use signal_handler;

/// Writes a running-xacts record, without a flush: PostgreSQL 15 has no SQL function for it.
#[cfg(feature = "pg15")]
pub fn log_standby_snapshot() -> SpiResult<pg_sys::XLogRecPtr> {
    // SAFETY: the caller has made sure of what the function asserts: not in recovery, and
    // `wal_level` at least `replica`.
    Ok(unsafe { pg_sys::LogStandbySnapshot() })
}

/// Writes a running-xacts record, without a flush.
#[cfg(not(feature = "pg15"))]
pub fn log_standby_snapshot() -> SpiResult<pg_sys::XLogRecPtr> {
    use pgrx::spi::{Spi, SpiError};

    const SQL: &str = "SELECT pg_catalog.pg_log_standby_snapshot()";
    Spi::connect(|client| {
        let end = client
            .select(SQL, None, &[])?
            .first()
            .get_datum_by_ordinal(1)?;
        // Type pg_lsn, which pgrx does not know, is a 64-bit number.
        end.map(|end| end.value() as pg_sys::XLogRecPtr)
            .ok_or(SpiError::InvalidPosition)
    })
}

/// Installs a handler, as core does for its own processes.
///
/// # Safety
///
/// The handler must do nothing that is not safe in a signal handler.
pub unsafe fn handle_signal(signal: u32, handler: SignalHandler) {
    let signal = signal.cast_signed();
    // SAFETY: the caller's promise.
    #[cfg(any(feature = "pg18", feature = "pg19"))]
    unsafe {
        pg_sys::pqsignal_be(signal, Some(handler))
    };
    // SAFETY: the caller's promise.
    #[cfg(not(any(feature = "pg18", feature = "pg19")))]
    unsafe {
        pg_sys::pqsignal(signal, Some(handler))
    };
}

/// The wait event of an idle worker: `SlotSelfHealMain`, or `Extension` where extensions have no
/// names for theirs (before PostgreSQL 17).
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub fn wait_event() -> u32 {
    pg_sys::PG_WAIT_EXTENSION
}

/// The wait event of an idle worker: `SlotSelfHealMain`.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub fn wait_event() -> u32 {
    // SAFETY: copies the name; must run in a process with shared memory, as every worker is.
    unsafe { pg_sys::WaitEventExtensionNew(c"SlotSelfHealMain".as_ptr()) }
}

/// Settings to pin that not every major has: from PostgreSQL 17 on, one ends a session whose
/// transaction takes too long.
pub const SETTINGS: &[(&CStr, &CStr)] = if cfg!(any(feature = "pg15", feature = "pg16")) {
    &[]
} else {
    &[(c"transaction_timeout", c"0")]
};

/// The size of the head of `BackgroundWorkerList`, in pointers: an `slist_head` before
/// PostgreSQL 18, a `dlist_head` since.
pub const LIST_HEAD_WORDS: usize = if cfg!(any(feature = "pg18", feature = "pg19")) {
    2
} else {
    1
};

/// What `wal_level` must be for logical slots. From PostgreSQL 19 on the first of them switches
/// logical decoding on where it is less, and a standby follows its primary (`logicalctl.c`).
pub const LEAST_WAL_LEVEL: WalLevel = if cfg!(feature = "pg19") {
    WalLevel::Replica
} else {
    WalLevel::Logical
};

/// Memory for what a setting's hook keeps, which the setting frees. Null when there is none.
#[cfg(feature = "pg15")]
pub fn guc_alloc(size: usize) -> *mut c_void {
    // SAFETY: before PostgreSQL 16, settings free with free().
    unsafe { libc::malloc(size) }
}

/// Memory for what a setting's hook keeps, which the setting frees. Null when there is none.
#[cfg(not(feature = "pg15"))]
pub fn guc_alloc(size: usize) -> *mut c_void {
    // SAFETY: at this level it returns null rather than raise an error.
    unsafe { pg_sys::guc_malloc(pg_sys::LOG.cast_signed(), size) }
}

/// Locks of the server's that pgrx does not bind: macros, with the same numbers in all these majors
/// (`lwlocknames.h`; `lwlocklist.h` from PostgreSQL 17 on).
pub struct Locks {
    pub proc_array: *mut pg_sys::LWLock,
    pub replication_slot_control: *mut pg_sys::LWLock,
}

/// `None` where one of them has another name: this server was built with other locks.
pub fn locks() -> Option<Locks> {
    Some(Locks {
        proc_array: main_lock(4, c"ProcArray")?,
        replication_slot_control: main_lock(37, c"ReplicationSlotControl")?,
    })
}

fn main_lock(number: u16, name: &CStr) -> Option<*mut pg_sys::LWLock> {
    // SAFETY: made when the server started, with more locks than that. The name of one of the
    // server's own is a constant.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(number.into())).lock;
        let tranche = (*lock).tranche;
        let its_name = pg_sys::GetLWLockIdentifier(pg_sys::PG_WAIT_LWLOCK, tranche);
        (tranche == number && CStr::from_ptr(its_name) == name).then_some(lock)
    }
}

/// Whether a slot is a standby's copy that was not persisted yet: from PostgreSQL 17 on.
///
/// # Safety
///
/// `data` points to a slot's data, which other processes may change.
pub unsafe fn is_unready_copy(data: *const pg_sys::ReplicationSlotPersistentData) -> bool {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        let _ = data;
        false
    }
    // SAFETY: the caller's promise; fields are read one by one.
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    unsafe {
        // A byte here and a bool there.
        ptr::read_volatile((&raw const (*data).synced).cast::<u8>()) != 0
            && ptr::read_volatile(&raw const (*data).persistency)
                == pg_sys::ReplicationSlotPersistency::RS_TEMPORARY
    }
}

/// When a slot was last released: from PostgreSQL 17 on.
///
/// # Safety
///
/// `slot` points to a slot, which other processes may change.
pub unsafe fn inactive_since(slot: *const pg_sys::ReplicationSlot) -> Option<Timestamp> {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        let _ = slot;
        None
    }
    // SAFETY: the caller's promise.
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    unsafe {
        let since = ptr::read_volatile(&raw const (*slot).inactive_since);
        (since != 0).then(|| Timestamp::new(since))
    }
}

/// How many slots the server has room for: from PostgreSQL 19 on also some that only REPACK takes,
/// which follow the others in the array (`ReplicationSlotsShmemRequest`, `slot.c`).
pub fn most_slots() -> usize {
    // SAFETY: settings that change only when the server starts.
    #[cfg(feature = "pg19")]
    let most = unsafe { pg_sys::max_replication_slots + pg_sys::max_repack_replication_slots };
    // SAFETY: as above.
    #[cfg(not(feature = "pg19"))]
    let most = unsafe { pg_sys::max_replication_slots };
    usize::try_from(most).unwrap_or(0)
}

/// The process that holds a slot.
///
/// # Safety
///
/// `slot` points to a slot, which other processes may change.
#[cfg(not(feature = "pg19"))]
pub unsafe fn holder(slot: *const pg_sys::ReplicationSlot) -> Option<Pid> {
    // SAFETY: the caller's promise.
    Pid::new(unsafe { ptr::read_volatile(&raw const (*slot).active_pid) })
}

/// The process that holds a slot: from PostgreSQL 19 on a slot knows the number of its entry in the
/// array of processes (`GetPGProcByNumber`, `proc.h`).
///
/// # Safety
///
/// `slot` points to a slot, which other processes may change.
#[cfg(feature = "pg19")]
pub unsafe fn holder(slot: *const pg_sys::ReplicationSlot) -> Option<Pid> {
    // SAFETY: the caller's promise. The array was made when the server started, and holds as many
    // as it says; an entry that is no longer its process's has another's pid, or none.
    unsafe {
        let number = ptr::read_volatile(&raw const (*slot).active_proc);
        let number = u32::try_from(number).ok()?;
        let processes = pg_sys::ProcGlobal;
        if number >= (*processes).allProcCount {
            return None;
        }
        let process = (*processes).allProcs.add(usize::try_from(number).ok()?);
        Pid::new(ptr::read_volatile(&raw const (*process).pid))
    }
}

/// The least level of what this process writes to the server's log.
pub fn log_min_messages() -> c_int {
    // SAFETY: a setting. From PostgreSQL 19 on an array, with an element for each type of backend.
    #[cfg(feature = "pg19")]
    unsafe {
        let levels = (&raw const pg_sys::log_min_messages).cast::<c_int>();
        levels
            .add(usize::try_from(pg_sys::MyBackendType).unwrap_or(0))
            .read()
    }
    // SAFETY: a setting.
    #[cfg(not(feature = "pg19"))]
    unsafe {
        pg_sys::log_min_messages
    }
}
