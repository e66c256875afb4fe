//! A transaction that holds creations up, and what is remembered of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guard::{Ending, Guard};
use super::observation::{Holder, Observation, Role, Transaction};
use super::policy::{BlockerAction, BlockerRule};
use super::time::{Step, Timestamp};
use super::xid::Xid;

/// How many reasons to spare one blocker are said. What a primary answers is up to that.
const MOST_LOGGED: usize = 20;

/// What counts, of the time between two scans, as time in which it blocked: when nobody looked for
/// longer, as after a failure, the creation may have been over meanwhile.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// Looks that are not further apart.
const QUICK_SUCCESSION: Duration = Duration::from_secs(3);

/// How soon one that was told to end its session has done so, if it can.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Between two judgements of the same session: it may be idle by then.
const REHEAR: Duration = Duration::from_secs(1);
/// The same, on a standby, which has to ask its primary.
const REHEAR_ON_PRIMARY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blocker {
    pub transaction: Transaction,
    /// Who held it when that was last known, where it is not known now.
    known_holder: Option<(Holder, Option<Timestamp>)>,
    /// For how long creations could not go on before it had ended. This adds up over creations: a
    /// client that gives up and tries again waits for the same transaction.
    blocked: Duration,
    /// Whether it did at the last scan, and when that was.
    blocks: bool,
    seen: Timestamp,
    quiet: Option<Quiet>,
    heard: Option<Timestamp>,
    /// What it was told to do. Once: neither signal is lost, and a session that stays in its
    /// transaction after a cancel would after another. It may yet be told more.
    pub told: Option<Ending>,
    /// Why it was not, when that was last judged.
    pub guard: Option<Guard>,
    /// The kinds of guards that the log knows of.
    logged: Vec<Guard>,
    judged: Option<Timestamp>,
}

/// What a session showed at each look since, while it waited for its client: nothing has come from
/// there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Quiet {
    since: Timestamp,
    state_since: Option<Timestamp>,
    copied: Option<u64>,
}

impl Quiet {
    fn is_of(&self, transaction: &Transaction) -> bool {
        (self.state_since, self.copied) == (transaction.state_since, transaction.copied)
    }
}

impl Blocker {
    pub fn new(transaction: Transaction, now: Timestamp) -> Self {
        let mut blocker = Self {
            transaction: transaction.clone(),
            known_holder: None,
            blocked: Duration::ZERO,
            blocks: false,
            seen: now,
            quiet: None,
            heard: None,
            told: None,
            guard: None,
            logged: Vec::new(),
            judged: None,
        };
        blocker.listen(&transaction, now);
        blocker
    }

    /// Whether this is the same transaction still, and not another server's of the same xid. Where
    /// it is not known who holds it, as on a standby that has not asked yet, nothing speaks against
    /// it.
    pub fn is_of(&self, transaction: &Transaction) -> bool {
        if self.xid() != transaction.xid {
            return false;
        }
        let known = |transaction: &Transaction| {
            let holder = &transaction.holder;
            (*holder != Holder::Unknown).then(|| (holder.clone(), transaction.started))
        };
        let before = known(&self.transaction).or_else(|| self.known_holder.clone());
        match (before, known(transaction)) {
            (_, None) => true,
            (before, now) => before == now,
        }
    }

    /// It goes on. `blocks`: a creation can't before it has ended.
    pub fn observe(&mut self, transaction: Transaction, blocks: bool, now: Timestamp) {
        if self.blocks {
            self.blocked += now.since(self.seen).min(LONGEST_GAP);
        }
        self.listen(&transaction, now);
        let access = transaction.access.since(self.transaction.access);
        let transaction = Transaction {
            access,
            ..transaction
        };
        let before = std::mem::replace(&mut self.transaction, transaction);
        if self.transaction.holder == Holder::Unknown && before.holder != Holder::Unknown {
            self.known_holder = Some((before.holder, before.started));
        }
        self.blocks = blocks;
        self.seen = now;
    }

    pub fn blocks_no_more(&mut self) {
        self.blocks = false;
    }

    /// Follows how long its client has been silent.
    fn listen(&mut self, transaction: &Transaction, now: Timestamp) {
        self.quiet = transaction.waits_for_client.then(|| {
            let was_woken = self.was_woken(transaction, now);
            let goes_on = (self.quiet).filter(|quiet| quiet.is_of(transaction) && !was_woken);
            goes_on.unwrap_or(Quiet {
                since: now,
                state_since: transaction.state_since,
                copied: transaction.copied,
            })
        });
        self.heard = self.heard(transaction, now);
    }

    /// Whether its process was woken since the last look. Now and then any is, for a signal: only
    /// looks in quick succession tell that something comes.
    fn was_woken(&self, later: &Transaction, now: Timestamp) -> bool {
        let both = self.transaction.wakes.zip(later.wakes);
        now.since(self.seen) <= QUICK_SUCCESSION
            && both.is_some_and(|(before, after)| before != after)
    }

    /// When its process was last woken while the server saw nothing new of it: for a signal, or by a
    /// message of its client's that is long and has not come to its end. `later` is a later look.
    pub fn heard(&self, later: &Transaction, now: Timestamp) -> Option<Timestamp> {
        let before = &self.transaction;
        if !self.is_of(later) || before.state_since != later.state_since {
            None
        } else if self.was_woken(later, now) {
            Some(now)
        } else {
            self.heard
        }
    }

    /// Since when its client is known to have sent nothing, be it within a statement, as a COPY FROM
    /// STDIN: if a later look shows nothing new.
    pub fn quiet_since(&self, later: &Transaction, now: Timestamp) -> Option<Timestamp> {
        let goes_on =
            |quiet: &Quiet| self.is_of(later) && quiet.is_of(later) && !self.was_woken(later, now);
        let quiet = self.quiet.filter(goes_on)?;
        later.waits_for_client.then_some(quiet.since)
    }

    /// The clock was set: no time has passed.
    pub fn clock_was_set(&mut self, step: Step) {
        self.seen += step;
        let quiet = self.quiet.as_mut().map(|quiet| &mut quiet.since);
        for at in self.judged.iter_mut().chain(quiet).chain(&mut self.heard) {
            *at += step;
        }
    }

    pub fn xid(&self) -> Xid {
        self.transaction.xid
    }

    pub fn blocked_for(&self) -> Duration {
        self.blocked
    }

    /// Whether it is to be judged now.
    pub fn is_due(&self, rule: &BlockerRule, observation: &Observation) -> bool {
        let now = observation.at;
        let rest = match observation.role {
            Role::Primary => REHEAR,
            Role::Standby => REHEAR_ON_PRIMARY,
        };
        let acts = match rule.action {
            BlockerAction::Report => false,
            BlockerAction::Cancel | BlockerAction::Terminate => true,
        };
        let upstream_is_standby = observation
            .upstream
            .as_ref()
            .is_some_and(|look| look.running.is_none());
        let is_known = match self.transaction.holder {
            Holder::Session(_) | Holder::Autovacuum(_) | Holder::Prepared { .. } => true,
            // Elsewhere the next look tells.
            Holder::Unknown => upstream_is_standby,
        };
        let has_rested = |judged: Timestamp| now < judged || now.since(judged) >= rest;
        acts && is_known
            && self.blocks
            && self.seen == now
            && !self.was_told_all(rule)
            && self.blocked_for() >= rule.grace
            && self.judged.is_none_or(has_rested)
    }

    /// Whether it was told all that the rule allows.
    pub fn was_told_all(&self, rule: &BlockerRule) -> bool {
        match (self.told, rule.action) {
            (None, _) | (Some(Ending::Cancel), BlockerAction::Terminate) => false,
            (Some(_), _) => true,
        }
    }

    /// Whether it goes on although it was told all that the rule allows. A cancel is served at once or
    /// not at all; a session that is to end may have some cleaning up to do.
    pub fn has_stayed(&self, rule: &BlockerRule, now: Timestamp) -> bool {
        let told_for = self.judged.map_or(Duration::ZERO, |told| now.since(told));
        self.was_told_all(rule)
            && match self.told {
                Some(Ending::Terminate) => told_for >= ENDS_WITHIN,
                Some(Ending::Cancel) | None => true,
            }
    }

    pub fn was_told(&mut self, ending: Ending, now: Timestamp) {
        self.told = Some(ending);
        self.guard = None;
        self.judged = Some(now);
    }

    /// Returns whether that is news: each kind of guard is said once.
    pub fn was_spared(&mut self, guard: Guard, now: Timestamp) -> bool {
        self.judged = Some(now);
        let is_known = self.logged.iter().any(|logged| logged.is_like(&guard));
        let is_news = guard.is_lasting() && !is_known && self.logged.len() < MOST_LOGGED;
        if is_news {
            self.logged.push(guard.clone());
        }
        self.guard = Some(guard);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::policy::Policy;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn blocking_adds_up_over_creations() {
        let mut blocker = Blocker::new(session(700, 1), at(0));
        blocker.observe(session(700, 1), true, at(0));
        blocker.observe(session(700, 1), false, at(2000));
        assert_eq!(blocker.blocked_for(), 2 * SECOND);
        // Nobody creates a slot for a while.
        blocker.observe(session(700, 1), true, at(60_000));
        assert_eq!(blocker.blocked_for(), 2 * SECOND);
        blocker.observe(session(700, 1), true, at(63_000));
        assert_eq!(blocker.blocked_for(), 5 * SECOND);
    }

    #[test]
    fn another_transaction_of_the_same_xid_is_another() {
        let blocker = Blocker::new(session(700, 1), at(0));
        assert!(blocker.is_of(&session(700, 1)));
        assert!(!blocker.is_of(&session(700, 2)));
        let later = Transaction {
            started: Some(at(1)),
            ..session(700, 1)
        };
        assert!(!blocker.is_of(&later));
        assert!(!blocker.is_of(&prepared(700, "g")));
    }

    /// A standby loses its connection, and then asks another server.
    #[test]
    fn who_held_it_is_remembered_while_it_is_not_known() {
        let unknown = || Transaction {
            holder: Holder::Unknown,
            started: None,
            ..session(700, 1)
        };
        let mut blocker = Blocker::new(session(700, 1), at(0));
        for second in 1..3 {
            assert!(blocker.is_of(&unknown()));
            blocker.observe(unknown(), true, at(second * 1000));
        }
        assert!(blocker.is_of(&session(700, 1)));
        assert!(!blocker.is_of(&session(700, 2)));
        assert!(!Blocker::new(unknown(), at(0)).is_of(&session(700, 1)));
    }

    #[test]
    fn a_client_whose_message_still_comes_is_heard() {
        let idle = |wakes| Transaction {
            wakes,
            ..session(700, 1)
        };
        let mut blocker = Blocker::new(idle(None), at(0));
        let mut heard = |wakes, milliseconds| {
            blocker.observe(idle(wakes), true, at(milliseconds));
            blocker.heard(&idle(wakes), at(milliseconds))
        };
        assert_eq!(heard(Some(7), 1000), None, "it was not followed before");
        assert_eq!(heard(Some(7), 2000), None);
        assert_eq!(heard(Some(8), 3000), Some(at(3000)));
        assert_eq!(heard(Some(8), 4000), Some(at(3000)));
        assert_eq!(blocker.heard(&idle(Some(9)), at(5000)), Some(at(5000)));
        assert_eq!(blocker.heard(&idle(Some(9)), at(7001)), Some(at(3000)));
        let mut next = idle(Some(9));
        next.state_since = Some(at(4500));
        assert_eq!(blocker.heard(&next, at(5000)), None, "another statement");
    }

    #[test]
    fn a_client_is_silent_as_long_as_nothing_comes() {
        let copying = |copied, waits_for_client| Transaction {
            state: Some("active".into()),
            copied: Some(copied),
            waits_for_client,
            ..session(700, 1)
        };
        let mut blocker = Blocker::new(copying(10, true), at(0));
        let mut quiet_since = |transaction: Transaction, milliseconds| {
            blocker.observe(transaction.clone(), true, at(milliseconds));
            blocker.quiet_since(&transaction, at(milliseconds))
        };
        assert_eq!(quiet_since(copying(10, true), 1000), Some(at(0)));
        assert_eq!(quiet_since(copying(20, true), 2000), Some(at(2000)));
        assert_eq!(quiet_since(copying(20, true), 3000), Some(at(2000)));
        assert_eq!(quiet_since(copying(20, false), 4000), None);
        assert_eq!(quiet_since(copying(20, true), 5000), Some(at(5000)));
    }

    #[test]
    fn time_without_a_look_counts_little() {
        let mut blocker = Blocker::new(session(700, 1), at(0));
        blocker.observe(session(700, 1), true, at(0));
        blocker.observe(session(700, 1), true, at(9_000));
        assert_eq!(blocker.blocked_for(), Duration::from_secs(9));
        // An hour in which other creations may have come and gone.
        blocker.observe(session(700, 1), true, at(3_609_000));
        assert_eq!(blocker.blocked_for(), Duration::from_secs(19));
    }

    #[test]
    fn one_that_was_told_to_end_its_session_has_some_time_for_it() {
        let rule = |action| BlockerRule {
            action,
            ..Policy::default().blockers
        };
        let mut blocker = Blocker::new(session(700, 1), at(0));
        let stayed = |blocker: &Blocker, action, now| blocker.has_stayed(&rule(action), at(now));
        assert!(!stayed(&blocker, BlockerAction::Terminate, 60_000));
        blocker.was_told(Ending::Cancel, at(0));
        assert!(stayed(&blocker, BlockerAction::Cancel, 0));
        assert!(!stayed(&blocker, BlockerAction::Terminate, 60_000));
        blocker.was_told(Ending::Terminate, at(0));
        assert!(!stayed(&blocker, BlockerAction::Terminate, 4_999));
        assert!(stayed(&blocker, BlockerAction::Terminate, 5_000));
    }
}
