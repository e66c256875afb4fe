//! A row of the view `slot_self_heal_status`.

use serde::Serialize;
use serde_json::Value;

use super::advice::{self, Advice};
use super::blocker::Blocker;
use super::diagnosis::{Kinship, State, kinship};
use super::episode::{Episode, Nudge};
use super::hint::Hint;
use super::history::{Finished, Outcome};
use super::observation::{CreatorIdentity, Progress, Role, Slot, Transaction};
use super::risk;
use super::time::Timestamp;
use super::watch::Watch;

/// What the view shows of one slot; columns as documented in the README.
#[derive(Debug)]
pub struct Status {
    pub slot: Slot,
    pub state: State,
    pub state_since: Option<Timestamp>,
    pub creation_started: Option<Timestamp>,
    pub creator: Option<CreatorIdentity>,
    pub blockers: Value,
    pub nudges: u32,
    pub last_nudge: Option<Nudge>,
    pub advice: Advice,
    /// Of a creation that goes on.
    pub tries: Option<u32>,
}

/// Why the worker may know nothing of a creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worker {
    Watching,
    /// `slot_self_heal.enabled` is off.
    Disabled,
    /// With what to do about that.
    NotRunning(Hint),
}

/// What the ledger holds.
#[derive(Debug)]
pub struct Known {
    pub watch: Watch,
    /// The latest last.
    pub finished: Vec<Finished>,
    pub worker: Worker,
    pub role: Role,
}

/// Tells the status of a slot from the server's own view of it and from what the worker knows.
pub fn status(slot: Slot, known: &Known, now: Timestamp) -> Status {
    let mut status = of_slot(slot, known, now);
    // A standby's copy is the business of the slot itself.
    if let Progress::Building(_) | Progress::Usable = status.slot.progress
        && !status.slot.synced
        && let Some(risk) = risk::of(&status.slot, &known.watch.wal_rate, now)
    {
        let Status { slot, advice, .. } = &mut status;
        advice::add_risk(advice, slot, risk, &known.watch, known.role, now);
    }
    status
}

fn of_slot(slot: Slot, known: &Known, now: Timestamp) -> Status {
    match &slot.progress {
        Progress::Building(creator) => {
            let creator = creator.identity.clone();
            let episode = known.watch.episodes.get(&slot.name);
            match episode.filter(|episode| episode.creator.pid == creator.pid) {
                Some(episode) => of_episode(slot, episode, known, now),
                None => of_unknown_creation(slot, creator, known),
            }
        }
        Progress::Usable => of_usable(slot, known),
        Progress::NotSyncReady => of_copy(slot, known, now),
        Progress::LeftBehind(_) | Progress::Invalidated(_) => Status {
            advice: advice::on_slot(&slot),
            ..bare(slot, State::Lost)
        },
    }
}

fn bare(slot: Slot, state: State) -> Status {
    Status {
        slot,
        state,
        state_since: None,
        creation_started: None,
        creator: None,
        blockers: Value::Array(Vec::new()),
        nudges: 0,
        last_nudge: None,
        advice: Advice::default(),
        tries: None,
    }
}

fn of_episode(slot: Slot, episode: &Episode, known: &Known, now: Timestamp) -> Status {
    let (state, state_since) = episode.shown_state();
    Status {
        slot,
        state,
        state_since: Some(state_since),
        creation_started: Some(episode.started),
        creator: Some(episode.creator.clone()),
        blockers: blockers_as_json(known.watch.blockers_of(episode), &episode.creator),
        nudges: episode.nudges,
        last_nudge: episode.last_nudge,
        advice: advice::on_creation(episode, &known.watch, known.role, &known.watch.limits, now),
        tries: Some(episode.story.tries),
    }
}

fn of_unknown_creation(slot: Slot, creator: CreatorIdentity, known: &Known) -> Status {
    let (detail, hint): (String, Option<Hint>) = match &known.worker {
        Worker::Watching if known.watch.more_episodes > 0 => (
            format!(
                "Not shown: {} more creations go on than fit in slot_self_heal's shared memory; \
                 they are watched all the same.",
                known.watch.more_episodes
            ),
            None,
        ),
        Worker::Watching => (
            "The creation has just begun, and slot_self_heal has not looked at it yet.".into(),
            None,
        ),
        Worker::Disabled => (
            "Nothing is known of this creation: slot_self_heal.enabled is off.".into(),
            Some(advice::enable()),
        ),
        Worker::NotRunning(hint) => (
            "Nothing is known of this creation: slot_self_heal's worker does not run.".into(),
            Some(hint.clone()),
        ),
    };
    Status {
        creator: Some(creator),
        advice: Advice {
            detail: Some(detail),
            hint,
        },
        ..bare(slot, State::Starting)
    }
}

fn of_usable(slot: Slot, known: &Known) -> Status {
    let creation = known.finished.iter().rev().find(|finished| {
        finished.outcome == Outcome::Ready
            && finished.episode.slot == slot.name
            && finished.restart_lsn == slot.restart_lsn
    });
    // Ready since the worker last looked, which is a moment ago.
    let going_on = known.watch.episodes.get(&slot.name);
    let going_on = going_on.filter(|episode| episode.has_made(&slot));
    let episode = creation.map(|finished| &finished.episode).or(going_on);
    Status {
        state_since: creation.map(|finished| finished.ended),
        nudges: episode.map_or(0, |episode| episode.nudges),
        last_nudge: episode.and_then(|episode| episode.last_nudge),
        advice: if known.watch.namesakes.contains(&slot.name) {
            advice::on_namesake(&slot.name)
        } else {
            advice::on_persisted_copy(&slot)
        },
        ..bare(slot, State::Ready)
    }
}

fn of_copy(slot: Slot, known: &Known, now: Timestamp) -> Status {
    let copy = known.watch.copies.get(&slot.name);
    Status {
        state_since: copy.map(|copy| copy.since),
        nudges: copy.map_or(0, |copy| copy.nudges),
        last_nudge: copy.and_then(|copy| copy.last_nudge),
        advice: advice::on_copy(&slot, copy, &known.watch, now),
        ..bare(slot, State::NotSyncReady)
    }
}

/// The column `blockers`.
pub fn blockers_as_json<'a>(
    blockers: impl IntoIterator<Item = &'a Blocker>,
    creator: &CreatorIdentity,
) -> Value {
    blockers
        .into_iter()
        .map(|blocker| Element::new(&blocker.transaction, creator))
        .filter_map(|element| serde_json::to_value(element).ok())
        .collect()
}

/// An element of the column `blockers`.
#[derive(Serialize)]
struct Element<'a> {
    xid: u32,
    pid: Option<i32>,
    gid: Option<&'a str>,
    database: Option<&'a str>,
    usename: Option<&'a str>,
    application_name: Option<&'a str>,
    client_addr: Option<&'a str>,
    state: Option<&'a str>,
    xact_start: Option<&'a str>,
    query: Option<&'a str>,
    is_creator_peer: bool,
    client_gone: bool,
    backend_type: Option<&'a str>,
    waits_for: Vec<i32>,
}

impl<'a> Element<'a> {
    fn new(transaction: &'a Transaction, creator: &CreatorIdentity) -> Self {
        let lock_wait = transaction.lock_wait.iter();
        let waits_for = lock_wait.flat_map(|wait| &wait.waits_for);
        Self {
            xid: transaction.xid.get(),
            pid: transaction.pid().map(|pid| pid.get()),
            gid: transaction.gid(),
            database: transaction.database.as_deref(),
            usename: transaction.usename.as_deref(),
            application_name: transaction.application_name.as_deref(),
            client_addr: transaction.client_addr.as_deref(),
            state: transaction.state.as_deref(),
            xact_start: transaction.xact_start.as_deref(),
            query: transaction.query.as_deref(),
            is_creator_peer: kinship(creator, transaction) != Kinship::None,
            client_gone: transaction.client_gone,
            backend_type: transaction.backend_type.as_deref(),
            waits_for: waits_for.map(|pid| pid.get()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::observation::CreatorWait;
    use super::super::policy::Policy;
    use super::super::risk::WalRate;
    use super::super::xid::Lsn;
    use super::*;

    fn known(mut watch: Watch, worker: Worker) -> Known {
        watch.limits = Policy::default().limits;
        Known {
            watch,
            finished: Vec::new(),
            worker,
            role: Role::Primary,
        }
    }

    fn of_x(known: &Known) -> Status {
        status(building("x", CreatorWait::Transaction), known, at(1000))
    }

    #[test]
    fn a_known_creation_shows_its_blockers() {
        let known = known(watching(vec![session(700, 1234)]), Worker::Watching);
        let status = of_x(&known);
        assert_eq!(status.state, State::WaitingForTransactions);
        assert_eq!(status.creation_started, Some(at(0)));
        let blocker = &status.blockers[0];
        for key in [
            "xid",
            "pid",
            "gid",
            "database",
            "usename",
            "application_name",
            "client_addr",
            "state",
            "xact_start",
            "query",
            "is_creator_peer",
            "client_gone",
        ] {
            assert!(blocker.get(key).is_some(), "{key}");
        }
        assert_eq!(blocker["pid"], 1234);
        assert_eq!(status.tries, Some(1));
    }

    #[test]
    fn an_unknown_creation_says_why() {
        let nothing = Watch::default;
        let mut crowded = nothing();
        crowded.more_episodes = 7;
        for (watch, worker, word) in [
            (nothing(), Worker::Watching, "just begun"),
            (crowded, Worker::Watching, "7 more"),
            (nothing(), Worker::Disabled, "slot_self_heal.enabled"),
            (
                nothing(),
                Worker::NotRunning(advice::no_worker()),
                "does not run",
            ),
        ] {
            let status = of_x(&known(watch, worker));
            assert_eq!((status.state, status.tries), (State::Starting, None));
            let detail = status.advice.detail.expect("a detail");
            assert!(detail.contains(word), "{detail}");
        }
    }

    #[test]
    fn a_ready_slot_remembers_its_creation() {
        let mut known = known(Watch::default(), Worker::Watching);
        let watch = watching(vec![session(700, 1234)]);
        let mut episode = watch.episodes.into_values().next().expect("an episode");
        episode.nudges = 2;
        known.finished = vec![Finished {
            ended: at(9),
            outcome: Outcome::Ready,
            restart_lsn: Some(Lsn::new(1 << 24)),
            held_up_by: None,
            episode,
            blockers: Vec::new(),
            is_worth_telling: true,
        }];
        let ready = |name| status(slot(name, Progress::Usable), &known, at(1000));
        assert_eq!(
            (ready("x").state_since, ready("x").nudges),
            (Some(at(9)), 2)
        );
        assert_eq!((ready("y").state_since, ready("y").nudges), (None, 0));
        assert_eq!((ready("x").state, ready("x").tries), (State::Ready, None));

        // Another of the same name, or the same after it was used.
        let later = Slot {
            restart_lsn: Some(Lsn::new(1 << 25)),
            ..slot("x", Progress::Usable)
        };
        assert_eq!(status(later, &known, at(1000)).state_since, None);
    }

    #[test]
    fn a_slot_at_risk_says_when_and_what_to_do() {
        let mut watch = watching(vec![session(700, 1234)]);
        watch.wal_rate = WalRate::default();
        for second in 0..10 {
            let position = Lsn::new((1 << 30) + (second << 20));
            watch
                .wal_rate
                .observe(position, at(second.cast_signed() * 1000));
        }
        let known = known(watch, Worker::Watching);
        let at_risk = |slot| Slot {
            retained_wal: Some(40 << 20),
            safe_wal_size: Some(60 << 20),
            ..slot
        };
        let said = |slot: Slot| {
            let Advice { detail, hint } = status(slot, &known, at(1000)).advice;
            (detail.expect("a detail"), hint.expect("a hint").to_string())
        };

        let (detail, hint) = said(at_risk(building("x", CreatorWait::Transaction)));
        assert!(detail.starts_with("Waits for transaction 700"), "{detail}");
        assert!(detail.contains("will be lost in 1 min,"), "{detail}");
        let lines: Vec<_> = hint.lines().collect();
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = \
                         '700';";
        assert!(lines[0].starts_with(terminate), "{hint}");
        // A statement that can't be run in one string with the other.
        assert!(
            lines[1].starts_with("-- or ALTER SYSTEM SET max_slot_wal_keep_size = '200MB'; -- "),
            "{hint}"
        );
        assert_eq!(lines.len(), 2, "{hint}");

        let used = |xmin, active| Slot {
            catalog_xmin: Some(xid(xmin)),
            restart_lsn: Some(Lsn::new(1 << 23)),
            active,
            ..at_risk(slot("y", Progress::Usable))
        };
        let (detail, hint) = said(used(700, true));
        assert!(detail.contains("Transaction 700 holds it back"), "{detail}");
        assert!(hint.starts_with(terminate), "{hint}");
        for moves_on in [
            used(701, true),
            Slot {
                restart_lsn: Some(Lsn::new(1 << 25)),
                ..used(700, true)
            },
        ] {
            let advice = status(moves_on, &known, at(1000)).advice;
            assert_eq!(advice, Advice::default());
        }
        let (detail, hint) = said(used(700, false));
        assert!(detail.contains("No consumer"), "{detail}");
        assert!(
            hint.starts_with("ALTER SYSTEM SET max_slot_wal_keep_size = '200MB'; -- ")
                && hint.ends_with(
                    "drop it: SELECT pg_drop_replication_slot(slot_name) FROM \
                     pg_replication_slots WHERE slot_name = 'y' AND restart_lsn = '0/800000' AND \
                     NOT active;"
                ),
            "{hint}"
        );

        let safe = status(slot("y", Progress::Usable), &known, at(1000)).advice;
        assert_eq!(safe, Advice::default());
    }

    #[test]
    fn a_lost_slot_can_be_dropped() {
        let known = known(Watch::default(), Worker::Watching);
        let lost = |progress| status(slot("x", progress), &known, at(1000));
        let invalidated = lost(Progress::Invalidated(Some("wal_removed".into())));
        assert_eq!(invalidated.state, State::Lost);
        let hint = invalidated.advice.hint.expect("a hint").to_string();
        assert!(
            hint.starts_with(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE \
                 slot_name = 'x' AND wal_status = 'lost' AND NOT active;"
            ),
            "{hint}"
        );

        let held = lost(Progress::LeftBehind(Some(pid(77))))
            .advice
            .hint
            .expect("a hint")
            .to_string();
        assert!(
            held.starts_with(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = \
                 'x' AND restart_lsn = '0/1000000' AND confirmed_flush_lsn IS NULL AND active_pid = \
                 77;"
            ),
            "{held}"
        );
    }
}
