//! When a creation is cancelled, and why.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::diagnosis::State;
use super::episode::Episode;
use super::observation::Observation;
use super::policy::{Limit, Limits};
use super::replay::ConflictEnd;
use super::time::{Timestamp, in_bytes, in_words};

/// How long a client must have been gone.
pub const ABANDONED_FOR: Duration = Duration::from_secs(10);
/// How long replay must have waited for the creator.
pub const BLOCKED_REPLAY_FOR: Duration = Duration::from_secs(30);
/// Before a creation that did not end is cancelled once more.
const AGAIN: Duration = Duration::from_secs(10);

/// Why a creation is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// `cancel_abandoned`
    Abandoned,
    /// `creation_timeout`
    Timeout(Duration),
    /// `max_retained_wal`, in bytes.
    RetainedWal { retained: u64, limit: u64 },
    /// `cancel_blocking_replay`
    BlocksReplay,
}

/// A creation was told to end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancelled {
    pub at: Timestamp,
    pub reason: Reason,
}

impl Reason {
    /// The setting that makes it one.
    pub fn setting(&self) -> &'static str {
        match self {
            Self::Abandoned => "slot_self_heal.cancel_abandoned",
            Self::Timeout(_) => "slot_self_heal.creation_timeout",
            Self::RetainedWal { .. } => "slot_self_heal.max_retained_wal",
            Self::BlocksReplay => "slot_self_heal.cancel_blocking_replay",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abandoned => f.write_str("its client has closed the connection"),
            Self::Timeout(limit) => write!(f, "it takes longer than {}", in_words(*limit)),
            Self::RetainedWal { retained, limit } => {
                let (retained, limit) = (in_bytes(*retained), in_bytes(*limit));
                write!(f, "it holds back {retained} of WAL, more than {limit}")
            }
            Self::BlocksReplay => {
                f.write_str("it holds replay up, which would wait for it without end")
            }
        }
    }
}

/// Why this creation is to be cancelled now, if it is.
pub fn exceeded(episode: &Episode, limits: &Limits, observation: &Observation) -> Option<Reason> {
    let now = observation.at;
    let was_just_cancelled =
        |cancelled: &Cancelled| cancelled.at <= now && now.since(cancelled.at) < AGAIN;
    if episode.cancelled.as_ref().is_some_and(was_just_cancelled) {
        return None;
    }
    let is_abandoned = episode
        .abandoned
        .is_some_and(|since| now.since(since) >= ABANDONED_FOR);
    let waits_for_good = observation
        .replay
        .as_ref()
        .is_some_and(|replay| matches!(replay.conflict_end(), ConflictEnd::Never(_)));
    let blocks_replay = episode.state == State::BlockingReplay
        && waits_for_good
        && now.since(episode.state_since) >= BLOCKED_REPLAY_FOR;
    let own = &episode.own_limits;
    let retained = episode
        .retained_wal
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(0);

    if limits.cancel_abandoned && is_abandoned {
        return Some(Reason::Abandoned);
    }
    match limits.timeout_of(own) {
        Limit::Above(limit) if now.since(episode.started) >= limit => {
            return Some(Reason::Timeout(limit));
        }
        Limit::Above(_) | Limit::Never => {}
    }
    match limits.wal_of(own) {
        Limit::Above(limit) if retained > limit => {
            return Some(Reason::RetainedWal { retained, limit });
        }
        Limit::Above(_) | Limit::Never => {}
    }
    (limits.cancel_blocking_replay && blocks_replay).then_some(Reason::BlocksReplay)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::observation::{Connection, Creator, CreatorWait, Progress, Slot};
    use super::super::policy::{OwnLimits, Policy};
    use super::super::watch::Watch;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MEGABYTE: u64 = 1 << 20;

    /// What ends a creation that was seen so at its beginning and after `milliseconds`.
    fn ends(limits: &Limits, milliseconds: i64, slot: impl Fn() -> Slot) -> Option<Reason> {
        let mut watch = Watch::default();
        let mut last = None;
        for at in [0, milliseconds] {
            let seen = observation(at, vec![slot()], vec![session(700, 1)]);
            watch.update(&seen);
            last = Some(seen);
        }
        let episode = watch.episodes.values().next().expect("an episode");
        exceeded(episode, limits, &last.expect("two scans"))
    }

    fn waiting() -> Slot {
        building("x", CreatorWait::Transaction)
    }

    fn with(change: impl Fn(&mut Creator)) -> impl Fn() -> Slot {
        move || {
            let mut creator = creator();
            change(&mut creator);
            slot("x", Progress::Building(Box::new(creator)))
        }
    }

    fn gone() -> impl Fn() -> Slot {
        with(|creator| creator.connection = Connection::Closed)
    }

    #[test]
    fn by_default_only_an_abandoned_creation_is_cancelled() {
        let limits = Policy::default().limits;
        let years = 365 * 86_400_000;
        let huge = || Slot {
            retained_wal: Some(i64::MAX),
            ..waiting()
        };
        assert_eq!(ends(&limits, years, huge), None);
        let unknown = with(|creator| creator.connection = Connection::Unknown);
        assert_eq!(ends(&limits, years, unknown), None);
        assert_eq!(ends(&limits, 9_999, gone()), None);
        assert_eq!(ends(&limits, 10_000, gone()), Some(Reason::Abandoned));
        let off = Limits {
            cancel_abandoned: false,
            ..limits
        };
        assert_eq!(ends(&off, years, gone()), None);
    }

    #[test]
    fn a_creation_may_take_so_long() {
        let limits = Limits {
            creation_timeout: Limit::Above(MINUTE),
            ..Policy::default().limits
        };
        assert_eq!(ends(&limits, 59_999, waiting), None);
        assert_eq!(
            ends(&limits, 60_000, waiting),
            Some(Reason::Timeout(MINUTE))
        );
        let own = |limit| {
            with(move |creator| {
                creator.own_limits = OwnLimits {
                    creation_timeout: Some(limit),
                    max_retained_wal: None,
                };
            })
        };
        assert_eq!(ends(&limits, 600_000, own(Limit::Never)), None);
        let longer = 2 * MINUTE;
        assert_eq!(ends(&limits, 60_000, own(Limit::Above(longer))), None);
        assert_eq!(
            ends(&limits, 120_000, own(Limit::Above(longer))),
            Some(Reason::Timeout(longer))
        );
    }

    #[test]
    fn a_creation_may_hold_back_so_much() {
        let limits = Limits {
            max_retained_wal: Limit::Above(MEGABYTE),
            ..Policy::default().limits
        };
        let holding = |bytes: u64| {
            move || Slot {
                retained_wal: Some(bytes.cast_signed()),
                ..waiting()
            }
        };
        assert_eq!(ends(&limits, 20, holding(MEGABYTE)), None);
        let expected = Reason::RetainedWal {
            retained: MEGABYTE + 1,
            limit: MEGABYTE,
        };
        assert_eq!(ends(&limits, 20, holding(MEGABYTE + 1)), Some(expected));
        let nothing = || Slot {
            retained_wal: None,
            ..waiting()
        };
        assert_eq!(ends(&limits, 20, nothing), None);
    }

    /// What ends a creation that replay has waited for for so long.
    fn ends_deadlock(limits: &Limits, milliseconds: i64, delay: &str) -> Option<Reason> {
        let mut watch = Watch::default();
        let at = |milliseconds| {
            let mut seen = standby(milliseconds, vec![waiting()], 1000);
            if let Some(replay) = &mut seen.replay {
                replay.streaming_delay = delay.into();
                replay.waits_for = vec![in_the_way(creator().identity.pid.get())];
            }
            seen
        };
        watch.update(&at(0));
        watch.update(&at(milliseconds));
        let episode = watch.episodes.values().next().expect("an episode");
        assert_eq!(episode.state, State::BlockingReplay);
        exceeded(episode, limits, &at(milliseconds))
    }

    #[test]
    fn a_deadlock_with_replay_is_ended_where_that_is_allowed() {
        let silent = Policy::default().limits;
        let allowed = Limits {
            cancel_blocking_replay: true,
            ..silent.clone()
        };
        assert_eq!(ends_deadlock(&silent, 86_400_000, "-1"), None);
        assert_eq!(ends_deadlock(&allowed, 29_999, "-1"), None);
        assert_eq!(
            ends_deadlock(&allowed, 30_000, "-1"),
            Some(Reason::BlocksReplay)
        );
        // Postgres ends it itself.
        assert_eq!(ends_deadlock(&allowed, 86_400_000, "30s"), None);
    }

    #[test]
    fn one_that_does_not_end_is_cancelled_now_and_then() {
        let limits = Policy::default().limits;
        let mut watch = Watch::default();
        let mut times = Vec::new();
        for second in 0..40 {
            let seen = observation(second * 1000, vec![gone()()], Vec::new());
            watch.update(&seen);
            let episode = watch.episodes.values().next().expect("an episode");
            if let Some(reason) = exceeded(episode, &limits, &seen) {
                times.push(second);
                watch.cancelled(&seen.slots[0].name, reason, seen.at);
            }
        }
        assert_eq!(times, [10, 20, 30]);
    }
}
