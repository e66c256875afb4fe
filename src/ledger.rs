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

use pgrx::lwlock::PgLwLock;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, pg_shmem_init};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
/// Room for [`FINISHED`] creations of some 8 kB each, their blockers included. A page is made on the
/// stack, so it can't be much larger.
const FINISHED_BYTES: usize = 1 << 20;
/// How many finished creations are remembered.
const FINISHED: usize = 128;
const TROUBLE_BYTES: usize = 4 << 10;

static WATCH: PgLwLock<Page<WATCH_BYTES>> = named(c"slot_self_heal watch");
static HISTORY: PgLwLock<Page<FINISHED_BYTES>> = named(c"slot_self_heal finished");
static TROUBLE: PgLwLock<Page<TROUBLE_BYTES>> = named(c"slot_self_heal trouble");
static WORKER: PgLwLock<WorkerRecord> = named(c"slot_self_heal worker");

#[allow(unsafe_code)]
const fn named<T>(name: &'static std::ffi::CStr) -> PgLwLock<T> {
    // SAFETY: each name is used once, and carries the extension's own.
    unsafe { PgLwLock::new(name) }
}

/// A JSON text of at most `N` bytes.
struct Page<const N: usize> {
    length: usize,
    bytes: [u8; N],
}

// SAFETY: no pointers, and any content is valid.
#[allow(unsafe_code)]
unsafe impl<const N: usize> PGRXSharedMemory for Page<N> {}

impl<const N: usize> Default for Page<N> {
    fn default() -> Self {
        Self {
            length: 0,
            bytes: [0; N],
        }
    }
}

impl<const N: usize> Page<N> {
    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Leaves the page as it was when the text is too long.
    fn set(&mut self, text: &[u8]) {
        if let Some(room) = self.bytes.get_mut(..text.len()) {
            room.copy_from_slice(text);
            self.length = text.len();
        }
    }
}

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
    pub hint: Option<String>,
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
                "Add slot_self_heal to shared_preload_libraries in postgresql.conf and restart \
                 the server."
                    .into(),
            ),
        });
    }
}

fn read<T: DeserializeOwned, const N: usize>(page: &PgLwLock<Page<N>>) -> Option<T> {
    // Copied, so that the lock is not held while it is parsed.
    let text = page.share().text().to_vec();
    serde_json::from_slice(&text).ok()
}

/// Whether the content fits; the page stays as it was if it does not.
fn write<T: Serialize, const N: usize>(page: &PgLwLock<Page<N>>, content: &T) -> bool {
    match serde_json::to_vec(content) {
        Ok(text) if text.len() <= N => {
            page.exclusive().set(&text);
            true
        }
        Ok(_) | Err(_) => false,
    }
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
    HISTORY.exclusive().set(b"[]");
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
