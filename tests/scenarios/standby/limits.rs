//! Limits of the standby on which a slot is created. Its primary knows nothing
//! of them.

use harness::{
    Blocker, Blocking, Creation, Creator, Setup, for_a_while, prepare_background_creator,
};

use super::{Pair, SLOT};
use crate::{
    Major,
    limits::{LOG_CODES, RETAINED_WAL, TIMEOUT, check_cancelled, check_untouched, write_wal},
    primary,
};

scenarios!(
    on_majors_with_standby_slots:
    walsender = cancelled_after_its_time(Creator::Walsender),
    temporary_walsender = cancelled_after_its_time(Creator::TemporaryWalsender),
    pg_recvlogical = cancelled_after_its_time(Creator::PgRecvlogical),
    sql_function = cancelled_after_its_time(Creator::SqlFunction),
    subscription = cancelled_after_its_time(Creator::Subscription),
    background_worker = cancelled_after_its_time(Creator::BackgroundWorker),
    psycopg = cancelled_after_its_time(Creator::Psycopg),
);

on_majors_with_standby_slots!(
    of_the_primary,
    of_a_role,
    too_much_wal,
    no_record_for_what_was_cancelled,
);

fn cancelled_after_its_time(creator: Creator, major: Major) {
    let primary = primary(major);
    primary.run(&format!("CREATE PUBLICATION {SLOT}"));
    prepare_background_creator(&primary);
    let standby = Setup::new(major)
        .conf("slot_self_heal.creation_timeout = '5s'")
        .conf(LOG_CODES);
    let pair = Pair::of(primary, standby);
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(creator);
    let status = pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_pids() == [blocking.pid]
    });
    let result = creation.finish();
    if creator != Creator::BackgroundWorker {
        result.expect_err("the client gets no slot");
    }
    let finished = check_cancelled(&pair.standby, &status, TIMEOUT);
    assert_eq!(finished.blockers[0].pid, blocking.pid);
    assert_eq!(finished.blockers[0].xid, blocking.xid);
    let worker = pair.standby.worker();
    assert_eq!(worker.cancelled, Some(1));
    assert_eq!(worker.last_error, None);
    assert_eq!(pair.primary.worker().cancelled, Some(0));
    check_untouched(&pair.primary, blocking);

    // once the blocker has ended there is time enough
    let mut creation = pair.create(Creator::SqlFunction);
    pair.finish(&mut creation);
}

/// A slot that waits, and holds back some 2 MB for a while.
#[track_caller]
fn create_and_write(pair: &Pair) -> (Blocking, Creation) {
    let blocking = pair.start_blocker_that_wrote();
    let creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    write_wal(&pair.primary, 2);
    pair.standby.wait_for_replay_of(&pair.primary);
    for_a_while();
    (blocking, creation)
}

/// What the primary allows is for slots that are created there.
fn of_the_primary(major: Major) {
    let pair = Pair::start(major);
    pair.primary.set(TIMEOUT, "'1s'");
    pair.primary.set(RETAINED_WAL, "'1MB'");
    let (blocking, mut creation) = create_and_write(&pair);
    blocking.commit();
    pair.finish(&mut creation);
    assert_eq!(pair.standby.worker().cancelled, Some(0));
}

/// ALTER ROLE is the primary's command, and its standbys' setting.
fn of_a_role(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major).conf(LOG_CODES));
    pair.primary.run("CREATE ROLE cdc LOGIN REPLICATION");
    let blocking = pair.start_blocker_that_wrote();
    let sql = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    let mut creation = pair.standby.login().role("cdc").start(&sql);
    let status = pair
        .standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    for_a_while();
    assert!(!creation.is_finished());
    pair.primary
        .run("ALTER ROLE cdc SET slot_self_heal.creation_timeout = '1s'");
    assert_eq!(creation.result().unwrap_err().code, "57014");
    check_cancelled(&pair.standby, &status, TIMEOUT);
    check_untouched(&pair.primary, blocking);
}

fn too_much_wal(major: Major) {
    let standby = Setup::new(major)
        .conf("slot_self_heal.max_retained_wal = '3MB'")
        .conf(LOG_CODES);
    let pair = Pair::of(primary(major), standby);
    let (blocking, mut creation) = create_and_write(&pair);
    let status = pair.standby.status(SLOT).expect("it is being created");

    write_wal(&pair.primary, 2);
    creation.finish().expect_err("it was cancelled");
    let finished = check_cancelled(&pair.standby, &status, RETAINED_WAL);
    assert!(finished.max_retained_wal > Some(3 << 20), "{finished:#?}");
    check_untouched(&pair.primary, blocking);
}

/// Nobody waits for one any more.
fn no_record_for_what_was_cancelled(major: Major) {
    let standby = Setup::new(major).conf("slot_self_heal.creation_timeout = '4s'");
    let pair = Pair::of(primary(major), standby);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    creation.finish().expect_err("it was cancelled");
    pair.standby.wait_for_end_of(SLOT);
    let before = pair.primary.insert_lsn();
    blocking.commit();
    for_a_while();
    assert_eq!(pair.records_since(before), 0, "a record was written");
}
