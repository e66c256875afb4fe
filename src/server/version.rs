//! Everything that differs between majors of Postgres, but for what SQL itself evens out.

use std::ffi::{CStr, c_int, c_void};

use pgrx::pg_sys;
use pgrx::spi::SpiResult;

use crate::core::time::Timestamp;

type SignalHandler = unsafe extern "C-unwind" fn(c_int);

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
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::pqsignal_be(signal, Some(handler))
    };
    // SAFETY: the caller's promise.
    #[cfg(not(feature = "pg18"))]
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
pub const LIST_HEAD_WORDS: usize = if cfg!(feature = "pg18") { 2 } else { 1 };

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
        std::ptr::read_volatile(&raw const (*data).synced) != 0
            && std::ptr::read_volatile(&raw const (*data).persistency)
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
        let since = std::ptr::read_volatile(&raw const (*slot).inactive_since);
        (since != 0).then(|| Timestamp::new(since))
    }
}
