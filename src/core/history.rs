//! Creations that have ended.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::episode::Episode;
use super::observation::{Slot, SlotName};
use super::story::Story;
use super::time::Timestamp;
use super::xid::{Lsn, Xid};

/// How many past blockers of a creation are remembered: those that blocked longest.
pub const REMEMBERED: usize = 10;
/// And where there is not room for so many.
const FEWEST: usize = 2;
/// The part of their queries that is kept, in bytes.
const QUERY: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Ready,
    /// It ended after it was told to.
    Cancelled,
    /// The slot vanished, or passed to somebody else.
    Gone,
}

impl Outcome {
    /// As `slot_self_heal_history.outcome` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Cancelled => "cancelled by slot_self_heal",
            Self::Gone => "gone",
        }
    }
}

/// What has become of the slot.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// It can be used.
    Ready(&'a Slot),
    /// It is gone, or another creation's.
    Vanished,
    /// It is there, and nobody makes it usable.
    Unusable,
}

/// A creation that has ended; several, if its client tried again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    pub ended: Timestamp,
    /// Of the last try, as is what follows.
    pub outcome: Outcome,
    /// Tells its slot from a later one of the same name, as long as the slot was not used.
    pub restart_lsn: Option<Lsn>,
    /// What it was known to be last.
    pub episode: Episode,
    /// The oldest of those that it waited for in the end, and how many there were.
    pub held_up_by: Option<(Xid, usize)>,
    /// Who has blocked any of the tries, oldest first.
    pub blockers: Vec<Blocker>,
    /// Whether the log knows of it, and should hear how it ended.
    pub is_worth_telling: bool,
}

impl Finished {
    pub fn new(mut episode: Episode, blockers: Vec<Blocker>, end: End, now: Timestamp) -> Self {
        let (outcome, restart_lsn) = match (end, &episode.cancelled) {
            (End::Ready(slot), _) => (Outcome::Ready, slot.restart_lsn),
            (End::Vanished | End::Unusable, Some(_)) => (Outcome::Cancelled, None),
            (End::Vanished | End::Unusable, None) => (Outcome::Gone, None),
        };
        let is_worth_telling = episode.finish(outcome, &end);
        let count = episode.blockers.len() + episode.more_blockers;
        let held_up_by = episode.blockers.first().map(|oldest| (*oldest, count));
        let mut blockers = longest(blockers);
        for blocker in &mut blockers {
            blocker.transaction.cut_query(QUERY);
        }
        // They stand in `blockers` now.
        episode.blockers.clear();
        episode.shorten();
        Self {
            ended: now,
            outcome,
            restart_lsn,
            held_up_by,
            episode,
            blockers,
            is_worth_telling,
        }
    }

    /// The same story once its slot is there, though no creation was seen to make it.
    pub fn made_unseen(mut self, story: &Story, restart_lsn: Lsn, now: Timestamp) -> Self {
        self.ended = now;
        self.outcome = Outcome::Ready;
        self.restart_lsn = Some(restart_lsn);
        self.held_up_by = None;
        self.episode.story.clone_from(story);
        // Those of the last try that was seen.
        self.episode.nudges = 0;
        self.episode.last_nudge = None;
        self
    }

    pub fn is_of(&self, slot: &SlotName, story: &Story) -> bool {
        self.episode.slot == *slot && self.episode.story.is_same(story)
    }

    /// What took the slot, as far as that is known for certain.
    pub fn reason(&self) -> Option<String> {
        let episode = &self.episode;
        match (self.outcome, &episode.cancelled, episode.abandoned) {
            (Outcome::Cancelled, Some(cancelled), _) => {
                let reason = &cancelled.reason;
                Some(format!("{}: {reason}", reason.setting()))
            }
            (Outcome::Gone, _, Some(_)) => Some("its client closed the connection".to_owned()),
            (Outcome::Ready | Outcome::Cancelled | Outcome::Gone, _, _) => None,
        }
    }

    /// Adds the blockers of an earlier try.
    fn add_blockers(&mut self, earlier: Vec<Blocker>) {
        for blocker in earlier {
            let is_same = |other: &&mut Blocker| other.is_of(&blocker.transaction);
            match self.blockers.iter_mut().find(is_same) {
                None => self.blockers.push(blocker),
                Some(other) if other.blocked_for() < blocker.blocked_for() => *other = blocker,
                Some(_) => {}
            }
        }
        let ids = self.blockers.iter().map(|b| b.xid().following());
        if let Some(next) = ids.reduce(Xid::or_later) {
            self.blockers.sort_by_key(|b| Reverse(b.xid().age(next)));
        }
        self.blockers = longest(std::mem::take(&mut self.blockers));
    }

    /// Where there is not room for all.
    pub fn leave_out_queries(&mut self) {
        for blocker in &mut self.blockers {
            blocker.transaction.cut_query(0);
        }
    }

    /// Where there is not room for all: the oldest stay.
    pub fn leave_out_blockers(&mut self) {
        self.blockers.truncate(FEWEST);
    }
}

/// Those that blocked longest, in the order in which they come.
fn longest(blockers: Vec<Blocker>) -> Vec<Blocker> {
    let mut numbered: Vec<_> = blockers.into_iter().enumerate().collect();
    numbered.sort_by_key(|(_, blocker)| Reverse(blocker.blocked_for()));
    numbered.truncate(REMEMBERED);
    numbered.sort_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, blocker)| blocker).collect()
}

/// Adds creations that have ended to a history, the latest last. Tries of one story are one.
pub fn add(history: &mut Vec<Finished>, ended: Vec<Finished>) {
    for mut finished in ended {
        let Episode { slot, story, .. } = &finished.episode;
        let earlier = |other: &Finished| other.is_of(slot, story);
        if let Some(index) = history.iter().rposition(earlier) {
            let earlier = history.remove(index);
            finished.add_blockers(earlier.blockers);
        }
        history.push(finished);
    }
}
