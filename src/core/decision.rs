//! What to do about the creations that go on.

use std::time::Duration;

use super::diagnosis::State;
use super::episode::Episode;
use super::observation::{Observation, Role, SlotName};
use super::watch::Watch;

/// How often the upstream is asked which transactions run while a creation waits for some.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the operator allows, from the settings.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// `slot_self_heal.nudge_interval`
    pub nudge_interval: Duration,
}

/// Something to be done to the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write one running-xacts record, which serves all these creations.
    WriteRecord(Vec<SlotName>),
    /// Ask the upstream for one.
    AskForRecord(Vec<SlotName>),
    /// Ask the upstream which transactions run and how its slots are doing.
    AskForNews,
}

/// The action that the last scan calls for.
pub fn decide(watch: &Watch, observation: &Observation, policy: &Policy) -> Option<Action> {
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
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::observation::CreatorWait;
    use super::*;

    const POLICY: Policy = Policy {
        nudge_interval: Duration::from_secs(10),
    };

    #[test]
    fn one_record_serves_every_slot_that_needs_it() {
        let names = ["x", "y"];
        let slots = |wait| names.map(|name| building(name, wait)).to_vec();
        let mut watch = Watch::default();
        let waiting = observation(0, slots(CreatorWait::Transaction), vec![session(700, 1)]);
        watch.update(&waiting);
        assert_eq!(decide(&watch, &waiting, &POLICY), None);

        let freed = observation(20, slots(CreatorWait::Wal), Vec::new());
        watch.update(&freed);
        let expected = Action::WriteRecord(names.map(SlotName::new).to_vec());
        assert_eq!(decide(&watch, &freed, &POLICY), Some(expected));
    }

    #[test]
    fn on_a_standby_the_upstream_is_asked() {
        let mut watch = Watch::default();
        let quiet = standby(0, vec![building("x", CreatorWait::Working)], 1000);
        watch.update(&quiet);
        let expected = Action::AskForRecord(vec![SlotName::new("x")]);
        assert_eq!(decide(&watch, &quiet, &POLICY), Some(expected));
    }

    #[test]
    fn on_a_standby_the_upstream_is_asked_for_blockers_now_and_then() {
        let mut watch = Watch::default();
        let slots = || vec![building("x", CreatorWait::Working)];
        let mut busy = standby(0, slots(), 990);
        watch.update(&busy);
        assert_eq!(decide(&watch, &busy, &POLICY), Some(Action::AskForNews));

        busy.learn(Some(look(0, vec![session(990, 1)]).into()));
        watch.update(&busy);
        assert_eq!(decide(&watch, &busy, &POLICY), None);

        let mut later = standby(1000, slots(), 990);
        later.learn(Some(look(0, vec![session(990, 1)]).into()));
        watch.update(&later);
        assert_eq!(decide(&watch, &later, &POLICY), Some(Action::AskForNews));
    }
}
