//! What to do about the creations that go on.

use std::time::Duration;

use super::episode::Watch;
use super::observation::{Observation, Role, SlotName};

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
}

/// The actions that the last scan calls for; one record at most.
pub fn decide(watch: &Watch, observation: &Observation, policy: &Policy) -> Option<Action> {
    match observation.role {
        Role::Primary => {}
        // Only its primary can write one.
        Role::Standby => return None,
    }
    let slots: Vec<_> = watch
        .episodes
        .values()
        .filter(|episode| episode.wants_record(observation, policy.nudge_interval))
        .map(|episode| episode.slot.clone())
        .collect();
    log::debug!(
        "{} slots are being built, {} of them need a record",
        watch.episodes.len(),
        slots.len()
    );
    (!slots.is_empty()).then_some(Action::WriteRecord(slots))
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
    fn nothing_is_written_on_a_standby() {
        let mut watch = watching(vec![session(700, 1)]);
        let mut freed = observation(20_000, vec![building("x", CreatorWait::Wal)], Vec::new());
        watch.update(&freed);
        assert!(decide(&watch, &freed, &POLICY).is_some());
        freed.role = Role::Standby;
        assert_eq!(decide(&watch, &freed, &POLICY), None);
    }
}
