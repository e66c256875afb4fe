//! The log's messages.

use std::time::Duration;

use pgrx::prelude::*;

use crate::core::advice::{self, Tense};
use crate::core::blocker::Blocker;
use crate::core::diagnosis::State;
use crate::core::episode::{Episode, Telling, Waited};
use crate::core::guard::{Ending, Guard};
use crate::core::hint::Hint;
use crate::core::history::{Finished, Outcome};
use crate::core::limit::Reason;
use crate::core::observation::{Observation, Role, SlotName, Transaction};
use crate::core::policy::Limits;
use crate::core::remedy;
use crate::core::story::{Story, Unfinished, ordinal};
use crate::core::time::{Timestamp, in_words};
use crate::core::upstream::{Kind, Problem};
use crate::core::watch::Watch;
use crate::core::xid::{Lsn, Xid};
use crate::server;
use crate::server::report::Notice;

fn notice(code: PgSqlErrorCode, message: impl Into<String>) -> Notice {
    Notice {
        code,
        message: message.into(),
        detail: None,
        hint: None,
    }
}

/// A creation waits for transactions or for replay.
pub fn waits(
    telling: Telling,
    episode: &Episode,
    watch: &Watch,
    limits: &Limits,
    observation: &Observation,
) -> Notice {
    let again = match telling {
        Telling::First => " and ",
        Telling::Again => " and still ",
        Telling::NextTry => " again and ",
    };
    let does = match episode.state {
        State::WaitingForReplay => "waits for replay",
        State::BlockingReplay => "blocks replay",
        State::Starting => "waits for logical decoding to be switched on",
        State::WaitingForTransactions
        | State::WaitingForRecord
        | State::Ready
        | State::Abandoned
        | State::NotSyncReady
        | State::Lost => "waits for transactions",
    };
    let advice = advice::on_next_try(episode, watch, observation.role, limits, observation.at);
    Notice {
        detail: advice.detail,
        hint: advice.hint.map(Into::into),
        ..notice(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!(
                "logical replication slot \"{}\" is being created{again}{does}",
                episode.slot
            ),
        )
    }
}

/// A creation's client is gone.
pub fn abandoned(
    episode: &Episode,
    watch: &Watch,
    limits: &Limits,
    observation: &Observation,
) -> Notice {
    let advice = advice::on_next_try(episode, watch, observation.role, limits, observation.at);
    Notice {
        detail: advice.detail,
        hint: advice.hint.map(Into::into),
        ..notice(
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            format!(
                "logical replication slot \"{}\" is being created for a client that is gone",
                episode.slot
            ),
        )
    }
}

/// A creation was told to end.
pub fn cancelling(
    episode: &Episode,
    reason: &Reason,
    watch: &Watch,
    observation: &Observation,
) -> Notice {
    let waits = advice::on_wait(episode, watch, observation.role, observation.at);
    let creator = &episode.creator;
    let setting = reason.setting();
    let story = episode.story.of_try(observation.at);
    Notice {
        detail: Some(format!(
            "{setting} says so. {}Its creator was pid {} ({}). {}",
            story.map_or_else(String::new, |story| format!("{story}. ")),
            creator.pid,
            advice::describe_creator(creator),
            waits.detail.unwrap_or_default()
        )),
        // Whom it waited for matters only if somebody wanted the slot.
        hint: waits
            .hint
            .filter(|_| *reason != Reason::Abandoned)
            .map(Into::into),
        ..notice(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!(
                "cancelling the creation of logical replication slot \"{}\" after {}: {reason}",
                episode.slot,
                in_words(observation.at.since(episode.started))
            ),
        )
    }
}

/// A blocker was told to end, here or, on a standby, on the primary.
pub fn ended_blocker(
    blocker: &Blocker,
    ending: Ending,
    slots: &[SlotName],
    role: Role,
    now: Timestamp,
) -> Notice {
    let (does, whose) = match (role, ending) {
        (Role::Primary, Ending::Cancel) => ("cancelling the statement", ""),
        (Role::Primary, Ending::Terminate) => ("terminating the session", ""),
        (Role::Standby, Ending::Cancel) => {
            ("had the primary cancel the statement", "The primary's ")
        }
        (Role::Standby, Ending::Terminate) => {
            ("had the primary terminate the session", "The primary's ")
        }
    };
    let transaction = &blocker.transaction;
    Notice {
        detail: Some(format!(
            "{whose}slot_self_heal.blocker_action says so. The transaction was held by {}.",
            advice::describe(transaction, now)
        )),
        ..notice(
            code_of_ending(ending),
            format!(
                "{does} of transaction {}, which held up {} for {}",
                transaction.xid,
                named(slots),
                in_words(blocker.blocked_for())
            ),
        )
    }
}

/// A blocker was told to end because a standby asked for it, over a session of this role.
pub fn ended_for_standby(
    transaction: &Transaction,
    ending: Ending,
    blocked_for: Duration,
    role: &str,
    now: Timestamp,
) -> Notice {
    let does = match ending {
        Ending::Cancel => "cancelling the statement",
        Ending::Terminate => "terminating the session",
    };
    Notice {
        detail: Some(format!(
            "slot_self_heal.blocker_action says so, and a standby asked for it as role {role}. The \
             transaction was held by {}.",
            advice::describe(transaction, now)
        )),
        ..notice(
            code_of_ending(ending),
            format!(
                "{does} of transaction {}, which held up the creation of a replication slot on a \
                 standby for {}",
                transaction.xid,
                in_words(blocked_for)
            ),
        )
    }
}

fn code_of_ending(ending: Ending) -> PgSqlErrorCode {
    match ending {
        Ending::Cancel => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
        Ending::Terminate => PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
    }
}

/// Of a function that acts.
pub fn disabled() -> Notice {
    Notice {
        detail: Some(
            "It stops every function that acts on the server, as it stops the worker.".into(),
        ),
        hint: Some(advice::enable().into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "slot_self_heal.enabled is off",
        )
    }
}

pub fn not_on_a_standby() -> Notice {
    Notice {
        hint: Some("Run it on the primary.".into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "recovery is in progress, so no transaction can be ended here",
        )
    }
}

/// A guard forbids to end a blocker.
pub fn spared_blocker(
    watch: &Watch,
    xid: Xid,
    guard: &Guard,
    hint: Option<Hint>,
    now: Timestamp,
) -> Notice {
    let blocker = watch.blocker(xid);
    let held_by = blocker.map(|blocker| advice::describe(&blocker.transaction, now));
    let remedy = blocker.and_then(|blocker| {
        let episode = watch.blocked_by(xid).next()?;
        let transaction = &blocker.transaction;
        Some(remedy::of_blocker(
            episode,
            transaction,
            episode.role(),
            now,
        ))
    });
    Notice {
        detail: Some(format!(
            "It holds up {} and is held by {}.",
            named(&watch.slots_blocked_by(xid)),
            held_by.unwrap_or_default()
        )),
        hint: hint.or(remedy).map(Into::into),
        ..notice(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("slot_self_heal does not end transaction {xid}: {guard}"),
        )
    }
}

/// A creation has ended.
pub fn ended(finished: &Finished) -> Notice {
    let episode = &finished.episode;
    let slot = &episode.slot;
    let took = in_words(finished.ended.since(episode.started));
    let (code, message) = match finished.outcome {
        Outcome::Ready => return ready(finished),
        Outcome::Cancelled => (
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!(
                "the creation of logical replication slot \"{slot}\" was cancelled after {took}"
            ),
        ),
        Outcome::Gone => (
            PgSqlErrorCode::ERRCODE_WARNING,
            format!(
                "logical replication slot \"{slot}\" is gone before it became ready, after {took}"
            ),
        ),
    };
    let cause = match finished.outcome {
        Outcome::Ready | Outcome::Cancelled => "",
        Outcome::Gone if episode.abandoned.is_some() => " Its client closed the connection.",
        // What is said of all tries is said of this one.
        Outcome::Gone if episode.story.tries > 1 => "",
        Outcome::Gone => " Its client gave up, or somebody ended it.",
    };
    let story = [episode.story.of_try(finished.ended), held_up(finished)];
    let story: Vec<String> = story.into_iter().flatten().collect();
    let story = match story.is_empty() {
        true => String::new(),
        false => format!("{}.", capitalized(&story.join("; "))),
    };
    let waited = waited(
        "Its creation",
        &episode.waited,
        episode.nudges,
        episode.role(),
    );
    Notice {
        detail: Some(format!("{story}{cause} {waited}").trim_start().to_owned()),
        ..notice(code, message)
    }
}

/// A slot is ready, after however many tries.
fn ready(finished: &Finished) -> Notice {
    let episode = &finished.episode;
    let story = &episode.story;
    let whose = match story.tries {
        1 => "Its creation".to_owned(),
        tries => format!("Its {tries} creations"),
    };
    Notice {
        detail: Some(waited(&whose, &story.waited, story.nudges, episode.role())),
        ..is_ready(&episode.slot, story, finished.ended)
    }
}

fn is_ready(slot: &SlotName, story: &Story, now: Timestamp) -> Notice {
    let took = in_words(now.since(story.began));
    let at = match story.tries {
        1 => String::new(),
        tries => format!(", at the {} try", ordinal(tries)),
    };
    notice(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!("logical replication slot \"{slot}\" is ready after {took}{at}"),
    )
}

/// A slot is there that a client had tried to create, and the creation was not seen.
pub fn made_unseen(slot: &SlotName, story: &Story, now: Timestamp) -> Notice {
    Notice {
        detail: Some("The creation that made it was over too soon to be seen.".into()),
        ..is_ready(slot, story, now)
    }
}

/// A client has not tried again for long. `finished`: its tries, if they are remembered.
pub fn silent(unfinished: &Unfinished, finished: Option<&Finished>, now: Timestamp) -> Notice {
    let Unfinished { slot, story, .. } = unfinished;
    let silence = in_words(now.since(unfinished.ended));
    let story = story.of_tries(unfinished.ended);
    let holder = finished.and_then(held_up);
    Notice {
        detail: Some(match holder {
            Some(holder) => format!("{story}; {holder}."),
            None => format!("{story}."),
        }),
        ..notice(
            PgSqlErrorCode::ERRCODE_WARNING,
            format!(
                "logical replication slot \"{slot}\" was not created, and its client has not tried \
                 again for {silence}"
            ),
        )
    }
}

/// Who held up a creation that is over, in the end.
fn held_up(finished: &Finished) -> Option<String> {
    let (oldest, count) = finished.held_up_by?;
    let mut blockers = finished.blockers.iter();
    let oldest = blockers.find(|blocker| blocker.xid() == oldest)?;
    let role = finished.episode.role();
    let oldest = &oldest.transaction;
    let held = advice::holds_up(oldest, count, Tense::Past, role, finished.ended);
    Some(held)
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + characters.as_str(),
        None => String::new(),
    }
}

fn waited(whose: &str, waited: &Waited, nudges: u32, role: Role) -> String {
    let replay = match waited.for_replay {
        Duration::ZERO => String::new(),
        waited => format!(", {} for replay", in_words(waited)),
    };
    format!(
        "{whose} waited {} for transactions{replay} and {} for a running-xacts record; \
         slot_self_heal {} {}.",
        in_words(waited.for_transactions),
        in_words(waited.for_record),
        match role {
            Role::Primary => "wrote",
            Role::Standby => "asked for",
        },
        match nudges {
            0 => "none".to_owned(),
            1 => "one".to_owned(),
            nudges => nudges.to_string(),
        }
    )
}

/// A record was written here, or by the upstream on our request, the first for these slots.
pub fn nudged(slots: &[SlotName], lsn: Lsn, role: Role) -> Notice {
    notice(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!(
            "{} a running-xacts record at {lsn} for {}",
            match role {
                Role::Primary => "wrote",
                Role::Standby => "had the upstream write",
            },
            named(slots)
        ),
    )
}

/// `logical replication slots "a", "b"`
fn named(slots: &[SlotName]) -> String {
    const NAMED: usize = 5;
    let mut names: Vec<String> = slots
        .iter()
        .take(NAMED)
        .map(|slot| format!("\"{slot}\""))
        .collect();
    if slots.len() > NAMED {
        names.push(format!("and {} more", slots.len() - NAMED));
    }
    let what = match slots.len() {
        1 => "logical replication slot",
        _ => "logical replication slots",
    };
    format!("{what} {}", names.join(", "))
}

/// The upstream does not do what it is asked for.
pub fn upstream_trouble(problem: &Problem) -> Notice {
    Notice {
        detail: Some(
            "Without it, the creation of a replication slot on this standby can wait without end."
                .into(),
        ),
        hint: Some(problem.hint.clone().into()),
        ..notice(
            code_of(problem.kind),
            format!(
                "slot_self_heal cannot have the primary write a running-xacts record: {}",
                problem.message
            ),
        )
    }
}

pub fn upstream_is_back() -> Notice {
    notice(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        "slot_self_heal can have the primary write running-xacts records again",
    )
}

/// What went wrong with the upstream, as an error of whoever asked.
pub fn upstream_error(problem: &Problem) -> Notice {
    Notice {
        hint: Some(problem.hint.clone().into()),
        ..notice(code_of(problem.kind), problem.message.clone())
    }
}

fn code_of(kind: Kind) -> PgSqlErrorCode {
    match kind {
        Kind::NotConfigured | Kind::IsStandby => {
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
        }
        Kind::Unreachable => PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
        Kind::NotPermitted => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
    }
}

pub fn trouble(cause: &Notice) -> Notice {
    Notice {
        message: format!(
            "slot_self_heal failed to look after replication slots: {}",
            cause.message
        ),
        ..cause.clone()
    }
}

pub fn trouble_is_over() -> Notice {
    notice(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        "slot_self_heal looks after replication slots again",
    )
}

/// `least`: the `wal_level` that logical slots need.
pub fn wal_level_too_low(least: &str) -> Notice {
    Notice {
        detail: Some("No logical replication slot can be created on this server.".into()),
        hint: Some(advice::raise_wal_level(least).into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("slot_self_heal has nothing to do because \"wal_level\" is below \"{least}\""),
        )
    }
}

pub fn clients_not_seen() -> Notice {
    Notice {
        detail: Some(
            "Only on Linux it can tell for certain that a client has closed its connection.".into(),
        ),
        hint: Some(advice::limit_creations().into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "slot_self_heal.cancel_abandoned has no effect on this system",
        )
    }
}

/// Said once, by the worker.
pub fn unknown_locks() -> Notice {
    Notice {
        detail: Some(
            "Their numbers are not those of the PostgreSQL that its library was built for. Slots are \
             watched, and records written, all the same."
                .into(),
        ),
        hint: Some("Build slot_self_heal with this server's own pg_config.".into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "slot_self_heal ends no session and no creation, because this server's locks have other \
             names",
        )
    }
}

pub fn cannot_connect(database: &str, retry: Duration) -> Notice {
    Notice {
        detail: Some("The message before this one says why.".into()),
        hint: Some(advice::connect_elsewhere(database, retry).into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            format!(
                "slot_self_heal cannot connect to database \"{database}\", which \
                 slot_self_heal.database names"
            ),
        )
    }
}

pub fn no_worker_slot() -> Notice {
    Notice {
        detail: Some("Nobody looks after the creation of replication slots.".into()),
        hint: Some(advice::more_workers(server::max_worker_processes()).into()),
        ..notice(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
            "slot_self_heal could not register its background worker",
        )
    }
}
