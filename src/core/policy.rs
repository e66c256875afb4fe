//! What the operator allows: the settings that the judgement needs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// From the settings `slot_self_heal.*`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `nudge_interval`
    pub nudge_interval: Duration,
    pub limits: Limits,
    pub blockers: BlockerRule,
}

/// When a creation is cancelled.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    pub cancel_abandoned: bool,
    pub cancel_blocking_replay: bool,
    pub creation_timeout: Limit<Duration>,
    /// In bytes.
    pub max_retained_wal: Limit<u64>,
}

impl Limits {
    /// As it is for a creator with limits of its own.
    pub fn timeout_of(&self, own: &OwnLimits) -> Limit<Duration> {
        own.creation_timeout.unwrap_or(self.creation_timeout)
    }

    /// As it is for a creator with limits of its own, in bytes.
    pub fn wal_of(&self, own: &OwnLimits) -> Limit<u64> {
        own.max_retained_wal.unwrap_or(self.max_retained_wal)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit<T> {
    #[default]
    Never,
    Above(T),
}

/// What ALTER DATABASE and ALTER ROLE set for a creator; `None` where they say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnLimits {
    pub creation_timeout: Option<Limit<Duration>>,
    /// In bytes.
    pub max_retained_wal: Option<Limit<u64>>,
}

/// What is done to the sessions that block a creation.
#[derive(Clone, Debug)]
pub struct BlockerRule {
    pub action: BlockerAction,
    pub grace: Duration,
    pub scope: BlockerScope,
    pub protected_roles: Vec<String>,
}

/// `blocker_action`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockerAction {
    Report,
    Cancel,
    Terminate,
}

/// `blocker_scope`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockerScope {
    /// Sessions that are idle in a transaction.
    Idle,
    Any,
}

#[cfg(test)]
impl Default for Policy {
    /// The settings' own defaults.
    fn default() -> Self {
        Self {
            nudge_interval: Duration::from_secs(10),
            limits: Limits {
                cancel_abandoned: true,
                cancel_blocking_replay: false,
                creation_timeout: Limit::Never,
                max_retained_wal: Limit::Never,
            },
            blockers: BlockerRule {
                action: BlockerAction::Report,
                grace: Duration::from_secs(300),
                scope: BlockerScope::Idle,
                protected_roles: Vec::new(),
            },
        }
    }
}
