//! What the settings do not name is never ended: neither the creations nor who
//! blocks them, whatever they do and however long.

use harness::{Blocker, Cluster, Creator, Setup, for_a_while};

use crate::{Major, limits::write_wal, primary};

on_every_major!(on_a_primary);
on_majors_with_standby_slots!(on_a_standby);

/// Who creates a slot, and has a name of its own.
const CREATORS: [Creator; 4] = [
    Creator::Walsender,
    Creator::PgRecvlogical,
    Creator::SqlFunction,
    Creator::BackgroundWorker,
];

fn slot(n: usize) -> String {
    format!("slot_{n}")
}

#[track_caller]
fn check_all_wait(cluster: &Cluster) {
    for n in 0..CREATORS.len() {
        let status = cluster.status(&slot(n)).expect("it is being created");
        assert_eq!(status.state, "waiting_for_transactions", "{status:#?}");
    }
}

/// Longer than an abandoned creation would have, with WAL that it holds back.
#[track_caller]
fn check_they_wait_on(primary: &Cluster, created_on: &Cluster) {
    for n in 0..CREATORS.len() {
        created_on.wait_for_state(&slot(n), "waiting_for_transactions");
    }
    for _ in 0..8 {
        write_wal(primary, 2);
        for_a_while();
        check_all_wait(created_on);
    }
    for server in [primary, created_on] {
        let worker = server.worker();
        assert_eq!(worker.cancelled, Some(0), "{worker:#?}");
        assert_eq!(worker.last_error, None);
        assert!(!server.log().contains("canceling statement"));
        assert!(!server.log().contains("terminating connection"));
    }
    assert!(created_on.history().is_empty());
}

fn on_a_primary(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    // a peer of the creators, which have this name
    let peer = Blocker::IdleInTransaction.start_as(&cluster, &cluster.login().application("cdc"));
    let mut creations: Vec<_> = CREATORS
        .into_iter()
        .enumerate()
        .map(|(n, creator)| creator.start(&cluster, &slot(n)))
        .collect();
    check_they_wait_on(&cluster, &cluster);
    peer.commit();
    blocking.commit();
    for (n, creation) in creations.iter_mut().enumerate() {
        cluster.wait_for_state(&slot(n), "ready");
        creation.finish().unwrap();
    }
}

fn on_a_standby(major: Major) {
    let primary = primary(major);
    harness::prepare_background_creator(&primary);
    let standby = Setup::new(major).standby_of(&primary);
    let login = primary.login().application("cdc");
    let mut blocking = Blocker::IdleInTransaction.start(&primary);
    let mut peer = Blocker::IdleInTransaction.start_as(&primary, &login);
    for blocking in [&mut blocking, &mut peer] {
        let session = blocking.session();
        session.run("SELECT pg_logical_emit_message(true, '', '')");
    }
    primary.run("SELECT pg_logical_emit_message(true, '', '')");
    standby.wait_for_replay_of(&primary);
    let mut creations: Vec<_> = CREATORS
        .into_iter()
        .enumerate()
        .map(|(n, creator)| creator.start(&standby, &slot(n)))
        .collect();
    check_they_wait_on(&primary, &standby);
    peer.commit();
    blocking.commit();
    for (n, creation) in creations.iter_mut().enumerate() {
        standby.wait_for_state(&slot(n), "ready");
        creation.finish().unwrap();
    }
}
