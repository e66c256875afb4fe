//! What one scan saw of the server.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guard::{Answer, Standing, Verdict};
use super::locks::{LockWait, LockWaiter, Session};
use super::pause::{Pause, SettingHere};
use super::policy::OwnLimits;
use super::replay::{InTheWay, Replay, StartupWait};
use super::time::Timestamp;
use super::upstream::{Introduction, Look, Relay, RemoteSlot};
use super::xid::{Lsn, Xid};

/// The longest part of a blocker's query that is kept, in bytes. The server itself keeps
/// `track_activity_query_size` bytes (1 kB unless raised, up to 1 MB).
const QUERY_LIMIT: usize = 1024;

/// Whether the server is in recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Primary,
    Standby,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// The name of a replication slot: lower-case letters, digits and underscores, 63 at most
/// (`ReplicationSlotValidateName`, `slot.c`), so it needs no quoting as an identifier's content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotName(String);

impl SlotName {
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The process id of a server process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(i32);

impl Pid {
    /// `None` for 0, which the server uses for "no process".
    pub fn new(pid: i32) -> Option<Self> {
        (pid > 0).then_some(Self(pid))
    }

    pub fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a running-xacts record would say if it were written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// `oldestRunningXid`; the same as `next` when no transaction runs.
    pub oldest: Xid,
    /// `nextXid`
    pub next: Xid,
}

impl Running {
    pub fn is_idle(self) -> bool {
        self.oldest == self.next
    }

    /// Of two reports on the same primary, whatever each says has ended has ended.
    pub fn or_later(self, other: Self) -> Self {
        Self {
            oldest: self.oldest.or_later(other.oldest),
            next: self.next.or_later(other.next),
        }
    }
}

/// Sorts transactions by age, the oldest first, each once, and tells what a record would say of
/// them. `next`: the next id, as of before or after they were listed.
pub fn by_age(mut transactions: Vec<Transaction>, next: Xid) -> (Vec<Transaction>, Running) {
    let ids = transactions
        .iter()
        .map(|transaction| transaction.xid.following());
    let next = ids.fold(next, Xid::or_later);
    transactions.sort_by_key(|transaction| std::cmp::Reverse(transaction.xid.age(next)));
    // PREPARE TRANSACTION shows its transaction twice for a moment.
    transactions.dedup_by_key(|transaction| transaction.xid);
    let oldest = transactions.first().map_or(next, |oldest| oldest.xid);
    (transactions, Running { oldest, next })
}

/// Everything that one scan saw, all of it within one transaction.
#[derive(Debug)]
pub struct Observation {
    pub at: Timestamp,
    pub role: Role,
    /// Read after the transactions were listed. On a standby as far as its primary's WAL was
    /// replayed, or later, as far as the primary was asked.
    pub running: Running,
    /// Every logical slot.
    pub slots: Vec<Slot>,
    /// Every transaction that has an xid, oldest first. On a standby, which has none of its own,
    /// its primary's.
    pub transactions: Vec<Transaction>,
    /// On a standby.
    pub replay: Option<Replay>,
    /// What the upstream said last, if it was asked.
    pub upstream: Option<Rc<Look>>,
    /// Whether this server copies its primary's slots by itself (`sync_replication_slots`).
    pub syncs_slots: bool,
}

impl Observation {
    /// What ran when a creation began, as far as is known: those of `running` that did not begin later.
    /// Between the two, others may have gone by that nobody has seen.
    pub fn running_at(&self, began: Option<Timestamp>, running: Running) -> Running {
        /// Between the beginning of a creator's command and its record.
        const LONGEST_START: Duration = Duration::from_secs(1);
        let began_later = |transaction: &&Transaction| {
            let both = transaction.started.zip(began);
            both.is_some_and(|(started, began)| started.since(began) > LONGEST_START)
        };
        let later = self.transactions.iter().filter(began_later);
        let next = later
            .map(|transaction| transaction.xid)
            .filter(|xid| xid.precedes(running.next))
            .max_by_key(|xid| xid.age(running.next));
        Running {
            next: next.unwrap_or(running.next),
            ..running
        }
    }

    /// Adds what the upstream said of its primary, which may be some time ago.
    pub fn learn(&mut self, look: Option<Rc<Look>>) {
        if let Some(running) = look.as_ref().and_then(|look| look.running) {
            self.running = self.running.or_later(running);
        }
        self.transactions = match &look {
            Some(look) if look.running.is_some() => {
                let runs =
                    |transaction: &&Transaction| !transaction.xid.precedes(self.running.oldest);
                look.transactions.iter().filter(runs).cloned().collect()
            }
            _ if self.running.is_idle() => Vec::new(),
            _ => vec![Transaction::of_unknown(self.running.oldest)],
        };
        self.upstream = look;
    }

    /// Whether this transaction, which is not listed, may run all the same: on a standby that has
    /// not asked whose they are, or can't.
    pub fn may_run_unseen(&self, xid: Xid) -> bool {
        let knows_all = match self.role {
            Role::Primary => true,
            Role::Standby => {
                let look = self.upstream.as_ref();
                look.is_some_and(|look| look.running.is_some())
            }
        };
        !knows_all && !xid.precedes(self.running.oldest)
    }

    /// How far the server's WAL goes, if a slot holds some back.
    pub fn wal_position(&self) -> Option<Lsn> {
        self.slots.iter().filter_map(Slot::wal_position).max()
    }

    pub fn sees_a_creation(&self) -> bool {
        self.slots.iter().any(|slot| {
            matches!(
                slot.progress,
                Progress::Building(_) | Progress::NotSyncReady
            )
        })
    }
}

/// A logical replication slot (`pg_replication_slots`).
#[derive(Clone, Debug)]
pub struct Slot {
    pub name: SlotName,
    pub database: String,
    pub plugin: String,
    pub restart_lsn: Option<Lsn>,
    pub catalog_xmin: Option<Xid>,
    pub progress: Progress,
    /// Whether a process holds it: its creator, or the walsender of its consumer.
    pub active: bool,
    /// Bytes of WAL held back; `None` before WAL was reserved and once it is lost.
    pub retained_wal: Option<i64>,
    pub wal_status: Option<String>,
    /// A standby's copy of its primary's slot (17 and later).
    pub synced: bool,
    /// Of such a copy: why the last synchronization passed it over (19 and later).
    pub sync_skipped: Option<String>,
    /// Such a copy that a call of `pg_sync_replication_slots()` made.
    pub made_by_hand: Option<MadeByHand>,
    /// Bytes that may still be written before the slot is in danger of being lost.
    pub safe_wal_size: Option<i64>,
}

/// A standby's copy of a slot that ends with the call that made it, unless it is ready then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MadeByHand {
    /// It is no more, since then. Another call would make it anew.
    Dropped(Timestamp),
    /// The call goes on.
    Now,
}

impl Slot {
    /// How far the server's WAL goes, as told by what this slot holds back.
    fn wal_position(&self) -> Option<Lsn> {
        let retained = u64::try_from(self.retained_wal?).ok()?;
        Some(Lsn::new(self.restart_lsn?.get() + retained))
    }

    /// Who creates it, if somebody does.
    pub fn creator(&self) -> Option<&Creator> {
        match &self.progress {
            Progress::Building(creator) => Some(creator),
            Progress::Usable
            | Progress::LeftBehind(_)
            | Progress::NotSyncReady
            | Progress::Invalidated(_) => None,
        }
    }

    pub fn creator_mut(&mut self) -> Option<&mut Creator> {
        match &mut self.progress {
            Progress::Building(creator) => Some(creator),
            Progress::Usable
            | Progress::LeftBehind(_)
            | Progress::NotSyncReady
            | Progress::Invalidated(_) => None,
        }
    }
}

/// How far a slot has come.
#[derive(Clone, Debug)]
pub enum Progress {
    /// It has reached its consistent point (`confirmed_flush_lsn` is set).
    Usable,
    /// A process holds it and has not yet reached the consistent point.
    Building(Box<Creator>),
    /// Never became usable, and nobody works on it: what a failed creation left, and the idle
    /// session that still holds it, if any.
    LeftBehind(Option<Pid>),
    /// A standby's copy of its primary's slot that was not persisted yet: it would be lost at a
    /// promotion (`slotsync.c`).
    NotSyncReady,
    /// Postgres gave it up; with its reason, where the server tells one.
    Invalidated(Option<String>),
}

/// The process that creates a slot.
#[derive(Clone, Debug)]
pub struct Creator {
    pub identity: CreatorIdentity,
    pub wait: CreatorWait,
    pub client: Option<Client>,
    pub connection: Connection,
    pub own_limits: OwnLimits,
}

/// What stays the same of a creator for as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatorIdentity {
    pub pid: Pid,
    /// Tells this process from a later one that got the same pid.
    pub backend_start: Option<Timestamp>,
    /// When its statement began, which tells a creation from a later one of the same session. A
    /// background worker has none, whatever it shows.
    pub query_start: Option<Timestamp>,
    /// `pg_stat_activity.backend_type`
    pub backend_type: String,
    /// The session that it works for: one that runs REPACK (CONCURRENTLY) (19 and later).
    pub leader: Option<Pid>,
    /// The leader's, if it has one, as are the next two.
    pub usename: Option<String>,
    pub application_name: String,
    /// `None` for a Unix-domain socket and for a process that has no client.
    pub client_addr: Option<String>,
    pub client_process: ClientProcess,
}

impl CreatorIdentity {
    /// Whether this is the same creation's, however much is known of its client.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |identity: &Self| (identity.pid, identity.backend_start, identity.query_start);
        key(self) == key(other)
    }
}

/// What ALTER DATABASE or ALTER ROLE set for a creator.
#[derive(Debug)]
pub struct StoredSetting {
    pub creator: Pid,
    pub name: String,
    pub value: String,
}

/// What the creator does at the moment, as far as its wait event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CreatorWait {
    /// For another transaction's end: `SnapBuildWaitSnapshot` takes a lock on its xid. Only on a
    /// primary; on a standby the same wait polls, without a lock (`XactLockTableWait`, `lmgr.c`),
    /// so that a walsender seems to work then.
    Transaction,
    /// A walsender for WAL that is not there yet (`WalSndWaitForWal`).
    Wal,
    /// For something else, or, a walsender, for nothing: it reads WAL, or writes the slot to disk.
    Working,
    /// For every process of the server to take note that logical decoding is on: a creator switches
    /// it on for the first logical slot of a server with `wal_level = replica`
    /// (`EnableLogicalDecoding`, `logicalctl.c`; 19 and later).
    Barrier,
    /// Another process, without a wait event: `read_local_xlog_page` waits for WAL by polling, so
    /// that it looks the same whether it waits or works.
    Unknown,
}

impl CreatorWait {
    /// Reads `pg_stat_activity`'s columns. The WAL wait is spelt `WalSenderWaitForWAL` up to
    /// PostgreSQL 16 and `WalSenderWaitForWal` from 17 on.
    fn from_activity(backend_type: &str, wait_event_type: &str, wait_event: &str) -> Self {
        if wait_event_type == "Lock" && wait_event == "transactionid" {
            Self::Transaction
        } else if wait_event == "ProcSignalBarrier" {
            Self::Barrier
        } else if backend_type != "walsender" {
            // It reads WAL, or writes the slot to disk; for WAL it waits without a wait event.
            if wait_event.is_empty() {
                Self::Unknown
            } else {
                Self::Working
            }
        } else if wait_event.eq_ignore_ascii_case("WalSenderWaitForWal") {
            Self::Wal
        } else {
            Self::Working
        }
    }
}

/// Where a session's client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    Tcp(SocketAddr),
    /// On this machine, over a Unix-domain socket.
    UnixSocket,
}

impl Client {
    /// Reads `pg_stat_activity`'s columns: `client_addr` as `host()` prints it, and `client_port`,
    /// which is -1 for a Unix-domain socket. `None` for a process that has no client.
    pub fn from_activity(addr: Option<&str>, port: Option<i32>) -> Option<Self> {
        match (addr, port?) {
            (None, -1) => Some(Self::UnixSocket),
            (Some(addr), port) => {
                let addr = addr.parse().ok()?;
                let port = u16::try_from(port).ok()?;
                Some(Self::Tcp(SocketAddr::new(addr, port)))
            }
            (None, _) => None,
        }
    }
}

/// The process at the other end of a session's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientProcess {
    /// The session is one of a standby's primary, where no kernel tells us anything.
    OfAnotherServer,
    #[default]
    NotLookedUp,
    /// On another machine, or not for us to know. So, too, where there is no client.
    Unknown,
    Known(Pid),
}

/// Whether a session's client has closed its connection, as far as the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// A network that is slow or cut closes nothing.
    Open,
    /// By the client, by the end of its process, or given up by the kernel.
    Closed,
    Unknown,
}

/// A transaction that has an xid and has not ended: it may have to end before a slot is usable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    pub xid: Xid,
    pub holder: Holder,
    pub database: Option<String>,
    pub usename: Option<String>,
    pub application_name: Option<String>,
    pub client_addr: Option<String>,
    /// `pg_stat_activity.state`, or `prepared`.
    pub state: Option<String>,
    /// When it entered that state.
    pub state_since: Option<Timestamp>,
    pub started: Option<Timestamp>,
    /// The same point in time as ISO 8601, for the view.
    pub xact_start: Option<String>,
    /// The session's last query, cut to [`QUERY_LIMIT`].
    pub query: Option<String>,
    /// Its process waits for an answer over the replication protocol, as a CREATE SUBSCRIPTION
    /// does while its slot is created (`LibPQWalReceiverReceive`, `Libpqwalreceiver…` from 17 on).
    pub waits_for_walsender: bool,
    /// It is committed here, and waits for a synchronous standby to say the same.
    pub waits_for_sync_standby: bool,
    /// Its process waits for its client to send something: between statements, and within a COPY
    /// FROM STDIN or a pipeline (`ClientRead`).
    pub waits_for_client: bool,
    /// Bytes that its COPY has processed, if it runs one.
    pub copied: Option<u64>,
    #[serde(skip)]
    pub client: Option<Client>,
    /// Whether the kernel knows that its client has closed the connection.
    pub client_gone: bool,
    /// How often its process was woken, where the kernel was asked.
    pub wakes: Option<u64>,
    pub client_process: ClientProcess,
    /// `pg_stat_activity.backend_type`; `None` without a process, or where it may not be seen.
    pub backend_type: Option<String>,
    /// What its process does for a subscription of this cluster.
    pub subscription: Option<Subscription>,
    /// If it waits for a lock.
    pub lock_wait: Option<LockWait>,
    /// Whether a prepared one can be reached.
    pub access: Access,
}

/// What a worker of logical replication works for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub name: String,
    /// The table that is copied when the subscription begins with it.
    pub copies: Option<String>,
}

/// Whether a database lets anybody in: `datallowconn`, or `datconnlimit` -2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    #[default]
    Allowed,
    NotAllowed,
    /// It was not when the transaction was first seen, and is now.
    AllowedMeanwhile,
    /// A DROP DATABASE was interrupted; nobody ever gets in again.
    Invalid,
}

impl Access {
    fn from_column(column: &str) -> Self {
        match column {
            "no" => Self::NotAllowed,
            "invalid" => Self::Invalid,
            _ => Self::Allowed,
        }
    }

    /// As it is seen now, given how it was before.
    pub fn since(self, before: Self) -> Self {
        match (before, self) {
            (Self::NotAllowed | Self::AllowedMeanwhile, Self::Allowed) => Self::AllowedMeanwhile,
            (_, now) => now,
        }
    }
}

/// What keeps a transaction open, which decides how it can be ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Holder {
    /// A client's session, or a background process that is ended like one.
    Session(Pid),
    Autovacuum(Pid),
    /// PREPARE TRANSACTION: no process at all.
    Prepared {
        gid: String,
    },
    /// Known by its xid only, as a standby knows its primary's.
    Unknown,
}

impl Transaction {
    fn of_unknown(xid: Xid) -> Self {
        Self {
            xid,
            holder: Holder::Unknown,
            database: None,
            usename: None,
            application_name: None,
            client_addr: None,
            state: None,
            state_since: None,
            started: None,
            xact_start: None,
            query: None,
            waits_for_walsender: false,
            waits_for_sync_standby: false,
            waits_for_client: false,
            copied: None,
            client: None,
            client_gone: false,
            wakes: None,
            client_process: ClientProcess::OfAnotherServer,
            backend_type: None,
            subscription: None,
            lock_wait: None,
            access: Access::Allowed,
        }
    }

    /// Keeps so many bytes of the query at most.
    pub fn cut_query(&mut self, limit: usize) {
        if let Some(query) = &mut self.query {
            query.truncate(query.floor_char_boundary(limit));
        }
    }

    pub fn pid(&self) -> Option<Pid> {
        match self.holder {
            Holder::Session(pid) | Holder::Autovacuum(pid) => Some(pid),
            Holder::Prepared { .. } | Holder::Unknown => None,
        }
    }

    pub fn gid(&self) -> Option<&str> {
        match &self.holder {
            Holder::Prepared { gid } => Some(gid),
            Holder::Session(_) | Holder::Autovacuum(_) | Holder::Unknown => None,
        }
    }
}

/// One row of a query's result, each value as the text that the server prints for its type.
#[derive(Debug)]
pub struct Row<'a> {
    columns: &'a [String],
    values: Vec<Option<String>>,
}

/// A scan's query gave something that its reader does not understand: the two do not match.
#[derive(Debug)]
pub struct UnreadableRow {
    pub column: &'static str,
}

impl fmt::Display for UnreadableRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unexpected value in column \"{}\"", self.column)
    }
}

impl<'a> Row<'a> {
    pub fn new(columns: &'a [String], values: Vec<Option<String>>) -> Self {
        Self { columns, values }
    }

    fn optional<T: FromStr>(&mut self, column: &'static str) -> Result<Option<T>, UnreadableRow> {
        let value = self
            .columns
            .iter()
            .position(|name| name == column)
            .and_then(|index| self.values.get_mut(index))
            .ok_or(UnreadableRow { column })?;
        match value.take() {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| UnreadableRow { column }),
        }
    }

    fn required<T: FromStr>(&mut self, column: &'static str) -> Result<T, UnreadableRow> {
        self.optional(column)?.ok_or(UnreadableRow { column })
    }

    /// An empty text counts as none: that is how `pg_stat_activity` shows an unset name.
    fn text(&mut self, column: &'static str) -> Result<String, UnreadableRow> {
        Ok(self.optional(column)?.unwrap_or_default())
    }

    fn pid(&mut self, column: &'static str) -> Result<Option<Pid>, UnreadableRow> {
        Ok(self.optional(column)?.and_then(Pid::new))
    }

    fn timestamp(&mut self, column: &'static str) -> Result<Option<Timestamp>, UnreadableRow> {
        Ok(self.optional(column)?.map(Timestamp::new))
    }

    /// Reads a row of `sql/slots.sql`.
    pub fn into_slot(mut self) -> Result<Slot, UnreadableRow> {
        Ok(Slot {
            name: SlotName::new(self.required::<String>("slot_name")?),
            database: self.text("database")?,
            plugin: self.text("plugin")?,
            restart_lsn: self.optional("restart_lsn")?,
            catalog_xmin: self.optional("catalog_xmin")?,
            retained_wal: self.optional("retained_wal")?,
            wal_status: self.optional("wal_status")?,
            safe_wal_size: self.optional("safe_wal_size")?,
            synced: self.required("synced")?,
            sync_skipped: self.optional("sync_skipped")?,
            made_by_hand: (self.peek("not_sync_ready") == Some("true")
                && self.peek("creator_type").is_some_and(is_session))
            .then_some(MadeByHand::Now),
            active: self.peek("creator_pid").is_some(),
            progress: self.progress()?,
        })
    }

    fn progress(&mut self) -> Result<Progress, UnreadableRow> {
        if self.required("invalidated")? {
            return Ok(Progress::Invalidated(self.optional("invalidation_reason")?));
        }
        if self.required("not_sync_ready")? {
            return Ok(Progress::NotSyncReady);
        }
        if self.required("usable")? {
            return Ok(Progress::Usable);
        }
        match self.pid("creator_pid")? {
            Some(pid) if !self.holder_does_something_else()? => {
                Ok(Progress::Building(Box::new(self.creator(pid)?)))
            }
            holder => Ok(Progress::LeftBehind(holder)),
        }
    }

    /// A slot whose creation failed under a savepoint stays with its session. That is no longer
    /// creating it when it is idle, or has an xid, with which no creation begins
    /// (`CreateInitDecodingContext`, `logical.c`). What a background worker says of its state is
    /// its own affair.
    fn holder_does_something_else(&mut self) -> Result<bool, UnreadableRow> {
        let state = self.text("creator_state")?;
        let is_session = self.peek("creator_type").is_some_and(is_session);
        Ok(self.required("creator_has_xid")? || is_session && state.starts_with("idle"))
    }

    fn peek(&self, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.values.get(index)?.as_deref()
    }

    fn creator(&mut self, pid: Pid) -> Result<Creator, UnreadableRow> {
        let backend_type = self.text("creator_type")?;
        let wait_event_type = self.text("creator_wait_event_type")?;
        let wait_event = self.text("creator_wait_event")?;
        let client_addr: Option<String> = self.optional("creator_client_addr")?;
        let client_port = self.optional("creator_client_port")?;
        let query_start = self.timestamp("creator_query_start")?;
        Ok(Creator {
            wait: CreatorWait::from_activity(&backend_type, &wait_event_type, &wait_event),
            client: Client::from_activity(client_addr.as_deref(), client_port),
            // Neither is known to SQL.
            connection: Connection::Unknown,
            own_limits: OwnLimits::default(),
            identity: CreatorIdentity {
                pid,
                backend_start: self.timestamp("creator_start")?,
                query_start: query_start.filter(|_| is_session(&backend_type)),
                backend_type,
                leader: self.pid("creator_leader_pid")?,
                usename: self.optional("creator_usename")?,
                application_name: self.text("creator_application")?,
                client_addr,
                client_process: ClientProcess::NotLookedUp,
            },
        })
    }

    /// Reads a row of `sql/own_limits.sql`.
    pub fn into_stored_setting(mut self) -> Result<StoredSetting, UnreadableRow> {
        Ok(StoredSetting {
            creator: self.pid("pid")?.ok_or(UnreadableRow { column: "pid" })?,
            name: self.required("name")?,
            value: self.text("value")?,
        })
    }

    /// Reads what a primary answers to a request to end a blocker.
    pub fn into_verdict(mut self) -> Result<Verdict, UnreadableRow> {
        /// In characters. It is kept as long as the blocker is.
        const LONGEST_REASON: usize = 1000;
        let action = self.text("action")?;
        let reason = self.text("reason")?.chars().take(LONGEST_REASON).collect();
        Ok(Verdict {
            xid: self.required("xid")?,
            answer: Answer::from_columns(&action, reason),
        })
    }

    /// A list of pids, each once. 0 is none.
    fn pids(&mut self, column: &'static str) -> Result<Vec<Pid>, UnreadableRow> {
        let list = self.text(column)?;
        let pids = list.split(',');
        let mut pids: Vec<Pid> = pids.filter_map(|pid| Pid::new(pid.parse().ok()?)).collect();
        pids.sort_by_key(|pid| pid.get());
        pids.dedup();
        Ok(pids)
    }

    /// A list of pids, each with the beginning of its transaction, if it is in one. Each once.
    fn in_the_way(&mut self) -> Result<Vec<InTheWay>, UnreadableRow> {
        const COLUMN: &str = "waits_for";
        let mut all: Vec<InTheWay> = match self.optional::<String>(COLUMN)? {
            None => Vec::new(),
            Some(list) => {
                serde_json::from_str(&list).map_err(|_| UnreadableRow { column: COLUMN })?
            }
        };
        all.sort_by_key(|one| one.pid.get());
        all.dedup_by_key(|one| one.pid);
        Ok(all)
    }

    /// Reads a row of `sql/lock_holders.sql`.
    pub fn into_lock_waiter(mut self) -> Result<LockWaiter, UnreadableRow> {
        let prepared = self.text("waits_for_prepared")?;
        Ok(LockWaiter {
            xid: self.optional("xid")?,
            waits_for: self.pids("waits_for")?,
            waits_for_prepared: prepared
                .split(',')
                .filter_map(|xid| xid.parse().ok())
                .collect(),
            session: Session {
                pid: self.pid("pid")?.ok_or(UnreadableRow { column: "pid" })?,
                database: self.optional("database")?,
                usename: self.optional("usename")?,
                application_name: self.optional("application_name")?,
                client_addr: self.optional("client_addr")?,
                backend_type: self.optional("backend_type")?,
                subscription: None,
                state: self.optional("state")?,
                state_since: self.timestamp("state_since")?,
                started: self.timestamp("started")?,
                xact_start: self.optional("xact_start")?,
                backend_start: self.optional("backend_start")?,
                query: self.optional("query")?,
            },
        })
    }

    /// Reads a row of `sql/subscriptions.sql`.
    pub fn into_subscription(mut self) -> Result<(Pid, Subscription), UnreadableRow> {
        Ok((
            self.pid("pid")?.ok_or(UnreadableRow { column: "pid" })?,
            Subscription {
                name: self.text("name")?,
                copies: self.optional("relation")?,
            },
        ))
    }

    /// Reads the row of `sql/replay.sql`.
    pub fn into_replay(mut self) -> Result<Replay, UnreadableRow> {
        let waits_for = self.in_the_way()?;
        let startup_wait = self.text("startup_wait")?;
        Ok(Replay {
            // NULL only before anything was replayed, when nobody can be connected yet.
            replayed: self.optional("replayed")?.unwrap_or(Lsn::new(0)),
            received: self.optional("received")?,
            // Another query tells why.
            pause: self.required::<bool>("paused")?.then_some(Pause::NotKnown),
            receives: self.required("receives")?,
            has_archive: self.required("has_archive")?,
            apply_delay: Duration::from_millis(self.required("apply_delay")?),
            streaming_delay: self.required("streaming_delay")?,
            archive_delay: self.required("archive_delay")?,
            waits_for,
            startup_wait: StartupWait::from_wait_event(&startup_wait),
            // One look tells nothing of that.
            restores_for: Duration::ZERO,
            is_certain: self.required("is_certain")?,
        })
    }

    /// Reads a row of `sql/pause.sql`.
    pub fn into_setting_here(mut self) -> Result<SettingHere, UnreadableRow> {
        Ok(SettingHere {
            name: self.required("name")?,
            value: self.text("value")?,
            in_files: self.optional("in_files")?,
            on_command_line: self.required("on_command_line")?,
        })
    }

    /// Reads the row of `sql/upstream.sql`.
    pub fn into_introduction(mut self) -> Result<Introduction, UnreadableRow> {
        Ok(Introduction {
            in_recovery: self.required("in_recovery")?,
            version: self.required("version")?,
            system_identifier: self.required("system_identifier")?,
            role: self.role()?,
            database: self.required("database")?,
            extension_schema: self.optional("extension_schema")?,
            may_use_schema: self.required("may_use_schema")?,
            may_use_extension: self.required("may_use_extension")?,
            may_end_blockers: self.optional("may_end_blockers")?,
            may_use_core: self.optional("may_use_core")?,
            sees_all: self.required("sees_all")?,
            position: self.optional("position")?,
            relay: self.relay()?,
            next_xid: self.next_xid()?,
            is_enabled: self.text("enabled")? != "off",
            blocker_action: self.text("blocker_action")?,
            blocker_scope: self.text("blocker_scope")?,
            protected_roles: self.text("protected_roles")?,
        })
    }

    /// The connection's role, to which hints grant something. A server has none of this name, which
    /// would grant it to all, quoted or not (`RoleSpec`, `gram.y`).
    fn role(&mut self) -> Result<String, UnreadableRow> {
        const COLUMN: &str = "role";
        let role: String = self.required(COLUMN)?;
        match role.as_str() {
            "public" | "none" => Err(UnreadableRow { column: COLUMN }),
            _ => Ok(role),
        }
    }

    fn relay(&mut self) -> Result<Option<Relay>, UnreadableRow> {
        let receives = self.required("receives")?;
        let received = self.optional("received")?;
        Ok(received.map(|received| Relay { received, receives }))
    }

    fn next_xid(&mut self) -> Result<Xid, UnreadableRow> {
        let column = "age_of_first_xid";
        Xid::from_age_of_first(self.required(column)?).ok_or(UnreadableRow { column })
    }

    /// Reads a row of `sql/remote_slots.sql`.
    pub fn into_remote_slot(mut self) -> Result<RemoteSlot, UnreadableRow> {
        Ok(RemoteSlot {
            name: SlotName::new(self.required::<String>("slot_name")?),
            restart_lsn: self.optional("restart_lsn")?,
            catalog_xmin: self.optional("catalog_xmin")?,
            confirmed_flush_lsn: self.optional("confirmed_flush_lsn")?,
            active: self.required("active")?,
            failover: self.required("failover")?,
            waits_for_standbys: self.required("waits_for_standbys")?,
        })
    }

    /// Reads the answer to a request for a record: where it ends, and the next xid after it.
    pub fn into_answer(mut self) -> Result<(Lsn, Xid), UnreadableRow> {
        Ok((self.required("lsn")?, self.next_xid()?))
    }

    /// Reads a row of `sql/standing.sql`.
    pub fn into_standing(mut self) -> Result<Standing, UnreadableRow> {
        Ok(Standing {
            xid: self.required("xid")?,
            backend_type: self.text("backend_type")?,
            is_superuser: self.required("is_superuser")?,
            protected_as: self.optional("protected_as")?,
            unknown_roles: self.optional("unknown_roles")?,
            idle_for: self.optional("idle_for")?.map(Duration::from_millis),
        })
    }

    /// Reads a row of `sql/transactions.sql`.
    pub fn into_transaction(mut self) -> Result<Transaction, UnreadableRow> {
        let backend_type: Option<String> = self.optional("backend_type")?;
        let wait_event = self.text("wait_event")?;
        let holder = match (self.pid("pid")?, self.optional("gid")?) {
            (Some(pid), _) if backend_type.as_deref() == Some("autovacuum worker") => {
                Holder::Autovacuum(pid)
            }
            (Some(pid), _) => Holder::Session(pid),
            (None, Some(gid)) => Holder::Prepared { gid },
            (None, None) => return Err(UnreadableRow { column: "pid" }),
        };
        let client_addr: Option<String> = self.optional("client_addr")?;
        let mut transaction = Transaction {
            xid: self.required("xid")?,
            holder,
            client: Client::from_activity(client_addr.as_deref(), self.optional("client_port")?),
            database: self.optional("database")?,
            usename: self.optional("usename")?,
            application_name: self.optional("application_name")?,
            client_addr,
            state: self.optional("state")?,
            state_since: self.timestamp("state_since")?,
            started: self.timestamp("started")?,
            xact_start: self.optional("xact_start")?,
            query: self.optional("query")?,
            waits_for_walsender: wait_event
                .to_ascii_lowercase()
                .starts_with("libpqwalreceiver"),
            waits_for_sync_standby: wait_event == "SyncRep",
            waits_for_client: wait_event == "ClientRead",
            copied: self.optional("copied")?,
            // Not known to SQL.
            client_gone: false,
            wakes: None,
            client_process: ClientProcess::OfAnotherServer,
            backend_type,
            subscription: None,
            lock_wait: (self.text("wait_event_type")? == "Lock").then(LockWait::default),
            access: Access::from_column(&self.text("accepts_connections")?),
        };
        transaction.cut_query(QUERY_LIMIT);
        Ok(transaction)
    }
}

/// By its `backend_type`.
fn is_session(backend_type: &str) -> bool {
    matches!(backend_type, "client backend" | "walsender")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: &[(&str, Option<&str>)] = &[
        ("slot_name", Some("x")),
        ("database", Some("app")),
        ("plugin", Some("pgoutput")),
        ("restart_lsn", Some("0/1743BE0")),
        ("catalog_xmin", Some("700")),
        ("usable", Some("false")),
        ("invalidated", Some("false")),
        ("invalidation_reason", None),
        ("retained_wal", Some("56")),
        ("wal_status", Some("reserved")),
        ("safe_wal_size", None),
        ("synced", Some("false")),
        ("not_sync_ready", Some("false")),
        ("creator_pid", Some("100")),
        ("creator_type", Some("walsender")),
        ("creator_usename", Some("cdc")),
        ("creator_application", Some("sub")),
        ("sync_skipped", None),
        ("creator_leader_pid", None),
        ("creator_client_addr", None),
        ("creator_client_port", Some("-1")),
        ("creator_start", Some("5")),
        ("creator_query_start", Some("7")),
        ("creator_state", Some("active")),
        ("creator_has_xid", Some("false")),
        ("creator_wait_event_type", Some("Client")),
        ("creator_wait_event", Some("WalSenderWaitForWAL")),
    ];

    /// `SLOT`, with some of its values changed.
    fn slot(changes: &[(&str, Option<&str>)]) -> Result<Slot, UnreadableRow> {
        let columns: Vec<String> = SLOT.iter().map(|(name, _)| (*name).to_owned()).collect();
        let value = |(name, value): &(&str, Option<&str>)| {
            let changed = changes.iter().find(|(changed, _)| changed == name);
            changed
                .map_or(*value, |(_, value)| *value)
                .map(str::to_owned)
        };
        Row::new(&columns, SLOT.iter().map(value).collect()).into_slot()
    }

    fn progress(changes: &[(&str, Option<&str>)]) -> Progress {
        slot(changes).expect("readable").progress
    }

    fn wait(backend_type: &str, event_type: Option<&str>, event: Option<&str>) -> CreatorWait {
        let changes = [
            ("creator_type", Some(backend_type)),
            ("creator_wait_event_type", event_type),
            ("creator_wait_event", event),
        ];
        match progress(&changes) {
            Progress::Building(creator) => creator.wait,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_slot_that_somebody_works_on_is_being_built() {
        assert!(matches!(progress(&[]), Progress::Building(_)));
        assert!(matches!(
            progress(&[("usable", Some("true"))]),
            Progress::Usable
        ));
        assert!(matches!(
            progress(&[("creator_pid", None)]),
            Progress::LeftBehind(None)
        ));
        for idle in [
            "idle",
            "idle in transaction",
            "idle in transaction (aborted)",
        ] {
            let left = progress(&[("creator_state", Some(idle))]);
            assert!(
                matches!(left, Progress::LeftBehind(Some(Pid(100)))),
                "{idle}"
            );
        }
        let busy = progress(&[("creator_has_xid", Some("true"))]);
        assert!(matches!(busy, Progress::LeftBehind(Some(Pid(100)))));
        let worker = [
            ("creator_type", Some("background worker")),
            ("creator_state", Some("idle")),
        ];
        assert!(matches!(progress(&worker), Progress::Building(_)));
        // Background workers tell no state, and track_activities can be off.
        for state in [None, Some("disabled")] {
            assert!(matches!(
                progress(&[("creator_state", state)]),
                Progress::Building(_)
            ));
        }
        let reason = ("invalidation_reason", Some("wal_removed"));
        let lost = progress(&[("invalidated", Some("true")), reason]);
        assert!(matches!(lost, Progress::Invalidated(Some(reason)) if reason == "wal_removed"));
    }

    #[test]
    fn the_creators_wait_is_read_from_its_wait_event() {
        let event = |event| wait("walsender", Some("Client"), Some(event));
        assert_eq!(event("WalSenderWaitForWAL"), CreatorWait::Wal);
        assert_eq!(event("ProcSignalBarrier"), CreatorWait::Barrier);
        assert_eq!(event("WalSenderWaitForWal"), CreatorWait::Wal);
        assert_eq!(wait("walsender", None, None), CreatorWait::Working);
        assert_eq!(wait("client backend", None, None), CreatorWait::Unknown);
        let reads = wait("client backend", Some("IO"), Some("WALRead"));
        assert_eq!(reads, CreatorWait::Working);
        for creator in ["walsender", "client backend", "background worker"] {
            let lock = wait(creator, Some("Lock"), Some("transactionid"));
            assert_eq!(lock, CreatorWait::Transaction, "{creator}");
        }
    }

    #[test]
    fn a_client_is_known_by_its_address_and_port() {
        let tcp = |text: &str| Some(Client::Tcp(text.parse().expect("an address")));
        let client = Client::from_activity;
        assert_eq!(client(Some("10.0.0.7"), Some(5433)), tcp("10.0.0.7:5433"));
        assert_eq!(client(Some("fe80::1"), Some(5433)), tcp("[fe80::1]:5433"));
        let mapped = client(Some("::ffff:10.0.0.7"), Some(5433));
        assert_eq!(mapped, tcp("[::ffff:10.0.0.7]:5433"));
        assert_eq!(client(None, Some(-1)), Some(Client::UnixSocket));
        assert_eq!(client(None, None), None);
        assert_eq!(client(Some("10.0.0.7"), Some(-1)), None);
        assert_eq!(client(Some("10.0.0.7"), None), None);
        assert_eq!(client(Some("somewhere"), Some(5433)), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_the_column() {
        let column = |changes| slot(changes).expect_err("unreadable").column;
        assert_eq!(column(&[("restart_lsn", Some("here"))]), "restart_lsn");
        assert_eq!(column(&[("slot_name", None)]), "slot_name");
        let no_columns = Row::new(&[], Vec::new()).into_slot();
        assert_eq!(no_columns.expect_err("unreadable").column, "slot_name");
    }

    fn transaction(values: &[(&str, &str)]) -> Result<Transaction, UnreadableRow> {
        const COLUMNS: &[&str] = &[
            "xid",
            "pid",
            "gid",
            "database",
            "usename",
            "application_name",
            "client_addr",
            "client_port",
            "backend_type",
            "state",
            "wait_event_type",
            "wait_event",
            "copied",
            "state_since",
            "started",
            "xact_start",
            "query",
            "accepts_connections",
        ];
        let columns: Vec<String> = COLUMNS.iter().map(|&name| name.to_owned()).collect();
        let value = |column: &&str| {
            let value = values.iter().find(|(name, _)| name == column);
            value.map(|(_, value)| (*value).to_owned())
        };
        Row::new(&columns, COLUMNS.iter().map(value).collect()).into_transaction()
    }

    #[test]
    fn nobody_connects_as_everybody() {
        let columns = ["role".to_owned()];
        let role = |name: &str| Row::new(&columns, vec![Some(name.to_owned())]).role().ok();
        assert_eq!(role("replicator"), Some("replicator".into()));
        assert_eq!(role("Public"), Some("Public".into()));
        for reserved in ["public", "none"] {
            assert_eq!(role(reserved), None);
        }
    }

    #[test]
    fn what_began_after_a_creation_did_not_run_when_it_began() {
        use super::super::fixtures::{at, observation, session, xid};
        let began = |number, milliseconds: Option<i64>| Transaction {
            started: milliseconds.map(at),
            ..session(number, 1)
        };
        let transactions = vec![
            began(700, Some(-60_000)),
            began(701, None),
            // It may have come before the record.
            began(702, Some(1_000)),
            began(703, Some(1_001)),
            began(704, Some(2_000)),
        ];
        let mut seen = observation(3_000, Vec::new(), transactions);
        let next = |seen: &Observation, began| {
            let at_creation = seen.running_at(began, seen.running);
            assert_eq!(at_creation.oldest, xid(700));
            at_creation.next
        };
        assert_eq!(next(&seen, Some(at(0))), xid(703));
        assert_eq!(next(&seen, Some(at(3_000))), seen.running.next);
        assert_eq!(next(&seen, None), seen.running.next);
        // Listed later than the running ones were.
        seen.running.next = xid(702);
        assert_eq!(next(&seen, Some(at(0))), xid(702));
    }

    #[test]
    fn what_began_while_they_were_listed_is_not_the_oldest() {
        use super::super::fixtures::{session, xid};
        let listed = || vec![session(705, 1), session(690, 2), session(703, 3)];
        let (transactions, running) = by_age(listed(), xid(700));
        let ids: Vec<u32> = transactions.iter().map(|t| t.xid.get()).collect();
        assert_eq!(ids, [690, 703, 705]);
        assert_eq!((running.oldest, running.next), (xid(690), xid(706)));
        assert_eq!(by_age(listed(), xid(710)).1.next, xid(710));
        assert!(by_age(Vec::new(), xid(700)).1.is_idle());
    }

    #[test]
    fn a_long_query_is_cut_between_characters() {
        let long = format!("{}é", "x".repeat(QUERY_LIMIT - 1));
        let cut = transaction(&[("xid", "700"), ("pid", "1"), ("query", &long)]);
        assert_eq!(
            cut.expect("readable").query.map(|q| q.len()),
            Some(QUERY_LIMIT - 1)
        );
    }

    #[test]
    fn holders_are_told_apart() {
        let holder = |values| transaction(values).expect("readable").holder;
        let session = [
            ("xid", "700"),
            ("pid", "1"),
            ("backend_type", "client backend"),
        ];
        assert_eq!(holder(&session), Holder::Session(Pid(1)));
        let autovacuum = [
            ("xid", "700"),
            ("pid", "1"),
            ("backend_type", "autovacuum worker"),
        ];
        assert_eq!(holder(&autovacuum), Holder::Autovacuum(Pid(1)));
        let prepared = [("xid", "700"), ("gid", "g")];
        assert_eq!(holder(&prepared), Holder::Prepared { gid: "g".into() });
        assert!(transaction(&[("xid", "700")]).is_err());
    }
}
