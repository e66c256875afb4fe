//! What to do about the creations that go on.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use super::blocker::Blocker;
use super::diagnosis::State;
use super::episode::Episode;
use super::limit::{self, Reason};
use super::observation::{Observation, Role, SlotName};
use super::policy::Policy;
use super::watch::Watch;
use super::xid::Xid;

/// How often the upstream is asked which transactions run while a creation waits for some.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Something to be done to the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Cancel a creation.
    Cancel(SlotName, Reason),
    /// End transactions, if no guard forbids it; on a standby, ask the primary to.
    EndBlockers(DueBlockers),
    /// Write one running-xacts record, which serves all these creations.
    WriteRecord(Vec<SlotName>),
    /// Ask the upstream for one.
    AskForRecord(Vec<SlotName>),
    /// Ask the upstream which transactions run and how its slots are doing.
    AskForNews,
}

/// Whom to judge.
#[derive(Debug, PartialEq, Eq)]
pub struct DueBlockers {
    pub due: Vec<Xid>,
    /// Of each creation that waits for one of them, all that it waits for at present.
    pub fronts: Vec<Vec<Xid>>,
}

impl DueBlockers {
    /// All that must be judged, each once: what becomes of one depends on the others of its front.
    pub fn all(&self) -> Vec<Xid> {
        let all: HashSet<Xid> = self.fronts.iter().flatten().copied().collect();
        all.into_iter().collect()
    }
}

/// The actions that the last scan calls for.
pub fn decide(watch: &Watch, observation: &Observation, policy: &Policy) -> Vec<Action> {
    let mut actions = cancellations(watch, observation, policy);
    let ends: BTreeSet<&SlotName> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Cancel(slot, _) => Some(slot),
            _ => None,
        })
        .collect();
    let due = due_blockers(watch, observation, policy, &ends);
    let record = record(watch, observation, policy);
    actions.extend(due.map(Action::EndBlockers));
    actions.extend(record);
    actions
}

fn cancellations(watch: &Watch, observation: &Observation, policy: &Policy) -> Vec<Action> {
    watch
        .episodes
        .values()
        .filter_map(|episode| {
            let reason = limit::exceeded(episode, &policy.limits, observation)?;
            Some(Action::Cancel(episode.slot.clone(), reason))
        })
        .collect()
}

/// Those that hold up a creation whose end somebody waits for.
fn due_blockers(
    watch: &Watch,
    observation: &Observation,
    policy: &Policy,
    ends: &BTreeSet<&SlotName>,
) -> Option<DueBlockers> {
    let matters = |episode: &&Episode| {
        episode.abandoned.is_none() && episode.cancelled.is_none() && !ends.contains(&episode.slot)
    };
    let is_due = |blocker: &&Blocker| blocker.is_due(&policy.blockers, observation);
    let due: HashSet<Xid> = watch
        .blockers
        .iter()
        .filter(is_due)
        .map(Blocker::xid)
        .collect();
    if due.is_empty() {
        return None;
    }
    let fronts: Vec<Vec<Xid>> = watch
        .episodes
        .values()
        .filter(matters)
        .map(Episode::front)
        .filter(|front| front.iter().any(|xid| due.contains(xid)))
        .collect();
    let mut blockers = DueBlockers {
        due: Vec::new(),
        fronts,
    };
    blockers.due = blockers.all();
    blockers.due.retain(|xid| due.contains(xid));
    (!blockers.due.is_empty()).then_some(blockers)
}

fn record(watch: &Watch, observation: &Observation, policy: &Policy) -> Option<Action> {
    let interval = policy.nudge_interval;
    let creations = watch
        .episodes
        .values()
        .filter(|episode| episode.wants_record(observation, interval))
        .map(|episode| &episode.slot);
    let copies = watch
        .copies
        .iter()
        .filter(|(_, copy)| copy.wants_record(observation.at, interval))
        .map(|(slot, _)| slot);
    let slots: Vec<_> = creations.chain(copies).cloned().collect();
    log::debug!(
        "{} slots are being built, {} slots need a record",
        watch.episodes.len(),
        slots.len()
    );
    match observation.role {
        Role::Primary => (!slots.is_empty()).then_some(Action::WriteRecord(slots)),
        Role::Standby if !slots.is_empty() => Some(Action::AskForRecord(slots)),
        Role::Standby => needs_news(watch, observation, interval).then_some(Action::AskForNews),
    }
}

fn needs_news(watch: &Watch, observation: &Observation, interval: Duration) -> bool {
    let now = observation.at;
    let looked_at = observation.upstream.as_ref().map(|look| look.at);
    let is_older_than = |age: Duration| {
        looked_at.is_none_or(|looked_at| now < looked_at || now.since(looked_at) >= age)
    };
    let wants = |episode: &Episode| {
        // Who the blockers are.
        (episode.state == State::WaitingForTransactions && is_older_than(LOOK_INTERVAL))
            // Whether the upstream still has the record that does not arrive.
            || (episode.awaits_replay(observation, interval) && is_older_than(interval))
    };
    watch.episodes.values().any(wants)
        || watch
            .copies
            .values()
            .any(|copy| copy.wants_look(now, interval))
        || watch.wants_names(observation, interval)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::guard::{Ending, Guard};
    use super::super::observation::CreatorWait;
    use super::super::policy::{BlockerAction, Limit};
    use super::*;

    fn decided(watch: &Watch, observation: &Observation) -> Vec<Action> {
        decide(watch, observation, &Policy::default())
    }

    #[test]
    fn one_record_serves_every_slot_that_needs_it() {
        let names = ["x", "y"];
        let slots = |wait| names.map(|name| building(name, wait)).to_vec();
        let mut watch = Watch::default();
        let waiting = observation(0, slots(CreatorWait::Transaction), vec![session(700, 1)]);
        watch.update(&waiting);
        assert_eq!(decided(&watch, &waiting), []);

        let freed = observation(20, slots(CreatorWait::Wal), Vec::new());
        watch.update(&freed);
        let expected = Action::WriteRecord(names.map(SlotName::new).to_vec());
        assert_eq!(decided(&watch, &freed), [expected]);
    }

    #[test]
    fn on_a_standby_the_upstream_is_asked() {
        let mut watch = Watch::default();
        let quiet = standby(0, vec![building("x", CreatorWait::Working)], 1000);
        watch.update(&quiet);
        let expected = Action::AskForRecord(vec![SlotName::new("x")]);
        assert_eq!(decided(&watch, &quiet), [expected]);
    }

    #[test]
    fn on_a_standby_the_upstream_is_asked_for_blockers_now_and_then() {
        let mut watch = Watch::default();
        let slots = || vec![building("x", CreatorWait::Working)];
        let mut busy = standby(0, slots(), 990);
        watch.update(&busy);
        assert_eq!(decided(&watch, &busy), [Action::AskForNews]);

        busy.learn(Some(look(0, vec![session(990, 1)]).into()));
        watch.update(&busy);
        assert_eq!(decided(&watch, &busy), []);

        let mut later = standby(1000, slots(), 990);
        later.learn(Some(look(0, vec![session(990, 1)]).into()));
        watch.update(&later);
        assert_eq!(decided(&watch, &later), [Action::AskForNews]);
    }

    /// As often as is needed for all the time between them to count.
    fn scans_until(milliseconds: i64) -> impl Iterator<Item = i64> {
        (0..milliseconds).step_by(10_000).chain([milliseconds])
    }

    /// What is decided when `x` and `y` have waited for so long for the same session.
    fn after(milliseconds: i64, change: impl Fn(&mut Policy)) -> Vec<Action> {
        let mut policy = Policy::default();
        policy.blockers.action = BlockerAction::Terminate;
        change(&mut policy);
        let mut watch = Watch::default();
        let mut actions = Vec::new();
        for at in scans_until(milliseconds) {
            let slots = ["x", "y"].map(|name| building(name, CreatorWait::Transaction));
            let seen = observation(at, slots.to_vec(), vec![session(700, 1)]);
            watch.update(&seen);
            actions = decide(&watch, &seen, &policy);
        }
        actions
    }

    #[test]
    fn a_blocker_is_due_after_its_grace() {
        let due = [Action::EndBlockers(DueBlockers {
            due: vec![xid(700)],
            fronts: vec![vec![xid(700)], vec![xid(700)]],
        })];
        assert_eq!(after(299_999, |_| {}), []);
        assert_eq!(after(300_000, |_| {}), due);
        let report = |policy: &mut Policy| policy.blockers.action = BlockerAction::Report;
        assert_eq!(after(300_000, report), []);
    }

    #[test]
    fn a_creation_that_is_cancelled_costs_no_blocker_its_session() {
        let timeout = Duration::from_secs(300);
        let actions = after(300_000, |policy| {
            policy.limits.creation_timeout = Limit::Above(timeout);
        });
        let cancel = |name| Action::Cancel(SlotName::new(name), Reason::Timeout(timeout));
        assert_eq!(actions, [cancel("x"), cancel("y")]);
    }

    #[test]
    fn a_blocker_is_told_once_and_judged_now_and_then() {
        let mut policy = Policy::default();
        policy.blockers.action = BlockerAction::Terminate;
        let mut watch = Watch::default();
        let mut judged = Vec::new();
        for second in (0..=305).chain(310..320) {
            let slots = vec![building("x", CreatorWait::Transaction)];
            let seen = observation(second * 1000, slots, vec![session(700, 1)]);
            watch.update(&seen);
            if !decide(&watch, &seen, &policy).is_empty() {
                judged.push(second);
                let blocker = watch.blocker_mut(xid(700)).expect("a blocker");
                if second < 304 {
                    let news = blocker.was_spared(Guard::Superuser, seen.at);
                    assert_eq!(news, second == 300);
                } else {
                    blocker.was_told(Ending::Terminate, seen.at);
                }
            }
        }
        assert_eq!(judged, [300, 301, 302, 303, 304]);
    }

    #[test]
    fn one_that_stayed_after_a_cancel_may_be_terminated() {
        let due = |told: Ending, action: BlockerAction| {
            let mut policy = Policy::default();
            policy.blockers.action = action;
            let mut watch = Watch::default();
            let mut actions = Vec::new();
            for at in scans_until(310_000) {
                let slots = vec![building("x", CreatorWait::Transaction)];
                let seen = observation(at, slots, vec![session(700, 1)]);
                watch.update(&seen);
                actions = decide(&watch, &seen, &policy);
                if at == 300_000 {
                    let blocker = watch.blocker_mut(xid(700)).expect("a blocker");
                    blocker.was_told(told, seen.at);
                }
            }
            !actions.is_empty()
        };
        assert!(due(Ending::Cancel, BlockerAction::Terminate));
        assert!(!due(Ending::Cancel, BlockerAction::Cancel));
        assert!(!due(Ending::Terminate, BlockerAction::Terminate));
        assert!(!due(Ending::Terminate, BlockerAction::Cancel));
    }
}
