//! What is being waited for and what an operator can do, in words for someone at 3 a.m.

use std::time::Duration;

use super::blocker::Blocker;
use super::copy::UnreadyCopy;
use super::diagnosis::{Kinship, State, kinship};
use super::episode::Episode;
use super::guard::{Ending, Guard};
use super::hint::{Comment, Hint, Identifier, Literal, Part, comment, quote_literal, sql};
use super::limit::ABANDONED_FOR;
use super::observation::{
    CreatorIdentity, Holder, Pid, Progress, Role, Slot, SlotName, Transaction,
};
use super::pause::{Pause, Raised, TooLow};
use super::policy::{Limit, Limits};
use super::replay::{Obstacle, Replay};
use super::risk::Risk;
use super::time::{Timestamp, in_bytes, in_words};
use super::upstream::{Upstream, name_the_primary};
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
    Hint::run(
        sql!["ALTER SYSTEM SET slot_self_heal.enabled = on;"].alone(),
        comment!("then SELECT pg_reload_conf();"),
    )
}

/// On a slot that nobody builds.
pub fn on_slot(slot: &Slot) -> Advice {
    match &slot.progress {
        Progress::Usable | Progress::Building(_) | Progress::NotSyncReady => Advice::default(),
        Progress::LeftBehind(holder) => Advice {
            detail: Some("Its creation ended before the slot was usable.".into()),
            hint: Some(drop_slot(&slot.name, *holder)),
        },
        Progress::Invalidated(reason) => Advice {
            detail: Some(match reason {
                Some(reason) => format!("Postgres invalidated the slot: {reason}."),
                None => "Postgres invalidated the slot: what it needs is gone.".into(),
            }),
            // A standby's copy can't be dropped there; the slot sync worker does it.
            hint: (!slot.synced).then(|| drop_slot(&slot.name, None)),
        },
    }
}

fn drop_slot(slot: &SlotName, holder: Option<Pid>) -> Hint {
    match holder {
        None => Hint::run(
            sql!["SELECT pg_drop_replication_slot(", *slot, ");"],
            comment!("then let its client create it anew"),
        ),
        Some(pid) => Hint::run(
            sql!["SELECT pg_terminate_backend(", pid, ");"],
            comment!("drops it, being the session that holds it"),
        ),
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
    if let Progress::Usable = slot.progress {
        match (holder_back(slot, watch), slot.active) {
            (Some((blocker, episode)), true) => {
                detail.push(format!(
                    "Transaction {} holds it back as well: {}.",
                    blocker.xid(),
                    describe(&blocker.transaction, now)
                ));
                hint = hint.then(remedy(episode, &blocker.transaction, role, now));
            }
            // Its consumer confirms as it goes; nothing says that it will stop.
            (None, true) => return,
            (_, false) => {
                detail.push("No consumer is connected to it.".to_owned());
                hint = hint.then(Hint::run(
                    sql!["SELECT pg_drop_replication_slot(", slot.name, ");"],
                    comment!("if its consumer need not be started again"),
                ));
            }
        }
    }
    // What is held back and what may be written besides make up the present limit.
    let limit = slot.retained_wal.unwrap_or(0) + slot.safe_wal_size.unwrap_or(0);
    let megabytes = u64::try_from(limit.max(1 << 20) >> 20).unwrap_or(1) * 2;
    hint = hint.then(Hint::run(
        sql![
            "ALTER SYSTEM SET max_slot_wal_keep_size = '",
            megabytes,
            "MB';"
        ]
        .alone(),
        comment!(
            "twice as much, if the disk has room: gives it time; then SELECT pg_reload_conf();"
        ),
    ));
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
    let advice = on_wait(episode, watch, role, now);
    match episode.abandoned {
        Some(since) => on_abandoned(episode, advice, since, limits, now),
        None => with_limits(episode, advice, limits),
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
    let pid = episode.creator.pid;
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
            sql!["SELECT pg_cancel_backend(", pid, ");"],
            comment!(
                "ends the creation, and the slot is gone; slot_self_heal.cancel_abandoned = on does \
                 so by itself"
            ),
        );
        (end.to_owned(), Some(hint))
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
                sql!["SELECT pg_switch_wal();"],
                comment!("on the primary: ends the segment"),
            )),
        ),
        Some(Obstacle::CutOff) => (
            "Waits for WAL, and this standby receives none: its WAL receiver is not running."
                .to_owned(),
            Some(Hint::say(comment!(
                "on this standby: its log says why. Is the primary up, does primary_conninfo lead \
                 to it, does the slot in primary_slot_name exist there?"
            ))),
        ),
        Some(Obstacle::Conflict(pids)) => {
            let terminate = |pid: &Pid| {
                Hint::run(
                    sql!["SELECT pg_terminate_backend(", *pid, ");"],
                    comment!("on this standby"),
                )
            };
            let hint = pids.iter().take(REMEDIES).map(terminate);
            (
                format!(
                    "Waits for this standby's replay, which waits for other sessions here (pid \
                     {}); {}.",
                    listed(pids),
                    ends_conflict(replay)
                ),
                hint.reduce(Hint::then),
            )
        }
        Some(Obstacle::UncertainConflict(pids)) => (
            format!(
                "Waits for this standby's replay, which waits for a snapshot of one or more \
                 sessions here (among them, maybe, pid {}); {}.",
                listed(pids),
                ends_conflict(replay)
            ),
            Some(Hint::run(
                sql![
                    "SELECT pid, datname, usename, backend_xmin, xact_start, query FROM \
                     pg_stat_activity WHERE pid IN (",
                    Pids(pids),
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
            Some(Hint::run(
                sql!["ALTER SYSTEM SET recovery_min_apply_delay = 0;"].alone(),
                comment!(
                    "on this standby, if it need not lag on purpose; then SELECT pg_reload_conf();"
                ),
            )),
        ),
        Some(Obstacle::Behind(bytes)) => (
            format!(
                "Waits for this standby's replay, which is behind: {bytes} bytes of WAL are \
                 received and not replayed."
            ),
            None,
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
            sql!["ALTER SYSTEM SET ", name, " = ", primary, ";"].alone(),
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

fn listed(pids: &[Pid]) -> String {
    let list: Vec<String> = pids.iter().map(Pid::to_string).collect();
    list.join(", ")
}

/// A list of pids in a statement.
struct Pids<'a>(&'a [Pid]);

impl Part for Pids<'_> {
    fn write(&self, sql: &mut String) {
        sql.push_str(&listed(self.0));
    }
}

fn ends_conflict(replay: Option<&Replay>) -> String {
    match replay.and_then(Replay::conflict_ends_after) {
        Some(delay) => format!("Postgres cancels what is in the way after {delay}"),
        None => "max_standby_streaming_delay is -1, so this does not end by itself".into(),
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
            sql!["SELECT pg_cancel_backend(", creator, ");"],
            comment!(
                "on this standby: ends the creation. Over the replication protocol it holds no \
                 snapshot; hot_standby_feedback = on avoids the conflict"
            ),
        )),
    }
}

/// On a standby's copy of a slot that is not ready yet.
pub fn on_copy(slot: &SlotName, copy: Option<&UnreadyCopy>, upstream: &Upstream) -> Advice {
    let lost = "This copy of the primary's slot is not persisted yet, and would be lost at a \
                promotion";
    let remote = copy.and_then(|copy| copy.remote.as_ref());
    let (why, hint) = match (remote, upstream.problem()) {
        (Some(remote), _) if !remote.active => (
            "the slot on the primary is behind what this standby has kept, and has no consumer \
             connected that could bring it forward."
                .to_owned(),
            Some(Hint::run(
                sql![
                    "SELECT active, restart_lsn, catalog_xmin FROM pg_replication_slots WHERE \
                     slot_name = ",
                    *slot,
                    ";"
                ],
                comment!("on the primary: start its consumer"),
            )),
        ),
        (Some(_), None) => (
            "the slot on the primary has to come forward first, which takes a running-xacts \
             record there, and its consumer's confirmation; slot_self_heal asks for the record."
                .to_owned(),
            None,
        ),
        (_, Some(problem)) => (
            format!(
                "slot_self_heal cannot ask the primary for the record that could bring its slot \
                 forward: {}.",
                problem.message
            ),
            Some(problem.hint.clone()),
        ),
        (None, None) => (
            "slot_self_heal has not asked the primary yet.".to_owned(),
            None,
        ),
    };
    Advice {
        detail: Some(format!("{lost}: {why}")),
        hint,
    }
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
    let kin = match kinship(&episode.creator, oldest) {
        Kinship::None => "",
        Kinship::SameApplication => ", of the same application as the slot's creator",
        Kinship::WaitsForTheSlot => ", which itself waits for the slot",
    };
    let place = match role {
        Role::Primary => "",
        Role::Standby => " on the primary",
    };
    let xid = oldest.xid;
    let detail = if count == 1 {
        format!("Waits for transaction {xid}{place} to end: {whose}{kin}.{spared}")
    } else {
        format!(
            "Waits for {count} transactions{place} to end, the oldest of them {xid}: \
             {whose}{kin}.{spared}"
        )
    };
    let mut hint = blockers
        .iter()
        .take(REMEDIES)
        .map(|blocker| remedy(episode, &blocker.transaction, role, now))
        .fold(Hint::default(), Hint::then);
    if count > REMEDIES {
        hint = hint.then(Hint::say(comment!(
            "{} more stand in slot_self_heal_status.blockers",
            count - REMEDIES
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
        | Guard::Committed
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
    if !creator.application_name.is_empty() {
        who.push(format!("application {}", creator.application_name));
    }
    if let Some(address) = &creator.client_addr {
        who.push(format!("client {address}"));
    }
    who.join(", ")
}

/// Who holds a transaction: `pid 123 (role app, database shop, application psql), idle in
/// transaction for 5 min 2 s`.
pub fn describe(blocker: &Transaction, now: Timestamp) -> String {
    let who: Vec<String> = [
        ("role", &blocker.usename),
        ("database", &blocker.database),
        ("application", &blocker.application_name),
        ("client", &blocker.client_addr),
    ]
    .into_iter()
    .filter_map(|(what, name)| {
        Some(format!(
            "{what} {}",
            name.as_deref().filter(|n| !n.is_empty())?
        ))
    })
    .collect();
    let who = who.join(", ");
    let doing = doing(blocker, now);
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

/// `idle in transaction for 5 min 2 s`
fn doing(blocker: &Transaction, now: Timestamp) -> String {
    let state = match blocker.state.as_deref() {
        Some("disabled") => "in a state that is not known (track_activities is off)",
        Some(state) => state,
        None => "open",
    };
    match blocker.state_since.or(blocker.started) {
        Some(since) => format!("{state} for {}", in_words(now.since(since))),
        None => state.to_owned(),
    }
}

/// The statement that ends a blocker, where to run it and what to know before.
pub fn remedy(episode: &Episode, blocker: &Transaction, role: Role, now: Timestamp) -> Hint {
    let doing = doing(blocker, now);
    let place = match role {
        Role::Primary => "",
        Role::Standby => "on the primary: ",
    };
    match &blocker.holder {
        Holder::Session(_) if blocker.waits_for_sync_standby => Hint::run(
            sql!["SELECT application_name, state, sync_state FROM pg_stat_replication;"],
            comment!(
                "{place}it has committed, and waits for a synchronous standby \
                 (synchronous_standby_names)"
            ),
        ),
        Holder::Session(pid) => {
            let terminate =
                |why: Comment| Hint::run(sql!["SELECT pg_terminate_backend(", *pid, ");"], why);
            match kinship(&episode.creator, blocker) {
                Kinship::None => terminate(comment!("{place}{doing}")),
                Kinship::SameApplication => terminate(comment!(
                    "{place}{doing}; of the same application as the slot's creator, which may end \
                     it by itself"
                )),
                Kinship::WaitsForTheSlot => Hint::run(
                    sql!["SELECT pg_cancel_backend(", *pid, ");"],
                    comment!(
                        "{place}it waits for the slot; create the slot first, then the \
                         subscription WITH (create_slot = false, slot_name = {})",
                        quote_literal(episode.slot.as_str())
                    ),
                ),
            }
        }
        Holder::Autovacuum(pid) => Hint::run(
            sql!["SELECT pg_cancel_backend(", *pid, ");"],
            comment!("{place}autovacuum, which starts again later"),
        ),
        Holder::Prepared { gid } => {
            let database = blocker.database.as_deref().unwrap_or_default();
            if gid.is_ascii() {
                Hint::run(
                    sql!["ROLLBACK PREPARED ", Literal(gid), ";"].alone(),
                    comment!(
                        "{place}or COMMIT PREPARED; in database {database}, as its owner or a \
                         superuser"
                    ),
                )
            } else {
                // It is in its own database's encoding, and may not have survived ours.
                Hint::run(
                    sql![
                        "SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE \
                         transaction = ",
                        blocker.xid,
                        ";"
                    ],
                    comment!("{place}and run what it says, in database {database}"),
                )
            }
        }
        Holder::Unknown => {
            let xid = blocker.xid;
            Hint::run(
                sql![
                    "SELECT pid, usename, state, query FROM pg_stat_activity WHERE backend_xid = ",
                    xid,
                    "; SELECT gid FROM pg_prepared_xacts WHERE transaction = ",
                    xid,
                    ";"
                ],
                comment!("{place}whose it is"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
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
            "SELECT pg_terminate_backend(1234); -- idle in transaction for 3 min 20 s"
        );
    }

    #[test]
    fn each_kind_of_holder_has_its_remedy() {
        let autovacuum = Transaction {
            holder: Holder::Autovacuum(pid(9)),
            ..session(701, 9)
        };
        let (detail, hint) = advice(vec![prepared(700, "it's"), autovacuum.clone()]);
        assert!(detail.starts_with("Waits for 2 transactions to end, the oldest of them 700:"));
        // It runs in no transaction with others.
        let alone = "ROLLBACK PREPARED 'it''s'; -- or COMMIT PREPARED; in database app";
        assert!(hint.starts_with(alone) && hint.lines().count() == 1);
        let (_, hint) = advice(vec![autovacuum]);
        assert!(hint.starts_with("SELECT pg_cancel_backend(9); -- autovacuum"));
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
        assert!(hint.starts_with("SELECT pg_cancel_backend(1234);"));
        assert!(hint.contains("create_slot = false, slot_name = 'x'"));
    }

    #[test]
    fn many_blockers_are_counted() {
        let (detail, hint) = advice((700..710).map(|number| session(number, 1)).collect());
        assert!(detail.starts_with("Waits for 10 transactions to end, the oldest of them 700:"));
        assert_eq!(hint.lines().count(), REMEDIES + 1);
        assert!(hint.ends_with("-- 7 more stand in slot_self_heal_status.blockers"));
    }
}
