//! Why a standby's replay is paused, and so whether it may be resumed.
//!
//! `pg_wal_replay_resume()` is for a pause that somebody asked for. A standby that paused itself
//! because a setting of its own is lower than the primary's shuts down when it is resumed
//! (`RecoveryRequiresIntParameter`), and one that has reached its recovery target is promoted
//! (`PerformWalRecovery`, both `xlogrecovery.c`). `pg_get_wal_replay_pause_state()` says `paused` of
//! all three.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pause {
    /// By `pg_wal_replay_pause()`: nothing else can have paused it.
    Asked,
    /// By itself. At least one.
    TooLow(Vec<TooLow>),
    /// A recovery target is set, and may have been reached: nothing tells.
    Target { setting: String, value: String },
    /// What would tell could not be read.
    NotKnown,
}

/// A setting that is lower than the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLow {
    pub setting: Capacity,
    pub here: i32,
    pub primary: i32,
    pub raised: Raised,
}

/// Whether a restart would find a setting high enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Raised {
    No,
    /// In the configuration files.
    Yes,
    /// They don't count: it is set on the server's command line.
    OnCommandLine,
}

/// A setting that must be as high on a standby as on its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capacity {
    Connections,
    WorkerProcesses,
    WalSenders,
    PreparedTransactions,
    LocksPerTransaction,
}

impl Capacity {
    const ALL: [Self; 5] = [
        Self::Connections,
        Self::WorkerProcesses,
        Self::WalSenders,
        Self::PreparedTransactions,
        Self::LocksPerTransaction,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::WorkerProcesses => "max_worker_processes",
            Self::WalSenders => "max_wal_senders",
            Self::PreparedTransactions => "max_prepared_transactions",
            Self::LocksPerTransaction => "max_locks_per_transaction",
        }
    }
}

/// The primary's settings, as far as its WAL was replayed. The record of a change is written to the
/// control file before replay pauses for it (`xlog_redo`, `xlog.c`).
#[derive(Clone, Copy, Debug)]
pub struct Capacities {
    pub connections: i32,
    pub worker_processes: i32,
    pub wal_senders: i32,
    pub prepared_transactions: i32,
    pub locks_per_transaction: i32,
}

impl Capacities {
    fn of(&self, setting: Capacity) -> i32 {
        match setting {
            Capacity::Connections => self.connections,
            Capacity::WorkerProcesses => self.worker_processes,
            Capacity::WalSenders => self.wal_senders,
            Capacity::PreparedTransactions => self.prepared_transactions,
            Capacity::LocksPerTransaction => self.locks_per_transaction,
        }
    }
}

/// A row of `sql/pause.sql`.
#[derive(Clone, Debug)]
pub struct SettingHere {
    pub name: String,
    /// The one in force.
    pub value: String,
    /// The one in the configuration files.
    pub in_files: Option<String>,
    pub on_command_line: bool,
}

impl Pause {
    /// Of a replay that is paused. `primary`: `None` if that can't be told.
    pub fn of(here: &[SettingHere], primary: Option<&Capacities>) -> Self {
        let Some(primary) = primary else {
            return Self::NotKnown;
        };
        let too_low: Vec<_> = Capacity::ALL
            .into_iter()
            .filter_map(|setting| TooLow::of(setting, here, primary.of(setting)))
            .collect();
        let target =
            |row: &&SettingHere| row.name.starts_with("recovery_target") && !row.value.is_empty();
        match here.iter().find(target) {
            _ if !too_low.is_empty() => Self::TooLow(too_low),
            Some(target) => Self::Target {
                setting: target.name.clone(),
                value: target.value.clone(),
            },
            None => Self::Asked,
        }
    }
}

impl TooLow {
    fn of(setting: Capacity, here: &[SettingHere], primary: i32) -> Option<Self> {
        let row = here.iter().find(|row| row.name == setting.name())?;
        let value = row.value.parse().ok()?;
        let in_files = row.in_files.as_ref().and_then(|text| text.parse().ok());
        (value < primary).then_some(Self {
            setting,
            here: value,
            primary,
            raised: match in_files {
                _ if row.on_command_line => Raised::OnCommandLine,
                Some(in_files) if primary <= in_files => Raised::Yes,
                Some(_) | None => Raised::No,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: Capacities = Capacities {
        connections: 100,
        worker_processes: 8,
        wal_senders: 10,
        prepared_transactions: 0,
        locks_per_transaction: 64,
    };

    fn row(name: &str, value: &str) -> SettingHere {
        SettingHere {
            name: name.into(),
            value: value.into(),
            in_files: None,
            on_command_line: false,
        }
    }

    fn as_high() -> Vec<SettingHere> {
        let capacities = Capacity::ALL
            .into_iter()
            .map(|setting| row(setting.name(), &PRIMARY.of(setting).to_string()));
        capacities.chain([row("recovery_target_lsn", "")]).collect()
    }

    #[test]
    fn only_a_pause_that_can_be_nothing_else_was_asked_for() {
        assert_eq!(Pause::of(&as_high(), Some(&PRIMARY)), Pause::Asked);
        assert_eq!(Pause::of(&as_high(), None), Pause::NotKnown);
        let mut here = as_high();
        here.push(row("recovery_target_name", "before_the_change"));
        let target = Pause::Target {
            setting: "recovery_target_name".into(),
            value: "before_the_change".into(),
        };
        assert_eq!(Pause::of(&here, Some(&PRIMARY)), target);
    }

    #[test]
    fn every_setting_counts_that_is_lower_than_the_primarys() {
        for (index, setting) in Capacity::ALL.into_iter().enumerate() {
            let mut here = as_high();
            here.push(row("recovery_target", "immediate"));
            here[index].value = (PRIMARY.of(setting) - 1).to_string();
            let raised = |here: &[SettingHere]| match Pause::of(here, Some(&PRIMARY)) {
                Pause::TooLow(too_low) => {
                    assert_eq!(too_low.len(), 1);
                    assert_eq!(too_low[0].setting, setting);
                    too_low[0].raised
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(raised(&here), Raised::No);
            here[index].in_files = Some(here[index].value.clone());
            assert_eq!(raised(&here), Raised::No);
            here[index].in_files = Some(PRIMARY.of(setting).to_string());
            assert_eq!(raised(&here), Raised::Yes);
            here[index].on_command_line = true;
            assert_eq!(raised(&here), Raised::OnCommandLine);
        }
    }
}
