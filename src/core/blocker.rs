//! A transaction that holds creations up, and what is remembered of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guard::{Ending, Guard};
use super::observation::{Holder, Observation, Role, Transaction};
use super::policy::{BlockerAction, BlockerRule};
use super::time::{Step, Timestamp};
use super::xid::Xid;

/// Between two judgements of the same session: it may be idle by then.
const REHEAR: Duration = Duration::from_secs(1);
/// The same, on a standby, which has to ask its primary.
const REHEAR_ON_PRIMARY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blocker {
    pub transaction: Transaction,
    /// When it was first seen to hold a creation up.
    pub since: Timestamp,
    /// When it was last seen to.
    pub until: Timestamp,
    /// What it was told to do. Once: neither signal is lost, and a session that stays in its
    /// transaction after a cancel would after another. It may yet be told more.
    pub told: Option<Ending>,
    /// Why it was not, when that was last judged.
    pub guard: Option<Guard>,
    /// The kinds of guards that the log knows of.
    logged: Vec<Guard>,
    judged: Option<Timestamp>,
}

impl Blocker {
    pub fn new(transaction: Transaction, now: Timestamp) -> Self {
        Self {
            transaction,
            since: now,
            until: now,
            told: None,
            guard: None,
            logged: Vec::new(),
            judged: None,
        }
    }

    /// It blocks still.
    pub fn observe(&mut self, transaction: Transaction, now: Timestamp) {
        let access = transaction.access.since(self.transaction.access);
        self.transaction = Transaction {
            access,
            ..transaction
        };
        self.until = now;
    }

    /// The clock was set: no time has passed.
    pub fn clock_was_set(&mut self, step: Step) {
        self.since += step;
        self.until += step;
        if let Some(judged) = &mut self.judged {
            *judged += step;
        }
    }

    pub fn xid(&self) -> Xid {
        self.transaction.xid
    }

    pub fn blocked_for(&self) -> Duration {
        self.until.since(self.since)
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
        let was_told = match (self.told, rule.action) {
            (None, _) | (Some(Ending::Cancel), BlockerAction::Terminate) => false,
            (Some(_), _) => true,
        };
        let has_rested = |judged: Timestamp| now < judged || now.since(judged) >= rest;
        acts && is_known
            && self.until == now
            && !was_told
            && self.blocked_for() >= rule.grace
            && self.judged.is_none_or(has_rested)
    }

    pub fn was_told(&mut self, ending: Ending, now: Timestamp) {
        self.told = Some(ending);
        self.guard = None;
        self.judged = Some(now);
    }

    /// Returns whether that is news: each kind of guard is said once.
    pub fn was_spared(&mut self, guard: Guard, now: Timestamp) -> bool {
        self.judged = Some(now);
        // That passes by itself.
        let is_lasting = guard != Guard::JustIdle;
        let is_news = is_lasting && !self.logged.iter().any(|logged| logged.is_like(&guard));
        if is_news {
            self.logged.push(guard.clone());
        }
        self.guard = Some(guard);
        is_news
    }
}
