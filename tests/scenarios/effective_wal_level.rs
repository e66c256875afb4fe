//! `wal_level = replica`: the first logical slot switches logical decoding on,
//! the end of the last one switches it off, and standbys follow.

use harness::{Blocker, Cluster, Creator, Setup, Status};

use crate::{Major, with_extension};

const SLOT: &str = "cdc_slot";

on_majors_since_19!(
    nothing_is_wrong_at_start,
    switched_on,
    a_process_that_takes_no_note,
    switched_off_and_on,
    standby_follows,
    standby_loses_its_slot,
);

fn replica(major: Major) -> Setup {
    Setup::new(major).conf("wal_level = replica")
}

fn primary(major: Major) -> Cluster {
    with_extension(replica(major))
}

#[track_caller]
fn wait_until_it_is(cluster: &Cluster, level: &str) {
    let reached = format!("current_setting('effective_wal_level') = '{level}'");
    cluster.wait_until_sql("effective_wal_level", &reached);
}

/// Neither its log nor its row has anything to say.
#[track_caller]
fn complains_of_nothing(cluster: &Cluster) {
    let worker = cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(worker.hint, None);
    assert!(
        cluster.worker_hints().is_empty(),
        "{:#?}",
        cluster.worker_log()
    );
}

fn nothing_is_wrong_at_start(major: Major) {
    let primary = primary(major);
    let standby = replica(major).standby_of(&primary);
    for server in [&primary, &standby] {
        complains_of_nothing(server);
        wait_until_it_is(server, "replica");
    }
}

/// The creation that switches it on is seen and helped as any other.
fn switched_on(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(status.has_blocker(blocking.pid.unwrap()), "{status:#?}");
    blocking.rollback();
    cluster.wait_until_ready(SLOT);
    creation.finish().unwrap();
    wait_until_it_is(&cluster, "logical");
}

/// Every process of the server has to take note, and one that is stopped does
/// not.
fn a_process_that_takes_no_note(major: Major) {
    let cluster = primary(major);
    let session = cluster.connect();
    let frozen = cluster.freeze_session(session.pid());
    for creator in [Creator::SqlFunction, Creator::Walsender] {
        let slot = format!("by_{}", creator.backend_type().replace(' ', "_"));
        let _creation = creator.start(&cluster, &slot);
        let waits = |status: &Status| status.detail().contains("logical decoding is on");
        let status = cluster.wait_for_status(&slot, "the wait for the switch", waits);
        assert_eq!(status.state, "starting");
        assert!(
            status.hint().contains("accept ProcSignalBarrier"),
            "{status:#?}"
        );
        cluster.wait_for_log(&format!(
            "\"{slot}\" is being created and waits for logical decoding to be switched on"
        ));
    }
    // whom, is in Postgres's own log, as the hint says
    let names_it = format!("still waiting for backend with PID {}", session.pid());
    cluster.wait_for_log(&names_it);
    assert_eq!(cluster.worker().nudges, Some(0));
    drop(frozen);
    let mut creation = Creator::PgRecvlogical.start(&cluster, SLOT);
    cluster.wait_until_ready(SLOT);
    creation.finish().unwrap();
}

fn switched_off_and_on(major: Major) {
    let cluster = primary(major);
    for _ in 0..2 {
        let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
        creation.finish().unwrap();
        cluster.wait_for_state(SLOT, "ready");
        wait_until_it_is(&cluster, "logical");
        cluster.run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
        wait_until_it_is(&cluster, "replica");
    }
    complains_of_nothing(&cluster);
}

/// What it creates needs the primary's record, as with `wal_level = logical`.
fn standby_follows(major: Major) {
    let primary = primary(major);
    let standby = replica(major).standby_of(&primary);
    primary.run("SELECT pg_create_logical_replication_slot('there', 'test_decoding')");
    wait_until_it_is(&standby, "logical");
    let _frozen = primary.freeze_bgwriter();
    let mut creation = Creator::Walsender.start(&standby, SLOT);
    let status = standby.wait_until_ready(SLOT);
    creation.finish().unwrap();
    assert_eq!(status.nudges, Some(1), "{status:#?}");
    complains_of_nothing(&standby);
}

/// Its own slots don't count for its primary.
fn standby_loses_its_slot(major: Major) {
    let primary = primary(major);
    let standby = replica(major).standby_of(&primary);
    primary.run("SELECT pg_create_logical_replication_slot('there', 'test_decoding')");
    wait_until_it_is(&standby, "logical");
    let mut creation = Creator::SqlFunction.start(&standby, SLOT);
    standby.wait_until_ready(SLOT);
    creation.finish().unwrap();
    primary.run("SELECT pg_drop_replication_slot('there')");
    let status = standby.wait_for_state(SLOT, "lost");
    assert!(
        status.detail().contains("wal_level_insufficient"),
        "{status:#?}"
    );
    assert!(
        status.hint().contains("on the primary before"),
        "{status:#?}"
    );
}
