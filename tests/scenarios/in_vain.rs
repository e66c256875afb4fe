//! A session is ended only if that lets a creation go on.

use harness::{Blocker, Blocking, Cluster, Creator, Setup, for_a_while};

use crate::{
    Major,
    blocker_action::{
        Batch, acting_primary, app, check_nobody_was_told, check_terminated, sparing, terminating,
    },
};

const SLOT: &str = "cdc_slot";

on_every_major!(
    who_began_after_the_creation,
    who_blocks_another_creation_as_well,
    what_passes_makes_nothing_vain,
    beside_one_that_is_never_idle_for_long,
    beside_one_at_work_in_its_grace,
    beside_one_that_was_told_and_stays,
    who_began_before_the_worker_looked,
);

fn begin(cluster: &Cluster) -> Blocking {
    Blocker::IdleInTransaction.start_as(cluster, &app(cluster))
}

/// The builder will wait for them in its next phase, and they are named. While
/// it waits for a forgotten prepared transaction, their end is of no use.
fn who_began_after_the_creation(major: Major) {
    let cluster = acting_primary("terminate", "4s", "idle", Setup::new(major));
    let forgotten = Blocker::Prepared.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let mut later: Vec<Blocking> = (0..3).map(|_| begin(&cluster)).collect();
    let status = cluster.wait_for_status(SLOT, "all of them", |status| status.blockers.len() == 4);
    assert_eq!(status.blocker_xids()[0], forgotten.xid);
    cluster.wait_for_log(&format!(
        "{}it is a prepared transaction",
        sparing(&forgotten)
    ));
    for_a_while();
    check_nobody_was_told(&cluster);
    assert!(later.iter().all(|blocking| blocking.goes_on(&cluster)));

    // Now each has a grace of its own.
    let gid = forgotten.gid.as_deref().unwrap_or_default();
    cluster.run(&format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''")));
    cluster.wait_for_status(SLOT, "the others", |status| status.blockers.len() == 3);
    for_a_while();
    check_nobody_was_told(&cluster);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    for blocking in &mut later {
        check_terminated(&cluster, blocking);
    }
}

/// Its end lets one creation go on, though another has to wait for somebody who
/// is never ended.
fn who_blocks_another_creation_as_well(major: Major) {
    let cluster = acting_primary("terminate", "2s", "idle", Setup::new(major));
    let mut blocking = begin(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, "first_slot");
    cluster.wait_for_state("first_slot", "waiting_for_transactions");
    let guarded = Blocker::IdleInTransaction.start(&cluster);
    let mut other = Creator::Walsender.start(&cluster, "second_slot");
    cluster.wait_for_status("second_slot", "both", |status| status.blockers.len() == 2);
    check_terminated(&cluster, &mut blocking);
    cluster.wait_for_status("second_slot", "the other", |status| {
        status.blocker_xids() == [guarded.xid.as_str()]
    });
    guarded.commit();
    for (creation, slot) in [(&mut creation, "first_slot"), (&mut other, "second_slot")] {
        cluster.wait_for_state(slot, "ready");
        creation.finish().unwrap();
    }
}

/// One that still has its grace will be ended as well.
fn what_passes_makes_nothing_vain(major: Major) {
    let cluster = acting_primary("terminate", "3s", "idle", Setup::new(major));
    let mut first = begin(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, "first_slot");
    cluster.wait_for_state("first_slot", "waiting_for_transactions");
    for_a_while();
    // It blocks the second creation, and has just begun to.
    let mut second = begin(&cluster);
    let mut other = Creator::Walsender.start(&cluster, "second_slot");
    cluster.wait_for_status("second_slot", "both", |status| status.blockers.len() == 2);
    check_terminated(&cluster, &mut first);
    assert_eq!(cluster.count_in_log(&terminating(&second)), 0, "its grace");
    check_terminated(&cluster, &mut second);
    for (creation, slot) in [(&mut creation, "first_slot"), (&mut other, "second_slot")] {
        cluster.wait_for_state(slot, "ready");
        creation.finish().unwrap();
    }
}

/// Nor will the batch job be ended.
fn beside_one_that_is_never_idle_for_long(major: Major) {
    let cluster = acting_primary("terminate", "1s", "idle", Setup::new(major));
    let batch = Batch::start(&cluster);
    let idle = begin(&cluster);
    let _creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "both", |status| status.blockers.len() == 2);
    cluster.wait_for_log(&sparing(&idle));
    for _ in 0..3 {
        for_a_while();
    }
    check_nobody_was_told(&cluster);
    assert!(idle.goes_on(&cluster));
    batch.finish();
}

/// The grace of the one that has blocked since the first try is over before that
/// of one that is at work, and will be spared for that.
fn beside_one_at_work_in_its_grace(major: Major) {
    let cluster = acting_primary("terminate", "6s", "idle", Setup::new(major));
    let idle = begin(&cluster);
    let mut client = cluster.login().application("cdc").connect();
    client.run("SET lock_timeout = '4s'");
    let create = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    client.error(&create);
    let busy = Blocker::Active.start_as(&cluster, &app(&cluster));
    client.run("SET lock_timeout = 0");
    let _creation = client.start(&create);
    cluster.wait_for_status(SLOT, "both", |status| status.blockers.len() == 2);
    cluster.wait_for_log(&sparing(&idle));
    check_nobody_was_told(&cluster);
    cluster.wait_for_log(&sparing(&busy));
    check_nobody_was_told(&cluster);
    assert!(idle.goes_on(&cluster) && busy.goes_on(&cluster));
}

/// A backend that can't serve its signal, as where its disk hangs.
fn beside_one_that_was_told_and_stays(major: Major) {
    let cluster = acting_primary("terminate", "2s", "idle", Setup::new(major));
    let mut stuck = begin(&cluster);
    let backend = stuck.pid.expect("a session");
    let frozen = cluster.freeze_session(backend);
    let mut creation = Creator::Walsender.start(&cluster, "first_slot");
    cluster.wait_for_log(&terminating(&stuck));
    // This one's grace is over when the other should have ended long ago.
    cluster.set("slot_self_heal.blocker_grace", "'8s'");
    let mut other = begin(&cluster);
    let mut second = Creator::Walsender.start(&cluster, "second_slot");
    cluster.wait_for_log(&format!(
        "{}transaction {} would have to end first",
        sparing(&other),
        stuck.xid
    ));
    assert_eq!(cluster.count_in_log(&terminating(&other)), 0);
    drop(frozen);
    check_terminated(&cluster, &mut stuck);
    check_terminated(&cluster, &mut other);
    creation.finish().unwrap();
    second.finish().unwrap();
}

/// While it is switched off, a creation begins, and after that a transaction:
/// that one blocks when the creation has got past the other.
fn who_began_before_the_worker_looked(major: Major) {
    let cluster = acting_primary("terminate", "4s", "idle", Setup::new(major));
    let mut first = begin(&cluster);
    cluster.set("slot_self_heal.enabled", "off");
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_waiting_creator();
    for_a_while();
    let mut later = begin(&cluster);
    cluster.set("slot_self_heal.enabled", "on");
    check_terminated(&cluster, &mut first);
    cluster.wait_for_status(SLOT, "the other", |status| {
        status.blocker_xids() == [later.xid.as_str()]
    });
    assert_eq!(cluster.count_in_log(&terminating(&later)), 0, "its grace");
    check_terminated(&cluster, &mut later);
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}
