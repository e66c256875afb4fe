//! A standby's copies of its primary's slots that would be lost at a promotion (17 and later).
//!
//! The slot sync worker persists a copy once the slot on the primary has come as far as the
//! standby requires. On a quiet primary it does not get on: its `restart_lsn` and `catalog_xmin`
//! advance only when its consumer's walsender decodes a running-xacts record and the consumer
//! confirms what it got (`LogicalIncreaseRestartDecodingForSlot`, `logical.c`).
//!
//! A call of `pg_sync_replication_slots()` makes such a copy as well, and drops it when it ends
//! (`SyncReplicationSlots`, `slotsync.c`). The next call may persist one, if the slot on the primary
//! has come forward meanwhile, so it counts as there for a while.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::episode::Nudge;
use super::observation::{MadeByHand, Observation, Slot};
use super::time::Timestamp;
use super::upstream::RemoteSlot;
use super::xid::{Lsn, Xid};

/// The slot on the primary may have to decode one record to find a new `restart_lsn`, and another
/// after its consumer has confirmed the first. More are of no use as long as it stays where it is.
const TRIES: u32 = 3;

/// A copy that is not ready yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnreadyCopy {
    pub since: Timestamp,
    /// Records that were asked for on its behalf.
    pub nudges: u32,
    pub last_nudge: Option<Nudge>,
    /// The slot itself, as the upstream last showed it; `None` if there is none, or nobody asked.
    pub remote: Option<RemoteSlot>,
    /// How far that one has to come (`update_local_synced_slot`, `slotsync.c`).
    needs: (Option<Lsn>, Option<Xid>),
    /// Whether it ended with the call that made it.
    is_dropped: bool,
    /// Records since the slot itself last moved, not having come so far.
    pub unanswered: u32,
    /// Since when it was seen to stay where it is.
    pub still_since: Timestamp,
    /// Since when its consumer was seen to confirm nothing.
    pub silent_since: Timestamp,
    /// When the upstream was last asked about it.
    looked_at: Option<Timestamp>,
}

impl UnreadyCopy {
    pub fn begin(now: Timestamp) -> Self {
        Self {
            since: now,
            nudges: 0,
            last_nudge: None,
            remote: None,
            needs: (None, None),
            is_dropped: false,
            unanswered: 0,
            still_since: now,
            silent_since: now,
            looked_at: None,
        }
    }

    /// Takes in what the upstream says of the slot itself.
    pub fn observe(&mut self, slot: &Slot, observation: &Observation) {
        let was_behind = self.is_behind();
        self.needs = (slot.restart_lsn, slot.catalog_xmin);
        self.is_dropped = matches!(slot.made_by_hand, Some(MadeByHand::Dropped(_)));
        let look = observation.upstream.as_ref();
        let mut has_moved = false;
        // What it said before this copy was made may be of another slot.
        if let Some(look) = look.filter(|look| look.at >= self.since) {
            let its_own = |remote: &&RemoteSlot| remote.name == slot.name && remote.failover;
            let remote = look.slots.iter().find(its_own).cloned();
            let restart = |remote: &Option<RemoteSlot>| remote.as_ref()?.restart_lsn;
            if restart(&remote) != restart(&self.remote) {
                has_moved = true;
                self.still_since = look.at;
            }
            let confirmed = |remote: &Option<RemoteSlot>| remote.as_ref()?.confirmed_flush_lsn;
            if confirmed(&remote) != confirmed(&self.remote) {
                self.silent_since = look.at;
            }
            self.remote = remote;
            self.looked_at = Some(look.at);
        }
        // Each record moves a slot a little, also one that has come far enough.
        if self.is_behind() && (has_moved || !was_behind) {
            self.unanswered = 0;
        }
    }

    /// Whether the slot itself still has to come forward, as far as is known.
    pub fn is_behind(&self) -> bool {
        let Some(remote) = &self.remote else {
            return true;
        };
        let (restart_lsn, catalog_xmin) = self.needs;
        let precedes = |(xid, needed): (Xid, Xid)| xid.precedes(needed);
        remote.restart_lsn < restart_lsn
            || remote.catalog_xmin.zip(catalog_xmin).is_some_and(precedes)
    }

    /// Whether the upstream should be asked how the slot itself is doing.
    pub fn wants_look(&self, now: Timestamp, interval: Duration) -> bool {
        self.looked_at
            .is_none_or(|looked_at| now < looked_at || now.since(looked_at) >= interval)
    }

    /// Whether the slot itself is gone.
    pub fn is_an_orphan(&self) -> bool {
        self.looked_at.is_some() && self.remote.is_none()
    }

    /// Whether all records that may be of use were written, and the slot itself has not moved.
    pub fn is_in_vain(&self) -> bool {
        // It is for the next call to find out whether the slot has come far enough.
        let is_enough = self.is_dropped && !self.is_behind();
        self.unanswered >= if is_enough { 1 } else { TRIES }
    }

    /// Whether a record can bring the slot itself forward: it has a consumer, who is sent what is
    /// written, and the last record had its time.
    pub fn wants_record(&self, now: Timestamp, interval: Duration) -> bool {
        let rests = |nudge: Nudge| now >= nudge.at && now.since(nudge.at) < interval;
        let is_read = |remote: &RemoteSlot| remote.active && !remote.waits_for_standbys;
        self.remote.as_ref().is_some_and(is_read)
            && !self.is_in_vain()
            && !self.last_nudge.is_some_and(rests)
    }

    pub fn recorded(&mut self, nudge: Nudge) {
        self.nudges += 1;
        self.unanswered += 1;
        self.last_nudge = Some(nudge);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::observation::{Progress, SlotName};
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn a_copy_of_a_slot_that_is_gone_is_an_orphan() {
        let mut copy = UnreadyCopy::begin(at(0));
        assert!(!copy.is_an_orphan(), "nobody has asked");
        seen(&mut copy, 0, 100, true);
        assert!(!copy.is_an_orphan());
        let mut observation = observation(10_000, Vec::new(), Vec::new());
        observation.upstream = Some(look(10_000, Vec::new()).into());
        copy.observe(&slot_that_needs(700), &observation);
        assert!(copy.is_an_orphan());
    }

    fn seen(copy: &mut UnreadyCopy, milliseconds: i64, restart_lsn: u64, active: bool) {
        let mut observation = observation(milliseconds, Vec::new(), Vec::new());
        let mut look = look(milliseconds, Vec::new());
        look.slots = vec![RemoteSlot {
            name: SlotName::new("x"),
            restart_lsn: Some(Lsn::new(restart_lsn)),
            catalog_xmin: Some(xid(700)),
            confirmed_flush_lsn: None,
            active,
            failover: true,
            waits_for_standbys: false,
        }];
        observation.upstream = Some(look.into());
        copy.observe(&slot_that_needs(700), &observation);
    }

    fn slot_that_needs(catalog_xmin: u32) -> Slot {
        Slot {
            restart_lsn: Some(Lsn::new(1000)),
            catalog_xmin: Some(xid(catalog_xmin)),
            ..slot("x", Progress::NotSyncReady)
        }
    }

    fn nudge(milliseconds: i64) -> Nudge {
        Nudge {
            at: at(milliseconds),
            lsn: Lsn::new(1),
        }
    }

    #[test]
    fn only_a_slot_with_a_consumer_is_brought_forward() {
        let mut copy = UnreadyCopy::begin(at(0));
        assert!(copy.wants_look(at(0), INTERVAL));
        assert!(!copy.wants_record(at(0), INTERVAL), "nothing is known");
        seen(&mut copy, 0, 100, false);
        assert!(!copy.wants_record(at(60_000), INTERVAL));
        seen(&mut copy, 60_000, 100, true);
        assert!(copy.wants_record(at(60_000), INTERVAL));
    }

    #[test]
    fn a_consumer_that_waits_for_standbys_reads_no_record() {
        let mut copy = UnreadyCopy::begin(at(0));
        seen(&mut copy, 0, 100, true);
        assert!(copy.wants_record(at(0), INTERVAL));
        let remote = copy.remote.as_mut().expect("it was seen");
        remote.waits_for_standbys = true;
        assert!(!copy.wants_record(at(60_000), INTERVAL));
    }

    #[test]
    fn a_slot_that_has_come_far_enough_needs_no_more_for_moving_on() {
        let mut copy = UnreadyCopy::begin(at(0));
        seen(&mut copy, 0, 100, true);
        copy.recorded(nudge(0));
        assert!(copy.is_behind());
        let mut written = 1;
        for round in 1..10 {
            let now = round * 10_000;
            seen(&mut copy, now, 1000 + round.cast_unsigned(), true);
            assert!(!copy.is_behind());
            if copy.wants_record(at(now), INTERVAL) {
                copy.recorded(nudge(now));
                written += 1;
            }
        }
        assert_eq!(written, TRIES);

        // For one that is no more, the first is enough.
        let mut dropped = slot_that_needs(700);
        dropped.made_by_hand = Some(MadeByHand::Dropped(at(0)));
        copy.unanswered = 1;
        copy.observe(&dropped, &observation(100_000, Vec::new(), Vec::new()));
        assert!(!copy.wants_record(at(100_000), INTERVAL));

        // Another call asks for more.
        let observation = observation(100_000, Vec::new(), Vec::new());
        copy.observe(&slot_that_needs(701), &observation);
        assert!(copy.is_behind());
        assert!(copy.wants_record(at(100_000), INTERVAL));
    }

    #[test]
    fn records_that_move_nothing_end() {
        let mut copy = UnreadyCopy::begin(at(0));
        seen(&mut copy, 0, 100, true);
        for round in 0..i64::from(TRIES) {
            let now = round * 10_000;
            assert!(copy.wants_record(at(now), INTERVAL), "round {round}");
            copy.recorded(nudge(now));
            assert!(!copy.wants_record(at(now + 9_999), INTERVAL));
        }
        assert!(!copy.wants_record(at(600_000), INTERVAL));
        assert!(copy.is_in_vain());
        assert_eq!(copy.still_since, at(0));
        seen(&mut copy, 600_000, 200, true);
        assert_eq!(copy.still_since, at(600_000));
        assert!(copy.wants_record(at(600_000), INTERVAL), "it moved");
        assert_eq!(copy.nudges, TRIES);
    }
}
