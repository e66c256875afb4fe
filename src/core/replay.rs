//! How a standby's replay gets on. Whatever a slot's creation there waits for, a record or a
//! transaction's end, reaches it through replay only.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observation::Pid;
use super::pause::Pause;
use super::time::Timestamp;
use super::xid::Lsn;

/// How long `restore_command` may take for a file: it copies 16 MB as a rule.
const RESTORE_PATIENCE: Duration = Duration::from_secs(10);

/// A session that replay waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTheWay {
    pub pid: Pid,
    /// When its transaction began, as ISO 8601: tells it from the next one.
    pub xact_start: Option<String>,
    pub backend_type: Option<String>,
    pub usename: Option<String>,
    pub application_name: Option<String>,
    /// Its beginning.
    pub query: Option<String>,
}

/// What the startup process waits for, where that tells by itself why replay gets nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartupWait {
    RestoreCommand,
    /// To clean up a page that a session has in use (`LockBufferForCleanup`, `bufmgr.c`).
    BufferPin,
    /// To drop a tablespace that has temporary files in it
    /// (`ResolveRecoveryConflictWithTablespace`, `standby.c`).
    Tablespace,
    Other,
}

impl StartupWait {
    /// By its wait event in `pg_stat_activity`.
    pub fn from_wait_event(wait_event: &str) -> Self {
        match wait_event {
            "RestoreCommand" => Self::RestoreCommand,
            // The second from PostgreSQL 19 on.
            "BufferPin" | "BufferCleanup" => Self::BufferPin,
            "RecoveryConflictTablespace" => Self::Tablespace,
            _ => Self::Other,
        }
    }
}

/// What a scan saw of a standby's replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The end of what was replayed.
    pub replayed: Lsn,
    /// The end of what the WAL receiver has received and flushed, if it ever did.
    pub received: Option<Lsn>,
    /// Why it is paused, if it is.
    pub pause: Option<Pause>,
    /// Whether there is a WAL receiver.
    pub receives: bool,
    /// Whether `restore_command` is set, so that WAL may come from an archive.
    pub has_archive: bool,
    /// `recovery_min_apply_delay`
    pub apply_delay: Duration,
    /// `max_standby_streaming_delay`, as the server shows it; `-1` is for ever.
    pub streaming_delay: String,
    /// `max_standby_archive_delay`
    pub archive_delay: String,
    /// The processes that the startup process waits for: those that hold a lock or a snapshot in
    /// its way.
    pub waits_for: Vec<InTheWay>,
    pub startup_wait: StartupWait,
    /// For how long `restore_command` was seen to run.
    pub restores_for: Duration,
    /// Whether it waits for all of them; else for some of them at least.
    pub is_certain: bool,
}

/// Whom replay waits for, from one look to the next.
///
/// The startup process naps while it waits for a snapshot, and between two naps shows no wait
/// (`WaitExceedsMaxStandbyDelay`, `standby.c`). If it has got nowhere, it has not ended.
#[derive(Debug, Default)]
pub struct Conflict {
    /// What the last look showed, if it showed one.
    shown: Option<Replay>,
    /// Since when `restore_command` runs, and from where.
    restores: Option<(Timestamp, Lsn)>,
}

impl Conflict {
    /// Adds what was seen by the look before to one that sees nothing, where it still holds.
    pub fn bridge(&mut self, replay: &mut Replay, now: Timestamp) {
        self.time_restore(replay, now);
        let shows_one = !replay.waits_for.is_empty()
            || matches!(
                replay.startup_wait,
                StartupWait::BufferPin | StartupWait::Tablespace
            );
        if shows_one {
            self.shown = Some(replay.clone());
        } else if let Some(last) = self.shown.take()
            && last.replayed == replay.replayed
        {
            replay.waits_for = last.waits_for;
            replay.is_certain = last.is_certain;
            replay.startup_wait = last.startup_wait;
        }
    }

    /// One that is run again and again, for nothing, is not seen at every look.
    fn time_restore(&mut self, replay: &mut Replay, now: Timestamp) {
        if replay.startup_wait != StartupWait::RestoreCommand {
            self.restores = None;
            return;
        }
        let goes_on = self.restores.filter(|&(_, from)| from == replay.replayed);
        let since = goes_on.map_or(now, |(since, _)| since);
        self.restores = Some((since, replay.replayed));
        replay.restores_for = now.since(since);
    }
}

/// How a setting of the server's is shown that stands for "never".
const NEVER: &str = "-1";

/// When Postgres cancels whom replay waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictEnd<'a> {
    /// After this time, by this setting.
    After(&'a str, &'static str),
    /// By this setting, or these two.
    Never(&'static str),
    /// After the one time or the other, `None` being never.
    NotKnown {
        streaming: Option<&'a str>,
        archive: Option<&'a str>,
    },
}

/// Why what was written on the upstream does not arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    Paused(Pause),
    /// Nothing is received: there is no WAL receiver.
    CutOff,
    /// Nor does `restore_command` bring anything: it has run for so long.
    RestoreHangs(Duration),
    /// Replay waits for these sessions of the standby's.
    Conflict(Vec<InTheWay>),
    /// Replay waits for some of these.
    UncertainConflict(Vec<InTheWay>),
    /// Replay waits for a session that has a page in use.
    BufferPin,
    /// Replay waits for all that use a tablespace.
    Tablespace,
    /// `recovery_min_apply_delay`
    Delayed(Duration),
    /// So many bytes were received and not replayed.
    Behind(u64),
    /// The upstream, itself a standby, has not received it and receives nothing.
    UpstreamCutOff,
    /// It was written, and not received yet.
    NotReceived,
}

impl Replay {
    /// Why replay gets nowhere, or nowhere near `awaited`, the record that is on its way.
    pub fn obstacle(&self, awaited: Option<Lsn>) -> Option<Obstacle> {
        let awaited = awaited.filter(|&lsn| lsn > self.replayed);
        let has_come = |lsn: Lsn| self.received.is_some_and(|received| lsn <= received);
        if let Some(pause) = &self.pause {
            Some(Obstacle::Paused(pause.clone()))
        } else if !self.waits_for.is_empty() && self.is_certain {
            Some(Obstacle::Conflict(self.waits_for.clone()))
        } else if !self.waits_for.is_empty() {
            Some(Obstacle::UncertainConflict(self.waits_for.clone()))
        } else if self.startup_wait == StartupWait::BufferPin {
            Some(Obstacle::BufferPin)
        } else if self.startup_wait == StartupWait::Tablespace {
            Some(Obstacle::Tablespace)
        } else if self.restores_for >= RESTORE_PATIENCE && !awaited.is_some_and(has_come) {
            Some(Obstacle::RestoreHangs(self.restores_for))
        } else if !self.receives && !awaited.is_some_and(has_come) {
            Some(Obstacle::CutOff)
        } else {
            awaited.map(|lsn| match self.received {
                _ if !self.apply_delay.is_zero() => Obstacle::Delayed(self.apply_delay),
                Some(received) if has_come(lsn) => {
                    Obstacle::Behind(received.get().saturating_sub(self.replayed.get()))
                }
                _ => Obstacle::NotReceived,
            })
        }
    }

    /// Whether replay certainly waits for this process.
    pub fn waits_for(&self, pid: Pid) -> bool {
        self.is_certain && self.waits_for.iter().any(|other| other.pid == pid)
    }

    /// Whether Postgres itself ends whom replay waits for. That depends on where the WAL in question
    /// came from (`GetStandbyLimitTime`, `standby.c`), which only the startup process knows: streamed
    /// it is as long as there is a WAL receiver, which the startup process starts when it has no other
    /// WAL left, and ends before it turns to another source (`WaitForWALToBecomeAvailable`,
    /// `xlogrecovery.c`). Without one it may have been streamed before.
    pub fn conflict_end(&self) -> ConflictEnd<'_> {
        const STREAMING: &str = "max_standby_streaming_delay";
        const ARCHIVE: &str = "max_standby_archive_delay";
        let streaming = (self.streaming_delay != NEVER).then_some(self.streaming_delay.as_str());
        let archive = (self.archive_delay != NEVER).then_some(self.archive_delay.as_str());
        match (streaming, archive) {
            (Some(delay), _) if self.receives => ConflictEnd::After(delay, STREAMING),
            (None, _) if self.receives => ConflictEnd::Never(STREAMING),
            (None, None) => {
                ConflictEnd::Never("max_standby_streaming_delay and max_standby_archive_delay")
            }
            (Some(streaming), Some(archive)) if streaming == archive => {
                ConflictEnd::After(archive, ARCHIVE)
            }
            (streaming, archive) => ConflictEnd::NotKnown { streaming, archive },
        }
    }
}

impl Obstacle {
    /// Whether nothing is replayed at all.
    pub fn stops_all(&self) -> bool {
        match self {
            Self::Paused(_)
            | Self::CutOff
            | Self::RestoreHangs(_)
            | Self::UpstreamCutOff
            | Self::BufferPin
            | Self::Tablespace
            | Self::Conflict(_)
            | Self::UncertainConflict(_) => true,
            Self::Delayed(_) | Self::Behind(_) | Self::NotReceived => false,
        }
    }

    /// Whether it is the same in kind, whatever its figures.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Conflict(these), Self::Conflict(those))
            | (Self::UncertainConflict(these), Self::UncertainConflict(those)) => these == those,
            (Self::Paused(this), Self::Paused(that)) => {
                std::mem::discriminant(this) == std::mem::discriminant(that)
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// Whether the record arrives by itself, given some milliseconds.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Behind(_) | Self::NotReceived => true,
            Self::Paused(_)
            | Self::CutOff
            | Self::RestoreHangs(_)
            | Self::UpstreamCutOff
            | Self::BufferPin
            | Self::Tablespace
            | Self::Conflict(_)
            | Self::UncertainConflict(_)
            | Self::Delayed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    fn lsn(lsn: u64) -> Option<Lsn> {
        Some(Lsn::new(lsn))
    }

    #[test]
    fn a_replay_that_has_all_has_no_obstacle() {
        assert_eq!(replay(100).obstacle(None), None);
        assert_eq!(replay(100).obstacle(lsn(100)), None);
    }

    #[test]
    fn obstacles_are_told_apart() {
        let paused = Replay {
            pause: Some(Pause::NotKnown),
            receives: false,
            ..replay(100)
        };
        assert_eq!(
            paused.obstacle(None),
            Some(Obstacle::Paused(Pause::NotKnown))
        );
        let cut_off = Replay {
            receives: false,
            ..replay(100)
        };
        assert_eq!(cut_off.obstacle(None), Some(Obstacle::CutOff));
        let conflict = Replay {
            waits_for: vec![in_the_way(7)],
            ..replay(100)
        };
        let expected = Obstacle::Conflict(vec![in_the_way(7)]);
        assert_eq!(conflict.obstacle(None), Some(expected));
        let delayed = Replay {
            apply_delay: Duration::from_secs(5),
            ..replay(100)
        };
        assert_eq!(delayed.obstacle(None), None);
        let expected = Obstacle::Delayed(Duration::from_secs(5));
        assert_eq!(delayed.obstacle(lsn(101)), Some(expected));
        assert_eq!(replay(100).obstacle(lsn(101)), Some(Obstacle::NotReceived));
        let behind = Replay {
            received: lsn(150),
            ..replay(100)
        };
        assert_eq!(behind.obstacle(lsn(101)), Some(Obstacle::Behind(50)));
    }

    #[test]
    fn a_conflict_goes_on_between_two_naps() {
        let conflict = |replayed| Replay {
            waits_for: vec![in_the_way(7)],
            is_certain: false,
            ..replay(replayed)
        };
        let mut followed = Conflict::default();
        let mut look = |seen: Replay| {
            let mut seen = seen;
            followed.bridge(&mut seen, at(0));
            seen
        };
        assert_eq!(look(replay(100)), replay(100));
        assert_eq!(look(conflict(100)), conflict(100));
        assert_eq!(look(replay(100)), conflict(100), "a nap's end");
        assert_eq!(look(conflict(100)), conflict(100));
        assert_eq!(look(replay(100)), conflict(100), "another's");
        assert_eq!(look(replay(100)), replay(100), "no nap's end lasts");
        assert_eq!(look(conflict(100)), conflict(100));
        assert_eq!(look(replay(101)), replay(101), "it got on");
    }

    #[test]
    fn what_the_startup_process_waits_for_is_told() {
        let waits = |startup_wait| Replay {
            startup_wait,
            receives: false,
            ..replay(100)
        };
        let pin = waits(StartupWait::BufferPin);
        assert_eq!(pin.obstacle(None), Some(Obstacle::BufferPin));
        let tablespace = waits(StartupWait::Tablespace);
        assert_eq!(tablespace.obstacle(None), Some(Obstacle::Tablespace));

        let mut followed = Conflict::default();
        let mut restores_at = |seconds: i64, replayed| {
            let mut seen = Replay {
                replayed: Lsn::new(replayed),
                ..waits(StartupWait::RestoreCommand)
            };
            followed.bridge(&mut seen, at(seconds * 1000));
            seen.obstacle(None)
        };
        let hangs = |seconds| Some(Obstacle::RestoreHangs(Duration::from_secs(seconds)));
        assert_eq!(restores_at(0, 100), Some(Obstacle::CutOff));
        assert_eq!(restores_at(10, 100), hangs(10));
        assert_eq!(restores_at(11, 101), Some(Obstacle::CutOff), "it got on");
        assert_eq!(restores_at(31, 101), hangs(20));
    }

    #[test]
    fn a_conflict_ends_by_the_setting_that_counts() {
        let replay = |receives, streaming: &str, archive: &str| Replay {
            receives,
            streaming_delay: streaming.into(),
            archive_delay: archive.into(),
            ..replay(100)
        };
        let never = |receives, streaming, archive| {
            matches!(
                replay(receives, streaming, archive).conflict_end(),
                ConflictEnd::Never(_)
            )
        };
        assert!(never(true, "-1", "30s"));
        assert!(!never(true, "30s", "-1"));
        assert!(never(false, "-1", "-1"));
        for (streaming, archive) in [("-1", "30s"), ("30s", "-1"), ("30s", "30s")] {
            assert!(!never(false, streaming, archive), "{streaming} {archive}");
        }
    }

    #[test]
    fn what_was_received_is_replayed_without_a_receiver() {
        let alone = Replay {
            receives: false,
            received: lsn(150),
            ..replay(100)
        };
        assert_eq!(alone.obstacle(lsn(150)), Some(Obstacle::Behind(50)));
        assert_eq!(alone.obstacle(lsn(151)), Some(Obstacle::CutOff));
    }
}
