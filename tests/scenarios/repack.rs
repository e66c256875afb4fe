//! REPACK (CONCURRENTLY): its decoding worker creates a slot, and its session
//! has a transaction that holds up other slots.

use harness::{Blocker, Cluster, Creator, Running, Status};

use crate::{Major, primary};

const SLOT: &str = "cdc_slot";

on_majors_since_19!(its_slot, as_many_as_there_may_be, as_a_blocker);

/// Its slot is temporary, and gone when it ends.
#[track_caller]
fn start(cluster: &Cluster, table: &str) -> Running {
    let app = cluster.login().application("nightly");
    app.start(&format!("REPACK (CONCURRENTLY) {table}"))
}

#[track_caller]
fn slot_of(cluster: &Cluster, repack: &Running) -> String {
    let worker = format!(
        "FROM pg_stat_activity JOIN pg_replication_slots ON active_pid = pid \
         WHERE leader_pid = {}",
        repack.pid()
    );
    cluster.wait_until_sql("the slot of REPACK", &format!("EXISTS (SELECT {worker})"));
    cluster.value(&format!("SELECT slot_name {worker}"))
}

fn table(cluster: &Cluster, name: &str) {
    cluster.run(&format!("CREATE TABLE {name} (id int PRIMARY KEY)"));
}

/// It is seen, and told what it waits for and for whom it is.
fn its_slot(major: Major) {
    let cluster = primary(major);
    table(&cluster, "orders");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut repack = start(&cluster, "orders");
    let slot = slot_of(&cluster, &repack);
    let status = cluster.wait_for_state(&slot, "waiting_for_transactions");
    assert!(status.has_blocker(blocking.pid.unwrap()), "{status:#?}");
    assert_eq!(
        status.creator_type.as_deref(),
        Some("REPACK decoding worker")
    );
    assert_eq!(status.creator_application.as_deref(), Some("nightly"));
    let whose = format!("REPACK decoding worker of pid {}", repack.pid());
    assert!(status.detail().contains(&whose), "{status:#?}");
    cluster.wait_for_log(&whose);
    blocking.rollback();
    repack.result().unwrap();
    let end = cluster.wait_for_end_of(&slot);
    assert_eq!(end.outcome, "ready", "{end:#?}");
}

/// Its slots are beyond `max_replication_slots`.
fn as_many_as_there_may_be(major: Major) {
    let cluster = primary(major);
    let most = cluster.number("SELECT current_setting('max_repack_replication_slots')");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut repacks: Vec<Running> = (0..most)
        .map(|number| {
            let name = format!("table_{number}");
            table(&cluster, &name);
            start(&cluster, &name)
        })
        .collect();
    for repack in &repacks {
        let slot = slot_of(&cluster, repack);
        cluster.wait_for_state(&slot, "waiting_for_transactions");
    }
    blocking.rollback();
    for repack in &mut repacks {
        repack.result().unwrap();
    }
}

/// The transaction in which it copies, and swaps the files in the end.
fn as_a_blocker(major: Major) {
    let cluster = primary(major);
    table(&cluster, "orders");
    cluster.run("INSERT INTO orders SELECT generate_series(1, 10)");
    // That it has to wait for.
    let mut reader = cluster.connect();
    reader.run("BEGIN");
    reader.run("LOCK TABLE orders IN ACCESS SHARE MODE");
    let mut repack = start(&cluster, "orders");
    cluster.wait_until_sql(
        "the xid of REPACK",
        &format!(
            "EXISTS (SELECT FROM pg_stat_activity WHERE pid = {} AND backend_xid IS NOT NULL)",
            repack.pid()
        ),
    );
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let names_it = |status: &Status| status.has_blocker(repack.pid());
    let status = cluster.wait_for_status(SLOT, "REPACK as a blocker", names_it);
    assert!(
        status.detail().contains("in REPACK (CONCURRENTLY)"),
        "{status:#?}"
    );
    let waits = |status: &Status| status.hint().contains("waits for that and goes on then");
    let status = cluster.wait_for_status(SLOT, "whom REPACK waits for", waits);
    let ends_reader = format!(" pid = {} ", reader.pid());
    assert!(status.hint().contains(&ends_reader), "{status:#?}");
    reader.run("COMMIT");
    repack.result().unwrap();
    cluster.wait_until_ready(SLOT);
    creation.finish().unwrap();
}
