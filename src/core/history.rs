//! Creations that have ended.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::episode::Episode;
use super::observation::{Role, Slot};
use super::time::Timestamp;
use super::xid::Lsn;

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

/// A creation that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    pub ended: Timestamp,
    pub outcome: Outcome,
    /// Tells its slot from a later one of the same name, as long as the slot was not used.
    pub restart_lsn: Option<Lsn>,
    /// What it was known to be last.
    pub episode: Episode,
    /// Who has blocked it, oldest first.
    pub blockers: Vec<Blocker>,
}

impl Finished {
    /// `made`: the slot, if it has become usable.
    pub fn new(
        mut episode: Episode,
        mut blockers: Vec<Blocker>,
        made: Option<&Slot>,
        now: Timestamp,
    ) -> Self {
        if blockers.len() > REMEMBERED {
            let by_age: Vec<_> = blockers.iter().map(Blocker::xid).collect();
            blockers.sort_by_key(|blocker| Reverse(blocker.blocked_for()));
            blockers.truncate(REMEMBERED);
            blockers.sort_by_key(|blocker| by_age.iter().position(|xid| *xid == blocker.xid()));
        }
        for blocker in &mut blockers {
            blocker.transaction.cut_query(QUERY);
        }
        // They stand in `blockers` now.
        episode.blockers.clear();
        episode.shorten();
        Self {
            ended: now,
            outcome: match (made, &episode.cancelled) {
                (Some(_), _) => Outcome::Ready,
                (None, Some(_)) => Outcome::Cancelled,
                (None, None) => Outcome::Gone,
            },
            restart_lsn: made.and_then(|slot| slot.restart_lsn),
            episode,
            blockers,
        }
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

    /// Whether the log knows of it, and should hear how it ended. A creation on a standby that
    /// needed our record would be there still.
    pub fn is_worth_telling(&self) -> bool {
        let healed = self.episode.role() == Role::Standby && self.episode.nudges > 0;
        self.episode.was_told() || self.episode.cancelled.is_some() || healed
    }
}
