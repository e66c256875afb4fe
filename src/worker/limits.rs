//! What the worker ends, where the operator allows it: creations, and the sessions that block them.

use std::time::{Duration, Instant};

use super::{Worker, longest_rest};
use crate::core::advice;
use crate::core::blocker::Blocker;
use crate::core::guard::{self, Answer, Ending, Guard, Verdict};
use crate::core::hint::Hint;
use crate::core::limit::Reason;
use crate::core::observation::{Observation, Role, SlotName};
use crate::core::policy::BlockerRule;
use crate::core::time::Timestamp;
use crate::core::upstream::Problem;
use crate::core::xid::Xid;
use crate::server;
use crate::server::hearing::hear;
use crate::server::process::{self, Activity};
use crate::server::report::{self, Notice};
use crate::server::signal::{self, Unsent};
use crate::server::transaction::read_only_fallible;
use crate::{narrate, settings};

/// How many blockers the primary is asked to end at a time: it looks at each by itself.
const ASKED_AT_ONCE: usize = 50;

impl Worker {
    pub(super) fn cancel(&mut self, slot: &SlotName, reason: Reason, observation: &Observation) {
        let Some(episode) = self.watch.episodes.get(slot) else {
            return;
        };
        if signal::cancel_creation(slot, episode.creator.pid, episode.restart_lsn()).is_err() {
            // It is over; the next scan tells how.
            return;
        }
        let says = self.watch.cancelled(slot, reason.clone(), observation.at);
        if let Some(episode) = self.watch.episodes.get(slot).filter(|_| says) {
            report::log(narrate::cancelling(
                episode,
                &reason,
                &self.watch,
                observation,
            ));
        }
    }

    pub(super) fn end_blockers(&mut self, xids: &[Xid], rule: &BlockerRule) -> Result<(), Notice> {
        let cases = read_only_fallible(|| hear(xids, rule.protected_roles.clone()))?;
        let now = server::now();
        for case in cases {
            let xid = case.transaction.xid;
            let Some(blocked_for) = self.watch.blocker(xid).map(Blocker::blocked_for) else {
                continue;
            };
            let creators = self.watch.blocked_by(xid).map(|episode| &episode.creator);
            match signal::end_if_allowed(&case, blocked_for, creators, rule, now) {
                Ok(ending) => self.told(xid, ending, Role::Primary, now),
                Err(Unsent::Guarded(guard)) => self.spare(xid, guard, None, now),
                Err(Unsent::Over) => {}
            }
        }
        Ok(())
    }

    /// The primary's rules decide, and these only whether it is asked.
    pub(super) fn ask_to_end_blockers(&mut self, xids: &[Xid]) {
        let database = settings::database();
        let database = database.to_string_lossy();
        if self.upstream.rests(&database) {
            return;
        }
        let now = server::now();
        let mut requests = Vec::new();
        for &xid in xids {
            let creators = self.watch.blocked_by(xid).map(|episode| &episode.creator);
            let Some(blocker) = self.watch.blocker(xid) else {
                continue;
            };
            match guard::may_ask(&blocker.transaction, creators) {
                Ok(()) => requests.push((xid, blocker.blocked_for())),
                Err(guard) => {
                    let hint = advice::on_guard(&guard, &self.watch);
                    self.spare(xid, guard, hint, now);
                }
            }
        }
        if requests.is_empty() {
            return;
        }
        // The others have their turn at the next tick.
        requests.truncate(ASKED_AT_ONCE);
        process::show_activity(Activity::Asking);
        let begun = Instant::now();
        let answer = self
            .upstream
            .end_blockers(&requests, &database, longest_rest());
        self.asking += begun.elapsed();
        let now = server::now();
        match answer {
            Ok(verdicts) => {
                for Verdict { xid, answer } in verdicts {
                    match answer {
                        Answer::Told(ending) => self.told(xid, ending, Role::Standby, now),
                        Answer::Over => {}
                        Answer::Spared(reason) => {
                            self.spare(xid, Guard::Primary(reason), None, now);
                        }
                    }
                }
            }
            Err(problem) => self.spare_all(&requests, &problem, now),
        }
    }

    /// The primary could not be asked. Says so for one of them: the reason is the same for all.
    fn spare_all(&mut self, requests: &[(Xid, Duration)], problem: &Problem, now: Timestamp) {
        let guard = Guard::NotAsked(problem.message.clone());
        let mut news = Vec::new();
        for &(xid, _) in requests {
            if let Some(blocker) = self.watch.blocker_mut(xid)
                && blocker.was_spared(guard.clone(), now)
            {
                news.push(xid);
            }
        }
        if let Some(&xid) = news.first() {
            let hint = Some(problem.hint.clone());
            report::log(narrate::spared_blocker(&self.watch, xid, &guard, hint, now));
        }
    }

    /// A blocker was told to end. Says so.
    fn told(&mut self, xid: Xid, ending: Ending, role: Role, now: Timestamp) {
        let slots = self.watch.slots_blocked_by(xid);
        if let Some(blocker) = self.watch.blocker_mut(xid) {
            blocker.was_told(ending, now);
            report::log(narrate::ended_blocker(blocker, ending, &slots, role, now));
        }
    }

    /// A blocker was not told to end. Says so, once.
    fn spare(&mut self, xid: Xid, guard: Guard, hint: Option<Hint>, now: Timestamp) {
        let Some(blocker) = self.watch.blocker_mut(xid) else {
            return;
        };
        if blocker.was_spared(guard.clone(), now) {
            report::log(narrate::spared_blocker(&self.watch, xid, &guard, hint, now));
        }
    }
}
