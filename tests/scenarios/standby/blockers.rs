//! Transactions of the primary, which a creation on its standby waits for.

use harness::{Blocker, Blocking, Creator, Setup, Status, for_a_while};

use super::{Pair, SLOT, check_hint};
use crate::{
    Major,
    blockers::{end_as_told, primary_for, wait_until_named},
    hostile_database_name,
    pasted::start_waiting,
    primary,
};

on_majors_with_standby_slots!(
    oldest_first,
    committed,
    rolled_back,
    second_blocker_meanwhile,
    later_transactions_do_not_block,
    many_subtransactions,
    that_began_before_the_slot,
    on_the_standby_itself,
    names_that_would_like_to_be_run,
    without_pg_read_all_stats,
    holder_of_a_lock,
);

/// Waits until the creation is seen to wait for these and no others.
#[track_caller]
fn wait_for_blockers(pair: &Pair, what: &str, blocking: &[&Blocking]) -> Status {
    let xids: Vec<&str> = blocking.iter().map(|b| b.xid.as_str()).collect();
    let status = pair
        .standby
        .wait_for_status(SLOT, what, |status| status.blocker_xids() == xids);
    assert_eq!(status.state, "waiting_for_transactions", "{status:#?}");
    status
}

/// The view on the standby names the blocker, and its hint, pasted on the
/// primary, makes the slot ready.
fn named_and_ended(creator: Creator, blocker: Blocker, major: Major) {
    let pair = Pair::of(primary_for(blocker, major), Setup::new(major));
    let blocking = blocker.start(&pair.primary);
    let mut creation = pair.create(creator);
    let status = wait_until_named(&pair.standby, creator, blocker, &blocking);
    check_hint(status.hint());
    assert!(status.hint().contains("primary"), "{status:#?}");

    end_as_told(&pair.primary, blocker, &blocking, &status);
    let status = pair.finish(&mut creation);
    assert!(status.blockers.is_empty(), "{status:#?}");
    assert_eq!(status.hint, None);
}

/// Tests `behind::<blocker>::pg16`, each kind of creator in its turn.
mod behind {
    use super::{Blocker, Creator, named_and_ended};

    scenarios!(
        on_majors_with_standby_slots:
        idle_in_transaction = named_and_ended(Creator::Walsender, Blocker::IdleInTransaction),
        idle_in_transaction_sql = named_and_ended(Creator::SqlFunction, Blocker::IdleInTransaction),
        active_session = named_and_ended(Creator::SqlFunction, Blocker::Active),
        aborted_with_savepoint = named_and_ended(Creator::Walsender, Blocker::AbortedWithSavepoint),
        prepared_transaction = named_and_ended(Creator::SqlFunction, Blocker::Prepared),
        prepared_transaction_walsender = named_and_ended(Creator::Walsender, Blocker::Prepared),
        autovacuum = named_and_ended(Creator::Walsender, Blocker::Autovacuum),
        another_database = named_and_ended(Creator::SqlFunction, Blocker::AnotherDatabase),
        background_worker = named_and_ended(Creator::Walsender, Blocker::BackgroundWorker),
    );
}

fn oldest_first(major: Major) {
    let pair = Pair::start(major);
    let oldest = Blocker::IdleInTransaction.start(&pair.primary);
    let prepared = Blocker::Prepared.start(&pair.primary);
    let youngest = Blocker::Active.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    wait_for_blockers(&pair, "all three", &[&oldest, &prepared, &youngest]);

    // whoever ends first goes from the list, whatever its place
    pair.primary.run("ROLLBACK PREPARED 'it''s prepared'");
    wait_for_blockers(&pair, "two blockers", &[&oldest, &youngest]);
    oldest.commit();
    wait_for_blockers(&pair, "one blocker", &[&youngest]);
    drop(youngest);
    pair.finish(&mut creation);
}

fn ended_by(major: Major, creator: Creator, end: fn(Blocking)) {
    let pair = Pair::start(major);
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(creator);
    wait_for_blockers(&pair, "the blocker", &[&blocking]);
    end(blocking);
    pair.finish(&mut creation);
}

fn committed(major: Major) {
    ended_by(major, Creator::SqlFunction, Blocking::commit);
}

/// A rollback is not even flushed.
fn rolled_back(major: Major) {
    ended_by(major, Creator::Walsender, Blocking::rollback);
}

/// A transaction that began before the builder's next phase must end, too.
fn second_blocker_meanwhile(major: Major) {
    let pair = Pair::start(major);
    let first = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::SqlFunction);
    wait_for_blockers(&pair, "the first blocker", &[&first]);
    let second = Blocker::IdleInTransaction.start(&pair.primary);
    wait_for_blockers(&pair, "both blockers", &[&first, &second]);
    first.commit();
    wait_for_blockers(&pair, "the second blocker alone", &[&second]);
    second.rollback();
    pair.finish(&mut creation);
}

/// In its last phase the builder waits for no transaction that began after it.
/// That phase is reached by the second record; the third is the last.
fn later_transactions_do_not_block(major: Major) {
    let pair = Pair::start(major);
    let first = Blocker::IdleInTransaction.start(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    wait_for_blockers(&pair, "the first blocker", &[&first]);
    let second = Blocker::IdleInTransaction.start(&pair.primary);
    wait_for_blockers(&pair, "both blockers", &[&first, &second]);
    first.commit();
    pair.standby
        .wait_for_status(SLOT, "the second record", |status| {
            status.nudges == Some(2) && status.state == "waiting_for_transactions"
        });

    let later = Blocker::IdleInTransaction.start(&pair.primary);
    for_a_while();
    wait_for_blockers(&pair, "the second blocker alone", &[&second]);
    second.commit();
    pair.finish(&mut creation);
    drop(later);
}

/// More than a running-xacts record names (`PGPROC_MAX_CACHED_SUBXIDS`).
fn many_subtransactions(major: Major) {
    let pair = Pair::start(major);
    pair.primary.run("CREATE TABLE orders (id int)");
    let mut blocking = Blocker::IdleInTransaction.start(&pair.primary);
    for id in 0..70 {
        blocking
            .session()
            .run(&format!("SAVEPOINT s; INSERT INTO orders VALUES ({id})"));
    }
    let mut creation = pair.create(Creator::SqlFunction);
    wait_for_blockers(&pair, "the blocker alone", &[&blocking]);
    blocking.rollback();
    pair.finish(&mut creation);
}

/// The slot's catalog_xmin is after its xid: the builder passes every record
/// over in which it still runs (`SnapBuildFindSnapshot`).
fn that_began_before_the_slot(major: Major) {
    let pair = Pair::start(major);
    let blocking = pair.start_blocker_that_wrote();
    let mut creation = pair.create(Creator::Walsender);
    wait_for_blockers(&pair, "the blocker", &[&blocking]);
    pair.standby.wait_until_sql(
        "a catalog_xmin after the blocker",
        &format!(
            "catalog_xmin::text::bigint > {} FROM pg_replication_slots",
            blocking.xid
        ),
    );
    blocking.commit();
    pair.finish(&mut creation);
}

/// A session of the standby has no xid and is in nobody's way.
fn on_the_standby_itself(major: Major) {
    let pair = Pair::start(major);
    let mut reader = pair.standby.connect();
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    reader.run("SELECT count(*) FROM pg_class");
    let mut creation = pair.create(Creator::SqlFunction);
    pair.finish(&mut creation);
    assert!(reader.is_true("SELECT true"));
}

fn names_that_would_like_to_be_run(major: Major) {
    let pair = Pair::start(major);
    let database = hostile_database_name(major);
    let gid = "x\\'; SELECT 'run by a name'; --\n; SELECT 'run by a name'; --";
    pair.primary.run(&format!("CREATE DATABASE \"{database}\""));
    let mut session = pair.primary.login().database(database).connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    let literal = gid.replace('\'', "''");
    session.run(&format!("PREPARE TRANSACTION '{literal}'"));
    let mut creation = pair.create(Creator::Walsender);
    let status = pair
        .standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    assert_eq!(status.blockers[0].gid.as_deref(), Some(gid));
    assert_eq!(status.blockers[0].database.as_deref(), Some(database));
    let printed = pair.primary.paste_as_one(database, status.hint());
    assert_eq!(printed, "ROLLBACK PREPARED\n");
    pair.finish(&mut creation);
}

/// Postgres tells everybody a session's xid, role and application, and no more
/// (`pg_stat_get_activity`).
fn without_pg_read_all_stats(major: Major) {
    let primary = primary(major);
    primary.run("CREATE ROLE replicator LOGIN REPLICATION");
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    let pair = Pair::of(primary, Setup::new(major).upstream_role("replicator"));
    let mut session = pair.primary.login().application("orders").connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id() /* confidential */");
    let mut creation = pair.create(Creator::Walsender);

    let status = pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.has_blocker(session.pid())
    });
    assert_eq!(status.state, "waiting_for_transactions");
    let row = &status.blockers[0];
    assert_eq!(row.usename.as_deref(), Some("postgres"));
    assert_eq!(row.application_name.as_deref(), Some("orders"));
    assert!(
        !row.query
            .as_deref()
            .is_some_and(|query| query.contains("confidential")),
        "{row:#?}"
    );
    check_hint(status.hint());
    assert!(
        status
            .hint()
            .contains("GRANT pg_read_all_stats TO replicator;"),
        "{status:#?}"
    );
    let remedy = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = '{}' AND \
         backend_type = 'client backend';",
        row.xid
    );
    assert!(status.hint().contains(&remedy), "{status:#?}");

    pair.primary.run("GRANT pg_read_all_stats TO replicator");
    pair.standby
        .wait_for_status(SLOT, "the blocker's query", |status| {
            status.blockers.first().is_some_and(|row| {
                row.query
                    .as_deref()
                    .is_some_and(|query| query.contains("confidential"))
            }) && !status.hint().contains("GRANT")
        });
    session.run("COMMIT");
    pair.finish(&mut creation);
}

/// The blocker waits for a lock of a session without an xid, both on the primary.
fn holder_of_a_lock(major: Major) {
    let pair = Pair::start(major);
    pair.primary.run("CREATE TABLE orders (id int)");
    let mut reader = pair.primary.connect();
    reader.run("BEGIN");
    reader.run("SELECT FROM orders");
    let mut waiter = start_waiting(&pair.primary, "LOCK TABLE orders");
    let mut creation = pair.create(Creator::Walsender);
    let status = pair
        .standby
        .wait_for_status(SLOT, "who holds the lock", |status| {
            status.blockers.first().is_some_and(|blocker| {
                blocker.pid == Some(waiter.pid()) && blocker.waits_for == [reader.pid()]
            })
        });
    check_hint(status.hint());
    assert!(status.hint().contains("on the primary"), "{status:#?}");
    let detail = format!("It waits for a lock of pid {} ", reader.pid());
    assert!(status.detail().contains(&detail), "{status:#?}");
    pair.primary.paste_as_one("postgres", status.hint());
    waiter.result().expect("it could go on");
    pair.finish(&mut creation);
}
