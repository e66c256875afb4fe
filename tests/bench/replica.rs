//! Primaries with a standby, on which slots are created.

use std::{
    fmt,
    panic::resume_unwind,
    sync::{
        Mutex, MutexGuard,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use harness::{Blocker, Blocking, Cluster, Lsn, Major, PATIENCE, Setup};

/// Who sees to it that the primary writes what a creation on its standby
/// needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    Nobody,
    /// A client, with no regard to what the creation waits for.
    Poller,
    ExtensionOnBoth,
    ExtensionOnStandby,
}

impl Help {
    pub const ALL: [Help; 4] = [
        Help::Nobody,
        Help::Poller,
        Help::ExtensionOnBoth,
        Help::ExtensionOnStandby,
    ];

    pub fn is_extension(self) -> bool {
        match self {
            Help::Nobody | Help::Poller => false,
            Help::ExtensionOnBoth | Help::ExtensionOnStandby => true,
        }
    }
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Help::Nobody => "Postgres alone",
            Help::Poller => "a client polls every 10 s",
            Help::ExtensionOnBoth => "slot_self_heal on both",
            Help::ExtensionOnStandby => "slot_self_heal on the standby only",
        })
    }
}

/// A primary and its standby, otherwise as in [`Pair`](crate::Pair).
pub struct Replica {
    pub major: Major,
    pub help: Help,
    pub primary: Cluster,
    pub standby: Cluster,
}

impl Replica {
    pub fn start(major: Major, help: Help) -> Replica {
        let setup = Setup::new(major).conf("fsync = on");
        let primary = match help {
            Help::ExtensionOnBoth => setup.start(),
            Help::Nobody | Help::Poller | Help::ExtensionOnStandby => {
                setup.without_extension().start()
            }
        };
        if help == Help::ExtensionOnBoth {
            primary.create_extension();
        }
        primary.run("CREATE TABLE written (id int)");
        // Who first reads a catalog's new rows tidies their pages, and that is
        // work after which the bgwriter writes a record. Autovacuum is off.
        primary.run("VACUUM");
        let setup = Setup::new(major);
        let standby = match help {
            Help::ExtensionOnStandby => setup.conf("shared_preload_libraries = 'slot_self_heal'"),
            Help::Nobody | Help::Poller | Help::ExtensionOnBoth => setup,
        };
        Replica {
            major,
            help,
            standby: standby.standby_of(&primary),
            primary,
        }
    }

    /// Majors on whose standbys a slot can be created.
    pub fn majors() -> impl Iterator<Item = Major> {
        Major::ASKED_FOR
            .iter()
            .copied()
            .filter(|major| *major >= Major::V16)
    }

    /// The running-xacts records written on the primary until now, each by
    /// its place.
    ///
    /// Leaves a commit behind, after which the bgwriter writes another.
    pub fn records_since(&self, start: Lsn) -> Vec<Lsn> {
        let now = self.primary.insert_lsn();
        self.primary
            .running_xacts_since(start)
            .iter()
            .map(|record| place(record).unwrap_or_else(|| panic!("no place in {record}")))
            .filter(|record| *record < now)
            .collect()
    }

    /// Waits until the standby has replayed all that the primary wrote: a
    /// record still on its way would help the next creation.
    pub fn catch_up(&self) {
        /// At the end of a page the place to write at is after the next
        /// one's header. No record is as short.
        const PAGE_HEADER: u32 = 40;
        let written = self.primary.insert_lsn();
        self.standby.wait_until_sql(
            "the standby to catch up",
            &format!("pg_last_wal_replay_lsn() >= '{written}'::pg_lsn - {PAGE_HEADER}"),
        );
    }

    /// Begins a transaction on the primary that writes a row. The standby
    /// knows of it, and of no record before it that could let a slot pass.
    pub fn block(&self) -> Blocking {
        let mut blocking = Blocker::IdleInTransaction.start(&self.primary);
        blocking.session().run("INSERT INTO written VALUES (1)");
        // The commit of another flushes it.
        self.primary.run("INSERT INTO written VALUES (0)");
        self.catch_up();
        blocking
    }

    /// Waits until the slot has its place in the WAL.
    pub fn wait_until_begun(&self, slot: &str) {
        self.standby.wait_until_sql(
            "the creation to begin",
            &format!(
                "EXISTS (SELECT FROM pg_replication_slots \
                 WHERE slot_name = '{slot}' AND restart_lsn IS NOT NULL)"
            ),
        );
    }

    pub fn drop_slot(&self, slot: &str) {
        self.standby
            .run(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }

    /// Ends a creation; its slot goes with it.
    pub fn abandon(&self, slot: &str) {
        self.standby.run(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{slot}'"
        ));
        self.standby.wait_until_sql(
            "the slot to be gone",
            &format!("NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"),
        );
    }

    /// Polls from now on, where that is what helps.
    pub fn poller(&self) -> Option<Poller> {
        (self.help == Help::Poller).then(|| Poller::start(&self.primary))
    }
}

/// From `… lsn: 0/0301F0A8, prev …`.
fn place(record: &str) -> Option<Lsn> {
    let (_, rest) = record.split_once("lsn: ")?;
    let (lsn, _) = rest.split_once(',')?;
    lsn.parse().ok()
}

/// Does the same on all of them at once; what came of it, in their order.
pub fn on_all<T: Send>(
    replicas: &mut [Replica],
    work: impl Fn(&mut Replica) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let working: Vec<_> = replicas
            .iter_mut()
            .map(|replica| scope.spawn(move || work(replica)))
            .collect();
        working
            .into_iter()
            .map(|working| working.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// Whose turn it is among those who work at once: who measures milliseconds
/// must have the machine for himself.
#[derive(Default)]
pub struct Turn(Mutex<()>);

impl Turn {
    pub fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().expect("the others go on as well")
    }
}

/// Waits until the primaries rest.
///
/// After other work the bgwriter writes one more record, when its last one is
/// 15 s old and its nap, of 10 s at most, is over (`BackgroundWriterMain`).
/// Where nothing was written for longer than that, nothing will be.
pub fn wait_for_rest(replicas: &[Replica]) {
    const LONGER: Duration = Duration::from_secs(26);
    let places = || -> Vec<Lsn> {
        replicas
            .iter()
            .map(|replica| replica.primary.insert_lsn())
            .collect()
    };
    let begun = Instant::now();
    let (mut seen, mut since) = (places(), Instant::now());
    while since.elapsed() < LONGER {
        assert!(
            begun.elapsed() < 2 * PATIENCE,
            "the primaries do not come to rest"
        );
        sleep(Duration::from_millis(200));
        let now = places();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// A client that asks the primary for a record every 10 s. Stops on drop.
pub struct Poller {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    pub const BEAT: Duration = Duration::from_secs(10);

    fn start(primary: &Cluster) -> Poller {
        let mut session = primary.login().application("poller").connect();
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let begun = Instant::now();
            for beat in 1.. {
                session.run("SELECT pg_log_standby_snapshot()");
                let next = (Poller::BEAT * beat).saturating_sub(begun.elapsed());
                if stopped.recv_timeout(next) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        });
        Poller {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
