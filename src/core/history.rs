//! Creations that have ended.

use serde::{Deserialize, Serialize};

use super::episode::Episode;
use super::observation::Role;
use super::time::Timestamp;
use super::xid::Lsn;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Ready,
    /// The slot vanished, or passed to somebody else.
    Gone,
}

/// A creation that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    pub ended: Timestamp,
    pub outcome: Outcome,
    /// Tells its slot from a later one of the same name, as long as the slot was not used.
    pub restart_lsn: Option<Lsn>,
    pub episode: Episode,
}

impl Finished {
    /// Whether the log knows of it, and should hear how it ended. A creation on a standby that
    /// needed our record would be there still.
    pub fn is_worth_telling(&self) -> bool {
        let healed = self.episode.role() == Role::Standby && self.episode.nudges > 0;
        self.episode.was_told() || healed
    }
}
