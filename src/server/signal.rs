//! Ending what was judged: a transaction that blocks, or a creation.
//!
//! Between the judgement and the signal a transaction may end, and its session begin another. A
//! lock held meanwhile keeps that from happening: no transaction that has an xid ends, and no
//! process leaves, while `ProcArrayLock` is held.

use std::ffi::CString;
use std::ptr;

use pgrx::pg_sys;

use super::version;
use crate::core::guard::{Ending, Guard, Sentence};
use crate::core::observation::{Pid, SlotName};
use crate::core::xid::{Lsn, Xid};

/// Why no signal was sent.
#[derive(Debug)]
pub enum Unsent {
    /// It has ended, or is no longer what was judged.
    Over,
    Guarded(Guard),
}

/// Whether the locks that a signal takes are those that this library was made for. Else nothing is
/// signalled.
pub fn knows_the_locks() -> bool {
    version::locks().is_some()
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

/// Signals the session that holds this transaction, if it is still as it was judged.
///
/// An xid belongs to one transaction of one process, so the two together say what the start of that
/// process would.
///
/// The lock keeps the xid where it is, but not its transaction from committing: the commit record is
/// written and flushed before the xid goes (`RecordTransactionCommit`, `xact.c`). A cancel that comes
/// then is served later, in the wait for a synchronous standby or in the session's next statement. From
/// before the record is written until the commit shows in the CLOG, `DELAY_CHKPT_START` is set. What
/// begins to commit between this look and the signal, some microseconds, is beyond our reach as it is
/// beyond `pg_cancel_backend()`'s.
pub fn end_transaction(xid: Xid, sentence: Sentence) -> Result<(), Unsent> {
    let Sentence {
        pid,
        ending,
        must_be_idle,
    } = sentence;
    let guarded = |guard| Err(Unsent::Guarded(guard));
    let Some(locks) = version::locks() else {
        return guarded(Guard::UnknownLocks);
    };
    let _lock = Shared::acquire(locks.proc_array);
    // SAFETY: with the lock held the entry, and its xid, stay as they are. The other fields are
    // written by its process without a lock, so they are read once, by value.
    unsafe {
        let process = pg_sys::BackendPidGetProcWithLock(pid.get());
        if process.is_null() || Xid::new((*process).xid.into_inner()) != Some(xid) {
            return Err(Unsent::Over);
        }
        // What the process shows as its query may be cut off or switched off.
        let flags = u32::from((*process).statusFlags);
        let is_autovacuum = flags & pg_sys::PROC_IS_AUTOVACUUM != 0;
        if may_cut_commit(ending, is_autovacuum) {
            return guarded(Guard::CancelMayCutCommit);
        }
        if flags & pg_sys::PROC_VACUUM_FOR_WRAPAROUND != 0 {
            return guarded(Guard::PreventsWraparound);
        }
        let delays = ptr::read_volatile(&raw const (*process).delayChkptFlags);
        if delays.cast_unsigned() & pg_sys::DELAY_CHKPT_START != 0 {
            return guarded(Guard::Commits);
        }
        let sync_rep = ptr::read_volatile(&raw const (*process).syncRepState);
        if sync_rep != pg_sys::SYNC_REP_NOT_WAITING.cast_signed() {
            return guarded(Guard::Committed);
        }
        let wait_event = ptr::read_volatile(&raw const (*process).wait_event_info);
        if must_be_idle && wait_event != pg_sys::WaitEventClient::WAIT_EVENT_CLIENT_READ {
            return guarded(Guard::JustIdle);
        }
    }
    send(pid, ending)
}

/// Whether a client could be told that its commit is safe where it is not: commits wait for
/// synchronous standbys (`SyncStandbysDefined`, `syncrep.h`). An autovacuum has no client.
pub fn may_cut_commit(ending: Ending, is_autovacuum: bool) -> bool {
    // SAFETY: a setting's value, which stays until the next reload.
    let may_wait = unsafe {
        let names = pg_sys::SyncRepStandbyNames;
        !names.is_null() && *names != 0
    };
    may_wait && ending == Ending::Cancel && !is_autovacuum
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
    let Some(locks) = version::locks() else {
        return Err(Unsent::Guarded(Guard::UnknownLocks));
    };
    let _lock = Shared::acquire(locks.replication_slot_control);
    // SAFETY: with the lock held no slot is made or dropped. Fields are read one by one, without a
    // reference to what other processes write.
    let goes_on = unsafe {
        let found = pg_sys::SearchNamedReplicationSlot(name.as_ptr(), false);
        !found.is_null() && {
            let data = &raw const (*found).data;
            version::holder(found) == Some(creator)
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
