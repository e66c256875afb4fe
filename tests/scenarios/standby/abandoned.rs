//! A creation on a standby whose client has gone. It is not helped along: what
//! became of it would hold back WAL for nobody.

use harness::{Blocker, Creator, Leaving, Setup};

use super::{Pair, SLOT};
use crate::{
    Major,
    abandoned::{check_abandoned, close, kill, wait_until_abandoned},
    limits::{LOG_CODES, check_untouched},
    primary,
};

scenarios!(
    on_majors_with_standby_slots:
    killed_walsender = cancelled_after(kill, Creator::PgRecvlogical),
    closed = cancelled_after(close, Creator::Psycopg),
);

on_majors_with_standby_slots!(noticed_by_the_walsender, not_helped_along);

fn cancelled_after(leave: fn(&mut harness::Creation), creator: Creator, major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major).conf(LOG_CODES));
    // the standby learns of it by a record, which the builder has then
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(creator);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.state == "waiting_for_transactions" && status.blocker_pids() == [blocking.pid]
    });
    if creator.backend_type() == "walsender" {
        // Not for WAL any more: while it does, it listens to its client
        // (`WalSndWaitForWal`). For a transaction it waits without an event.
        let status = pair
            .standby
            .wait_for_status(SLOT, "a record", |status| status.nudges > Some(0));
        let pid = status.creator_pid.unwrap();
        pair.standby.wait_for_replay_of(&pair.primary);
        pair.standby.wait_until_sql(
            "the walsender to wait for the blocker",
            &format!("wait_event IS NULL FROM pg_stat_activity WHERE pid = {pid}"),
        );
    }
    leave(&mut creation);
    let status = wait_until_abandoned(&pair.standby, SLOT);
    check_abandoned(&pair.standby, &status);
    check_untouched(&pair.primary, blocking);
}

/// It listens to its client while it waits for the first record, which is not
/// asked for before the blocker has ended.
fn noticed_by_the_walsender(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major));
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::PgRecvlogical);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    kill(&mut creation);
    let finished = pair.standby.wait_for_end_of(SLOT);
    assert_eq!(finished.outcome, "gone");
    assert_eq!(pair.standby.worker().cancelled, Some(0));
    check_untouched(&pair.primary, blocking);
}

/// Its blocker ends, and only the record is missing. Nobody asks for it.
fn not_helped_along(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major).conf(LOG_CODES));
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::Psycopg);
    pair.standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    creation.leave(Leaving::Close);
    let status = wait_until_abandoned(&pair.standby, SLOT);
    let before = pair.primary.insert_lsn();
    blocking.commit();
    pair.commit_something();
    pair.standby.wait_for_replay_of(&pair.primary);
    check_abandoned(&pair.standby, &status);
    assert_eq!(pair.records_since(before), 0, "a record was written");
}
