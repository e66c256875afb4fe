//! Observations for the unit tests of this module tree.

use std::time::Duration;

use super::locks::Session;
use super::observation::*;
use super::policy::OwnLimits;
use super::replay::{InTheWay, Replay, StartupWait};
use super::time::Timestamp;
use super::upstream::Look;
use super::watch::Watch;
use super::xid::{Lsn, Xid};

pub fn xid(xid: u32) -> Xid {
    Xid::new(xid).expect("a normal xid")
}

/// A point in time, in milliseconds from the test's beginning.
pub fn at(milliseconds: i64) -> Timestamp {
    Timestamp::new(1_000_000_000 + milliseconds * 1000)
}

pub fn pid(pid: i32) -> Pid {
    Pid::new(pid).expect("a pid")
}

pub fn creator() -> Creator {
    Creator {
        identity: CreatorIdentity {
            pid: pid(100),
            backend_start: Some(at(-5000)),
            query_start: Some(at(-10)),
            backend_type: "walsender".into(),
            leader: None,
            usename: Some("cdc".into()),
            application_name: "sub".into(),
            client_addr: Some("10.0.0.5".into()),
            client_process: ClientProcess::Unknown,
        },
        wait: CreatorWait::Transaction,
        client: Client::from_activity(Some("10.0.0.5"), Some(50_000)),
        connection: Connection::Open,
        own_limits: OwnLimits::default(),
    }
}

pub fn slot(name: &str, progress: Progress) -> Slot {
    Slot {
        name: SlotName::new(name),
        database: "app".into(),
        plugin: "pgoutput".into(),
        restart_lsn: Some(Lsn::new(1 << 24)),
        catalog_xmin: Some(xid(1000)),
        active: matches!(progress, Progress::Building(_)),
        progress,
        retained_wal: Some(56),
        wal_status: Some("reserved".into()),
        safe_wal_size: None,
        synced: false,
        sync_skipped: None,
        made_by_hand: None,
    }
}

pub fn building(name: &str, wait: CreatorWait) -> Slot {
    let creator = Creator { wait, ..creator() };
    slot(name, Progress::Building(Box::new(creator)))
}

/// A session's transaction, idle since it began at the test's beginning.
pub fn session(number: u32, holder: i32) -> Transaction {
    Transaction {
        xid: xid(number),
        holder: Holder::Session(pid(holder)),
        database: Some("app".into()),
        usename: Some("alice".into()),
        application_name: Some("shop".into()),
        client_addr: Some("10.0.0.7".into()),
        state: Some("idle in transaction".into()),
        state_since: Some(at(0)),
        started: Some(at(0)),
        xact_start: Some("2026-11-22T21:00:00.000000+00:00".into()),
        query: Some("UPDATE t SET i = 1".into()),
        waits_for_walsender: false,
        waits_for_sync_standby: false,
        waits_for_client: true,
        copied: None,
        client: None,
        client_gone: false,
        wakes: None,
        client_process: ClientProcess::Unknown,
        backend_type: Some("client backend".into()),
        subscription: None,
        lock_wait: None,
        access: Access::Allowed,
    }
}

/// A session without an xid, idle in a transaction since the test's beginning.
pub fn reader(holder: i32) -> Session {
    Session {
        pid: pid(holder),
        database: Some("app".into()),
        usename: Some("bob".into()),
        application_name: Some("report".into()),
        client_addr: Some("10.0.0.8".into()),
        backend_type: Some("client backend".into()),
        subscription: None,
        state: Some("idle in transaction".into()),
        state_since: Some(at(0)),
        started: Some(at(0)),
        xact_start: Some("2026-11-22T21:00:00.000001+00:00".into()),
        backend_start: Some("2026-11-22T20:00:00.000001+00:00".into()),
        query: Some("SELECT FROM t".into()),
    }
}

pub fn prepared(number: u32, gid: &str) -> Transaction {
    Transaction {
        holder: Holder::Prepared { gid: gid.into() },
        application_name: None,
        client_addr: None,
        backend_type: None,
        state: Some("prepared".into()),
        query: None,
        ..session(number, 1)
    }
}

/// A primary at `milliseconds`, its next xid 1000.
pub fn observation(
    milliseconds: i64,
    slots: Vec<Slot>,
    transactions: Vec<Transaction>,
) -> Observation {
    Observation {
        at: at(milliseconds),
        role: Role::Primary,
        running: by_age(transactions.clone(), xid(1000)).1,
        slots,
        transactions,
        replay: None,
        upstream: None,
        syncs_slots: false,
    }
}

/// A standby that has replayed all its primary wrote, its next xid 1000.
pub fn standby(milliseconds: i64, slots: Vec<Slot>, oldest: u32) -> Observation {
    let mut observation = Observation {
        role: Role::Standby,
        running: Running {
            oldest: xid(oldest),
            next: xid(1000),
        },
        replay: Some(replay(1 << 25)),
        ..observation(milliseconds, slots, Vec::new())
    };
    observation.learn(None);
    observation
}

pub fn in_the_way(number: i32) -> InTheWay {
    InTheWay {
        pid: pid(number),
        xact_start: Some("2026-11-22T21:00:00.000001+00:00".into()),
        backend_type: Some("client backend".into()),
        usename: Some("app".into()),
        application_name: Some("report".into()),
        query: None,
    }
}

pub fn replay(replayed: u64) -> Replay {
    Replay {
        replayed: Lsn::new(replayed),
        received: Some(Lsn::new(replayed)),
        pause: None,
        receives: true,
        has_archive: false,
        apply_delay: Duration::ZERO,
        streaming_delay: "30s".into(),
        archive_delay: "30s".into(),
        waits_for: Vec::new(),
        startup_wait: StartupWait::Other,
        restores_for: Duration::ZERO,
        is_certain: true,
    }
}

/// What a primary with these transactions answers, its next xid 1000.
pub fn look(milliseconds: i64, transactions: Vec<Transaction>) -> Look {
    Look {
        at: at(milliseconds),
        running: Some(by_age(transactions.clone(), xid(1000)).1),
        transactions,
        position: Some(Lsn::new(1 << 25)),
        relay: None,
        blind: None,
        slots: Vec::new(),
    }
}

/// What is known once slot `x` was seen to wait for `transactions`.
pub fn watching(transactions: Vec<Transaction>) -> Watch {
    let mut watch = Watch::default();
    let slots = vec![building("x", CreatorWait::Transaction)];
    watch.update(&observation(0, slots, transactions));
    watch
}
