//! One creation of a slot, from its first sight to its end.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::diagnosis::{self, State};
use super::history::{End, Outcome};
use super::limit::{Cancelled, Reason};
use super::observation::{
    Connection, Creator, CreatorIdentity, CreatorWait, Observation, Role, Slot, SlotName,
};
use super::policy::OwnLimits;
use super::replay::Obstacle;
use super::schedule::{Schedule, Waiting};
use super::story::Story;
use super::time::{Step, Timestamp};
use super::watch::Sent;
use super::xid::{Lsn, Xid};

/// What passes within so short a time is not worth a line of the log.
const LASTS: Duration = Duration::from_secs(1);

/// A creation that goes on, and what is remembered of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Episode {
    pub slot: SlotName,
    pub database: String,
    pub creator: CreatorIdentity,
    /// When it was first seen.
    pub started: Timestamp,
    /// What it waits for, whether or not somebody waits for it: never [`State::Abandoned`].
    pub state: State,
    pub state_since: Timestamp,
    /// When its client was first seen to be gone.
    pub abandoned: Option<Timestamp>,
    /// What was last done to end it.
    pub cancelled: Option<Cancelled>,
    pub own_limits: OwnLimits,
    pub retained_wal: Option<i64>,
    /// The most bytes of WAL that it was seen to hold back.
    pub max_retained_wal: i64,
    /// As in [`diagnosis::Diagnosis`].
    pub blockers: Vec<Xid>,
    /// Transactions that were blockers and are no more.
    pub past_blockers: Vec<Xid>,
    /// How many blockers were left out where there was not room for all.
    pub more_blockers: usize,
    /// As in [`diagnosis::Diagnosis`].
    pub obstacle: Option<Obstacle>,
    /// `None` until the slot has its `restart_lsn` and, on a standby, its `catalog_xmin`: no record
    /// counts before.
    pub schedule: Option<Schedule>,
    /// Records that we wrote, or asked the upstream for, on its behalf.
    pub nudges: u32,
    pub last_nudge: Option<Nudge>,
    pub waited: Waited,
    /// The tries of its client's before this one, and, once it is over, this one as well.
    pub story: Story,
    restart_lsn: Option<Lsn>,
    /// As of the last scan.
    pub(super) wait: CreatorWait,
    role: Role,
    /// When the standby on which it began was promoted.
    promoted: Option<Timestamp>,
    last_seen: Timestamp,
    told: Option<Told>,
    told_abandoned: bool,
    told_cancelled: bool,
}

/// A running-xacts record that we wrote.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Nudge {
    pub at: Timestamp,
    /// Where the record ends in the WAL.
    pub lsn: Lsn,
}

/// How long a creation spent waiting, by what it waited for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Waited {
    pub for_transactions: Duration,
    pub for_record: Duration,
    pub for_replay: Duration,
}

impl AddAssign for Waited {
    fn add_assign(&mut self, other: Self) {
        self.for_transactions += other.for_transactions;
        self.for_record += other.for_record;
        self.for_replay += other.for_replay;
    }
}

/// What the log was last told of.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    state: State,
    blockers: Vec<Xid>,
    obstacle: Option<Obstacle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    First,
    Again,
    /// Of this try for the first time.
    NextTry,
}

impl Episode {
    pub(super) fn begin(
        slot: &Slot,
        creator: &Creator,
        observation: &Observation,
        story: Story,
    ) -> Self {
        let now = observation.at;
        Self {
            role: observation.role,
            promoted: None,
            obstacle: None,
            slot: slot.name.clone(),
            database: slot.database.clone(),
            creator: creator.identity.clone(),
            started: now,
            state: State::Starting,
            state_since: now,
            abandoned: None,
            cancelled: None,
            own_limits: creator.own_limits,
            retained_wal: None,
            max_retained_wal: 0,
            blockers: Vec::new(),
            past_blockers: Vec::new(),
            more_blockers: 0,
            schedule: None,
            nudges: 0,
            last_nudge: None,
            waited: Waited::default(),
            story,
            restart_lsn: slot.restart_lsn,
            wait: creator.wait,
            last_seen: now,
            told: None,
            told_abandoned: false,
            told_cancelled: false,
        }
    }

    /// Whether this scan's creation is the remembered one. A slot's `restart_lsn` is set once, when
    /// its creator reserves WAL, and stays until it is usable.
    pub(super) fn is_creation_of(&self, slot: &Slot, creator: &Creator) -> bool {
        self.creator.is_same(&creator.identity)
            && (self.restart_lsn.is_none() || self.restart_lsn == slot.restart_lsn)
    }

    /// The clock was set, and with it what was told of it before: no time has passed.
    pub(super) fn clock_was_set(&mut self, step: Step) {
        self.started += step;
        self.state_since += step;
        self.last_seen += step;
        for at in self.abandoned.iter_mut().chain(&mut self.promoted) {
            *at += step;
        }
        if let Some(cancelled) = &mut self.cancelled {
            cancelled.at += step;
        }
        self.story.clock_was_set(step);
        if let Some(schedule) = &mut self.schedule {
            schedule.clock_was_set(step);
        }
    }

    /// The state that people are shown, and since when.
    pub fn shown_state(&self) -> (State, Timestamp) {
        match self.abandoned {
            Some(since) => (State::Abandoned, since),
            None => (self.state, self.state_since),
        }
    }

    /// The server's role when it was last seen.
    pub fn role(&self) -> Role {
        self.role
    }

    pub fn restart_lsn(&self) -> Option<Lsn> {
        self.restart_lsn
    }

    /// Whether it began on a standby that was promoted so long ago.
    pub fn was_promoted(&self, now: Timestamp, patience: Duration) -> bool {
        self.promoted
            .is_some_and(|promoted| now.since(promoted) >= patience)
    }

    /// Whether it was ever seen to wait for transactions.
    pub fn has_waited(&self) -> bool {
        self.waited.for_transactions > Duration::ZERO || self.wait == CreatorWait::Transaction
    }

    /// Whether it waits for logical decoding to be switched on.
    pub fn waits_for_switch(&self) -> bool {
        self.wait == CreatorWait::Barrier
    }

    /// Whether the log knows of it, of this try alone.
    pub fn was_told(&self) -> bool {
        self.told.is_some() || self.told_abandoned || self.told_cancelled
    }

    /// Whether it was seen by more than one scan.
    fn lasts(&self) -> bool {
        self.last_seen > self.started
    }

    /// Counts the time since the last scan for what the creation waited for then.
    pub(super) fn pass(&mut self, now: Timestamp) {
        let passed = now.since(self.last_seen);
        match self.state {
            State::WaitingForTransactions => self.waited.for_transactions += passed,
            State::WaitingForRecord => self.waited.for_record += passed,
            State::WaitingForReplay | State::BlockingReplay => self.waited.for_replay += passed,
            State::Starting
            | State::Ready
            | State::Abandoned
            | State::NotSyncReady
            | State::Lost => {}
        }
        self.last_seen = now;
    }

    pub(super) fn observe(
        &mut self,
        slot: &Slot,
        creator: &Creator,
        observation: &Observation,
        sent: Option<&Sent>,
    ) {
        let now = observation.at;
        self.pass(now);
        self.restart_lsn = slot.restart_lsn;
        self.wait = creator.wait;
        self.creator.client_process = creator.identity.client_process;
        self.own_limits = creator.own_limits;
        self.retained_wal = slot.retained_wal;
        self.max_retained_wal = self.max_retained_wal.max(slot.retained_wal.unwrap_or(0));
        self.abandoned = match creator.connection {
            Connection::Closed => self.abandoned.or(Some(now)),
            Connection::Open | Connection::Unknown => None,
        };
        self.follow(slot, observation, sent);

        let diagnosis = diagnosis::diagnose(creator, self, observation);
        if self.state != diagnosis.state {
            self.state = diagnosis.state;
            self.state_since = now;
        }
        if self.blockers != diagnosis.blockers {
            let now: HashSet<Xid> = diagnosis.blockers.iter().copied().collect();
            self.past_blockers.append(&mut self.blockers);
            self.past_blockers.retain(|xid| !now.contains(xid));
            self.blockers = diagnosis.blockers;
        }
        self.more_blockers = 0;
        self.obstacle = diagnosis.obstacle;
    }

    /// Follows the builder.
    fn follow(&mut self, slot: &Slot, observation: &Observation, sent: Option<&Sent>) {
        let (now, running) = (observation.at, observation.running);
        let was_promoted = self.role == Role::Standby && observation.role == Role::Primary;
        self.role = observation.role;
        if was_promoted {
            self.promoted = Some(now);
        }
        let upstream = observation.upstream.as_ref();
        let position = upstream.and_then(|look| look.position);
        let is_lost =
            |schedule: &Schedule| position.is_some_and(|position| schedule.is_lost(position));
        let Some(restart_lsn) = slot.restart_lsn else {
            return;
        };
        match (observation.role, &mut self.schedule) {
            (Role::Primary, None) => {
                let running = observation.running_at(self.creator.query_start, running);
                self.schedule = Some(Schedule::with_own_record(running, now));
            }
            (Role::Primary, Some(schedule)) if was_promoted => schedule.promoted(running),
            (Role::Standby, Some(schedule)) if !is_lost(schedule) => {
                if let Some(replay) = &observation.replay {
                    schedule.replayed(replay.replayed, running, now);
                }
                if let Some(look) = upstream
                    && let Some(relay) = look.relay
                {
                    schedule.relayed(relay, look.at);
                }
            }
            (Role::Standby, _) => {
                self.schedule = slot.catalog_xmin.map(|horizon| {
                    let mut schedule = Schedule::without_record(horizon, now);
                    // One that was asked for on another slot's behalf may serve this one.
                    if let Some(sent) = sent.filter(|sent| sent.record.lsn > restart_lsn) {
                        schedule.requested(sent.record.lsn, sent.record.running, sent.at);
                    }
                    schedule
                });
            }
            (Role::Primary, Some(_)) => {}
        }
        if let (CreatorWait::Transaction, Some(schedule)) = (self.wait, &mut self.schedule) {
            schedule.creator_waits(running);
        }
    }

    /// Whether a record would serve this creation now.
    pub fn wants_record(&self, observation: &Observation, nudge_interval: Duration) -> bool {
        // A slot that became usable without a client would stay behind, and hold WAL back for ever.
        if self.abandoned.is_some() || self.cancelled.is_some() {
            return false;
        }
        let waiting = match (observation.role, self.wait) {
            (Role::Primary, CreatorWait::Transaction) => Waiting::ForTransaction,
            // It has WAL to read; whether it needs a record shows when it has read it.
            (Role::Primary, CreatorWait::Working | CreatorWait::Barrier) => return false,
            // An undisturbed creation on a primary needs none; it is seldom seen twice.
            (Role::Primary, _) if !self.lasts() => return false,
            (Role::Primary, CreatorWait::Wal | CreatorWait::Unknown) => Waiting::ForAnythingElse,
            (Role::Standby, CreatorWait::Wal) => Waiting::ForWal,
            (
                Role::Standby,
                CreatorWait::Working
                | CreatorWait::Barrier
                | CreatorWait::Unknown
                | CreatorWait::Transaction,
            ) => Waiting::NotKnown,
        };
        // As long as records can't arrive there is no reason to try one more.
        let is_held = match &self.obstacle {
            // From an archive they arrive, sooner or later.
            Some(Obstacle::CutOff) => !observation.replay.as_ref().is_some_and(|r| r.has_archive),
            Some(obstacle) => !obstacle.is_passing(),
            None => false,
        };
        let patience = if is_held {
            Duration::MAX
        } else {
            nudge_interval
        };
        self.schedule.is_some_and(|schedule| {
            schedule.wants_record(observation.running, waiting, observation.at, patience)
        })
    }

    /// Whether a record has been on its way for so long.
    pub fn awaits_replay(&self, observation: &Observation, patience: Duration) -> bool {
        self.schedule
            .is_some_and(|schedule| schedule.awaits_replay(observation.at, patience))
    }

    pub(super) fn telling(&mut self) -> Option<Telling> {
        let lasts = self.last_seen.since(self.state_since) >= LASTS;
        match (self.state, self.role) {
            (State::WaitingForTransactions, Role::Primary) => {}
            // A standby has to ask whom it waits for, and replay stumbles now and then.
            (State::WaitingForTransactions, Role::Standby) if lasts => {}
            (State::WaitingForReplay | State::BlockingReplay, _) if lasts => {}
            (State::Starting, _) if lasts && self.waits_for_switch() => {}
            (
                State::WaitingForTransactions
                | State::WaitingForReplay
                | State::BlockingReplay
                | State::WaitingForRecord
                | State::Starting
                | State::Ready
                | State::Abandoned
                | State::NotSyncReady
                | State::Lost,
                _,
            ) => return None,
        }
        let telling = match &self.told {
            Some(told) if told.says(self) => return None,
            _ if !self.story.may_be_told(self.last_seen) => return None,
            Some(_) => Telling::Again,
            None if self.story.tries > 1 => Telling::NextTry,
            None => Telling::First,
        };
        self.story.tell(self.last_seen);
        self.told = Some(Told {
            state: self.state,
            blockers: self.blockers.clone(),
            obstacle: self.obstacle.clone(),
        });
        Some(telling)
    }

    /// Whether to say that its client is gone: once, and of a try that the log does not know of not
    /// more often than anything else.
    pub(super) fn tells_of_abandonment(&mut self) -> bool {
        let lasts = |since: Timestamp| self.last_seen.since(since) >= LASTS;
        if self.told_abandoned || !self.abandoned.is_some_and(lasts) {
            return false;
        }
        self.told_abandoned = self.tells_of_this_try();
        self.told_abandoned
    }

    /// It was told to end. Returns whether to say so.
    pub(super) fn cancelled(&mut self, reason: Reason, now: Timestamp) -> bool {
        let was_told_to_end = self.cancelled.is_some();
        let is_news = self.story.is_news(&reason);
        if is_news && !self.was_told() {
            self.story.tell(now);
        }
        let tells = !was_told_to_end && (is_news || self.tells_of_this_try());
        self.told_cancelled |= tells;
        self.cancelled = Some(Cancelled { at: now, reason });
        tells
    }

    /// It is over. Returns whether to say so.
    pub(super) fn finish(&mut self, outcome: Outcome, end: &End) -> bool {
        self.story.waited += self.waited;
        self.story.nudges = self.story.nudges.saturating_add(self.nudges);
        self.story.max_retained_wal = self.story.max_retained_wal.max(self.max_retained_wal);
        let ends = &mut self.story.ends;
        match (outcome, end) {
            (Outcome::Ready, _) => {}
            (Outcome::Cancelled, _) => ends.by_us += 1,
            (Outcome::Gone, End::Unusable) => ends.otherwise += 1,
            (Outcome::Gone, End::Vanished | End::Ready(_)) => ends.by_client += 1,
        }
        // One on a standby that needed our record would be there still.
        let needed_us = self.role == Role::Standby && self.nudges > 0;
        match outcome {
            Outcome::Ready => self.was_told() || self.story.was_told() || needed_us,
            Outcome::Cancelled | Outcome::Gone if needed_us => self.tells_of_this_try(),
            Outcome::Cancelled | Outcome::Gone => self.was_told(),
        }
    }

    /// Whether the log knows of this try, or may hear of it now.
    fn tells_of_this_try(&mut self) -> bool {
        self.was_told() || {
            let may = self.story.may_be_told(self.last_seen);
            if may {
                self.story.tell(self.last_seen);
            }
            may
        }
    }

    /// Leaves out what only serves while it goes on.
    pub(super) fn shorten(&mut self) {
        self.past_blockers.clear();
        if let Some(told) = &mut self.told {
            told.blockers.clear();
        }
    }

    /// The transactions that must end before it gets any further, oldest first. Others of its
    /// blockers began later, and hold it up only when these have ended.
    pub fn front(&self) -> Vec<Xid> {
        let Some(schedule) = &self.schedule else {
            return Vec::new();
        };
        let blockers = self.blockers.iter().copied();
        blockers.filter(|xid| schedule.waits_for(*xid)).collect()
    }

    /// Whether this transaction blocks it or did.
    pub fn was_blocked_by(&self, xid: Xid) -> bool {
        self.blockers.contains(&xid) || self.past_blockers.contains(&xid)
    }

    /// Whether this slot, which is usable now, is what the creation made.
    pub fn has_made(&self, slot: &Slot) -> bool {
        self.slot == slot.name && self.restart_lsn == slot.restart_lsn
    }
}

impl Told {
    fn says(&self, episode: &Episode) -> bool {
        let same_obstacle = match (&self.obstacle, &episode.obstacle) {
            // What is said is of the creator, whoever else is in the way for a moment.
            (Some(_), Some(_)) if self.state == State::BlockingReplay => true,
            (Some(these), Some(those)) => these.is_like(those),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.state == episode.state && self.blockers == episode.blockers && same_obstacle
    }
}
