//! What is being waited for and what an operator can do, in words for someone at 3 a.m.

use std::time::Duration;

use super::blocker::Blocker;
use super::copy::UnreadyCopy;
use super::diagnosis::{Kinship, State, kinship};
use super::episode::Episode;
use super::guard::{Ending, Guard};
use super::hint::{Comment, Hint, Identifier, Part, Setting, Text, comment, quote_literal, sql};
use super::limit::ABANDONED_FOR;
use super::locks::{Root, Session};
use super::observation::{
    CreatorIdentity, Holder, MadeByHand, Progress, Role, Slot, SlotName, Subscription, Transaction,
};
use super::pause::{Pause, Raised, TooLow};
use super::policy::{Limit, Limits};
use super::remedy;
use super::replay::{ConflictEnd, InTheWay, Obstacle, Replay};
use super::risk::Risk;
use super::time::{Timestamp, in_bytes, in_words};
use super::upstream::{RemoteSlot, Upstream, name_the_primary};
use super::watch::Watch;

/// How many blockers a hint gives a remedy for.
const REMEDIES: usize = 3;

/// A sentence on what is the matter, and what can be pasted to mend it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    pub detail: Option<String>,
    pub hint: Option<Hint>,
}

/// For a worker that was told to do nothing.
pub fn enable() -> Hint {
    Hint::set(
        Setting::at_reload("slot_self_heal.enabled", "on"),
        comment!(""),
    )
}

/// Where no logical slot can be created with less than this level.
pub fn raise_wal_level(least: &str) -> Hint {
    Hint::set(
        Setting::at_restart("wal_level", least),
        comment!("no logical slot can be created"),
    )
}

/// Where the server has no room for the worker. `now`: the setting's value.
pub fn more_workers(now: u32) -> Hint {
    Hint::set(
        Setting::at_restart("max_worker_processes", now.saturating_add(8).to_string()),
        comment!(
            "there is no room for the worker; a standby must have at least its primary's value, or \
             it stops to replay, so raise it there first"
        ),
    )
}

/// On a copy that is persisted.
pub fn on_persisted_copy(slot: &Slot) -> Advice {
    Advice {
        detail: slot.sync_skipped.as_deref().map(passed_over),
        hint: None,
    }
}

/// Why the last synchronization of a copy changed nothing: the server's word for it
/// (`pg_replication_slots.slotsync_skip_reason`) and what that means (`slotsync.c`).
fn passed_over(reason: &str) -> String {
    let meaning = match reason {
        "wal_not_flushed" => {
            ", this standby had not received the WAL up to the position of the slot on the primary"
        }
        "wal_or_rows_removed" => {
            ", this standby does not keep WAL or rows any more that the slot on the primary needs"
        }
        "no_consistent_snapshot" => {
            ", there is no consistent point for it in the WAL that this standby has"
        }
        "slot_invalidated" => ", this copy was invalidated",
        _ => "",
    };
    format!("The last synchronization passed it over: {reason}{meaning}.")
}

/// Where nobody can tell that a creation's client is gone.
pub fn limit_creations() -> Hint {
    Hint::set(
        Setting::at_reload("slot_self_heal.creation_timeout", "6h"),
        comment!("ends what takes too long, client or not"),
    )
}

/// Where the worker can't connect to its database.
pub fn connect_elsewhere(database: &str, retry: Duration) -> Hint {
    const USUAL: &str = "postgres";
    let or = comment!(
        "or create database \"{database}\", or let it take connections; the worker tries again \
         every {}",
        in_words(retry)
    );
    if database == USUAL {
        Hint::say(comment!(
            "let slot_self_heal.database name a database that takes connections, and restart the \
             server"
        ))
        .then(Hint::say(or))
    } else {
        Hint::set(
            Setting::at_restart("slot_self_heal.database", USUAL),
            comment!("or another database that exists"),
        )
        .then(Hint::say(or))
    }
}

/// Where more creations go on than there is room to show.
pub fn not_shown(more: usize) -> Hint {
    Hint::say(comment!(
        "{more} creations are watched but not shown: they do not fit in shared memory"
    ))
}

/// Where there is no worker, for whatever reason.
pub fn no_worker() -> Hint {
    Hint::say(comment!(
        "the server starts the worker again within a second; if it stays away, the server's log says \
         why"
    ))
}

/// On a slot that nobody builds.
pub fn on_slot(slot: &Slot) -> Advice {
    match &slot.progress {
        Progress::Usable | Progress::Building(_) | Progress::NotSyncReady => Advice::default(),
        Progress::LeftBehind(holder) => Advice {
            detail: Some("Its creation ended before the slot was usable.".into()),
            hint: Some(remedy::drop_left_behind(slot, *holder)),
        },
        Progress::Invalidated(reason) => Advice {
            detail: Some(match reason {
                Some(reason) => format!("Postgres invalidated the slot: {reason}."),
                None => "Postgres invalidated the slot: what it needs is gone.".into(),
            }),
            // A standby's copy can't be dropped there; the slot sync worker does it.
            hint: (!slot.synced).then(|| {
                let drop = remedy::drop_invalidated(slot);
                match reason.as_deref() {
                    // Only on standbys (`InvalidateObsoleteReplicationSlots`, `slot.c`).
                    Some("wal_level_insufficient") => drop.then(Hint::say(comment!(
                        "on the primary before: with wal_level below logical there, which from \
                         PostgreSQL 19 on does as long as it has a logical slot of its own, the next \
                         one is lost as well"
                    ))),
                    Some(_) | None => drop,
                }
            }),
        },
    }
}

/// Adds that a slot will be lost soon, and what to do about that.
pub fn add_risk(
    advice: &mut Advice,
    slot: &Slot,
    risk: Risk,
    watch: &Watch,
    role: Role,
    now: Timestamp,
) {
    let when = match risk {
        Risk::Now => "The next checkpoint may take the slot away: it holds back more WAL than \
             max_slot_wal_keep_size."
            .to_owned(),
        Risk::Within { time, left, rate } => format!(
            "If WAL is written on at {} a second, the slot will be lost in {}, when another {} are \
             written (max_slot_wal_keep_size).",
            in_bytes(rate),
            in_words(time),
            in_bytes(left)
        ),
    };
    let mut detail = vec![when];
    let mut hint = advice.hint.take().unwrap_or_default();
    let mut drop = None;
    if let Progress::Usable = slot.progress {
        match (holder_back(slot, watch), slot.active) {
            (Some((blocker, episode)), true) => {
                detail.push(format!(
                    "Transaction {} holds it back as well: {}.",
                    blocker.xid(),
                    describe(&blocker.transaction, now)
                ));
                let transaction = &blocker.transaction;
                hint = hint.then(remedy::of_blocker(episode, transaction, role, now));
            }
            // Its consumer confirms as it goes; nothing says that it will stop.
            (None, true) => return,
            (_, false) => {
                detail.push("No consumer is connected to it.".to_owned());
                drop = Some(remedy::drop_unconsumed(slot));
            }
        }
    }
    // What is held back and what may be written besides make up the present limit.
    let limit = slot.retained_wal.unwrap_or(0) + slot.safe_wal_size.unwrap_or(0);
    let megabytes = u64::try_from(limit.max(1 << 20) >> 20).unwrap_or(1) * 2;
    let more = Setting::at_reload("max_slot_wal_keep_size", format!("{megabytes}MB"));
    let why = comment!("twice as much, if the disk has room: gives it time");
    let set = Hint::set(more.clone(), why.clone());
    hint = if hint.goes_with(&set) {
        hint.then(set)
    } else {
        hint.then(Hint::offer_to_set(comment!("or"), more, why))
    };
    hint = match drop {
        Some(drop) => hint.then(drop),
        None => hint,
    };
    detail.splice(0..0, advice.detail.take());
    advice.detail = Some(detail.join(" "));
    advice.hint = Some(hint);
}

/// The oldest transaction that a creation waits for and that this usable slot has to keep WAL for,
/// too: its changes may yet have to be decoded (`SnapBuildProcessRunningXacts`, `snapbuild.c`). A slot
/// that has moved on since the creation began is not held back, whatever else it keeps.
fn holder_back<'a>(slot: &Slot, watch: &'a Watch) -> Option<(&'a Blocker, &'a Episode)> {
    let horizon = slot.catalog_xmin?;
    watch.blockers.iter().find_map(|blocker| {
        let is_kept = !blocker.xid().precedes(horizon);
        let episode = watch.blocked_by(blocker.xid()).next()?;
        let stands_still = slot.restart_lsn < episode.restart_lsn();
        (is_kept && stands_still).then_some((blocker, episode))
    })
}

/// On a creation that goes on.
pub fn on_creation(
    episode: &Episode,
    watch: &Watch,
    role: Role,
    limits: &Limits,
    now: Timestamp,
) -> Advice {
    let mut advice = on_wait(episode, watch, role, now);
    if let (Some(leader), Some(detail)) = (episode.creator.leader, &mut advice.detail) {
        detail.push_str(&format!(
            " Its creator is the {} of pid {leader}, which goes on with the slot and drops it \
             itself.",
            episode.creator.backend_type
        ));
    }
    match episode.abandoned {
        Some(since) => on_abandoned(episode, advice, since, limits, now),
        None => with_limits(episode, advice, limits),
    }
}

/// On a creation that goes on, in a log that knows of earlier tries: with the story, and whom it
/// waits for.
pub fn on_next_try(
    episode: &Episode,
    watch: &Watch,
    role: Role,
    limits: &Limits,
    now: Timestamp,
) -> Advice {
    let advice = on_creation(episode, watch, role, limits, now);
    let Some(story) = episode.story.of_try(now) else {
        return advice;
    };
    let blockers = watch.blockers_of(episode);
    let oldest = blockers.first();
    match (episode.state, episode.abandoned, oldest) {
        (State::WaitingForTransactions, None, Some(oldest)) => {
            let count = episode.blockers.len() + episode.more_blockers;
            let holder = holds_up(&oldest.transaction, count, Tense::Present, role, now);
            let kin = kin(&episode.creator, &oldest.transaction);
            let waits = waits_for_lock(&oldest.transaction, now);
            let detail = format!("{story}; {holder}{kin}.{waits}{}", spared(oldest));
            let advice = Advice {
                detail: Some(detail),
                hint: advice.hint,
            };
            with_limits(episode, advice, limits)
        }
        (
            State::Starting
            | State::WaitingForTransactions
            | State::WaitingForRecord
            | State::WaitingForReplay
            | State::BlockingReplay
            | State::Ready
            | State::Abandoned
            | State::NotSyncReady
            | State::Lost,
            _,
            _,
        ) => Advice {
            detail: Some(match advice.detail {
                Some(detail) => format!("{story}. {detail}"),
                None => format!("{story}."),
            }),
            hint: advice.hint,
        },
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Tense {
    Present,
    Past,
}

/// Who holds a creation up: `transaction 725 holds it up: pid 123 (role app), idle in transaction`.
/// `count`: of all that do, `oldest` among them.
pub fn holds_up(
    oldest: &Transaction,
    count: usize,
    tense: Tense,
    role: Role,
    now: Timestamp,
) -> String {
    let place = match role {
        Role::Primary => "",
        Role::Standby => " on the primary",
    };
    let (one, several) = match tense {
        Tense::Present => ("holds", "hold"),
        Tense::Past => ("held", "held"),
    };
    let whose = describe(oldest, now);
    let xid = oldest.xid;
    if count > 1 {
        format!("{count} transactions{place} {several} it up, the oldest of them {xid}: {whose}")
    } else {
        format!("transaction {xid}{place} {one} it up: {whose}")
    }
}

/// What a transaction has to do with a slot's creator.
fn kin(creator: &CreatorIdentity, transaction: &Transaction) -> &'static str {
    match kinship(creator, transaction) {
        Kinship::None => "",
        Kinship::SameClient => ", of the same client as the slot's creator",
        Kinship::SameApplication => ", of the same application as the slot's creator",
        Kinship::WaitsForTheSlot => ", which itself waits for the slot",
    }
}

/// Nobody waits for it any more, whatever it waits for itself.
fn on_abandoned(
    episode: &Episode,
    advice: Advice,
    since: Timestamp,
    limits: &Limits,
    now: Timestamp,
) -> Advice {
    let gone = format!(
        "Its client closed the connection {} ago",
        in_words(now.since(since))
    );
    let (end, hint) = if limits.cancel_abandoned {
        let left = ABANDONED_FOR.saturating_sub(now.since(since));
        let end = format!("slot_self_heal cancels the creation in {}", in_words(left));
        (end, None)
    } else {
        let end = "should the creation ever be over, the slot would stay, and hold back WAL for \
                   nobody";
        let hint = Hint::run(
            remedy::cancel_creation(episode),
            comment!("ends the creation, and the slot is gone"),
        );
        let by_itself = Hint::offer_to_set(
            comment!("or"),
            Setting::at_reload("slot_self_heal.cancel_abandoned", "on"),
            comment!("slot_self_heal does so by itself"),
        );
        (end.to_owned(), Some(hint.then(by_itself)))
    };
    Advice {
        detail: Some(match advice.detail {
            Some(detail) => format!("{gone}; {end}. {detail}"),
            None => format!("{gone}; {end}."),
        }),
        hint,
    }
}

/// Says which limits end it.
fn with_limits(episode: &Episode, mut advice: Advice, limits: &Limits) -> Advice {
    let Some(detail) = &mut advice.detail else {
        return advice;
    };
    if let Limit::Above(limit) = limits.timeout_of(&episode.own_limits) {
        detail.push_str(&format!(
            " It is cancelled after {} (slot_self_heal.creation_timeout).",
            in_words(limit)
        ));
    }
    if let Limit::Above(limit) = limits.wal_of(&episode.own_limits) {
        detail.push_str(&format!(
            " It is cancelled when it holds back more than {} of WAL \
             (slot_self_heal.max_retained_wal).",
            in_bytes(limit)
        ));
    }
    advice
}

/// On what a creation waits for.
pub fn on_wait(episode: &Episode, watch: &Watch, role: Role, now: Timestamp) -> Advice {
    match (episode.state, role) {
        (State::WaitingForTransactions, _) => on_blockers(episode, watch, role, now),
        (State::WaitingForRecord, Role::Primary) => Advice {
            detail: Some(
                "Waits for a running-xacts record in the WAL, which slot_self_heal writes.".into(),
            ),
            hint: None,
        },
        (State::WaitingForRecord, Role::Standby) => on_missing_record(&watch.upstream),
        (State::WaitingForReplay, _) => on_held_replay(episode, watch.replay.as_ref()),
        (State::BlockingReplay, _) => on_deadlock(episode, watch.replay.as_ref()),
        (State::Starting, _) if episode.waits_for_switch() => on_switch(),
        (State::Starting, _) if episode.has_waited() => Advice {
            detail: Some("Reads the WAL that was written while it waited.".into()),
            hint: None,
        },
        (
            State::Starting | State::Ready | State::Abandoned | State::NotSyncReady | State::Lost,
            _,
        ) => Advice {
            detail: Some("The creation has begun, and nothing is known to be wrong.".into()),
            hint: None,
        },
    }
}

/// On the first logical slot of a server with `wal_level = replica`.
fn on_switch() -> Advice {
    Advice {
        detail: Some(
            "Waits until every process of the server has taken note that logical decoding is on: \
             wal_level is replica, and this is the first logical slot."
                .into(),
        ),
        hint: Some(Hint::say(comment!(
            "the server's log names the process that does not, every 5 s (still waiting for backend \
             with PID ... to accept ProcSignalBarrier): let it go on if it was stopped, or end what \
             it does. With wal_level = logical no creation waits for this"
        ))),
    }
}

/// On a standby, whose primary has to write it.
fn on_missing_record(upstream: &Upstream) -> Advice {
    match upstream {
        Upstream::NotNeeded | Upstream::Ok => Advice {
            detail: Some(
                "Waits for a running-xacts record, which slot_self_heal has the primary write."
                    .into(),
            ),
            hint: None,
        },
        Upstream::Trouble(problem) => Advice {
            detail: Some(format!(
                "Waits for a running-xacts record from the primary, and slot_self_heal cannot ask \
                 for it: {}.",
                problem.message
            )),
            hint: Some(problem.hint.clone().then(Hint::run(
                sql!["SELECT pg_log_standby_snapshot();"],
                comment!("on the primary: lets this creation go on, once"),
            ))),
        },
    }
}

/// On a standby whose replay does not bring what the creation waits for.
fn on_held_replay(episode: &Episode, replay: Option<&Replay>) -> Advice {
    let has_archive = replay.is_some_and(|replay| replay.has_archive);
    let (detail, hint) = match &episode.obstacle {
        None => ("Waits for this standby's replay.".to_owned(), None),
        Some(Obstacle::Paused(pause)) => {
            let (why, hint) = on_pause(pause, replay);
            (
                format!("Waits for this standby's replay, which {why}."),
                hint,
            )
        }
        Some(Obstacle::CutOff) if has_archive => (
            "Waits for WAL, and this standby receives none: it has no WAL receiver, and takes what \
             restore_command gives it, a whole segment at a time."
                .to_owned(),
            Some(Hint::run(
                sql!["SELECT pg_log_standby_snapshot(); SELECT pg_switch_wal();"],
                comment!(
                    "on the primary: writes the record, and ends the segment that it is in, which is \
                     archived then"
                ),
            )),
        ),
        Some(Obstacle::RestoreHangs(time)) => (
            format!(
                "Waits for WAL that restore_command is to bring, which has run for {}. This standby \
                 has no WAL receiver meanwhile.",
                in_words(*time)
            ),
            Some(Hint::run(
                sql!["SHOW restore_command;"],
                comment!(
                    "on this standby: does its archive answer? It must end by itself, and is tried \
                     again then: killed, it would take this server down with it"
                ),
            )),
        ),
        Some(Obstacle::BufferPin) => (
            format!(
                "Waits for this standby's replay, which has to clean up a page that a session here \
                 has in use, with a query or an open cursor; {}.",
                ends_conflict(replay)
            ),
            Some(sessions_in_transactions(comment!(
                "on this standby: one of these, which Postgres does not tell; it ends with its query, \
                 or when its cursor moves on or is closed"
            ))),
        ),
        Some(Obstacle::Tablespace) => (
            format!(
                "Waits for this standby's replay, which has to drop a tablespace where a session \
                 here has temporary files, and waits for all that were in a transaction then; {}.",
                ends_conflict(replay)
            ),
            Some(sessions_in_transactions(comment!(
                "on this standby: those that began before it came to that; it ends with their \
                 transactions"
            ))),
        ),
        Some(Obstacle::CutOff) => (
            "Waits for WAL, and this standby receives none: its WAL receiver is not running."
                .to_owned(),
            Some(Hint::say(comment!(
                "on this standby: its log says why. Is the primary up, does primary_conninfo lead \
                 to it, does the slot in primary_slot_name exist there?"
            ))),
        ),
        Some(Obstacle::Conflict(sessions)) => {
            let hints = sessions.iter().take(REMEDIES).map(remedy::of_conflict);
            (
                format!(
                    "Waits for this standby's replay, which waits for other sessions here (pid \
                     {}); {}.",
                    listed(sessions),
                    ends_conflict(replay)
                ),
                hints.reduce(Hint::then),
            )
        }
        Some(Obstacle::UncertainConflict(sessions)) => (
            format!(
                "Waits for this standby's replay, which waits for a snapshot of one or more \
                 sessions here (among them, maybe, pid {}); {}.",
                listed(sessions),
                ends_conflict(replay)
            ),
            Some(Hint::run(
                sql![
                    "SELECT pid, datname, usename, backend_xmin, xact_start, query FROM \
                     pg_stat_activity WHERE pid IN (",
                    Pids(sessions),
                    ");"
                ],
                comment!("on this standby: those of one of these databases are in the way"),
            )),
        ),
        Some(Obstacle::Delayed(delay)) => (
            format!(
                "Waits for a record that was written and is replayed here only after \
                 recovery_min_apply_delay, {}.",
                in_words(*delay)
            ),
            // It is there to undo what was done on the primary.
            Some(Hint::offer_to_set(
                comment!("on this standby, if it need not lag on purpose:"),
                Setting::at_reload("recovery_min_apply_delay", "0"),
                comment!(""),
            )),
        ),
        Some(Obstacle::Behind(bytes)) => (
            format!(
                "Waits for this standby's replay, which is behind: {bytes} bytes of WAL are \
                 received and not replayed."
            ),
            None,
        ),
        Some(Obstacle::UpstreamCutOff) => (
            "Waits for WAL that was written on the primary: the upstream standby, from which this \
             one receives, has not received it, and receives nothing at present, having no WAL \
             receiver that is connected."
                .to_owned(),
            Some(Hint::run(
                sql![
                    "SELECT status, sender_host, sender_port, pg_last_wal_receive_lsn() FROM \
                     pg_stat_wal_receiver;"
                ],
                comment!(
                    "on the upstream standby: no row is no receiver, and its log says why. It tries \
                     again every wal_retrieve_retry_interval; is the primary up?"
                ),
            )),
        ),
        Some(Obstacle::NotReceived) => (
            "Waits for WAL that was written on the primary and has not come here yet.".to_owned(),
            Some(Hint::run(
                sql![
                    "SELECT application_name, state, sent_lsn, flush_lsn FROM pg_stat_replication;"
                ],
                comment!("on the server that this standby receives from"),
            )),
        ),
    };
    Advice {
        detail: Some(detail),
        hint,
    }
}

/// Why replay stands still. Only a pause that somebody asked for is resumed: any other ends with the
/// server's shutdown or its promotion.
fn on_pause(pause: &Pause, replay: Option<&Replay>) -> (String, Option<Hint>) {
    match pause {
        Pause::Asked => (
            "is paused: somebody called pg_wal_replay_pause()".into(),
            // At that very place: should replay have paused once more, it is for another reason.
            replay.map(|replay| {
                Hint::run(
                    sql![
                        "SELECT pg_wal_replay_resume() WHERE pg_last_wal_replay_lsn() = ",
                        replay.replayed,
                        ";"
                    ],
                    comment!("on this standby, if whoever paused it has no more use for that"),
                )
            }),
        ),
        Pause::TooLow(too_low) => {
            let each = |one: &TooLow| {
                let name = one.setting.name();
                format!(
                    "{name} is {} here and {} on the primary",
                    one.here, one.primary
                )
            };
            let list: Vec<String> = too_low.iter().map(each).collect();
            (
                format!(
                    "has paused itself: {}. If it were resumed, this server would shut down",
                    list.join(", ")
                ),
                Some(raise(too_low)),
            )
        }
        Pause::Target { setting, value } => (
            format!(
                "is paused, and {setting} is set, to {value}: if that is what it has come to, \
                 resuming it would promote this server"
            ),
            Some(Hint::say(comment!(
                "on this standby: pg_wal_replay_resume() at a recovery target makes it a primary of \
                 its own, which follows no other. To go on as a standby, take {setting} out of its \
                 configuration and restart it"
            ))),
        ),
        Pause::NotKnown => (
            "is paused; why, slot_self_heal cannot tell".into(),
            Some(Hint::say(comment!(
                "on this standby: its log says why it has paused, and what would happen if it were \
                 resumed"
            ))),
        ),
    }
}

/// One after the other: what is raised already is not named again, though it is not in force yet.
fn raise(too_low: &[TooLow]) -> Hint {
    let count = |raised: Raised| too_low.iter().filter(|one| one.raised == raised).count();
    let then = match count(Raised::No) {
        0 | 1 => "then restart it".to_owned(),
        more => format!(
            "then the other {}, which the next look names; then restart it",
            more - 1
        ),
    };
    if let Some(one) = too_low.iter().find(|one| one.raised == Raised::No) {
        let primary = u64::try_from(one.primary).unwrap_or(0);
        let name = one.setting.name();
        return Hint::run(
            sql!["ALTER SYSTEM SET ", Text(name), " = ", primary, ";"].alone(),
            comment!("on this standby; {then}"),
        );
    }
    match too_low
        .iter()
        .find(|one| one.raised == Raised::OnCommandLine)
    {
        Some(one) => Hint::say(comment!(
            "on this standby {} is set on the server's command line, where configuration files do \
             not count: raise it to {} there, or in whatever starts the server, and restart it",
            one.setting.name(),
            one.primary
        )),
        None => Hint::say(comment!(
            "restart this standby: what is too low is raised in its configuration files"
        )),
    }
}

fn listed(sessions: &[InTheWay]) -> String {
    let list: Vec<String> = sessions.iter().map(|one| one.pid.to_string()).collect();
    list.join(", ")
}

/// A list of pids in a statement.
struct Pids<'a>(&'a [InTheWay]);

impl Part for Pids<'_> {
    fn write(&self, sql: &mut String) {
        sql.push_str(&listed(self.0));
    }
}

/// Among whom somebody is in the way, and whoever looks can tell better who.
fn sessions_in_transactions(comment: Comment) -> Hint {
    Hint::run(
        sql![
            "SELECT pid, datname, usename, state, xact_start, query FROM pg_stat_activity WHERE \
             xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> \
             pg_backend_pid() ORDER BY xact_start;"
        ],
        comment,
    )
}

fn ends_conflict(replay: Option<&Replay>) -> String {
    let after = |delay: Option<&str>| match delay {
        Some(delay) => format!("after {delay}"),
        None => "never".to_owned(),
    };
    match replay.map(Replay::conflict_end) {
        None => "how long, slot_self_heal cannot tell".into(),
        Some(ConflictEnd::After(delay, setting)) => {
            format!("Postgres cancels what is in the way after {delay} ({setting})")
        }
        Some(ConflictEnd::Never(settings)) => {
            format!("this does not end by itself ({settings}: -1)")
        }
        Some(ConflictEnd::NotKnown { streaming, archive }) => format!(
            "Postgres cancels what is in the way {} if that WAL came from an archive or was here at \
             the server's start (max_standby_archive_delay), {} if it was streamed \
             (max_standby_streaming_delay)",
            after(archive),
            after(streaming)
        ),
    }
}

/// On a creation that replay itself waits for.
fn on_deadlock(episode: &Episode, replay: Option<&Replay>) -> Advice {
    let creator = episode.creator.pid;
    Advice {
        detail: Some(format!(
            "A deadlock: the creation waits for replay, and replay waits for a snapshot or a lock \
             of its creator's, pid {creator}; {}.",
            ends_conflict(replay)
        )),
        hint: Some(Hint::run(
            remedy::cancel_creation(episode),
            comment!(
                "on this standby: ends the creation. Over the replication protocol it holds no \
                 snapshot; hot_standby_feedback = on avoids the conflict"
            ),
        )),
    }
}

/// On a standby's copy of a slot that is not ready yet.
pub fn on_copy(slot: &Slot, copy: Option<&UnreadyCopy>, watch: &Watch, now: Timestamp) -> Advice {
    let lost = "This copy of the primary's slot is not persisted yet, and would be lost at a \
                promotion";
    let remote = copy.and_then(|copy| Some((copy, copy.remote.as_ref()?)));
    let is_an_orphan = copy.is_some_and(UnreadyCopy::is_an_orphan);
    let (why, hint) = match (remote, watch.upstream.problem()) {
        // What it said before may have changed since.
        (_, Some(problem)) => (
            format!(
                "slot_self_heal cannot ask the primary for the record that could bring its slot \
                 forward: {}.",
                problem.message
            ),
            Some(problem.hint.clone()),
        ),
        (Some((copy, _)), None) if !copy.is_behind() => (
            "the slot on the primary has come as far as this standby requires, so the next look of \
             slot synchronization should persist it."
                .to_owned(),
            None,
        ),
        (Some((_, remote)), None) if !remote.active => (
            "the slot on the primary is behind what this standby has kept, and has no consumer \
             connected that could bring it forward."
                .to_owned(),
            Some(Hint::run(
                sql![
                    "SELECT active, restart_lsn, catalog_xmin FROM pg_replication_slots WHERE \
                     slot_name = ",
                    slot.name,
                    ";"
                ],
                comment!("on the primary: start its consumer"),
            )),
        ),
        (Some((_, remote)), None) if remote.waits_for_standbys => (
            "the slot on the primary has to come forward first, and its consumer is sent nothing at \
             present: its walsender waits until the standbys in synchronized_standby_slots have \
             received what it would send. No record is of use before."
                .to_owned(),
            Some(Hint::run(
                sql![
                    "SELECT s.slot_name, s.active, s.restart_lsn, r.application_name, r.flush_lsn FROM \
                     pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
                     WHERE s.slot_type = 'physical'; SHOW synchronized_standby_slots;"
                ],
                comment!(
                    "on the primary: each slot named last must be there, with its standby connected; \
                     one whose standby will not come back is to be taken out of the setting"
                ),
            )),
        ),
        (Some((copy, remote)), None) if copy.is_in_vain() => {
            (in_vain(copy, remote, now), Some(look_at_consumer(&slot.name)))
        }
        (Some(_), None) => (
            "the slot on the primary has to come forward first, which takes a running-xacts \
             record there, and its consumer's confirmation; slot_self_heal asks for the record."
                .to_owned(),
            None,
        ),
        (None, None) if is_an_orphan => (
            "the primary has no failover slot of its name any more, and it goes as well.".to_owned(),
            None,
        ),
        (None, None) => (
            "slot_self_heal has not asked the primary yet.".to_owned(),
            None,
        ),
    };
    let mut detail = format!("{lost}: {why}");
    let mut hint = hint.unwrap_or_default();
    if let Some(made_by_hand) = slot.made_by_hand {
        detail.push_str(&match made_by_hand {
            MadeByHand::Now => {
                " A call of pg_sync_replication_slots() made it, and drops it if it ends before."
                    .to_owned()
            }
            MadeByHand::Dropped(at) => format!(
                " A call of pg_sync_replication_slots() made it, and dropped it when it ended, {} \
                 ago.",
                in_words(now.since(at))
            ),
        });
        // From PostgreSQL 19 on it tries itself until the copy is persisted.
        if !is_an_orphan && made_by_hand != MadeByHand::Now {
            let when = match copy {
                Some(copy) if !copy.is_behind() => "",
                _ => " once that slot has come forward",
            };
            hint = hint.then(Hint::say(comment!(
                "on this standby: call pg_sync_replication_slots() again{when}; \
                 sync_replication_slots = on tries by itself"
            )));
        }
    }
    if let Some(reason) = &slot.sync_skipped {
        detail.push(' ');
        detail.push_str(&passed_over(reason));
    }
    if let Some(namesake) = watch.namesakes.first() {
        detail.push_str(&format!(
            " Slot synchronization stops at slot \"{}\", which was created here and has the name of \
             a failover slot on the primary.",
            namesake.as_str()
        ));
    }
    Advice {
        detail: Some(detail),
        hint: (hint != Hint::default()).then_some(hint),
    }
}

/// On a slot of this standby's own that keeps a copy from being made. Somebody may use it whose
/// consumer is just away, so the hint shows it and drops nothing.
pub fn on_namesake(slot: &SlotName) -> Advice {
    Advice {
        detail: Some(
            "The primary has a failover slot of this name, and this one was created here: slot \
             synchronization (sync_replication_slots) stops at it, and copies no slot after it."
                .into(),
        ),
        hint: Some(Hint::run(
            sql![
                "SELECT slot_name, plugin, active, inactive_since, confirmed_flush_lsn FROM \
                 pg_replication_slots WHERE slot_name = ",
                *slot,
                " AND NOT synced;"
            ],
            comment!(
                "on this standby: whether it is used here. If nobody needs it, drop it with \
                 pg_drop_replication_slot(), and the copy takes its place; else one of the two has \
                 to get another name"
            ),
        )),
    }
}

/// The records were written, and the slot on the primary stays where it is.
fn in_vain(copy: &UnreadyCopy, remote: &RemoteSlot, now: Timestamp) -> String {
    let last = copy.last_nudge.map_or_else(String::new, |nudge| {
        format!(", the last {} ago", in_words(now.since(nudge.at)))
    });
    let has_read_all =
        (copy.last_nudge).is_some_and(|nudge| remote.confirmed_flush_lsn >= Some(nudge.lsn));
    let consumer = if has_read_all {
        "although its consumer has confirmed all of them".to_owned()
    } else {
        format!(
            "and its consumer, which is connected, has confirmed nothing for {}",
            in_words(now.since(copy.silent_since))
        )
    };
    format!(
        "the slot on the primary has to come forward first. {} running-xacts records were written \
         there for it{last}; it has not moved for {}, {consumer}.",
        copy.unanswered,
        in_words(now.since(copy.still_since))
    )
}

fn look_at_consumer(slot: &SlotName) -> Hint {
    Hint::run(
        sql![
            "SELECT s.restart_lsn, s.confirmed_flush_lsn, r.pid, r.application_name, r.client_addr, \
             r.state, r.sent_lsn, r.flush_lsn, r.reply_time FROM pg_replication_slots s LEFT JOIN \
             pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = ",
            *slot,
            ";"
        ],
        comment!(
            "on the primary: is its consumer at work, and does it confirm what it is sent? An open \
             transaction that began before it also keeps the slot where it is"
        ),
    )
}

/// A transaction of the old primary that wrote nothing: this server has its xid yet to give out, and
/// takes it for running until that has happened (`TransactionIdIsInProgress`, `procarray.c`).
fn on_promoted() -> Advice {
    Advice {
        detail: Some(
            "Waits for a transaction that the old primary had begun and that this server, promoted \
             meanwhile, takes for running until it has ended one of its own."
                .into(),
        ),
        hint: Some(Hint::run(
            sql!["SELECT pg_current_xact_id();"],
            comment!("on this server: a transaction that ends"),
        )),
    }
}

fn on_blockers(episode: &Episode, watch: &Watch, role: Role, now: Timestamp) -> Advice {
    let blockers = watch.blockers_of(episode);
    let Some(oldest) = blockers.first() else {
        if episode.was_promoted(now, Duration::ZERO) {
            return on_promoted();
        }
        return Advice {
            detail: Some("Waits for a transaction that is just ending.".into()),
            hint: None,
        };
    };
    let count = episode.blockers.len() + episode.more_blockers;
    let spared = spared(oldest);
    let oldest = &oldest.transaction;
    let whose = describe(oldest, now);
    let waits = waits_for_lock(oldest, now);
    let kin = kin(&episode.creator, oldest);
    let place = match role {
        Role::Primary => "",
        Role::Standby => " on the primary",
    };
    let xid = oldest.xid;
    let detail = if count == 1 {
        format!("Waits for transaction {xid}{place} to end: {whose}{kin}.{waits}{spared}")
    } else {
        format!(
            "Waits for {count} transactions{place} to end, the oldest of them {xid}: \
             {whose}{kin}.{waits}{spared}"
        )
    };
    let mut hint = Hint::default();
    let mut left = count;
    for blocker in blockers.iter().take(REMEDIES) {
        let remedy = remedy::of_blocker(episode, &blocker.transaction, role, now);
        let is_waited_for = !remedy.has_sql();
        if hint.goes_with(&remedy) {
            hint = hint.then(remedy);
            left -= 1;
        }
        // Until that one has ended by itself, the end of others would be in vain.
        if is_waited_for {
            break;
        }
    }
    if left > 0 {
        hint = hint.then(Hint::say(comment!(
            "then look again: {left} more stand in slot_self_heal_status.blockers"
        )));
    }
    if role == Role::Standby {
        if let Some(blind) = &watch.blind {
            hint = hint.then(grant_sight(blind));
        }
        if let Some(problem) = watch.upstream.problem() {
            hint = hint.then(problem.hint.clone());
        }
    }
    Advice {
        detail: Some(detail),
        hint: Some(hint),
    }
}

/// On the primary, to the role that a standby connects as.
fn grant_sight(role: &str) -> Hint {
    Hint::run(
        sql!["GRANT pg_read_all_stats TO ", Identifier(role), ";"],
        comment!("on the primary: lets this standby say what those sessions do"),
    )
}

/// What would take a guard away that is a standby's own.
pub fn on_guard(guard: &Guard, watch: &Watch) -> Option<Hint> {
    match guard {
        Guard::Unseen => watch.blind.as_deref().map(grant_sight),
        Guard::UpstreamIsStandby => Some(name_the_primary()),
        Guard::Prepared
        | Guard::Disabled
        | Guard::ReportOnly
        | Guard::Grace
        | Guard::Superuser
        | Guard::Replication
        | Guard::ProtectedRole(_)
        | Guard::UnknownRoles(_)
        | Guard::PreventsWraparound
        | Guard::NotAClient(_)
        | Guard::Creator
        | Guard::Peer
        | Guard::NotIdle(_)
        | Guard::NotKnown
        | Guard::CancelInVain
        | Guard::Stayed
        | Guard::CancelMayCutCommit
        | Guard::Commits
        | Guard::Committed
        | Guard::InVain(_)
        | Guard::UnknownLocks
        | Guard::JustIdle
        | Guard::NotAsked(_)
        | Guard::Primary(_) => None,
    }
}

/// Why slot_self_heal does not end it, where the settings would let it.
fn spared(blocker: &Blocker) -> String {
    match (&blocker.guard, blocker.told) {
        (Some(guard), _) => format!(" slot_self_heal does not end it: {guard}."),
        (None, Some(Ending::Cancel)) => " slot_self_heal has cancelled its statement, and it has \
             stayed in its transaction; slot_self_heal.blocker_action = terminate would end it."
            .to_owned(),
        (None, Some(Ending::Terminate)) => " slot_self_heal has told it to end.".to_owned(),
        (None, None) => String::new(),
    }
}

/// Who creates a slot: `walsender, application debezium, client 10.0.0.5`.
pub fn describe_creator(creator: &CreatorIdentity) -> String {
    let mut who = vec![creator.backend_type.clone()];
    if let Some(leader) = creator.leader {
        who.push(format!("works for pid {leader}"));
    }
    if !creator.application_name.is_empty() {
        who.push(format!("application {}", creator.application_name));
    }
    if let Some(address) = &creator.client_addr {
        who.push(format!("client {address}"));
    }
    who.join(", ")
}

/// Who holds a transaction or a lock, as the server shows it.
pub struct Party<'a> {
    backend_type: Option<&'a str>,
    subscription: Option<&'a Subscription>,
    usename: Option<&'a str>,
    database: Option<&'a str>,
    application_name: Option<&'a str>,
    client_addr: Option<&'a str>,
    state: Option<&'a str>,
    since: Option<Timestamp>,
    query: Option<&'a str>,
}

impl<'a> From<&'a Transaction> for Party<'a> {
    fn from(transaction: &'a Transaction) -> Self {
        Self {
            backend_type: match transaction.holder {
                // It is said of it otherwise.
                Holder::Autovacuum(_) => None,
                Holder::Session(_) | Holder::Prepared { .. } | Holder::Unknown => {
                    transaction.backend_type.as_deref()
                }
            },
            subscription: transaction.subscription.as_ref(),
            usename: transaction.usename.as_deref(),
            database: transaction.database.as_deref(),
            application_name: transaction.application_name.as_deref(),
            client_addr: transaction.client_addr.as_deref(),
            state: transaction.state.as_deref(),
            since: transaction.state_since.or(transaction.started),
            query: transaction.query.as_deref(),
        }
    }
}

impl<'a> From<&'a Session> for Party<'a> {
    fn from(session: &'a Session) -> Self {
        Self {
            backend_type: session.backend_type.as_deref(),
            subscription: session.subscription.as_ref(),
            usename: session.usename.as_deref(),
            database: session.database.as_deref(),
            application_name: session.application_name.as_deref(),
            client_addr: session.client_addr.as_deref(),
            state: session.state.as_deref(),
            since: session.state_since.or(session.started),
            query: session.query.as_deref(),
        }
    }
}

/// `role app, database shop, application psql`
fn who(party: &Party<'_>) -> String {
    let name = |what: &str, name: Option<&str>| {
        let name = name.filter(|name| !name.is_empty())?;
        Some(format!("{what}{name}"))
    };
    let of_subscription = party.subscription;
    let application = match of_subscription {
        None => party.application_name,
        // It tells the same in numbers.
        Some(_) => None,
    };
    let parts = [
        party
            .backend_type
            .filter(|what| *what != CLIENT)
            .map(str::to_owned),
        name("subscription ", of_subscription.map(|of| of.name.as_str())),
        name(
            "copies table ",
            of_subscription.and_then(|of| of.copies.as_deref()),
        ),
        name("role ", party.usename),
        name("database ", party.database),
        name("application ", application),
        name("client ", party.client_addr),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `pg_stat_activity.backend_type` of an ordinary session.
const CLIENT: &str = "client backend";

/// Who holds a transaction: `pid 123 (role app, database shop, application psql), idle in
/// transaction for 5 min 2 s`.
pub fn describe(blocker: &Transaction, now: Timestamp) -> String {
    let who = who(&blocker.into());
    let gone = match blocker.client_gone {
        true => ", for a client that is gone",
        false => "",
    };
    let doing = format!("{}{gone}", doing(blocker, now));
    match &blocker.holder {
        Holder::Session(pid) => format!("pid {pid} ({who}), {doing}"),
        Holder::Autovacuum(pid) => format!("autovacuum, pid {pid} ({who}), {doing}"),
        Holder::Prepared { gid } => {
            format!(
                "prepared transaction {} ({who}), {doing}",
                quote_literal(gid)
            )
        }
        Holder::Unknown => "whose it is only the primary knows".to_owned(),
    }
}

/// ` It waits for a lock of pid 123 (role app), idle in transaction for 5 min.`
fn waits_for_lock(blocker: &Transaction, now: Timestamp) -> String {
    let roots = blocker.lock_wait.as_ref().map(|wait| wait.roots.as_slice());
    let Some((first, others)) = roots.and_then(<[Root]>::split_first) else {
        return String::new();
    };
    let holder = match first {
        Root::Transaction(holder) => {
            format!("transaction {}, {}", holder.xid, describe(holder, now))
        }
        Root::Session(holder) => {
            let session = holder.as_ref();
            let who = who(&session.into());
            format!("pid {} ({who}), {}", holder.pid, doing(session, now))
        }
    };
    match others.len() {
        0 => format!(" It waits for a lock of {holder}."),
        more => format!(" It waits for a lock of {holder}, and for {more} more."),
    }
}

/// `idle in transaction for 5 min 2 s`, `active for 3 s in CREATE INDEX CONCURRENTLY`
pub fn doing<'a>(party: impl Into<Party<'a>>, now: Timestamp) -> String {
    let party = party.into();
    let state = match party.state {
        Some("disabled") => "in a state that is not known (track_activities is off)",
        Some(state) => state,
        None if party.backend_type.is_some_and(|what| what != CLIENT) => "running",
        None => "open",
    };
    let command = party.query.filter(|_| state == "active").and_then(command);
    let command = command.map_or_else(String::new, |command| format!(" in {command}"));
    match party.since {
        Some(since) => format!("{state} for {}{command}", in_words(now.since(since))),
        None => format!("{state}{command}"),
    }
}

/// What kind of command a query is. Its text is not repeated: it may have a password in it, and
/// this goes to the log.
fn command(query: &str) -> Option<&'static str> {
    /// Of two that begin alike the longer comes first.
    #[rustfmt::skip]
    const COMMANDS: &[&str] = &[
        "ALTER SUBSCRIPTION", "ALTER TABLE", "ANALYZE", "CALL", "CLUSTER", "COMMIT", "COPY",
        "CREATE INDEX CONCURRENTLY", "CREATE INDEX", "CREATE MATERIALIZED VIEW",
        "CREATE SUBSCRIPTION", "CREATE TABLE", "CREATE UNIQUE INDEX CONCURRENTLY",
        "CREATE UNIQUE INDEX", "DELETE", "DO", "DROP INDEX CONCURRENTLY", "DROP INDEX",
        "DROP SUBSCRIPTION", "DROP TABLE", "INSERT", "LOCK TABLE", "LOCK", "MERGE",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY", "REFRESH MATERIALIZED VIEW", "REINDEX",
        "REPACK (CONCURRENTLY)", "REPACK", "SELECT", "TRUNCATE", "UPDATE", "VACUUM", "WITH",
    ];
    let words = |text: &str| -> Vec<String> {
        let word = |word: &str| word.trim_end_matches(';').to_ascii_uppercase();
        text.split_whitespace().take(4).map(word).collect()
    };
    let begins = words(query);
    let is_it = |command: &&&str| begins.starts_with(&words(command));
    COMMANDS.iter().find(is_it).copied()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::locks::LockWait;
    use super::super::policy::Policy;
    use super::*;

    fn advice(transactions: Vec<Transaction>) -> (String, String) {
        let watch = watching(transactions);
        let episode = watch.episodes.values().next().expect("an episode");
        let advice = on_creation(
            episode,
            &watch,
            Role::Primary,
            &Policy::default().limits,
            at(200_000),
        );
        (
            advice.detail.expect("a detail"),
            advice.hint.expect("a hint").to_string(),
        )
    }

    #[test]
    fn a_forgotten_session_is_named_and_timed() {
        let (detail, hint) = advice(vec![session(700, 1234)]);
        assert_eq!(
            detail,
            "Waits for transaction 700 to end: pid 1234 (role alice, database app, application \
             shop, client 10.0.0.7), idle in transaction for 3 min 20 s."
        );
        assert_eq!(
            hint,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = '700'; -- \
             pid 1234, idle in transaction for 3 min 20 s"
        );
    }

    #[test]
    fn each_kind_of_holder_has_its_remedy() {
        let autovacuum = Transaction {
            holder: Holder::Autovacuum(pid(9)),
            query: Some("autovacuum: ANALYZE public.t".into()),
            ..session(701, 9)
        };
        let (detail, hint) = advice(vec![prepared(700, "it's"), autovacuum.clone()]);
        assert!(detail.starts_with("Waits for 2 transactions to end, the oldest of them 700:"));
        // It runs in no transaction with others.
        let alone = "ROLLBACK PREPARED 'it''s'; -- or COMMIT PREPARED; in database app";
        assert!(hint.starts_with(alone), "{hint}");
        let rest = "\n-- then look again: 1 more stand in slot_self_heal_status.blockers";
        assert!(hint.ends_with(rest), "{hint}");
        let (_, hint) = advice(vec![autovacuum]);
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_xid = \
                      '701'; -- pid 9, an autovacuum";
        assert!(hint.starts_with(cancel), "{hint}");
    }

    #[test]
    fn a_gid_that_may_be_garbled_is_looked_up() {
        let (_, hint) = advice(vec![prepared(700, "caf\u{fffd}")]);
        assert!(
            hint.contains("FROM pg_prepared_xacts WHERE transaction = '700';"),
            "{hint}"
        );
    }

    #[test]
    fn a_hint_stays_sql_whatever_the_names() {
        let odd = Transaction {
            database: Some("a\nDROP TABLE t;".into()),
            ..prepared(700, "g")
        };
        let (_, hint) = advice(vec![odd]);
        assert_eq!(hint.lines().count(), 1, "{hint}");
    }

    #[test]
    fn a_subscription_to_its_own_cluster_is_told_how_to_do_it() {
        let command = Transaction {
            waits_for_walsender: true,
            query: Some("CREATE SUBSCRIPTION Sub CONNECTION '' PUBLICATION p".into()),
            ..session(700, 1234)
        };
        let (detail, hint) = advice(vec![command]);
        assert!(detail.ends_with("which itself waits for the slot."));
        assert!(hint.starts_with("SELECT pg_cancel_backend(pid) FROM pg_stat_activity"));
        assert!(hint.contains("create_slot = false, slot_name = 'x'"));
    }

    #[test]
    fn many_blockers_are_counted() {
        let (detail, hint) = advice((700..710).map(|number| session(number, 1)).collect());
        assert!(detail.starts_with("Waits for 10 transactions to end, the oldest of them 700:"));
        assert_eq!(hint.lines().count(), REMEDIES + 1);
        assert!(
            hint.ends_with("-- then look again: 7 more stand in slot_self_heal_status.blockers")
        );
    }

    #[test]
    fn who_holds_the_lock_is_named() {
        let waits = Transaction {
            state: Some("active".into()),
            query: Some("alter  table t ADD c text DEFAULT 'secret'".into()),
            lock_wait: Some(LockWait {
                waits_for: vec![pid(9)],
                roots: vec![Root::Session(Box::new(reader(9)))],
            }),
            ..session(700, 1234)
        };
        let (detail, _) = advice(vec![waits]);
        assert!(
            detail.ends_with(
                "active for 3 min 20 s in ALTER TABLE. It waits for a lock of pid 9 (role bob, \
                 database app, application report, client 10.0.0.8), idle in transaction for 3 min \
                 20 s."
            ),
            "{detail}"
        );
    }

    #[test]
    fn of_a_query_only_the_command_is_told() {
        assert_eq!(
            command("create index concurrently i on t (x)"),
            Some("CREATE INDEX CONCURRENTLY")
        );
        assert_eq!(command("CREATE INDEX i ON t (x)"), Some("CREATE INDEX"));
        assert_eq!(command("VACUUM;"), Some("VACUUM"));
        assert_eq!(command("ALTER ROLE r PASSWORD 'secret'"), None);
        assert_eq!(command(""), None);
    }
}
