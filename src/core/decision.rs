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
