//! Slots that are built, used and dropped.

use std::ffi::CString;

use pgrx::pg_sys;

use super::session::{Afterwards, Refused, Session};
use super::wait::until_true;
use crate::core::observation::Pid;
use crate::core::xid::Lsn;

/// `max_replication_slots`
pub const SLOTS: usize = 5;

/// The creation of a slot by a session that waits for a transaction.
pub struct Building {
    session: Session,
    name: String,
}

impl Building {
    /// Returns once the slot is there. A transaction with an id must be running.
    pub fn start(name: &str) -> Self {
        let mut session = Session::open();
        session.start(&format!(
            "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
        ));
        let pid = session.pid();
        until_true("the creator waits for a transaction", || {
            waits_for_xact(pid)
        });
        Self {
            session,
            name: name.to_owned(),
        }
    }

    pub fn pid(&self) -> Pid {
        self.session.pid()
    }

    /// Where it began to need WAL.
    pub fn restart_lsn(&self) -> Lsn {
        // SAFETY: the slot is there as long as its creation goes on.
        Lsn::new(unsafe { (*named(&self.name)).data.restart_lsn })
    }

    /// Its end.
    pub fn finish(&mut self) -> Result<(), Refused> {
        self.session.finish().map(drop)
    }

    /// The session, after its end.
    pub fn into_session(mut self) -> Result<Session, Refused> {
        self.finish()?;
        Ok(self.session)
    }

    pub fn cancel(mut self) {
        // SAFETY: a system call.
        unsafe { libc::kill(self.pid().get(), libc::SIGINT) };
        let end = self.finish().map_err(|refused| refused.sqlstate);
        assert_eq!(end, Err("57014".into()));
    }
}

/// Whether a process waits for another's transaction: the first, or one that began meanwhile.
fn waits_for_xact(pid: Pid) -> bool {
    // SAFETY: an entry of a session of ours, which has not ended.
    let event = unsafe {
        let process = pg_sys::BackendPidGetProc(pid.get());
        if process.is_null() {
            return false;
        }
        std::ptr::read_volatile(&raw const (*process).wait_event_info)
    };
    let transaction = pg_sys::LockTagType::LOCKTAG_TRANSACTION;
    event == pg_sys::PG_WAIT_LOCK | transaction
}

/// A slot whose creation nothing holds up.
pub fn create(session: &mut Session, name: &str) {
    session.run(&format!(
        "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
    ));
}

/// To be made before the sessions that use them.
pub fn dropped_afterwards() -> Afterwards {
    Afterwards::run(&[
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active",
    ])
}

pub fn restart_lsn(session: &mut Session, name: &str) -> Lsn {
    session
        .value(&format!(
            "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{name}'"
        ))
        .parse()
        .expect("a position")
}

pub fn named(name: &str) -> *mut pg_sys::ReplicationSlot {
    let name = CString::new(name).expect("a name");
    // SAFETY: takes and releases a lock.
    let slot = unsafe { pg_sys::SearchNamedReplicationSlot(name.as_ptr(), true) };
    assert!(!slot.is_null(), "no slot {name:?}");
    slot
}

/// A slot with other fields for a while. Nobody else may work on it.
pub struct Altered {
    slot: *mut pg_sys::ReplicationSlot,
    data: pg_sys::ReplicationSlotPersistentData,
}

impl Altered {
    pub fn of(name: &str, alter: impl FnOnce(&mut pg_sys::ReplicationSlot)) -> Self {
        let slot = named(name);
        // SAFETY: as said above; `drop` puts the fields back.
        unsafe {
            let data = (*slot).data;
            alter(&mut *slot);
            Self { slot, data }
        }
    }
}

impl Drop for Altered {
    fn drop(&mut self) {
        // SAFETY: the slot is still there.
        unsafe { (*self.slot).data = self.data };
    }
}
