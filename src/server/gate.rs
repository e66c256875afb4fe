//! Is any logical slot being built? Read from shared memory, without a lock: all that an idle tick
//! costs the server.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ptr;

use pgrx::pg_sys;

use super::version;
use crate::core::observation::SlotName;
use crate::core::xid::Lsn;

/// What the gate saw: whether slots may be building, and a mark that changes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Closed,
    /// Some process holds a logical slot that is not usable yet, or there is a copy of a primary's
    /// slot that is not ready.
    Open(u64),
}

/// Looks at `ReplicationSlotCtl` (`slot.h`).
///
/// `confirmed_flush` is set when a slot reaches its consistent point, and `active_pid` as long as
/// a process works on it. A slot may change while it is read; the scan that follows finds out, and
/// a slot that was missed is seen a tick later.
pub fn look() -> Gate {
    let mut building = DefaultHasher::new();
    let mut open = false;
    for (index, slot) in slots() {
        // SAFETY: as `slots` says.
        unsafe {
            let data = &raw const (*slot).data;
            let is_logical = ptr::read_volatile(&raw const (*data).database) != pg_sys::InvalidOid;
            let is_usable = ptr::read_volatile(&raw const (*data).confirmed_flush) != 0;
            let holder = ptr::read_volatile(&raw const (*slot).active_pid);
            let is_unready_copy = version::is_unready_copy(data);
            if is_logical && (!is_usable && holder != 0 || is_unready_copy) {
                open = true;
                let restart_lsn = ptr::read_volatile(&raw const (*data).restart_lsn);
                (index, holder, restart_lsn).hash(&mut building);
            }
        }
    }
    if open {
        Gate::Open(building.finish())
    } else {
        Gate::Closed
    }
}

/// Where the slot of this name begins to need WAL, if it can be used.
///
/// Read like the above; a name is written before its slot is in use (`ReplicationSlotCreate`).
pub fn usable_slot(name: &SlotName) -> Option<Lsn> {
    slots().find_map(|(_, slot)| {
        // SAFETY: as `slots` says; a name is an array of bytes with a 0 among them.
        unsafe {
            let data = &raw const (*slot).data;
            // Bytes with a sign here and without one there.
            let bytes = ptr::read_volatile(&raw const (*data).name.data)
                .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()));
            let is_logical = ptr::read_volatile(&raw const (*data).database) != pg_sys::InvalidOid;
            let is_usable = ptr::read_volatile(&raw const (*data).confirmed_flush) != 0;
            let restart_lsn = ptr::read_volatile(&raw const (*data).restart_lsn);
            let is_named = bytes.split(|byte| *byte == 0).next() == Some(name.as_str().as_bytes());
            (is_logical && is_usable && is_named).then(|| Lsn::new(restart_lsn))
        }
    })
}

/// The slots in use, each with its place.
///
/// The array has max_replication_slots elements, made when the server started, and lives as long as
/// this process. Fields are to be read one by one, without a reference to what other processes
/// write.
fn slots() -> impl Iterator<Item = (usize, *const pg_sys::ReplicationSlot)> {
    (0..slot_count()).filter_map(|index| {
        // SAFETY: as above.
        unsafe {
            let first = (&raw const (*pg_sys::ReplicationSlotCtl).replication_slots)
                .cast::<pg_sys::ReplicationSlot>();
            let slot = first.add(index);
            ptr::read_volatile(&raw const (*slot).in_use).then_some((index, slot))
        }
    })
}

/// Zero where the server has no slots at all.
fn slot_count() -> usize {
    // SAFETY: both are set when the server starts.
    unsafe {
        if pg_sys::ReplicationSlotCtl.is_null() {
            0
        } else {
            usize::try_from(pg_sys::max_replication_slots).unwrap_or(0)
        }
    }
}
