//! What the worker ends, where the operator allows it: creations, and the sessions that block them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{Worker, longest_rest};
use crate::core::advice;
use crate::core::decision::DueBlockers;
use crate::core::guard::{self, Answer, Ending, Guard, Sentence, Standing, Verdict};
use crate::core::hint::Hint;
use crate::core::limit::Reason;
use crate::core::observation::{ClientProcess, Holder, Observation, Role, SlotName};
use crate::core::policy::BlockerRule;
use crate::core::time::Timestamp;
use crate::core::upstream::Problem;
use crate::core::xid::Xid;
use crate::server;
use crate::server::hearing::{Case, hear};
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

    /// Judges all that some creation waits for at present, and ends those that are due.
    pub(super) fn end_blockers(
        &mut self,
        blockers: &DueBlockers,
        observation: &Observation,
        rule: &BlockerRule,
    ) -> Result<(), Notice> {
        // A creator's client may have gone since they were last looked at.
        if !self.scanner.knows_clients() || self.has_to_look_at_clients(blockers, observation) {
            self.scanner.look_at_clients_soon();
            return Ok(());
        }
        let cases = read_only_fallible(|| hear(&blockers.all(), rule.protected_roles.clone()))?;
        let now = server::now();
        let mut judged: HashMap<Xid, Result<Sentence, Guard>> = cases
            .iter()
            .filter_map(|case| Some((case.transaction.xid, self.judge(case, rule, now)?)))
            .collect();
        guard::spare_in_vain(&blockers.fronts, &mut judged);
        for xid in &blockers.due {
            // Those that have ended are not among them.
            let Some(verdict) = judged.remove(xid) else {
                continue;
            };
            let told = verdict.map_err(Unsent::Guarded).and_then(|sentence| {
                signal::end_transaction(*xid, sentence)?;
                Ok(sentence.ending)
            });
            match told {
                Ok(ending) => self.told(*xid, ending, Role::Primary, now),
                Err(Unsent::Guarded(guard)) => self.spare(*xid, guard, None, now),
                Err(Unsent::Over) => {}
            }
        }
        Ok(())
    }

    fn judge(
        &self,
        case: &Case,
        rule: &BlockerRule,
        now: Timestamp,
    ) -> Option<Result<Sentence, Guard>> {
        let xid = case.transaction.xid;
        let blocker = self.watch.blocker(xid)?;
        let creators = self.watch.blocked_by(xid).map(|episode| &episode.creator);
        let verdict = case.judge(blocker, blocker.blocked_for(), creators, rule, now);
        let is_autovacuum = matches!(case.transaction.holder, Holder::Autovacuum(_));
        Some(match verdict {
            Ok(_) if blocker.has_stayed(rule, now) => Err(Guard::Stayed),
            // It would be found again when it is signalled; others must know before.
            Ok(sentence) if signal::may_cut_commit(sentence.ending, is_autovacuum) => {
                Err(Guard::CancelMayCutCommit)
            }
            verdict => verdict,
        })
    }

    /// Whether it is still to be seen whose clients they are: a creator's own is spared.
    fn has_to_look_at_clients(&self, blockers: &DueBlockers, observation: &Observation) -> bool {
        let is_unknown =
            |process: ClientProcess, client| process == ClientProcess::NotLookedUp && client;
        let mut creators = observation.slots.iter().filter_map(|slot| slot.creator());
        let front: HashSet<Xid> = blockers.fronts.iter().flatten().copied().collect();
        let mut transactions = observation.transactions.iter();
        creators
            .any(|creator| is_unknown(creator.identity.client_process, creator.client.is_some()))
            || transactions.any(|transaction| {
                front.contains(&transaction.xid)
                    && is_unknown(transaction.client_process, transaction.client.is_some())
            })
    }

    /// Asks the primary to end those that are due, by its own rules. What these forbid is asked first:
    /// nobody is to be ended while another has to stay.
    pub(super) fn ask_to_end_blockers(&mut self, blockers: &DueBlockers) {
        let database = settings::database();
        let database = database.to_string_lossy();
        if self.upstream_rests(&database) {
            return;
        }
        let mut judged: HashMap<Xid, Result<(), Guard>> = HashMap::new();
        for xid in blockers.all() {
            if let Some(blocker) = self.watch.blocker(xid) {
                let creators = self.watch.blocked_by(xid).map(|episode| &episode.creator);
                judged.insert(xid, guard::may_ask(&blocker.transaction, creators));
            }
        }
        let is_open = |xid: &Xid| matches!(judged.get(xid), Some(Ok(())));
        if blockers.due.iter().any(is_open) {
            let open: Vec<Xid> = judged.keys().copied().filter(is_open).collect();
            process::show_activity(Activity::Asking);
            let begun = Instant::now();
            let standings = self.upstream.standings(&open, &database, longest_rest());
            self.asking += begun.elapsed();
            match standings {
                Ok((standings, rule)) => self.judge_there(&mut judged, &standings, &rule),
                Err(problem) => {
                    let due: Vec<Xid> = blockers.due.iter().copied().filter(is_open).collect();
                    self.spare_all(&due, &problem, server::now());
                    due.iter().for_each(|xid| drop(judged.remove(xid)));
                }
            }
        }
        guard::spare_in_vain(&blockers.fronts, &mut judged);
        let now = server::now();
        let mut requests = Vec::new();
        for &xid in &blockers.due {
            match judged.remove(&xid) {
                Some(Ok(())) => {
                    let blocker = self.watch.blocker(xid);
                    requests.extend(blocker.map(|blocker| (xid, blocker.blocked_for())));
                }
                Some(Err(guard)) => {
                    let hint = advice::on_guard(&guard, &self.watch);
                    self.spare(xid, guard, hint, now);
                }
                None => {}
            }
        }
        self.request_ends(requests, &database);
    }

    /// What the primary's rules forbid. A session that it does not list has ended.
    fn judge_there(
        &self,
        judged: &mut HashMap<Xid, Result<(), Guard>>,
        standings: &[Standing],
        rule: &BlockerRule,
    ) {
        let now = server::now();
        judged.retain(|xid, verdict| {
            let standing = standings.iter().find(|standing| standing.xid == *xid);
            match (&verdict, standing, self.watch.blocker(*xid)) {
                (Ok(()), Some(standing), Some(blocker)) => {
                    *verdict = if blocker.has_stayed(rule, now) {
                        Err(Guard::Stayed)
                    } else {
                        guard::would_be_ended(&blocker.transaction, standing, rule)
                    };
                    true
                }
                (Ok(()), None, _) => false,
                (Ok(()) | Err(_), _, _) => true,
            }
        });
    }

    fn request_ends(&mut self, mut requests: Vec<(Xid, Duration)>, database: &str) {
        if requests.is_empty() {
            return;
        }
        // The others have their turn at the next tick.
        requests.truncate(ASKED_AT_ONCE);
        let begun = Instant::now();
        let answer = self
            .upstream
            .end_blockers(&requests, database, longest_rest());
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
            Err(problem) => {
                let xids: Vec<Xid> = requests.iter().map(|(xid, _)| *xid).collect();
                self.spare_all(&xids, &problem, now);
            }
        }
    }

    /// The primary could not be asked. Says so for one of them: the reason is the same for all.
    fn spare_all(&mut self, xids: &[Xid], problem: &Problem, now: Timestamp) {
        let guard = Guard::NotAsked(problem.message.clone());
        let mut news = Vec::new();
        for &xid in xids {
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
