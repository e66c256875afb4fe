//! Ending what was judged: a transaction that blocks, or a creation.
//!
//! Between the judgement and the signal a transaction may end, and its session begin another. A
//! lock held meanwhile keeps that from happening: no transaction that has an xid ends, and no
//! process leaves, while [`ProcArrayLock`](version::proc_array_lock) is held.

use std::ffi::CString;
use std::ptr;
use std::time::Duration;

use pgrx::pg_sys;

use super::hearing::Case;
use super::version;
use crate::core::guard::{self, Ending, Guard};
use crate::core::observation::{CreatorIdentity, Pid, SlotName};
use crate::core::policy::BlockerRule;
use crate::core::time::Timestamp;
use crate::core::xid::{Lsn, Xid};

/// Why no signal was sent.
#[derive(Debug)]
pub enum Unsent {
    /// It has ended, or is no longer what was judged.
    Over,
    Guarded(Guard),
}

/// An LWLock in shared mode.
struct Shared(*mut pg_sys::LWLock);

impl Shared {
    fn acquire(lock: *mut pg_sys::LWLock) -> Self {
        // SAFETY: one of the server's own locks; nothing below raises an error while it is held.
        unsafe { pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED) };
        Self(lock)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: acquired above.
        unsafe { pg_sys::LWLockRelease(self.0) }
    }
}

/// Judges a transaction that has blocked for so long, and ends it if it may be.
pub fn end_if_allowed<'a>(
    case: &Case,
    blocked_for: Duration,
    creators: impl Iterator<Item = &'a CreatorIdentity>,
    rule: &BlockerRule,
    now: Timestamp,
) -> Result<Ending, Unsent> {
    let standing = case.standing.as_ref();
    let (pid, ending) = guard::judge(
        &case.transaction,
        standing,
        blocked_for,
        creators,
        rule,
        now,
    )
    .map_err(Unsent::Guarded)?;
    end_transaction(pid, case.transaction.xid, ending)?;
    Ok(ending)
}

/// Signals the session that holds this transaction.
///
/// An xid belongs to one transaction of one process, so the two together say what the start of that
/// process would.
fn end_transaction(pid: Pid, xid: Xid, ending: Ending) -> Result<(), Unsent> {
    let _lock = Shared::acquire(version::proc_array_lock());
    // SAFETY: with the lock held the entry, and its xid, stay as they are.
    unsafe {
        let process = pg_sys::BackendPidGetProcWithLock(pid.get());
        if process.is_null() || Xid::new((*process).xid.into_inner()) != Some(xid) {
            return Err(Unsent::Over);
        }
        // What the process shows as its query may be cut off or switched off.
        let flags = u32::from((*process).statusFlags);
        if flags & pg_sys::PROC_VACUUM_FOR_WRAPAROUND != 0 {
            return Err(Unsent::Guarded(Guard::PreventsWraparound));
        }
        if (*process).syncRepState != pg_sys::SYNC_REP_NOT_WAITING.cast_signed() {
            return Err(Unsent::Guarded(Guard::Committed));
        }
    }
    send(pid, ending)
}

/// Cancels the creation of a slot, if this process still works on it.
///
/// It may be over before the signal arrives. In an idle session that does nothing, as with
/// `pg_cancel_backend()`.
pub fn cancel_creation(
    slot: &SlotName,
    creator: Pid,
    restart_lsn: Option<Lsn>,
) -> Result<(), Unsent> {
    let Ok(name) = CString::new(slot.as_str()) else {
        return Err(Unsent::Over);
    };
    let _lock = Shared::acquire(version::replication_slot_control_lock());
    // SAFETY: with the lock held no slot is made or dropped. Fields are read one by one, without a
    // reference to what other processes write.
    let goes_on = unsafe {
        let found = pg_sys::SearchNamedReplicationSlot(name.as_ptr(), false);
        !found.is_null() && {
            let data = &raw const (*found).data;
            ptr::read_volatile(&raw const (*found).active_pid) == creator.get()
                && ptr::read_volatile(&raw const (*data).confirmed_flush) == 0
                && ptr::read_volatile(&raw const (*data).restart_lsn)
                    == restart_lsn.map_or(0, Lsn::get)
        }
    };
    if goes_on {
        send(creator, Ending::Cancel)
    } else {
        Err(Unsent::Over)
    }
}

/// To the process group that each of the server's processes leads, as `pg_signal_backend` does
/// (`signalfuncs.c`), so that what it runs beside itself, as a COPY FROM PROGRAM, ends with it.
fn send(pid: Pid, ending: Ending) -> Result<(), Unsent> {
    let signal = match ending {
        Ending::Cancel => libc::SIGINT,
        Ending::Terminate => libc::SIGTERM,
    };
    // SAFETY: a system call.
    match unsafe { libc::kill(-pid.get(), signal) } {
        0 => Ok(()),
        _ => Err(Unsent::Over),
    }
}
