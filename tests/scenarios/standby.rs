//! Slots that are created on a standby.
//!
//! Nobody there can write the record that a creation needs, and a primary at
//! rest writes none: without us it waits without end.

mod abandoned;
mod blockers;
mod cascade;
mod deadlock;
mod end_blocker;
mod failover;
mod healing;
mod hostile_upstream;
mod idle;
mod limits;
mod network;
mod old_major;
mod pauses;
mod records;
mod replay;
mod secrets;
mod slot_sync;
mod tries;
mod upstream;

use harness::{
    Blocker, Blocking, Cluster, Creation, Creator, Frozen, Login, Lsn, Setup, Status, for_a_while,
    wait_until,
};

use crate::{Major, with_extension};

const SLOT: &str = "cdc_slot";

/// Another try soon, where something has to be mended first.
const TRY_SOON: &str = "slot_self_heal.nudge_interval = 2s";

/// Where a standby's WAL receiver has to connect again.
const RECEIVE_SOON: &str = "wal_retrieve_retry_interval = 200ms";

/// A primary and its standby.
///
/// The primary's bgwriter is stopped: what moves a slot on the standby is a
/// record of ours, or of the scenario.
struct Pair {
    // dropped in this order
    frozen: Option<Frozen>,
    standby: Cluster,
    primary: Cluster,
}

impl Pair {
    #[track_caller]
    fn start(major: Major) -> Pair {
        Pair::of(with_extension(Setup::new(major)), Setup::new(major))
    }

    #[track_caller]
    fn of(primary: Cluster, standby: Setup) -> Pair {
        let frozen = Some(primary.freeze_bgwriter());
        let standby = standby.standby_of(&primary);
        standby.wait_for_replay_of(&primary);
        Pair {
            frozen,
            standby,
            primary,
        }
    }

    #[track_caller]
    fn create(&self, creator: Creator) -> Creation {
        creator.start(&self.standby, SLOT)
    }

    /// Waits until the client has its slot.
    #[track_caller]
    fn finish(&self, creation: &mut Creation) -> Status {
        let status = self.standby.wait_until_ready(SLOT);
        creation
            .finish()
            .unwrap_or_else(|e| panic!("the client has no slot: {e}"));
        status
    }

    /// How many running-xacts records the primary has written since.
    #[track_caller]
    fn records_since(&self, start: Lsn) -> usize {
        self.primary.running_xacts_since(start).len()
    }

    /// Not by the end of the WAL: with checksums reading alone writes hint bits.
    #[track_caller]
    fn check_that_no_record_is_written(&self) {
        let before = self.primary.insert_lsn();
        for_a_while();
        assert_eq!(self.records_since(before), 0, "a record was written");
    }

    /// Commits something, so that all WAL before it is on its way.
    #[track_caller]
    fn commit_something(&self) {
        self.primary
            .run("SELECT pg_logical_emit_message(true, '', '')");
    }

    /// A transaction that the standby knows of, having replayed WAL of it.
    #[track_caller]
    fn start_blocker_that_wrote(&self) -> Blocking {
        let mut blocking = Blocker::IdleInTransaction.start(&self.primary);
        blocking
            .session()
            .run("SELECT pg_logical_emit_message(true, '', '')");
        self.commit_something();
        self.standby.wait_for_replay_of(&self.primary);
        blocking
    }

    #[track_caller]
    fn restart_primary(&mut self) {
        self.frozen = None;
        self.primary.restart();
        self.frozen = Some(self.primary.freeze_bgwriter());
    }
}

const TWENTY: usize = 20;

/// A pair with room for twenty slots at a time.
#[track_caller]
fn roomy_pair(major: Major) -> Pair {
    let primary = with_extension(
        Setup::new(major)
            .conf("max_replication_slots = 30")
            .conf("max_wal_senders = 30"),
    );
    Pair::of(primary, Setup::new(major))
}

/// Some by walsenders, some by the SQL function.
#[track_caller]
fn create_twenty(pair: &Pair) -> Vec<Creation> {
    (0..TWENTY)
        .map(|n| {
            let creator = [Creator::Walsender, Creator::SqlFunction][n % 2];
            creator.start(&pair.standby, &format!("slot_{n}"))
        })
        .collect()
}

/// Waits until the standby's startup process waits for something in particular.
#[track_caller]
fn wait_for_startup_process(standby: &Cluster, wait_event: &str) {
    standby.wait_until_sql(
        &format!("the startup process to wait in {wait_event}"),
        &startup_process_waits(wait_event),
    );
}

fn startup_process_waits(wait_event: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_stat_activity \
         WHERE backend_type = 'startup' AND wait_event = '{wait_event}')"
    )
}

/// For a worker that asks somebody else than its server's own upstream.
fn ask(login: Login) -> String {
    let conninfo = login.conninfo().replace('\'', "''");
    format!("slot_self_heal.primary_conninfo = '{conninfo}'")
}

/// Lets the worker ask somebody else from now on; nobody in particular when
/// empty.
#[track_caller]
fn ask_now(standby: &Cluster, conninfo: &str) {
    let conninfo = conninfo.replace('\'', "''");
    standby.set("slot_self_heal.primary_conninfo", &format!("'{conninfo}'"));
}

/// Pasted with psql, it runs to its end: SQL with prose in comments. And it
/// says where to paste it.
#[track_caller]
fn check_hint(hint: &str) {
    for line in hint.lines() {
        let statement = line.split("--").next().unwrap_or_default().trim();
        assert!(
            statement.is_empty() || statement.ends_with(';'),
            "neither a statement nor a comment: {line}"
        );
    }
    assert!(
        ["primary", "standby", "upstream"]
            .iter()
            .any(|server| hint.contains(server)),
        "no word of where to run it: {hint}"
    );
}

/// Waits until a server has no connection but its streaming standbys' and ours.
#[track_caller]
fn wait_until_left_alone(server: &Cluster) {
    wait_until(
        "the worker to close its connection",
        harness::PATIENCE,
        || strangers(server).is_empty(),
    );
}

/// Connections that are neither a WAL receiver's nor the scenario's own.
#[track_caller]
fn strangers(server: &Cluster) -> Vec<String> {
    let rows = server.rows(
        "SELECT format('%s %s', backend_type, application_name) FROM pg_stat_activity \
         WHERE backend_type IN ('client backend', 'walsender') \
         AND application_name NOT IN ('observer', 'scenario', 'standby')",
    );
    rows.into_iter().flatten().flatten().collect()
}
