//! The background worker: one tick after the other.
//!
//! ```text
//! gate ──► scan ──► diagnose ──► decide ──► act ──► ledger ──► nap
//! ```
//!
//! The gate reads shared memory only; while it is closed a tick costs the server nothing else.
//! An error in a tick is said once, shown in `slot_self_heal_worker`, and the next tick goes on.

mod limits;

use std::ffi::c_int;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::core::decision::{Action, decide};
use crate::core::episode::Nudge;
use crate::core::history::Outcome;
use crate::core::observation::{Observation, Role, SlotName};
use crate::core::policy::Policy;
use crate::core::time::{Step, Timestamp};
use crate::core::upstream::{self, Look};
use crate::core::watch::{Change, Watch};
use crate::ledger::{self, Trouble};
use crate::server::connection;
use crate::server::gate::{self, Gate};
use crate::server::process::{self, Activity};
use crate::server::report::{self, Notice};
use crate::server::scan::Scanner;
use crate::server::transaction::{catch, read_only_fallible};
use crate::server::upstream::{Upstream, Wish};
use crate::server::{self, record, signal};
use crate::{narrate, settings};

/// Between two looks at a slot that is being built.
const BUSY_NAP: Duration = Duration::from_millis(20);
/// A scan may take this part of the worker's time, however long it takes: on a server with
/// thousands of sessions the ticks come less often.
const SCAN_SHARE: u32 = 10;
/// Between two looks at copies of a primary's slots that are not ready: they take their time.
const COPIES_NAP: Duration = Duration::from_secs(1);
/// After a failure the upstream is asked again before this part of `nudge_interval` is over, so
/// that what was mended meanwhile heals the slot within it. Not so if it refused.
const UPSTREAM_REST_SHARE: u32 = 3;
/// Between two log lines about the same kind of trouble with the upstream.
const UPSTREAM_RETELL: Duration = Duration::from_secs(300);
/// After an error in a tick, so that it does not come back fifty times a second.
const NAP_AFTER_TROUBLE: Duration = Duration::from_secs(1);
/// Before another try to connect to a database that could not be connected to.
const RECONNECT: Duration = Duration::from_secs(60);

/// Set in the postmaster; each process has its copy by fork.
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Registers the worker with the postmaster, which starts it as soon as the server is consistent,
/// on a standby too, and again a second after it ended.
///
/// Not for pg_upgrade, which drops and restores the very database that the worker would sit in, nor
/// in single-user mode, which has no postmaster.
pub fn init() {
    if !server::runs_workers() {
        return;
    }
    let before = server::registered_workers();
    BackgroundWorkerBuilder::new("slot_self_heal")
        .set_type("slot_self_heal")
        .set_library("slot_self_heal")
        .set_function("slot_self_heal_main")
        .enable_spi_access()
        // After enable_spi_access, which sets another.
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
    if server::registered_workers() == before {
        report::warning(narrate::no_worker_slot());
    } else {
        REGISTERED.store(true, Ordering::Relaxed);
    }
}

/// Whether the postmaster had room for the worker.
pub fn is_registered() -> bool {
    REGISTERED.load(Ordering::Relaxed)
}

/// The worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub extern "C-unwind" fn slot_self_heal_main(_arg: pg_sys::Datum) {
    process::handle_signals();
    let wait_event = process::wait_event();
    wait_to_reconnect(wait_event);

    process::before_exit(on_exit);
    ledger::worker_connects();
    process::connect(&settings::database());
    if let Some(pid) = process::my_pid() {
        ledger::worker_started(pid, server::now());
    }
    process::show_activity(Activity::Idle);
    report::init_debug_log();
    if let Some(least) = server::wal_level_to_raise() {
        report::log(narrate::wal_level_too_low(least));
    }
    if !connection::SUPPORTED && settings::policy().limits.cancel_abandoned {
        report::log(narrate::clients_not_seen());
    }

    if !signal::knows_the_locks() {
        report::warning(narrate::unknown_locks());
    }

    let mut worker = Worker::resume();
    loop {
        let nap = worker.tick_or_report();
        if let Err(notice) = catch(|| process::sleep(nap, wait_event)) {
            worker.report(notice);
        }
    }
}

/// A predecessor that could not connect ended at once, and the postmaster started this process
/// within a second. Sleeps until another try makes sense.
fn wait_to_reconnect(wait_event: u32) {
    while let Some(failed_at) = ledger::connect_failed_at() {
        let now = server::now();
        let left = RECONNECT.saturating_sub(now.since(failed_at));
        // A clock that was set back must not make it longer.
        if left.is_zero() || now < failed_at {
            return;
        }
        process::sleep(left, wait_event);
    }
}

/// The server ends the process itself when it cannot connect, so that this is the place to say
/// what to do about it.
#[pg_guard]
extern "C-unwind" fn on_exit(_code: c_int, _arg: pg_sys::Datum) {
    let was_connecting = ledger::worker_ended();
    if was_connecting && !process::was_told_to_end() {
        let now = server::now();
        let again = ledger::connect_failed_at().is_some();
        ledger::connect_failed(now);
        let notice = narrate::cannot_connect(&settings::database().to_string_lossy(), RECONNECT);
        ledger::note_trouble(&Trouble {
            message: notice.message.clone(),
            hint: notice.pasteable(),
            at: now,
        });
        if !again {
            report::log(notice);
        }
    }
}

struct Worker {
    scanner: Scanner,
    /// What `pg_stat_activity` shows.
    scanning: bool,
    /// When the last scan was begun.
    scanned: Option<Instant>,
    watch: Watch,
    /// On a standby.
    upstream: Upstream,
    /// What the upstream said last.
    look: Option<Rc<Look>>,
    /// When a session was last answered by it, as far as this worker has taken note.
    upstream_answered: Option<Timestamp>,
    /// What the log was last told of the upstream, and when.
    told_upstream: Option<(upstream::Problem, Instant)>,
    /// How long this tick has waited for the upstream, which costs this server nothing.
    asking: Duration,
    /// The time of the last scan, by both clocks.
    clock: Option<(Timestamp, Instant)>,
    /// The gate's mark when a scan last found nothing being built behind an open gate, and when.
    false_alarm: Option<(u64, Instant)>,
    /// How long the tick before this one took. One that is slow for once, as the first is, which
    /// plans its queries, need not be followed by a long nap.
    last_tick: Duration,
    /// What the log was last told went wrong, until a tick goes well.
    trouble: Option<Notice>,
}

impl Worker {
    /// Goes on where a predecessor ended.
    fn resume() -> Self {
        Self {
            scanner: Scanner::default(),
            scanning: false,
            scanned: None,
            watch: ledger::watch(),
            upstream: Upstream::default(),
            look: None,
            upstream_answered: ledger::upstream_answered_at(),
            told_upstream: None,
            asking: Duration::ZERO,
            last_tick: Duration::ZERO,
            clock: None,
            false_alarm: None,
            trouble: None,
        }
    }

    /// One tick. Returns how long to sleep before the next.
    fn tick_or_report(&mut self) -> Duration {
        let begun = Instant::now();
        self.asking = Duration::ZERO;
        let outcome = catch(|| self.tick()).flatten();
        if std::mem::take(&mut self.scanning) {
            process::show_activity(Activity::Idle);
            process::report_statistics();
        }
        match outcome {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    report::log(narrate::trouble_is_over());
                }
                let tick = begun.elapsed().saturating_sub(self.asking);
                let last = std::mem::replace(&mut self.last_tick, tick);
                self.nap(tick.min(last))
            }
            Err(notice) => {
                self.report(notice);
                NAP_AFTER_TROUBLE
            }
        }
    }

    fn tick(&mut self) -> Result<(), Notice> {
        if !settings::enabled() {
            self.forget();
            return Ok(());
        }
        self.look_after_stories();
        let gate = gate::look();
        if !self.has_work(gate) {
            return Ok(());
        }

        self.scanned = Some(Instant::now());
        self.scanning = true;
        process::show_activity(Activity::Scanning);
        let mut observation = self.scanner.observe(&self.watch.named_blockers())?;
        match observation.role {
            Role::Standby => observation.learn(self.look.clone()),
            // It may have been a standby a moment ago.
            Role::Primary => self.leave_upstream(),
        }
        ledger::worker_scanned(observation.at);
        self.mind_the_clock(observation.at);
        self.false_alarm = match gate {
            Gate::Open(mark) if !observation.sees_a_creation() => Some((mark, Instant::now())),
            Gate::Open(_) | Gate::Closed => None,
        };
        let policy = settings::policy();
        self.watch.limits.clone_from(&policy.limits);
        let mut changes = self.watch.update(&observation);
        let known = self.look.clone();
        let mut acted = Ok(());
        for action in decide(&self.watch, &observation, &policy) {
            // One that fails keeps no other from being done.
            acted = acted.and(self.act(action, &observation, &policy));
        }
        if self.look.as_ref().map(Rc::as_ptr) != known.as_ref().map(Rc::as_ptr) {
            // Whom a creation waits for should not be unknown for one more tick.
            observation.learn(self.look.clone());
            changes.extend(self.watch.update(&observation));
        }
        if self.watch.is_empty() {
            self.leave_upstream();
        } else if self.watch.episodes.is_empty() {
            // Copies are asked about now and then.
            self.upstream.disconnect();
        }
        ledger::publish(&self.watch);
        self.tell(changes, &observation, &policy);
        acted
    }

    /// Between two tries of a client there is nothing to scan for.
    fn look_after_stories(&mut self) {
        if self.watch.unfinished.is_empty() {
            return;
        }
        let now = server::now();
        self.mind_the_clock(now);
        let made = self.watch.take_made(gate::usable_slot);
        let silent = self.watch.forget_silent(now);
        if made.is_empty() && silent.is_empty() {
            return;
        }
        ledger::publish(&self.watch);
        for (unfinished, restart_lsn) in made {
            let story = unfinished.next_try(now);
            ledger::made_unseen(&unfinished.slot, &story, restart_lsn, now);
            if story.was_told() {
                report::log(narrate::made_unseen(&unfinished.slot, &story, now));
            }
        }
        for unfinished in silent {
            if unfinished.is_untold {
                let finished = ledger::story_of(&unfinished.slot, &unfinished.story);
                report::log(narrate::silent(&unfinished, finished.as_ref(), now));
            }
        }
    }

    /// Whether time has passed is told by a clock that nobody sets.
    fn mind_the_clock(&mut self, now: Timestamp) {
        let last = self.clock.replace((now, Instant::now()));
        if let Some((then, instant)) = last
            && let Some(step) = Step::between(then, now, instant.elapsed())
        {
            self.watch.clock_was_set(step);
        }
    }

    /// Whether there is something to scan for: a slot being built, or one whose end is not known
    /// yet. A slot that only looks as if it were being built is looked at again now and then.
    ///
    /// And now and then on a standby that copies its primary's slots, whether one of its own stands
    /// in the way of that.
    fn has_work(&self, gate: Gate) -> bool {
        let interval = settings::policy().nudge_interval;
        let is_due = |scanned: Instant| scanned.elapsed() >= interval;
        if !self.watch.is_empty() || server::syncs_slots() && self.scanned.is_none_or(is_due) {
            return true;
        }
        match (gate, self.false_alarm) {
            (Gate::Closed, _) => false,
            (Gate::Open(mark), Some((alarm, at))) if mark == alarm => at.elapsed() >= interval,
            (Gate::Open(_), _) => true,
        }
    }

    fn act(
        &mut self,
        action: Action,
        observation: &Observation,
        policy: &Policy,
    ) -> Result<(), Notice> {
        match action {
            Action::Cancel(slot, reason) => {
                self.cancel(&slot, reason, observation);
                Ok(())
            }
            Action::EndBlockers(blockers) => match observation.role {
                Role::Primary => self.end_blockers(&blockers, observation, &policy.blockers),
                Role::Standby => {
                    self.ask_to_end_blockers(&blockers);
                    Ok(())
                }
            },
            Action::WriteRecord(slots) => self.write_record(&slots, observation),
            Action::AskForRecord(slots) => self.ask_upstream(Wish::Record, &slots),
            Action::AskForNews => self.ask_upstream(Wish::News, &[]),
        }
    }

    fn ask_upstream(&mut self, wish: Wish, slots: &[SlotName]) -> Result<(), Notice> {
        let database = settings::database();
        let database = database.to_string_lossy();
        if self.upstream_rests(&database) {
            return Ok(());
        }
        process::show_activity(Activity::Asking);
        let begun = Instant::now();
        let answer = self.upstream.ask(wish, &database, longest_rest());
        self.asking += begun.elapsed();
        if answer.look.is_some() {
            self.look = answer.look;
        }
        if let Some(record) = answer.record {
            let first = self.watch.requested(slots, record, server::now());
            ledger::count(|counters| counters.nudges += 1);
            match first.as_slice() {
                [] => log::debug!("had the upstream write another record at {}", record.lsn),
                first => report::log(narrate::nudged(first, record.lsn, Role::Standby)),
            }
        }
        self.upstream_is(answer.problem.map_or(upstream::Upstream::Ok, |problem| {
            upstream::Upstream::Trouble(problem)
        }));
        Ok(())
    }

    /// Whether the upstream is left alone, after a failure. Not any more when a session was answered
    /// since: whoever mended something tries it by hand.
    fn upstream_rests(&mut self, database: &str) -> bool {
        let answered = ledger::upstream_answered_at();
        if std::mem::replace(&mut self.upstream_answered, answered) != answered {
            self.upstream.is_back();
        }
        self.upstream.rests(database)
    }

    /// Takes note of how the upstream is, and says what changed.
    fn upstream_is(&mut self, now: upstream::Upstream) {
        let before = std::mem::replace(&mut self.watch.upstream, now);
        let Some(problem) = self.watch.upstream.problem() else {
            if before.problem().is_some() {
                self.told_upstream = None;
                report::log(narrate::upstream_is_back());
            }
            return;
        };
        let notice = narrate::upstream_trouble(problem);
        ledger::note_trouble(&Trouble {
            message: problem.message.clone(),
            hint: notice.pasteable(),
            at: server::now(),
        });
        let was_told = match (&self.told_upstream, before.problem()) {
            // The same trouble may take turns at showing itself in different ways.
            (Some((told, at)), _) if told.kind == problem.kind => {
                told.hint == problem.hint || at.elapsed() < UPSTREAM_RETELL
            }
            (Some(_), _) => false,
            // A predecessor of this process has told it.
            (None, before) => before.is_some_and(|before| before.kind == problem.kind),
        };
        if !was_told {
            self.told_upstream = Some((problem.clone(), Instant::now()));
            report::warning(notice);
        }
    }

    fn leave_upstream(&mut self) {
        self.upstream.disconnect();
        self.look = None;
    }

    fn write_record(
        &mut self,
        slots: &[SlotName],
        observation: &Observation,
    ) -> Result<(), Notice> {
        let lsn = read_only_fallible(record::write)?;
        let nudge = Nudge {
            at: server::now(),
            lsn,
        };
        let first = self.watch.recorded(slots, nudge, observation);
        ledger::count(|counters| counters.nudges += 1);
        match first.as_slice() {
            [] => log::debug!("wrote another running-xacts record at {lsn}"),
            first => report::log(narrate::nudged(first, lsn, Role::Primary)),
        }
        Ok(())
    }

    fn tell(&self, changes: Vec<Change>, observation: &Observation, policy: &Policy) {
        let limits = &policy.limits;
        let mut ended = Vec::new();
        for change in changes {
            match change {
                Change::Waits(telling, slot) => {
                    if let Some(episode) = self.watch.episodes.get(&slot) {
                        report::log(narrate::waits(
                            telling,
                            episode,
                            &self.watch,
                            limits,
                            observation,
                        ));
                    }
                }
                Change::Abandoned(slot) => {
                    if let Some(episode) = self.watch.episodes.get(&slot) {
                        report::log(narrate::abandoned(
                            episode,
                            &self.watch,
                            limits,
                            observation,
                        ));
                    }
                }
                Change::Ended(finished) => {
                    match finished.outcome {
                        Outcome::Ready if finished.episode.nudges > 0 => {
                            ledger::count(|counters| counters.healed += 1);
                        }
                        Outcome::Cancelled => ledger::count(|counters| counters.cancelled += 1),
                        Outcome::Ready | Outcome::Gone => {}
                    }
                    if finished.is_worth_telling {
                        report::log(narrate::ended(&finished));
                    }
                    ended.push(*finished);
                }
            }
        }
        ledger::remember(ended);
    }

    /// Drops what is known of the creations, once.
    fn forget(&mut self) {
        if !self.watch.is_empty() || !self.watch.unfinished.is_empty() {
            self.watch.forget_creations();
            ledger::publish(&self.watch);
        }
        self.leave_upstream();
        self.false_alarm = None;
    }

    fn nap(&self, tick: Duration) -> Duration {
        let interval = settings::scan_interval();
        if !self.watch.episodes.is_empty() {
            interval.min(BUSY_NAP).max(tick * SCAN_SHARE)
        } else if !self.watch.copies.is_empty() {
            interval.max(COPIES_NAP)
        } else {
            interval
        }
    }

    /// Says what went wrong, once as long as it stays the same.
    fn report(&mut self, notice: Notice) {
        if self.trouble.as_ref() == Some(&notice) {
            return;
        }
        ledger::note_trouble(&Trouble {
            message: notice.message.clone(),
            hint: notice.pasteable(),
            at: server::now(),
        });
        report::warning(narrate::trouble(&notice));
        self.trouble = Some(notice);
    }
}

fn longest_rest() -> Duration {
    settings::policy().nudge_interval / UPSTREAM_REST_SHARE
}
