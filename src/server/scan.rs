//! One look at the slots and at the transactions that may hold them up.

use std::collections::HashSet;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::spi::{OwnedPreparedStatement, Query, Spi, SpiError};
use pgrx::{PgOid, pg_sys};

use super::clients::Clients;
use super::report::Notice;
use super::transaction::{internal_error, read_only_fallible};
use super::{control_file, gate};
use crate::core::locks::{self, LockWaiter};
use crate::core::observation::{
    ClientProcess, Observation, Pid, Role, Row, Running, Slot, Subscription, Transaction,
    UnreadableRow, by_age,
};
use crate::core::pause::Pause;
use crate::core::replay::{Conflict, Replay};
use crate::core::xid::Xid;
use crate::settings;

const SLOTS: &str = include_str!("../../sql/slots.sql");
const TRANSACTIONS: &str = include_str!("../../sql/transactions.sql");
const OWN_LIMITS: &str = include_str!("../../sql/own_limits.sql");
const REPLAY: &str = include_str!("../../sql/replay.sql");
const LOCK_HOLDERS: &str = include_str!("../../sql/lock_holders.sql");
const SUBSCRIPTIONS: &str = include_str!("../../sql/subscriptions.sql");

/// How long is not looked again at who waits for whom. A look takes the lock manager's own locks.
const FOLLOWED_FOR: Duration = Duration::from_secs(1);
const PAUSE: &str = include_str!("../../sql/pause.sql");

/// Why replay is paused is told from files, which need not be read at every look.
const PAUSE_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the server again and again. The queries are planned once: with these views that takes
/// longer than their execution.
#[derive(Default)]
pub struct Scanner {
    slots: Option<OwnedPreparedStatement>,
    transactions: Option<OwnedPreparedStatement>,
    own_limits: Option<OwnedPreparedStatement>,
    replay: Option<OwnedPreparedStatement>,
    lock_holders: Option<OwnedPreparedStatement>,
    subscriptions: Option<OwnedPreparedStatement>,
    /// While replay is paused.
    pause: Option<(Instant, Pause)>,
    clients: Clients,
    conflict: Conflict,
    followed: Option<Followed>,
}

/// `SubscriptionRelationId` (`pg_subscription.h`), which pgrx does not bind.
const PG_SUBSCRIPTION: pg_sys::Oid = pg_sys::Oid::from_u32(6100);

/// What a look at those in the way told, and when that was.
struct Followed {
    at: Instant,
    waiters: Vec<LockWaiter>,
    subscriptions: Vec<(Pid, Subscription)>,
}

impl Scanner {
    /// One look. `blockers`: the transactions that are known to hold creations up, of whose clients
    /// more is to be known.
    pub fn observe(&mut self, blockers: &HashSet<Xid>) -> Result<Observation, Notice> {
        let mut observation = self.scan()?;
        self.clients.look_at(
            &mut observation.slots,
            &mut observation.transactions,
            blockers,
        );
        if let Some(replay) = &mut observation.replay {
            self.conflict.bridge(replay, observation.at);
        }
        Ok(observation)
    }

    /// Whether what is known of clients is of the last look.
    pub fn knows_clients(&self) -> bool {
        self.clients.are_fresh()
    }

    /// Has the next look tell all that the kernel knows of clients.
    pub fn look_at_clients_soon(&mut self) {
        self.clients.look_soon();
    }

    /// What SQL tells, in a transaction of the worker's own.
    fn scan(&mut self) -> Result<Observation, Notice> {
        read_only_fallible(|| {
            let role = super::role();
            let slots = planned(&mut self.slots, SLOTS)?;
            let slots = query(slots, &[], |row| row.into_slot())?;
            let mut slots = with_dropped_copies(slots);
            self.look_up_limits(&mut slots)?;
            let (transactions, replay) = match role {
                Role::Primary => {
                    let transactions = planned(&mut self.transactions, TRANSACTIONS)?;
                    (query(transactions, &[], own_transaction)?, None)
                }
                Role::Standby => (Vec::new(), self.look_at_replay()?),
            };
            let next = next_xid()?;
            let (mut transactions, running) = by_age(transactions, next);
            self.follow(&mut transactions)?;
            let running = match role {
                Role::Primary => running,
                Role::Standby => Running {
                    oldest: snapshot_xmin().unwrap_or(next),
                    next,
                },
            };
            Ok::<_, ScanError>(Observation {
                at: super::now(),
                role,
                running,
                slots,
                transactions,
                replay,
                upstream: None,
                syncs_slots: super::syncs_slots(),
            })
        })
    }

    /// Finds out whom transactions wait for that wait for a lock, and what those do that work for a
    /// subscription.
    fn follow(&mut self, transactions: &mut [Transaction]) -> Result<(), ScanError> {
        let waiting = locks::waiting(transactions);
        if waiting.is_empty() && !locks::has_subscribers(transactions, &[]) {
            self.followed = None;
            return Ok(());
        }
        let followed = self.followed.take();
        let followed = match followed.filter(|followed| followed.at.elapsed() < FOLLOWED_FOR) {
            Some(followed) => followed,
            None => self.look_at_queues(&waiting, transactions)?,
        };
        let Followed {
            waiters,
            subscriptions,
            ..
        } = self.followed.insert(followed);
        locks::name_subscribers(transactions, waiters, subscriptions);
        locks::follow(transactions, waiters);
        Ok(())
    }

    fn look_at_queues(
        &mut self,
        waiting: &[Pid],
        transactions: &[Transaction],
    ) -> Result<Followed, ScanError> {
        let waiters = if waiting.is_empty() {
            Vec::new()
        } else {
            let lock_holders = planned_with(
                &mut self.lock_holders,
                LOCK_HOLDERS,
                &[PgOid::from(pg_sys::INT4ARRAYOID)],
            )?;
            let pids: Vec<i32> = waiting.iter().map(|pid| pid.get()).collect();
            // SAFETY: int4[] is what these are turned into.
            let arguments = unsafe { [DatumWithOid::new(pids, pg_sys::INT4ARRAYOID)] };
            query(lock_holders, &arguments, |row| row.into_lock_waiter())?
        };
        let subscriptions =
            if locks::has_subscribers(transactions, &waiters) && lock_subscriptions() {
                let subscriptions = planned(&mut self.subscriptions, SUBSCRIPTIONS)?;
                query(subscriptions, &[], |row| row.into_subscription())?
            } else {
                Vec::new()
            };
        Ok(Followed {
            at: Instant::now(),
            waiters,
            subscriptions,
        })
    }

    fn look_at_replay(&mut self) -> Result<Option<Replay>, ScanError> {
        let replay = planned(&mut self.replay, REPLAY)?;
        let mut replay = query(replay, &[], |row| row.into_replay())?
            .into_iter()
            .next();
        match replay.as_mut().and_then(|replay| replay.pause.as_mut()) {
            Some(pause) => *pause = self.look_up_pause()?,
            None => self.pause = None,
        }
        Ok(replay)
    }

    fn look_up_pause(&mut self) -> Result<Pause, ScanError> {
        match &self.pause {
            Some((at, pause)) if at.elapsed() < PAUSE_INTERVAL => Ok(pause.clone()),
            Some(_) | None => {
                let here = query(PAUSE, &[], |row| row.into_setting_here())?;
                let primary = control_file::primary_capacities();
                let pause = Pause::of(&here, primary.as_ref());
                self.pause = Some((Instant::now(), pause.clone()));
                Ok(pause)
            }
        }
    }

    fn look_up_limits(&mut self, slots: &mut [Slot]) -> Result<(), ScanError> {
        let mut creators: Vec<_> = slots.iter_mut().filter_map(Slot::creator_mut).collect();
        if creators.is_empty() {
            return Ok(());
        }
        let own_limits = planned(&mut self.own_limits, OWN_LIMITS)?;
        let stored = query(own_limits, &[], |row| row.into_stored_setting())?;
        for creator in &mut creators {
            let pid = creator.identity.pid;
            // The most special comes first.
            creator.own_limits = settings::own_limits(|name| {
                stored
                    .iter()
                    .find(|setting| setting.creator == pid && setting.name == name)
                    .map(|setting| setting.value.as_str())
            });
        }
        Ok(())
    }
}

fn planned<'a>(
    plan: &'a mut Option<OwnedPreparedStatement>,
    sql: &str,
) -> Result<&'a OwnedPreparedStatement, ScanError> {
    planned_with(plan, sql, &[])
}

/// The same of a query with arguments of these types.
fn planned_with<'a>(
    plan: &'a mut Option<OwnedPreparedStatement>,
    sql: &str,
    types: &[PgOid],
) -> Result<&'a OwnedPreparedStatement, ScanError> {
    match plan {
        Some(plan) => Ok(plan),
        None => {
            let prepared = Spi::connect(|client| Ok(client.prepare(sql, types)?.keep()));
            Ok(plan.insert(prepared.map_err(ScanError::Spi)?))
        }
    }
}

/// Every logical slot, as of the current transaction.
pub fn slots() -> Result<Vec<Slot>, ScanError> {
    query(SLOTS, &[], |row| row.into_slot()).map(with_dropped_copies)
}

fn with_dropped_copies(mut slots: Vec<Slot>) -> Vec<Slot> {
    slots.append(&mut gate::dropped_copies(&slots));
    slots
}

/// Every transaction that has an xid, as of the current transaction.
pub fn transactions() -> Result<Vec<Transaction>, ScanError> {
    query(TRANSACTIONS, &[], own_transaction)
}

/// Of this server's own, whose kernel can be asked about its client.
fn own_transaction(row: Row<'_>) -> Result<Transaction, UnreadableRow> {
    let transaction = row.into_transaction()?;
    Ok(Transaction {
        client_process: ClientProcess::NotLookedUp,
        ..transaction
    })
}

/// Whether the catalog of subscriptions can be read without waiting. Their names are not worth
/// that.
fn lock_subscriptions() -> bool {
    let share = pg_sys::AccessShareLock.cast_signed();
    // SAFETY: in a transaction, at whose end the lock goes.
    unsafe { pg_sys::ConditionalLockRelationOid(PG_SUBSCRIPTION, share) }
}

fn next_xid() -> Result<Xid, ScanError> {
    // SAFETY: reads shared memory under XidGenLock.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() };
    // The lower half is the id; the upper half counts wrap-arounds.
    let next = u32::try_from(next.value & u64::from(u32::MAX)).unwrap_or(0);
    Xid::new(next).ok_or(ScanError::Unreadable(UnreadableRow { column: "next xid" }))
}

/// The oldest transaction that runs on the primary, as far as its WAL was replayed.
fn snapshot_xmin() -> Option<Xid> {
    // SAFETY: the scan's transaction has an active snapshot.
    let xmin = unsafe { (*pg_sys::GetActiveSnapshot()).xmin };
    Xid::new(xmin.into_inner())
}

#[derive(Debug)]
pub enum ScanError {
    Spi(SpiError),
    Unreadable(UnreadableRow),
}

impl From<ScanError> for Notice {
    fn from(error: ScanError) -> Self {
        internal_error(match error {
            ScanError::Spi(error) => format!("could not query the server: {error}"),
            ScanError::Unreadable(error) => error.to_string(),
        })
    }
}

/// Runs a query and reads each row of its result.
///
/// It goes through [`Spi::connect`] and `select`: the other ways of pgrx take a transaction id.
pub fn query<'a, T, Q>(
    sql: Q,
    arguments: &[DatumWithOid<'a>],
    read: impl Fn(Row<'_>) -> Result<T, UnreadableRow>,
) -> Result<Vec<T>, ScanError>
where
    Q: for<'conn> Query<'conn>,
{
    Spi::connect(|client| {
        client
            .select(sql, None, arguments)
            .map_err(ScanError::Spi)?;
        // SAFETY: the table that `select` just made, valid until SPI is left.
        let (columns, rows) = unsafe { texts(pg_sys::SPI_tuptable) };
        rows.into_iter()
            .map(|values| read(Row::new(&columns, values)).map_err(ScanError::Unreadable))
            .collect()
    })
}

/// Every value of an SPI result as text, with the columns' names.
///
/// Text, because one reader then serves all types. It is taken as bytes: `pg_stat_activity` shows
/// a session's query in the encoding of that session's database, whatever this one's is.
///
/// # Safety
///
/// `table` is null or a valid table.
unsafe fn texts(table: *mut pg_sys::SPITupleTable) -> (Vec<String>, Vec<Vec<Option<String>>>) {
    // SAFETY: the caller's promise; rows and columns are counted by the server.
    unsafe {
        let Some(table) = table.as_ref() else {
            return (Vec::new(), Vec::new());
        };
        let columns = 1..=(*table.tupdesc).natts;
        let text = |value: *mut std::ffi::c_char| {
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        };
        let names = columns
            .clone()
            .map(|column| text(pg_sys::SPI_fname(table.tupdesc, column)).unwrap_or_default())
            .collect();
        let rows = usize::try_from(table.numvals).unwrap_or(0);
        let values = (0..rows)
            .map(|row| {
                let tuple = *table.vals.add(row);
                columns
                    .clone()
                    .map(|column| text(pg_sys::SPI_getvalue(tuple, table.tupdesc, column)))
                    .collect()
            })
            .collect();
        (names, values)
    }
}
