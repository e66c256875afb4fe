//! The functions under the views, and those that act. `sql/slot_self_heal--*.sql` declares them.

use std::cell::RefCell;
use std::time::Duration;

use pgrx::JsonB;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;
use serde_json::Value;

use crate::core::advice;
use crate::core::blocker::Blocker;
use crate::core::guard::{Answer, Ending, Guard};
use crate::core::hint::Hint;
use crate::core::history::Finished;
use crate::core::observation::{CreatorIdentity, Role, Transaction};
use crate::core::status::{self, Known, Status, Worker};
use crate::core::time::Timestamp;
use crate::core::upstream::Upstream;
use crate::core::watch::Watch;
use crate::core::xid::Xid;
use crate::ledger;
use crate::server::auto_conf::AutoConf;
use crate::server::hearing::hear;
use crate::server::report::Notice;
use crate::server::signal::{self, Unsent};
use crate::server::{self, record, report, scan, upstream};
use crate::{narrate, settings, worker};

/// A `pg_lsn`, which is a 64-bit number to C.
type PgLsn = i64;

/// What is under the view `slot_self_heal_status`.
///
/// Until ALTER EXTENSION … UPDATE a database may have the SQL of an older version than the library
/// that the server loaded. That SQL finds its function by the name in C, and gets as many columns as it
/// declares (`heap_form_tuple`): a version adds columns at the end, and a name in C. An older library
/// has no function of the new name, and is never asked for more columns than it knows.
type StatusTable = TableIterator<
    'static,
    (
        name!(slot_name, String),
        name!(database, String),
        name!(plugin, String),
        name!(state, &'static str),
        name!(state_since, Option<TimestampWithTimeZone>),
        name!(creation_started, Option<TimestampWithTimeZone>),
        name!(creator_pid, Option<i32>),
        name!(creator_type, Option<String>),
        name!(creator_application, Option<String>),
        name!(blockers, JsonB),
        name!(nudges, i32),
        name!(last_nudge_at, Option<TimestampWithTimeZone>),
        name!(last_nudge_lsn, Option<PgLsn>),
        name!(retained_wal, Option<i64>),
        name!(wal_status, Option<String>),
        name!(safe_wal_size, Option<i64>),
        name!(detail, Option<String>),
        name!(hint, Option<String>),
        // 0.2.0
        name!(tries, Option<i32>),
    ),
>;

#[pg_extern]
fn slot_self_heal_get_status() -> StatusTable {
    status_table()
}

#[pg_extern]
fn slot_self_heal_get_status_0_2() -> StatusTable {
    status_table()
}

fn status_table() -> StatusTable {
    ledger::require();
    // The slots first: what the ledger says of them is then at least as new.
    let slots = match scan::slots() {
        Ok(slots) => slots,
        Err(error) => report::error(error.into()),
    };
    let worker = worker_state();
    let known = Known {
        watch: match worker {
            Worker::Watching => ledger::watch(),
            Worker::Disabled | Worker::NotRunning(_) => Watch::default(),
        },
        finished: ledger::finished(),
        worker,
        role: server::role(),
    };
    let now = server::now();
    let rows = slots.into_iter().map(|slot| {
        let status = status::status(slot, &known, now);
        let Status { slot, creator, .. } = status;
        let whose = |of: fn(&CreatorIdentity) -> &String| {
            creator.as_ref().map(|creator| shown(of(creator).clone()))
        };
        (
            slot.name.as_str().to_owned(),
            shown(slot.database),
            shown(slot.plugin),
            status.state.as_str(),
            status.state_since.and_then(timestamptz),
            status.creation_started.and_then(timestamptz),
            creator.as_ref().map(|creator| creator.pid.get()),
            whose(|creator| &creator.backend_type),
            whose(|creator| &creator.application_name),
            JsonB(shown_json(status.blockers)),
            int4(status.nudges),
            status.last_nudge.and_then(|nudge| timestamptz(nudge.at)),
            status.last_nudge.map(|nudge| nudge.lsn.get().cast_signed()),
            slot.retained_wal,
            slot.wal_status,
            slot.safe_wal_size,
            status.advice.detail.map(shown),
            status.advice.hint.map(pasteable),
            status.tries.map(int4),
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// What is under the view `slot_self_heal_history`, as [`StatusTable`] is under the other. Lengths of
/// time are in seconds.
type HistoryTable = TableIterator<
    'static,
    (
        name!(slot_name, String),
        name!(database, String),
        name!(creator_type, String),
        name!(creator_application, String),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(ended_at, Option<TimestampWithTimeZone>),
        name!(outcome, &'static str),
        name!(waited_for_transactions, f64),
        name!(waited_for_record, f64),
        name!(waited_for_replay, f64),
        name!(nudges, i32),
        name!(max_retained_wal, i64),
        name!(blockers, JsonB),
        // 0.2.0
        name!(reason, Option<String>),
        name!(tries, i32),
    ),
>;

#[pg_extern]
fn slot_self_heal_get_history() -> HistoryTable {
    history_table()
}

#[pg_extern]
fn slot_self_heal_get_history_0_2() -> HistoryTable {
    history_table()
}

/// The newest first.
fn history_table() -> HistoryTable {
    ledger::require();
    let newest_first = ledger::finished().into_iter().rev();
    let rows = newest_first.map(|finished| {
        let reason = finished.reason();
        let Finished {
            episode, blockers, ..
        } = finished;
        let blockers = status::blockers_as_json(&blockers, &episode.creator);
        let story = episode.story;
        (
            episode.slot.as_str().to_owned(),
            shown(episode.database),
            shown(episode.creator.backend_type),
            shown(episode.creator.application_name),
            timestamptz(story.began),
            timestamptz(finished.ended),
            finished.outcome.as_str(),
            story.waited.for_transactions.as_secs_f64(),
            story.waited.for_record.as_secs_f64(),
            story.waited.for_replay.as_secs_f64(),
            int4(story.nudges),
            story.max_retained_wal,
            JsonB(shown_json(blockers)),
            reason.map(shown),
            int4(story.tries),
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// Under the view `slot_self_heal_worker`.
#[pg_extern]
#[allow(clippy::type_complexity)]
fn slot_self_heal_get_worker() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(role, &'static str),
        name!(database, String),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(last_scan_at, Option<TimestampWithTimeZone>),
        name!(scans, i64),
        name!(nudges, i64),
        name!(healed, i64),
        name!(cancelled, i64),
        name!(upstream, &'static str),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(hint, Option<String>),
    ),
> {
    ledger::require();
    let status = ledger::worker();
    let role = server::role();
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let hint = worker_hint(&status);
    TableIterator::once((
        status.pid.map(|pid| pid.get()),
        role.as_str(),
        shown(settings::database().to_string_lossy().into_owned()),
        status.started_at.and_then(timestamptz),
        status.last_scan_at.and_then(timestamptz),
        count(status.counters.scans),
        count(status.counters.nudges),
        count(status.counters.healed),
        count(status.counters.cancelled),
        known_upstream(role).as_str(),
        status
            .trouble
            .as_ref()
            .map(|trouble| shown(trouble.message.clone())),
        status.trouble.and_then(|trouble| timestamptz(trouble.at)),
        hint.map(pasteable),
    ))
}

fn worker_hint(status: &ledger::WorkerStatus) -> Option<Hint> {
    if status.pid.is_none() {
        return Some(no_worker_hint(status));
    }
    if let Some(least) = server::wal_level_to_raise() {
        return Some(advice::raise_wal_level(least));
    }
    if !settings::enabled() {
        return Some(advice::enable());
    }
    let watch = ledger::watch();
    if let Some(problem) = known_upstream(server::role()).problem() {
        return Some(problem.hint.clone());
    }
    let more = watch.more_episodes;
    (more > 0).then(|| advice::not_shown(more))
}

fn known_upstream(role: Role) -> Upstream {
    match role {
        Role::Primary => Upstream::NotNeeded,
        Role::Standby => ledger::watch().upstream,
    }
}

fn no_worker_hint(status: &ledger::WorkerStatus) -> Hint {
    if !worker::is_registered() {
        return advice::more_workers(server::max_worker_processes());
    }
    let trouble = status.trouble.as_ref().filter(|_| status.cannot_connect);
    let hint = trouble.and_then(|trouble| trouble.hint.clone());
    hint.unwrap_or_else(advice::no_worker)
}

fn worker_state() -> Worker {
    let status = ledger::worker();
    if status.pid.is_none() {
        Worker::NotRunning(no_worker_hint(&status))
    } else if settings::enabled() {
        Worker::Watching
    } else {
        Worker::Disabled
    }
}

/// Writes a running-xacts record now, flushed; on a standby the upstream is asked to. Returns where
/// it ends.
#[pg_extern]
fn slot_self_heal_nudge() -> PgLsn {
    ledger::require();
    if !settings::enabled() {
        report::error(narrate::disabled());
    }
    let end = match server::role() {
        Role::Primary => record::write().map_err(Notice::from),
        Role::Standby => upstream::pass_on(&settings::database().to_string_lossy())
            .inspect(|_| ledger::upstream_answered(server::now()))
            .map_err(|problem| narrate::upstream_error(&problem)),
    };
    match end {
        Ok(end) => {
            ledger::count(|counters| counters.nudges += 1);
            end.get().cast_signed()
        }
        Err(notice) => report::error(notice),
    }
}

/// Ends a transaction that has held up the creation of a slot on a standby for so long, if this
/// server's own settings let a blocker be ended, and no guard forbids it. Returns what was done, or
/// why nothing was.
#[pg_extern]
fn slot_self_heal_end_blocker(
    xid: pg_sys::TransactionId,
    blocked_for: Interval,
) -> TableIterator<'static, (name!(action, &'static str), name!(reason, Option<String>))> {
    ledger::require();
    let blocked_for = u64::try_from(blocked_for.as_micros()).unwrap_or(0);
    let asked = Xid::new(xid.into_inner()).map_or(Ok(Err(Unsent::Over)), |xid| {
        end_blocker(xid, Duration::from_micros(blocked_for))
    });
    TableIterator::once(match asked {
        Ok(Ok(ending)) => (ending.as_str(), None),
        Ok(Err(Unsent::Over)) => (Answer::OVER, None),
        Ok(Err(Unsent::Guarded(guard))) => (Answer::SPARED, Some(shown(guard.to_string()))),
        Err(notice) => report::error(notice),
    })
}

fn end_blocker(xid: Xid, blocked_for: Duration) -> Result<Result<Ending, Unsent>, Notice> {
    if server::role() == Role::Standby {
        return Err(narrate::not_on_a_standby());
    }
    if !settings::enabled() {
        return Ok(Err(Unsent::Guarded(Guard::Disabled)));
    }
    let rule = settings::policy().blockers;
    let cases = hear(&[xid], rule.protected_roles.clone())?;
    let Some(mut case) = cases.into_iter().next() else {
        return Ok(Err(Unsent::Over));
    };
    // Who asks does so too seldom for that to tell anything.
    case.transaction.wakes = None;
    let now = server::now();
    let watch = ledger::watch();
    let creators = watch.blocked_by(xid).map(|episode| &episode.creator);
    let followed = followed(&case.transaction, now);
    let remembered = watch.blocker(xid).unwrap_or(&followed);
    if [remembered, &followed]
        .iter()
        .any(|blocker| blocker.is_of(&case.transaction) && blocker.was_told_all(&rule))
    {
        return Ok(Err(Unsent::Guarded(Guard::Stayed)));
    }
    let verdict = case.judge(remembered, blocked_for, creators, &rule, now);
    let ended = verdict.map_err(Unsent::Guarded).and_then(|sentence| {
        signal::end_transaction(xid, sentence)?;
        Ok(sentence.ending)
    });
    if let Ok(ending) = ended {
        ASKED.with_borrow_mut(|asked| {
            if let Some(blocker) = asked.last_mut() {
                blocker.was_told(ending, now);
            }
        });
        report::log(narrate::ended_for_standby(
            &case.transaction,
            ending,
            blocked_for,
            &server::session_role(),
            now,
        ));
    }
    Ok(ended)
}

thread_local! {
    /// What this session knows of transactions that it has asked about, the last one last: a standby
    /// asks again and again. One look does not tell whether a client is silent.
    static ASKED: RefCell<Vec<Blocker>> = const { RefCell::new(Vec::new()) };
}

/// With what this session knows of it.
fn followed(transaction: &Transaction, now: Timestamp) -> Blocker {
    const MOST: usize = 100;
    ASKED.with_borrow_mut(|asked| {
        let known = asked.iter().position(|blocker| blocker.is_of(transaction));
        let mut blocker = match known {
            Some(index) => asked.remove(index),
            None => Blocker::new(transaction.clone(), now),
        };
        blocker.observe(transaction.clone(), false, now);
        // The oldest is the first.
        if asked.len() >= MOST {
            asked.remove(0);
        }
        asked.push(blocker.clone());
        blocker
    })
}

/// Sets the counters to zero and forgets finished creations.
#[pg_extern]
fn slot_self_heal_reset() {
    ledger::require();
    ledger::reset();
}

fn int4(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn timestamptz(at: Timestamp) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(at.get()).ok()
}

/// Text that the current database can hold: Rust's is UTF-8, and names from other databases may
/// have characters that this one's encoding lacks.
fn shown(text: String) -> String {
    if server::database_is_utf8() {
        text
    } else {
        text.replace(|character: char| !character.is_ascii(), "?")
    }
}

/// A hint as of now.
fn pasteable(hint: Hint) -> String {
    shown(hint.given(&AutoConf).to_string())
}

fn shown_json(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(shown(text)),
        Value::Array(values) => values.into_iter().map(shown_json).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, shown_json(value)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}
