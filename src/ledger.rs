//! What the worker knows, in shared memory, for the views and for its own successor.
//!
//! Nothing is ever written to a table: that would take transaction ids and write WAL. What has no
//! fixed size is kept as JSON in a page of fixed size, so that neither a thousand blockers nor a
//! query of a megabyte can overflow it: [`Watch::shrink_until`] leaves out and counts what does
//! not fit.
//!
//! The worker alone writes the watch and the finished creations; the counters it shares with
//! `slot_self_heal_reset()`. Each part has its own lock, held for a copy of memory only. A server
//! that restarts after a crash begins with an empty ledger.

pub mod page;

use pgrx::lwlock::PgLwLock;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, pg_shmem_init};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::page::Page;
use crate::core::hint::Hint;
use crate::core::history::{self, Finished};
use crate::core::observation::{Pid, SlotName};
use crate::core::story::Story;
use crate::core::time::Timestamp;
use crate::core::watch::Watch;
use crate::core::xid::Lsn;
use crate::server;
use crate::server::report::{self, Notice};

/// Room for some 500 creations with their blockers.
const WATCH_BYTES: usize = 1 << 20;
/// Room for [`FINISHED`] creations of some 8 kB each, their blockers included.
const FINISHED_BYTES: usize = 1 << 20;
/// How many finished creations are remembered.
const FINISHED: usize = 128;
const TROUBLE_BYTES: usize = 4 << 10;

// All of them JSON. Each name is used once, and carries the extension's own.
static WATCH: Page<WATCH_BYTES> = Page::named(c"slot_self_heal watch");
static HISTORY: Page<FINISHED_BYTES> = Page::named(c"slot_self_heal finished");
static TROUBLE: Page<TROUBLE_BYTES> = Page::named(c"slot_self_heal trouble");
// SAFETY: as above.
#[allow(unsafe_code)]
static WORKER: PgLwLock<WorkerRecord> = unsafe { PgLwLock::new(c"slot_self_heal worker") };

/// The worker itself, its counters, and when it last did what. Times are 0 when it never did.
#[derive(Clone, Copy, Default)]
struct WorkerRecord {
    pid: i32,
    started_at: i64,
    last_scan_at: i64,
    counters: Counters,
    /// The worker is between its start and its connection to `slot_self_heal.database`.
    connecting: bool,
    /// When it last failed to connect.
    connect_failed_at: i64,
    /// When the upstream last did what a session asked for.
    upstream_answered_at: i64,
}

// SAFETY: plain numbers, any of which is valid.
#[allow(unsafe_code)]
unsafe impl PGRXSharedMemory for WorkerRecord {}

/// Sums since the server started, or since `slot_self_heal_reset()`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub scans: u64,
    pub nudges: u64,
    pub healed: u64,
    pub cancelled: u64,
}

/// What went wrong last.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Trouble {
    pub message: String,
    pub hint: Option<Hint>,
    pub at: Timestamp,
}

/// The worker as the view shows it.
#[derive(Debug)]
pub struct WorkerStatus {
    pub pid: Option<Pid>,
    /// The last one ended because it could not connect.
    pub cannot_connect: bool,
    pub started_at: Option<Timestamp>,
    pub last_scan_at: Option<Timestamp>,
    pub counters: Counters,
    pub trouble: Option<Trouble>,
}

/// Asks for the shared memory and the locks.
pub fn init() {
    pg_shmem_init!(WATCH);
    pg_shmem_init!(HISTORY);
    pg_shmem_init!(TROUBLE);
    pg_shmem_init!(WORKER);
    server::note_preloaded();
}

/// Raises an error unless the library was preloaded, so that there is a ledger to read.
pub fn require() {
    if !server::was_preloaded() {
        report::error(Notice {
            code: PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            message: "slot_self_heal must be loaded via \"shared_preload_libraries\"".into(),
            detail: None,
            hint: Some(
                "Add slot_self_heal to what SHOW shared_preload_libraries gives, and restart the \
                 server. In postgresql.conf the list is one quoted string; in ALTER SYSTEM it takes \
                 no quotes around it: SET shared_preload_libraries = pg_stat_statements, \
                 slot_self_heal."
                    .into(),
            ),
        });
    }
}

fn read<T: DeserializeOwned, const N: usize>(page: &Page<N>) -> Option<T> {
    serde_json::from_slice(&page.text()).ok()
}

/// Whether the content fits; the page stays as it was if it does not.
fn write<T: Serialize, const N: usize>(page: &Page<N>, content: &T) -> bool {
    serde_json::to_vec(content).is_ok_and(|text| page.set(&text))
}

/// The creations that go on.
pub fn watch() -> Watch {
    read(&WATCH).unwrap_or_default()
}

pub fn publish(watch: &Watch) {
    if !write(&WATCH, watch) {
        watch.clone().shrink_until(|part| write(&WATCH, part));
    }
}

/// The creations that have ended, the latest last.
pub fn finished() -> Vec<Finished> {
    read(&HISTORY).unwrap_or_default()
}

pub fn remember(ended: Vec<Finished>) {
    if ended.is_empty() {
        return;
    }
    let mut finished = finished();
    history::add(&mut finished, ended);
    let surplus = finished.len().saturating_sub(FINISHED);
    finished.drain(..surplus);
    for shorten in [Finished::leave_out_queries, Finished::leave_out_blockers] {
        if write(&HISTORY, &finished) {
            return;
        }
        finished.iter_mut().for_each(shorten);
    }
    while !write(&HISTORY, &finished) && !finished.is_empty() {
        finished.remove(0);
    }
}

/// What is remembered of the tries of a client.
pub fn story_of(slot: &SlotName, story: &Story) -> Option<Finished> {
    let mut finished = finished().into_iter();
    finished.find(|finished| finished.is_of(slot, story))
}

/// The slot is there that a client had tried to create.
pub fn made_unseen(slot: &SlotName, story: &Story, restart_lsn: Lsn, now: Timestamp) {
    if let Some(tries) = story_of(slot, story) {
        remember(vec![tries.made_unseen(story, restart_lsn, now)]);
    }
}

/// `slot_self_heal_reset()`
pub fn reset() {
    WORKER.exclusive().counters = Counters::default();
    HISTORY.set(b"[]");
}

pub fn count(add: impl FnOnce(&mut Counters)) {
    add(&mut WORKER.exclusive().counters);
}

pub fn worker_scanned(now: Timestamp) {
    let mut worker = WORKER.exclusive();
    worker.last_scan_at = now.get();
    worker.counters.scans += 1;
}

pub fn worker_connects() {
    WORKER.exclusive().connecting = true;
}

pub fn worker_started(pid: Pid, now: Timestamp) {
    let mut worker = WORKER.exclusive();
    worker.pid = pid.get();
    worker.started_at = now.get();
    worker.connecting = false;
    worker.connect_failed_at = 0;
}

/// Whether it ended before it was connected.
pub fn worker_ended() -> bool {
    let mut worker = WORKER.exclusive();
    worker.pid = 0;
    std::mem::take(&mut worker.connecting)
}

pub fn connect_failed(now: Timestamp) {
    WORKER.exclusive().connect_failed_at = now.get();
}

/// When the last worker failed to connect, if it did.
pub fn connect_failed_at() -> Option<Timestamp> {
    timestamp(WORKER.share().connect_failed_at)
}

/// The upstream did what a session asked for.
pub fn upstream_answered(now: Timestamp) {
    WORKER.exclusive().upstream_answered_at = now.get();
}

pub fn upstream_answered_at() -> Option<Timestamp> {
    timestamp(WORKER.share().upstream_answered_at)
}

pub fn note_trouble(trouble: &Trouble) {
    write(&TROUBLE, trouble);
}

pub fn worker() -> WorkerStatus {
    let worker = *WORKER.share();
    WorkerStatus {
        pid: Pid::new(worker.pid),
        cannot_connect: worker.connect_failed_at != 0,
        started_at: timestamp(worker.started_at),
        last_scan_at: timestamp(worker.last_scan_at),
        counters: worker.counters,
        trouble: read(&TROUBLE),
    }
}

fn timestamp(microseconds: i64) -> Option<Timestamp> {
    (microseconds != 0).then(|| Timestamp::new(microseconds))
}
