//! Is any logical slot being built? Read from shared memory, without a lock: all that an idle tick
//! costs the server.

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ptr;
use std::time::Duration;

use pgrx::pg_sys;

use super::version;
use crate::core::observation::{MadeByHand, Progress, Role, Slot, SlotName};
use crate::core::time::Timestamp;
use crate::core::xid::{Lsn, Xid};

/// What the gate saw: whether slots may be building, and a mark that changes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Closed,
    /// Some process holds a logical slot that is not usable yet, or there is a copy of a primary's
    /// slot that is not ready, or was a moment ago.
    Open(u64),
}

/// How long a copy is remembered that ended with the call that made it: who calls again and again
/// does so more often.
const CALLED_AGAIN: Duration = Duration::from_secs(600);

/// Looks at `ReplicationSlotCtl` (`slot.h`).
///
/// `confirmed_flush` is set when a slot reaches its consistent point, and a slot has a holder as
/// long as a process works on it. A slot may change while it is read; the scan that follows finds out, and
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
            let holder = version::holder(slot);
            let is_unready_copy = version::is_unready_copy(data);
            if is_logical && (!is_usable && holder.is_some() || is_unready_copy) {
                open = true;
                let restart_lsn = ptr::read_volatile(&raw const (*data).restart_lsn);
                (index, holder, restart_lsn).hash(&mut building);
            }
        }
    }
    for (index, _, dropped) in copies_dropped_lately() {
        open = true;
        (index, dropped.get()).hash(&mut building);
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
            let is_logical = ptr::read_volatile(&raw const (*data).database) != pg_sys::InvalidOid;
            let is_usable = ptr::read_volatile(&raw const (*data).confirmed_flush) != 0;
            let restart_lsn = ptr::read_volatile(&raw const (*data).restart_lsn);
            let is_named = text(&raw const (*data).name).is_some_and(|text| text == name.as_str());
            (is_logical && is_usable && is_named).then(|| Lsn::new(restart_lsn))
        }
    })
}

/// A standby's copies of failover slots that calls of `pg_sync_replication_slots()` have made and
/// dropped in the last 10 minutes, as the slots they were. `known`: those that are there.
///
/// A call takes milliseconds, so a copy itself is rarely seen. But its place keeps what it held
/// until another slot takes it (`ReplicationSlotDropPtr` and `ReplicationSlotCreate`, `slot.c`). To
/// be called in a transaction, for the name of the database.
pub fn dropped_copies(known: &[Slot]) -> Vec<Slot> {
    let mut copies: Vec<Slot> = Vec::new();
    for (_, slot, dropped) in copies_dropped_lately() {
        // SAFETY: as `places` says. A name of a database is palloc'ed, and null where it is gone.
        let (name, plugin, database, restart_lsn, catalog_xmin) = unsafe {
            let data = &raw const (*slot).data;
            let database =
                pg_sys::get_database_name(ptr::read_volatile(&raw const (*data).database));
            let database = (!database.is_null())
                .then(|| CStr::from_ptr(database).to_string_lossy().into_owned());
            (
                text(&raw const (*data).name),
                text(&raw const (*data).plugin),
                database,
                ptr::read_volatile(&raw const (*data).restart_lsn),
                ptr::read_volatile(&raw const (*data).catalog_xmin),
            )
        };
        let (Some(name), Some(plugin), Some(database)) = (name, plugin, database) else {
            continue;
        };
        let name = SlotName::new(name);
        let is_same = |slot: &&mut Slot| slot.name == name;
        let made_by_hand = Some(MadeByHand::Dropped(dropped));
        if known.iter().any(|slot| slot.name == name) {
            continue;
        }
        // Another call may have had another place for it.
        if let Some(copy) = copies.iter_mut().find(is_same) {
            copy.made_by_hand = copy.made_by_hand.max(made_by_hand);
            continue;
        }
        copies.push(Slot {
            name,
            database,
            plugin,
            restart_lsn: Some(Lsn::new(restart_lsn)),
            catalog_xmin: Xid::new(catalog_xmin.into_inner()),
            progress: Progress::NotSyncReady,
            active: false,
            retained_wal: None,
            wal_status: None,
            synced: true,
            sync_skipped: None,
            made_by_hand,
            safe_wal_size: None,
        });
    }
    copies
}

/// The places of such copies, and when they were dropped. A server that copies slots by itself makes
/// them anew; where it has stopped to, settings were loaded after it had made its own.
fn copies_dropped_lately()
-> impl Iterator<Item = (usize, *const pg_sys::ReplicationSlot, Timestamp)> {
    let may_be_called = super::role() == Role::Standby && !super::syncs_slots();
    let now = super::now();
    // SAFETY: when this process last read its configuration files (`guc.c`).
    let loaded = Timestamp::new(unsafe { pg_sys::PgReloadTime });
    let places = places().filter(move |_| may_be_called);
    places.filter_map(move |(index, slot)| {
        // SAFETY: as `places` says.
        let dropped = unsafe {
            let is_copy = !ptr::read_volatile(&raw const (*slot).in_use)
                && version::is_unready_copy(&raw const (*slot).data);
            is_copy.then(|| version::inactive_since(slot))??
        };
        let is_late = dropped <= now && now.since(dropped) < CALLED_AGAIN;
        (is_late && loaded < dropped).then_some((index, slot, dropped))
    })
}

/// A name in shared memory, which may change while it is read. `None` where it is none.
///
/// # Safety
///
/// `name` points to a name that lives on.
unsafe fn text(name: *const pg_sys::NameData) -> Option<String> {
    // SAFETY: the caller's promise.
    let data = unsafe { ptr::read_volatile(&raw const (*name).data) };
    // Bytes with a sign here and without one there.
    let bytes = data.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()));
    let text = bytes.split(|byte| *byte == 0).next()?;
    let text = str::from_utf8(text).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// The slots in use, each with the number of its place.
fn slots() -> impl Iterator<Item = (usize, *const pg_sys::ReplicationSlot)> {
    // SAFETY: as `places` says.
    places().filter(|(_, slot)| unsafe { ptr::read_volatile(&raw const (**slot).in_use) })
}

/// All places that slots may have, each with its number.
///
/// The array is made when the server starts, and lives as long as this process. Fields are to be read one by one, without a reference to what other processes
/// write.
fn places() -> impl Iterator<Item = (usize, *const pg_sys::ReplicationSlot)> {
    (0..slot_count()).map(|index| {
        // SAFETY: as above.
        unsafe {
            let first = (&raw const (*pg_sys::ReplicationSlotCtl).replication_slots)
                .cast::<pg_sys::ReplicationSlot>();
            (index, first.add(index))
        }
    })
}

/// Zero where the server has no slots at all.
fn slot_count() -> usize {
    // SAFETY: set when the server starts.
    unsafe {
        if pg_sys::ReplicationSlotCtl.is_null() {
            0
        } else {
            version::most_slots()
        }
    }
}
