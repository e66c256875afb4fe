//! Every creation that goes on, from one scan to the next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::copy::UnreadyCopy;
use super::episode::{Episode, Nudge, Telling};
use super::history::{End, Finished, Outcome, REMEMBERED};
use super::limit::Reason;
use super::observation::{CreatorIdentity, CreatorWait, Observation, Progress, Role, SlotName};
use super::policy::Limits;
use super::replay::Replay;
use super::risk::WalRate;
use super::story::{self, Story, Unfinished};
use super::time::{Step, Timestamp};
use super::upstream::{Record, Upstream};
use super::xid::{Lsn, Xid};

/// What is worth saying about a creation.
#[derive(Debug)]
pub enum Change {
    /// It waits, or waits for others than it was last said.
    Waits(Telling, SlotName),
    /// Its client is gone.
    Abandoned(SlotName),
    /// It is over; what was known of it last.
    Ended(Box<Finished>),
}

/// A record that the upstream was last asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub at: Timestamp,
    pub record: Record,
}

/// Every creation that goes on.
///
/// This is what the ledger publishes, and what a restarted worker begins with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    pub episodes: BTreeMap<SlotName, Episode>,
    /// The blockers of all episodes together, present and past, and those of former creations that
    /// have not ended; oldest first.
    pub blockers: Vec<Blocker>,
    /// How many episodes were left out where there was not room for all.
    pub more_episodes: usize,
    /// A standby's copies of slots that are not ready yet.
    pub copies: BTreeMap<SlotName, UnreadyCopy>,
    /// Slots that were created on this standby and have the names of failover slots on its primary:
    /// slot synchronization stops at the first (`synchronize_one_slot`, `slotsync.c`).
    pub namesakes: BTreeSet<SlotName>,
    /// When the upstream was last asked for the names of its slots.
    names_looked_at: Option<Timestamp>,
    /// As of the last scan, on a standby.
    pub replay: Option<Replay>,
    pub upstream: Upstream,
    pub wal_rate: WalRate,
    /// Those of the worker, which are in force: a session may have others.
    pub limits: Limits,
    /// The role that may not see the primary's sessions, as the upstream says.
    pub blind: Option<String>,
    /// Creations that ended without a slot and whose clients may try again, the latest last.
    pub unfinished: Vec<Unfinished>,
    sent: Option<Sent>,
}

impl Watch {
    /// Nobody looks from now on. How long blockers have blocked and what they were told counts as
    /// long as they live.
    pub fn forget_creations(&mut self) {
        let mut blockers = std::mem::take(&mut self.blockers);
        for blocker in &mut blockers {
            blocker.blocks_no_more();
        }
        *self = Self {
            blockers,
            ..Self::default()
        };
    }

    /// The clock was set. Neither a limit nor a grace is over for that.
    pub fn clock_was_set(&mut self, step: Step) {
        for episode in self.episodes.values_mut() {
            episode.clock_was_set(step);
        }
        for blocker in &mut self.blockers {
            blocker.clock_was_set(step);
        }
        for unfinished in &mut self.unfinished {
            unfinished.clock_was_set(step);
        }
    }

    /// Takes in what a scan saw. Returns what is worth saying.
    pub fn update(&mut self, observation: &Observation) -> Vec<Change> {
        let mut before = std::mem::take(&mut self.episodes);
        let mut copies_before = std::mem::take(&mut self.copies);
        // A predecessor's copy may lack some, which are seen again now.
        self.more_episodes = 0;
        self.learn(observation);
        let now = observation.at;
        let mut changes = Vec::new();
        for slot in &observation.slots {
            let remembered = before.remove(&slot.name);
            match (&slot.progress, remembered) {
                (Progress::Building(creator), remembered) => {
                    let mut episode = match remembered {
                        Some(episode) if episode.is_creation_of(slot, creator) => episode,
                        other => {
                            changes
                                .extend(other.map(|other| self.ended(other, End::Vanished, now)));
                            let story = self.story_of(&slot.name, &creator.identity, now);
                            Episode::begin(slot, creator, observation, story)
                        }
                    };
                    episode.observe(slot, creator, observation, self.sent.as_ref());
                    if let Some(telling) = episode.telling() {
                        changes.push(Change::Waits(telling, slot.name.clone()));
                    }
                    if episode.tells_of_abandonment() {
                        changes.push(Change::Abandoned(slot.name.clone()));
                    }
                    self.episodes.insert(slot.name.clone(), episode);
                }
                (Progress::Usable, Some(episode)) => {
                    changes.push(self.ended(episode, End::Ready(slot), now));
                }
                (Progress::NotSyncReady, remembered) => {
                    let mut copy = copies_before
                        .remove(&slot.name)
                        .unwrap_or_else(|| UnreadyCopy::begin(observation.at));
                    copy.observe(slot, observation);
                    self.copies.insert(slot.name.clone(), copy);
                    changes
                        .extend(remembered.map(|episode| self.ended(episode, End::Unusable, now)));
                }
                (Progress::LeftBehind(_) | Progress::Invalidated(_), Some(episode)) => {
                    changes.push(self.ended(episode, End::Unusable, now));
                }
                (Progress::Usable | Progress::LeftBehind(_) | Progress::Invalidated(_), None) => {}
            }
        }
        let vanished = before.into_values();
        changes.extend(vanished.map(|episode| self.ended(episode, End::Vanished, now)));
        self.observe_blockers(observation);
        self.observe_namesakes(observation);
        changes
    }

    fn observe_namesakes(&mut self, observation: &Observation) {
        if !observation.syncs_slots {
            self.namesakes.clear();
            self.names_looked_at = None;
        } else if let Some(look) = &observation.upstream {
            let failover = look.slots.iter().filter(|slot| slot.failover);
            self.namesakes = failover.map(|slot| slot.name.clone()).collect();
            self.names_looked_at = Some(look.at);
        }
        self.namesakes.retain(|name| {
            let mut slots = observation.slots.iter();
            slots.any(|slot| slot.name == *name && !slot.synced)
        });
    }

    /// Whether the upstream should be asked which names its slots have.
    pub fn wants_names(&self, observation: &Observation, interval: Duration) -> bool {
        let now = observation.at;
        let is_due = |at: Timestamp| now < at || now.since(at) >= interval;
        observation.syncs_slots
            && observation.slots.iter().any(|slot| !slot.synced)
            && self.names_looked_at.is_none_or(is_due)
    }

    fn ended(&mut self, mut episode: Episode, end: End, now: Timestamp) -> Change {
        episode.pass(now);
        let blockers = self.blockers.iter();
        let blockers = blockers
            .filter(|blocker| episode.was_blocked_by(blocker.xid()))
            .cloned()
            .collect();
        let finished = Finished::new(episode, blockers, end, now);
        match finished.outcome {
            Outcome::Ready => {
                let slot = &finished.episode.slot;
                self.unfinished
                    .retain(|unfinished| unfinished.slot != *slot);
            }
            Outcome::Cancelled | Outcome::Gone => {
                self.unfinished.push(Unfinished::new(&finished));
                let surplus = self.unfinished.len().saturating_sub(story::REMEMBERED);
                self.unfinished.drain(..surplus);
            }
        }
        Change::Ended(Box::new(finished))
    }

    /// The story of a creation that has just begun.
    fn story_of(&mut self, slot: &SlotName, creator: &CreatorIdentity, now: Timestamp) -> Story {
        let goes_on = |before: &Unfinished| before.goes_on_with(slot, creator);
        let Some(index) = self.unfinished.iter().position(goes_on) else {
            return Story::begin(now);
        };
        match self.unfinished.remove(index) {
            before if before.is_over(now) => Story::begin(now),
            before => before.next_try(now),
        }
    }

    /// Ends the stories of slots that are there by now: the creation was over too soon to be seen.
    /// `usable`: the slot's `restart_lsn`.
    pub fn take_made(
        &mut self,
        usable: impl Fn(&SlotName) -> Option<Lsn>,
    ) -> Vec<(Unfinished, Lsn)> {
        let mut made = Vec::new();
        for index in (0..self.unfinished.len()).rev() {
            let is_going_on = |unfinished: &&Unfinished| {
                // The next scan tells whose creation made it.
                !self.episodes.contains_key(&unfinished.slot)
            };
            let unfinished = self.unfinished.get(index).filter(is_going_on);
            if let Some(restart_lsn) = unfinished.and_then(|u| usable(&u.slot)) {
                made.push((self.unfinished.remove(index), restart_lsn));
            }
        }
        // The latest comes first: it is the last of a slot's clients that is taken for its creator.
        let mut slots = HashSet::new();
        made.retain(|(unfinished, _)| slots.insert(unfinished.slot.clone()));
        made
    }

    /// Forgets the stories of clients that do not try any more.
    pub fn forget_silent(&mut self, now: Timestamp) -> Vec<Unfinished> {
        let is_over = |unfinished: &mut Unfinished| unfinished.is_over(now);
        self.unfinished.extract_if(.., is_over).collect()
    }

    fn observe_blockers(&mut self, observation: &Observation) {
        let now = observation.at;
        let before = std::mem::take(&mut self.blockers);
        let mut before: HashMap<Xid, Blocker> = before
            .into_iter()
            .map(|blocker| (blocker.xid(), blocker))
            .collect();
        let named = self.named_blockers();
        let front: HashSet<Xid> = self.episodes.values().flat_map(Episode::front).collect();
        for transaction in &observation.transactions {
            let xid = transaction.xid;
            let remembered = before.remove(&xid).filter(|b| b.is_of(transaction));
            let blocker = match remembered {
                // One that blocks nothing at the moment may block the next try.
                Some(blocker) => blocker,
                None if named.contains(&xid) => Blocker::new(transaction.clone(), now),
                None => continue,
            };
            self.blockers.push(blocker);
            if let Some(blocker) = self.blockers.last_mut() {
                blocker.observe(transaction.clone(), front.contains(&xid), now);
            }
        }
        self.forget_briefest(before.values());
        let blocked = self.named(|episode| &episode.past_blockers);
        let may_go_on = |blocker: &Blocker| observation.may_run_unseen(blocker.xid());
        let past = before.into_values();
        self.blockers
            .extend(past.filter(|blocker| blocked.contains(&blocker.xid()) || may_go_on(blocker)));
        let next = observation.running.next;
        self.blockers
            .sort_by_key(|blocker| Reverse(blocker.xid().age(next)));
    }

    /// Of each creation's past blockers those stay that blocked longest.
    fn forget_briefest<'a>(&mut self, past: impl Iterator<Item = &'a Blocker>) {
        let duration = |blocker: &Blocker| (blocker.xid(), blocker.blocked_for());
        let mut durations: HashMap<Xid, Duration> = past.map(duration).collect();
        durations.extend(self.blockers.iter().map(duration));
        for episode in self.episodes.values_mut() {
            if episode.past_blockers.len() > REMEMBERED {
                episode
                    .past_blockers
                    .sort_by_key(|xid| Reverse(durations.get(xid).copied().unwrap_or_default()));
                episode.past_blockers.truncate(REMEMBERED);
            }
        }
    }

    /// The blockers of the creations that go on.
    pub fn named_blockers(&self) -> HashSet<Xid> {
        self.named(|episode| &episode.blockers)
    }

    fn named(&self, by: impl Fn(&Episode) -> &Vec<Xid>) -> HashSet<Xid> {
        self.episodes.values().flat_map(by).copied().collect()
    }

    fn learn(&mut self, observation: &Observation) {
        self.replay.clone_from(&observation.replay);
        if let Some(position) = observation.wal_position() {
            self.wal_rate.observe(position, observation.at);
        }
        if let Some(look) = &observation.upstream {
            self.blind.clone_from(&look.blind);
        }
        let position = observation.upstream.as_ref().and_then(|look| look.position);
        let is_lost = |sent: &Sent| position.is_some_and(|position| position < sent.record.lsn);
        // It serves nobody any more: the server that wrote it is gone, and with it the record.
        if observation.role == Role::Primary || self.sent.as_ref().is_some_and(is_lost) {
            self.sent = None;
        }
        if observation.role == Role::Primary {
            self.upstream = Upstream::NotNeeded;
        }
    }

    /// Whether there is anything to watch.
    pub fn is_empty(&self) -> bool {
        self.episodes.is_empty() && self.copies.is_empty()
    }

    fn drop_unnamed_blockers(&mut self) {
        let named = self.named_blockers();
        self.blockers
            .retain(|blocker| named.contains(&blocker.xid()));
    }

    /// A record was written that served `slots`, as of `observation`. Returns those of them for
    /// which it is the first, earlier tries included.
    pub fn recorded(
        &mut self,
        slots: &[SlotName],
        nudge: Nudge,
        observation: &Observation,
    ) -> Vec<SlotName> {
        for episode in self.episodes.values_mut() {
            // One that waits for a transaction reads nothing before that has ended, and then a
            // record of its own.
            if episode.wait != CreatorWait::Transaction
                && let Some(schedule) = &mut episode.schedule
            {
                schedule.recorded(observation.running, observation.at);
            }
        }
        self.count_nudge(slots, nudge)
    }

    /// The upstream wrote a record on behalf of `slots`; it serves every creation that goes on.
    /// Returns those of `slots` for which it is the first.
    pub fn requested(
        &mut self,
        slots: &[SlotName],
        record: Record,
        now: Timestamp,
    ) -> Vec<SlotName> {
        for episode in self.episodes.values_mut() {
            if let Some(schedule) = &mut episode.schedule {
                schedule.requested(record.lsn, record.running, now);
            }
        }
        self.sent = Some(Sent { at: now, record });
        let nudge = Nudge {
            at: now,
            lsn: record.lsn,
        };
        self.count_nudge(slots, nudge)
    }

    fn count_nudge(&mut self, slots: &[SlotName], nudge: Nudge) -> Vec<SlotName> {
        let mut first = Vec::new();
        for name in slots {
            if let Some(episode) = self.episodes.get_mut(name) {
                if episode.nudges == 0 && episode.story.nudges == 0 {
                    first.push(name.clone());
                }
                episode.nudges += 1;
                episode.last_nudge = Some(nudge);
            }
            if let Some(copy) = self.copies.get_mut(name) {
                if copy.nudges == 0 {
                    first.push(name.clone());
                }
                copy.recorded(nudge);
            }
        }
        first
    }

    /// The blockers of one creation, oldest first.
    pub fn blockers_of(&self, episode: &Episode) -> Vec<&Blocker> {
        let wanted: HashSet<Xid> = episode.blockers.iter().copied().collect();
        self.blockers
            .iter()
            .filter(|blocker| wanted.contains(&blocker.xid()))
            .collect()
    }

    pub fn blocker(&self, xid: Xid) -> Option<&Blocker> {
        self.blockers.iter().find(|blocker| blocker.xid() == xid)
    }

    pub fn blocker_mut(&mut self, xid: Xid) -> Option<&mut Blocker> {
        self.blockers
            .iter_mut()
            .find(|blocker| blocker.xid() == xid)
    }

    /// The creations that this transaction holds up.
    pub fn blocked_by(&self, xid: Xid) -> impl Iterator<Item = &Episode> {
        self.episodes
            .values()
            .filter(move |episode| episode.blockers.contains(&xid))
    }

    pub fn slots_blocked_by(&self, xid: Xid) -> Vec<SlotName> {
        self.blocked_by(xid)
            .map(|episode| episode.slot.clone())
            .collect()
    }

    /// A creation was told to end. Returns whether to say so.
    pub fn cancelled(&mut self, slot: &SlotName, reason: Reason, now: Timestamp) -> bool {
        let episode = self.episodes.get_mut(slot);
        episode.is_some_and(|episode| episode.cancelled(reason, now))
    }

    /// Leaves out what matters least until `fits`: long queries, then all but the oldest blockers
    /// of each creation, then what is remembered of earlier tries, then creations. What was left out
    /// is counted.
    pub fn shrink_until(&mut self, fits: impl Fn(&Self) -> bool) {
        const SHORT_QUERY: usize = 80;
        const FEW_BLOCKERS: usize = 20;

        if fits(self) {
            return;
        }
        for blocker in &mut self.blockers {
            blocker.transaction.cut_query(SHORT_QUERY);
        }
        if fits(self) {
            return;
        }
        for episode in self.episodes.values_mut() {
            episode.more_blockers += episode.blockers.len().saturating_sub(FEW_BLOCKERS);
            episode.blockers.truncate(FEW_BLOCKERS);
            episode.shorten();
        }
        self.drop_unnamed_blockers();
        while !fits(self) && !self.unfinished.is_empty() {
            let surplus = self.unfinished.len().div_ceil(2);
            self.unfinished.drain(..surplus);
        }
        while !fits(self) && !self.episodes.is_empty() {
            // A part of them at a time: each try writes all of it out.
            for _ in 0..self.episodes.len().div_ceil(8) {
                self.episodes.pop_last();
                self.more_episodes += 1;
            }
            self.drop_unnamed_blockers();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::diagnosis::State;
    use super::super::fixtures::*;
    use super::super::guard::Ending;
    use super::super::observation::{Connection, Creator, Pid, Slot, Transaction};
    use super::super::upstream::RemoteSlot;
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn episode(watch: &Watch) -> &Episode {
        watch.episodes.get(&SlotName::new("x")).expect("an episode")
    }

    fn waiting(milliseconds: i64, transactions: Vec<Transaction>) -> Observation {
        let slots = vec![building("x", CreatorWait::Transaction)];
        observation(milliseconds, slots, transactions)
    }

    fn freed(milliseconds: i64) -> Observation {
        let slots = vec![building("x", CreatorWait::Wal)];
        observation(milliseconds, slots, Vec::new())
    }

    fn usable(milliseconds: i64) -> Observation {
        observation(milliseconds, vec![slot("x", Progress::Usable)], Vec::new())
    }

    #[test]
    fn a_creation_is_followed_to_its_end() {
        let mut watch = Watch::default();
        let first = watch.update(&waiting(0, vec![session(700, 1)]));
        assert!(matches!(
            first.as_slice(),
            [Change::Waits(Telling::First, _)]
        ));
        assert_eq!(episode(&watch).state, State::WaitingForTransactions);
        assert_eq!(episode(&watch).blockers, [xid(700)]);

        assert!(
            watch
                .update(&waiting(4000, vec![session(700, 1)]))
                .is_empty()
        );
        assert!(watch.update(&freed(5000)).is_empty());
        assert_eq!(episode(&watch).state, State::WaitingForRecord);
        assert!(episode(&watch).wants_record(&freed(5000), INTERVAL));

        let last = watch.update(&usable(5020));
        let [Change::Ended(finished)] = last.as_slice() else {
            panic!("{last:?}");
        };
        assert_eq!(finished.outcome, Outcome::Ready);
        let episode = &finished.episode;
        assert_eq!(episode.waited.for_transactions, Duration::from_secs(5));
        assert_eq!(episode.waited.for_record, Duration::from_millis(20));
        assert!(watch.episodes.is_empty() && watch.blockers.is_empty());
    }

    #[test]
    fn a_deadlock_with_replay_is_told_once() {
        let mut watch = Watch::default();
        let mut look = |milliseconds, others: &[i32]| {
            let slots = vec![building("x", CreatorWait::Wal)];
            let mut seen = standby(milliseconds, slots, 1000);
            if let Some(replay) = &mut seen.replay {
                replay.waits_for = vec![in_the_way(creator().identity.pid.get())];
                let others = others.iter().map(|&other| in_the_way(other));
                replay.waits_for.extend(others);
            }
            watch.update(&seen).len()
        };
        assert_eq!(look(0, &[]), 0);
        assert_eq!(look(1000, &[]), 1);
        // Whose snapshot is as old as the creator's, for a moment.
        assert_eq!(look(60_000, &[99]), 0);
        assert_eq!(look(120_000, &[]), 0);
    }

    #[test]
    fn a_record_serves_the_creations_that_need_it() {
        let mut watch = Watch::default();
        let busy = |at| {
            let slots = ["x", "y", "z"].map(|name| building(name, CreatorWait::Transaction));
            observation(at, slots.into(), vec![session(700, 1)])
        };
        watch.update(&busy(0));
        let slots = vec![
            building("x", CreatorWait::Wal),
            building("y", CreatorWait::Unknown),
            building("z", CreatorWait::Transaction),
        ];
        let freed = observation(5000, slots, Vec::new());
        watch.update(&freed);
        let wants: Vec<_> = watch
            .episodes
            .values()
            .filter(|episode| episode.wants_record(&freed, INTERVAL))
            .map(|episode| episode.slot.clone())
            .collect();
        assert_eq!(wants, [SlotName::new("x"), SlotName::new("y")]);

        let nudge = Nudge {
            at: at(5000),
            lsn: Lsn::new(1),
        };
        assert_eq!(watch.recorded(&wants, nudge, &freed), wants);
        assert!(
            watch.recorded(&wants, nudge, &freed).is_empty(),
            "no longer the first"
        );
        assert_eq!(watch.episodes.values().map(|e| e.nudges).sum::<u32>(), 4);
    }

    #[test]
    fn a_record_that_was_lost_is_asked_for_again() {
        let slots = || vec![building("x", CreatorWait::Wal)];
        let mut watch = Watch::default();
        let begin = standby(0, slots(), 1000);
        watch.update(&begin);
        assert!(episode(&watch).wants_record(&begin, INTERVAL));
        let record = Record {
            lsn: Lsn::new(1 << 26),
            running: Some(begin.running),
        };
        watch.requested(&[SlotName::new("x")], record, at(0));
        let on_its_way = standby(1000, slots(), 1000);
        watch.update(&on_its_way);
        assert!(!episode(&watch).wants_record(&on_its_way, INTERVAL));

        // Another server took over that had not received it.
        let mut switched = standby(2000, slots(), 1000);
        switched.learn(Some(look(2000, Vec::new()).into()));
        watch.update(&switched);
        assert!(episode(&watch).wants_record(&switched, INTERVAL));
    }

    #[test]
    fn a_slot_of_a_failover_slots_name_is_known_while_both_are_there() {
        let seen = |milliseconds, syncs_slots, synced| {
            let own = Slot {
                synced,
                ..slot("x", Progress::Usable)
            };
            let mut seen = standby(milliseconds, vec![own], 1000);
            seen.syncs_slots = syncs_slots;
            seen
        };
        let with_remote = |mut seen: Observation, failover| {
            let mut look = look(0, Vec::new());
            look.slots = vec![RemoteSlot {
                name: SlotName::new("x"),
                restart_lsn: None,
                catalog_xmin: None,
                confirmed_flush_lsn: None,
                active: false,
                failover,
                waits_for_standbys: false,
            }];
            seen.learn(Some(look.into()));
            seen
        };
        let mut watch = Watch::default();
        let mut after = |seen: Observation| {
            watch.update(&seen);
            (watch.namesakes.len(), watch.wants_names(&seen, INTERVAL))
        };
        assert_eq!(after(seen(0, false, false)), (0, false), "it copies none");
        assert_eq!(after(seen(0, true, false)), (0, true));
        assert_eq!(after(with_remote(seen(0, true, false), false)), (0, false));
        assert_eq!(after(with_remote(seen(0, true, false), true)), (1, false));
        assert_eq!(after(seen(9_000, true, false)), (1, false));
        assert_eq!(after(seen(10_000, true, false)), (1, true));
        assert_eq!(after(seen(11_000, true, true)), (0, false), "its copy");
    }

    #[test]
    fn no_record_for_a_creation_just_begun_nor_for_one_that_reads() {
        let mut watch = Watch::default();
        watch.update(&freed(0));
        assert!(!episode(&watch).wants_record(&freed(0), Duration::ZERO));

        let reads = |at| observation(at, vec![building("x", CreatorWait::Working)], Vec::new());
        watch.update(&reads(20_000));
        assert!(!episode(&watch).wants_record(&reads(20_000), INTERVAL));
        assert_eq!(episode(&watch).state, State::Starting);
    }

    #[test]
    fn others_are_told_of_when_they_change_but_once_a_second() {
        let mut watch = watching(vec![session(700, 1), session(701, 2)]);
        let changed = vec![session(701, 2)];
        assert!(watch.update(&waiting(500, changed.clone())).is_empty());
        let told = watch.update(&waiting(1000, changed.clone()));
        assert!(matches!(
            told.as_slice(),
            [Change::Waits(Telling::Again, _)]
        ));
        assert!(watch.update(&waiting(9000, changed)).is_empty());

        // The pause doubles each time, up to five minutes.
        let mut lines = 0;
        for second in 10..3610 {
            let others = vec![session(701, 2), session(702 + second, 3)];
            let changes = watch.update(&waiting(i64::from(second) * 1000, others));
            lines += changes.len();
        }
        assert_eq!(
            lines,
            8 + 10,
            "eight while it doubles, then one in five minutes"
        );
    }

    #[test]
    fn a_slot_that_vanishes_is_gone() {
        for after in [
            Vec::new(),
            vec![slot("x", Progress::LeftBehind(None))],
            vec![slot("x", Progress::Invalidated(None))],
        ] {
            let changes =
                watching(vec![session(700, 1)]).update(&observation(20, after, Vec::new()));
            assert!(
                matches!(changes.as_slice(), [Change::Ended(f)] if f.outcome == Outcome::Gone),
                "{changes:?}"
            );
        }
    }

    #[test]
    fn another_creation_of_the_same_name_is_another_episode() {
        let other_pid =
            |creator: &mut Creator| creator.identity.pid = Pid::new(101).expect("a pid");
        let same_pid_later = |creator: &mut Creator| creator.identity.backend_start = Some(at(10));
        for change in [other_pid as fn(&mut Creator), same_pid_later] {
            let mut watch = watching(vec![session(700, 1)]);
            let mut creator = creator();
            change(&mut creator);
            let slots = vec![slot("x", Progress::Building(Box::new(creator)))];
            let seen = |at| observation(at, slots.clone(), vec![session(700, 1)]);
            let changes = watch.update(&seen(20));
            let [Change::Ended(ended)] = changes.as_slice() else {
                panic!("{changes:?}");
            };
            assert_eq!(ended.outcome, Outcome::Gone);
            assert_eq!(episode(&watch).started, at(20));
            let changes = watch.update(&seen(1000));
            assert!(
                matches!(changes.as_slice(), [Change::Waits(Telling::NextTry, _)]),
                "{changes:?}"
            );
        }
    }

    #[test]
    fn past_blockers_are_remembered_with_the_creation() {
        let mut watch = watching(vec![session(700, 1), session(701, 2)]);
        watch.update(&waiting(3000, vec![session(701, 2)]));
        watch.update(&freed(5000));
        let changes = watch.update(&usable(5020));
        let [Change::Ended(finished)] = changes.as_slice() else {
            panic!("{changes:?}");
        };
        let blocked: Vec<_> = finished
            .blockers
            .iter()
            .map(|blocker| (blocker.xid(), blocker.blocked_for()))
            .collect();
        let seconds = Duration::from_secs;
        assert_eq!(blocked, [(xid(700), seconds(0)), (xid(701), seconds(3))]);
        assert!(watch.blockers.is_empty());
    }

    #[test]
    fn those_that_blocked_longest_are_remembered() {
        let mut watch = Watch::default();
        let all: Vec<_> = (700..730).map(|number| session(number, 1)).collect();
        // One ends each second, the youngest first.
        for second in 0..=30_u8 {
            let running = all[..30 - usize::from(second)].to_vec();
            watch.update(&waiting(i64::from(second) * 1000, running));
        }
        assert!(watch.blockers.len() <= REMEMBERED);
        let changes = watch.update(&usable(31_000));
        let [Change::Ended(finished)] = changes.as_slice() else {
            panic!("{changes:?}");
        };
        let longest: Vec<_> = (700..710).map(xid).collect();
        let remembered: Vec<_> = finished.blockers.iter().map(Blocker::xid).collect();
        assert_eq!(remembered, longest);
    }

    #[test]
    fn each_transaction_of_a_session_has_a_grace_of_its_own() {
        let mut watch = watching(vec![session(700, 1)]);
        watch
            .blocker_mut(xid(700))
            .expect("a blocker")
            .was_told(Ending::Cancel, at(0));
        // The same pid, be it the same session or another.
        let next = Transaction {
            started: Some(at(1000)),
            ..session(701, 1)
        };
        watch.update(&waiting(60_000, vec![next]));
        let blocker = watch.blocker(xid(701)).expect("a blocker");
        assert_eq!(
            (blocker.blocked_for(), blocker.told),
            (Duration::ZERO, None)
        );
    }

    /// As clients do that give up and try again.
    #[test]
    fn a_transaction_blocks_one_try_after_the_other() {
        let mut watch = Watch::default();
        for start in [0, 10_000, 20_000] {
            for second in 0..4 {
                let slots = vec![building("x", CreatorWait::Transaction)];
                watch.update(&observation(
                    start + second * 1000,
                    slots,
                    vec![session(700, 1)],
                ));
            }
            watch.update(&observation(
                start + 4000,
                Vec::new(),
                vec![session(700, 1)],
            ));
            assert!(watch.is_empty());
        }
        let seconds = Duration::from_secs;
        assert_eq!(watch.blockers[0].blocked_for(), seconds(12));
        // A server that took over has given the same xid to somebody else.
        let mut taken_over = watch.clone();
        taken_over.update(&waiting(30_000, vec![session(700, 2)]));
        assert_eq!(taken_over.blockers[0].blocked_for(), seconds(0));
        watch.update(&observation(30_000, Vec::new(), Vec::new()));
        assert!(watch.blockers.is_empty(), "it has ended");
    }

    /// The builder's second phase will wait for it, and it is named; but as long as the first one
    /// lasts, its end would be of no use.
    #[test]
    fn who_blocks_only_later_has_its_grace_then() {
        let late = session(1001, 2);
        let mut watch = watching(vec![session(700, 1)]);
        watch.update(&waiting(2000, vec![session(700, 1), late.clone()]));
        assert_eq!(episode(&watch).blockers, [xid(700), xid(1001)]);
        assert_eq!(episode(&watch).front(), [xid(700)]);
        watch.update(&waiting(9000, vec![session(700, 1), late.clone()]));
        watch.update(&waiting(10_000, vec![late.clone()]));
        watch.update(&waiting(13_000, vec![late]));
        let blocked_for = |number| watch.blocker(xid(number)).map(Blocker::blocked_for);
        assert_eq!(blocked_for(700), Some(Duration::from_secs(9)));
        assert_eq!(blocked_for(1001), Some(Duration::from_secs(3)));
        assert_eq!(episode(&watch).front(), [xid(1001)]);
    }

    #[test]
    fn no_time_passes_when_the_clock_is_set() {
        let mut watch = watching(vec![session(700, 1)]);
        watch.update(&waiting(5000, vec![session(700, 1)]));
        for hour in [3_600_000, -3_600_000] {
            let mut watch = watch.clone();
            let passed = Duration::from_millis(20);
            let step = Step::between(at(5000), at(5020 + hour), passed).expect("a step");
            watch.clock_was_set(step);
            watch.update(&waiting(5020 + hour, vec![session(700, 1)]));
            let total = Duration::from_millis(5020);
            assert_eq!(episode(&watch).waited.for_transactions, total);
            assert_eq!(at(5020 + hour).since(episode(&watch).started), total);
            assert_eq!(watch.blockers[0].blocked_for(), total);
        }
    }

    #[test]
    fn a_creation_without_a_client_is_not_helped() {
        let gone = |milliseconds| {
            let creator = Creator {
                wait: CreatorWait::Wal,
                connection: Connection::Closed,
                ..creator()
            };
            let slots = vec![slot("x", Progress::Building(Box::new(creator)))];
            observation(milliseconds, slots, Vec::new())
        };
        let mut watch = watching(vec![session(700, 1)]);
        assert!(watch.update(&gone(5000)).is_empty());
        assert_eq!(episode(&watch).shown_state(), (State::Abandoned, at(5000)));
        assert!(!episode(&watch).wants_record(&gone(5000), INTERVAL));
        let told = watch.update(&gone(6000));
        assert!(
            matches!(told.as_slice(), [Change::Abandoned(_)]),
            "{told:?}"
        );
        assert!(watch.update(&gone(7000)).is_empty());

        // It was not gone after all.
        watch.update(&freed(8000));
        assert_eq!(episode(&watch).shown_state().0, State::WaitingForRecord);
        assert!(episode(&watch).wants_record(&freed(8000), INTERVAL));
    }

    #[test]
    fn later_transactions_are_named_once_they_last() {
        let young = Transaction {
            started: Some(at(1500)),
            ..session(1001, 2)
        };
        let mut watch = watching(vec![session(700, 1)]);
        watch.update(&waiting(2000, vec![session(700, 1), young.clone()]));
        assert_eq!(episode(&watch).blockers, [xid(700)]);
        watch.update(&waiting(2500, vec![session(700, 1), young]));
        assert_eq!(episode(&watch).blockers, [xid(700), xid(1001)]);
    }

    #[test]
    fn a_worker_goes_on_where_another_ended() {
        let transactions = vec![session(700, 1), prepared(701, "it's")];
        let watch = watching(transactions.clone());
        let text = serde_json::to_string(&watch).expect("serializable");
        let mut resumed: Watch = serde_json::from_str(&text).expect("its own text");
        assert_eq!(resumed.blockers, watch.blockers);
        assert!(resumed.update(&waiting(20, transactions)).is_empty());
        assert_eq!(resumed.blockers[0].blocked_for(), Duration::from_millis(20));
        assert_eq!(episode(&resumed).started, at(0));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let long = |number| Transaction {
            query: Some("q".repeat(1024)),
            ..session(number, 1)
        };
        let transactions: Vec<_> = (300..500).map(long).collect();
        let slots: Vec<_> = (0..50)
            .map(|number| building(&format!("s{number}"), CreatorWait::Transaction))
            .collect();
        let mut all = Watch::default();
        all.update(&observation(0, slots, transactions));

        let size = |watch: &Watch| serde_json::to_vec(watch).expect("serializable").len();
        let mut limit = size(&all);
        let least = size(&Watch {
            more_episodes: 50,
            wal_rate: all.wal_rate.clone(),
            ..Watch::default()
        });
        let mut sizes = Vec::new();
        while limit >= least {
            let mut part = all.clone();
            part.shrink_until(|part| size(part) <= limit);
            assert!(size(&part) <= limit);
            assert_eq!(part.episodes.len() + part.more_episodes, 50);
            for episode in part.episodes.values() {
                assert_eq!(episode.blockers.len() + episode.more_blockers, 200);
                assert_eq!(part.blockers_of(episode).len(), episode.blockers.len());
                assert_eq!(
                    part.blockers_of(episode)[0].xid(),
                    xid(300),
                    "the oldest stay"
                );
            }
            sizes.push(part.episodes.len());
            limit /= 2;
        }
        assert_eq!(sizes.first(), Some(&50));
        assert_eq!(sizes.last(), Some(&0));
    }
}
