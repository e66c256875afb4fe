//! Whom a signal is sent to, and who is spared: the guards, against the entries of real processes.

use std::ptr;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::session::{Afterwards, Session};
use super::settings::{FILE, set};
use super::slots::{Building, create, dropped_afterwards};
use super::wait::{until, until_true};
use crate::core::guard::{Ending, Guard, Sentence};
use crate::core::observation::{Pid, SlotName};
use crate::core::xid::{Lsn, Xid};
use crate::server::signal::{Unsent, cancel_creation, end_transaction, may_cut_commit};
use crate::server::version;

/// Of a session that may do whatever it does.
fn sentence(pid: Pid, ending: Ending) -> Sentence {
    Sentence {
        pid,
        ending,
        must_be_idle: false,
    }
}

fn end(session: &Session, xid: Xid, ending: Ending) -> Result<(), Unsent> {
    end_transaction(xid, sentence(session.pid(), ending))
}

fn guard(outcome: Result<(), Unsent>) -> Option<Guard> {
    match outcome {
        Err(Unsent::Guarded(guard)) => Some(guard),
        Ok(()) | Err(Unsent::Over) => None,
    }
}

fn is_over(outcome: &Result<(), Unsent>) -> bool {
    matches!(outcome, Err(Unsent::Over))
}

/// The entry of a session's process. Its session must not end before the last use.
fn process_of(pid: Pid) -> *mut pg_sys::PGPROC {
    // SAFETY: takes and releases a lock.
    let process = unsafe { pg_sys::BackendPidGetProc(pid.get()) };
    assert!(!process.is_null(), "no process {pid}");
    process
}

fn waits_for(process: *mut pg_sys::PGPROC, event: u32) -> bool {
    // SAFETY: as said above.
    unsafe { ptr::read_volatile(&raw const (*process).wait_event_info) == event }
}

fn until_idle(session: &Session) {
    let process = process_of(session.pid());
    let event = pg_sys::WaitEventClient::WAIT_EVENT_CLIENT_READ;
    until_true("the session waits for its client", || {
        waits_for(process, event)
    });
}

/// Sets flags of a process's entry for as long as `body` runs.
fn with_flags(session: &Session, flags: u32, body: impl FnOnce()) {
    let process = process_of(session.pid());
    let flags = u8::try_from(flags).expect("flags of one byte");
    // SAFETY: the session waits for its client, which is this one; it changes none of them meanwhile.
    unsafe {
        let before = (*process).statusFlags;
        (*process).statusFlags |= flags;
        body();
        (*process).statusFlags = before;
    }
}

#[pg_test]
fn the_session_of_a_transaction_is_ended_and_no_other() {
    let (mut session, mut other) = (Session::open(), Session::open());
    let xid = session.begin_with_xid();
    let theirs = other.begin_with_xid();
    until_idle(&session);
    for ending in Ending::ALL {
        assert!(is_over(&end(&session, theirs, ending)), "another's");
        assert!(is_over(&end(&other, xid, ending)), "another's");
        assert!(
            is_over(&end(&session, xid.following().following(), ending)),
            "nobody's"
        );
    }
    session.run("SELECT 1");
    until_idle(&session);
    let sentence = Sentence {
        must_be_idle: true,
        ..sentence(session.pid(), Ending::Terminate)
    };
    end_transaction(xid, sentence).expect("it is told");
    let refused = session.try_run("SELECT 1").expect_err("it has ended");
    assert_eq!(refused.sqlstate, "57P01");
    assert_eq!(
        other.value("SELECT pg_catalog.pg_current_xact_id()::xid"),
        theirs.to_string()
    );
}

#[pg_test]
fn a_transaction_that_is_over_spares_its_session() {
    let mut session = Session::open();
    let first = session.begin_with_xid();
    session.run("COMMIT");
    assert!(
        is_over(&end(&session, first, Ending::Terminate)),
        "it is idle"
    );
    session.run("BEGIN");
    assert!(
        is_over(&end(&session, first, Ending::Terminate)),
        "without an id"
    );
    session.value("SELECT pg_current_xact_id()");
    assert!(
        is_over(&end(&session, first, Ending::Terminate)),
        "another id"
    );
    session.run("SAVEPOINT s");
    let sub = session
        .value("SELECT pg_current_xact_id()::xid")
        .parse()
        .expect("an id");
    session.run("ROLLBACK");
    assert!(
        is_over(&end(&session, sub, Ending::Terminate)),
        "rolled back"
    );
    session.run("SELECT 1");
}

#[pg_test]
fn a_pid_that_is_no_session_is_not_signalled() {
    let mut session = Session::open();
    let xid = session.begin_with_xid();
    let checkpointer = session
        .value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        .parse()
        .ok()
        .and_then(Pid::new)
        .expect("a pid");
    // SAFETY: set in the postmaster, and inherited.
    let postmaster = Pid::new(unsafe { pg_sys::PostmasterPid }).expect("a pid");
    let gone = Session::open().pid();
    for pid in [checkpointer, postmaster, gone] {
        let outcome = end_transaction(xid, sentence(pid, Ending::Terminate));
        assert!(is_over(&outcome), "{pid}: {outcome:?}");
    }
    session.run("COMMIT");
}

#[pg_test]
fn a_statement_is_cancelled_but_not_where_it_was_to_be_idle() {
    let mut session = Session::open();
    let xid = session.begin_with_xid();
    session.start("SELECT pg_sleep(600)");
    let process = process_of(session.pid());
    let asleep = pg_sys::WaitEventTimeout::WAIT_EVENT_PG_SLEEP;
    until_true("the session sleeps", || waits_for(process, asleep));
    for ending in Ending::ALL {
        let outcome = end_transaction(
            xid,
            Sentence {
                must_be_idle: true,
                ..sentence(session.pid(), ending)
            },
        );
        assert_eq!(guard(outcome), Some(Guard::JustIdle));
    }
    assert!(waits_for(process, asleep));
    end(&session, xid, Ending::Cancel).expect("it is told");
    let refused = session.finish().expect_err("it was cancelled");
    assert_eq!(refused.sqlstate, "57014");
    session.run("ROLLBACK");
}

/// The commit record is written, and the flush waits for a lock that this process holds: as it would
/// for a slow disk.
#[pg_test]
fn a_transaction_that_commits_is_left_alone() {
    let _table = Afterwards::run(&["DROP TABLE committed"]);
    let mut session = Session::open();
    session.run("CREATE TABLE committed (n int)");
    let xid = session.begin_with_xid();
    session.run("INSERT INTO committed VALUES (1)");
    until_idle(&session);
    let process = process_of(session.pid());
    let lock = super::majors::lock_named("WALWrite");
    let mut guards = Vec::new();
    // SAFETY: a lock of the server's own, released below; nothing between raises an error: what is
    // found is judged later.
    unsafe {
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        session.start("COMMIT");
        let event = pg_sys::PG_WAIT_LWLOCK | u32::from((*lock).tranche);
        let begun = std::time::Instant::now();
        while !waits_for(process, event) && begun.elapsed() < super::wait::PATIENCE {
            std::thread::yield_now();
        }
        for ending in Ending::ALL {
            guards.push(guard(end(&session, xid, ending)));
        }
        pg_sys::LWLockRelease(lock);
    }
    session.finish().expect("the commit");
    assert_eq!(guards, [Some(Guard::Commits), Some(Guard::Commits)]);
    assert_eq!(session.value("SELECT n FROM committed"), "1");
}

/// Committed here, and not yet there: a cancel would have the client told that all is well.
#[pg_test]
fn a_commit_that_waits_for_a_synchronous_standby_is_left_alone() {
    let _table = Afterwards::run(&["DROP TABLE waiting"]);
    let asynchronous = Afterwards::run(&[
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    ]);
    let mut session = Session::open();
    session.run("CREATE TABLE waiting (n int)");
    session.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    session.run("SELECT pg_reload_conf()");
    let xid = commit_that_waits(&mut session);

    // This process has not loaded the files: where there is no standby a cancel cuts nothing.
    for ending in Ending::ALL {
        let outcome = end(&session, xid, ending);
        assert_eq!(guard(outcome), Some(Guard::Committed), "{ending:?}");
    }
    set(c"synchronous_standby_names", "nobody", FILE).expect("a name");
    let outcome = end(&session, xid, Ending::Cancel);
    assert_eq!(guard(outcome), Some(Guard::CancelMayCutCommit));
    let outcome = end(&session, xid, Ending::Terminate);
    assert_eq!(guard(outcome), Some(Guard::Committed));

    drop(asynchronous);
    session.finish().expect("the commit");
}

/// The setting counts once the checkpointer has loaded it: what was committed before did not wait.
fn commit_that_waits(session: &mut Session) -> Xid {
    let process = process_of(session.pid());
    until("a commit waits for a standby", || {
        let xid = session.begin_with_xid();
        session.run("INSERT INTO waiting VALUES (1)");
        session.start("COMMIT");
        let waits = until("the commit is over, or waits", || {
            // SAFETY: the entry of a session of ours, which has not ended.
            let now =
                unsafe { Xid::new(ptr::read_volatile(&raw const (*process).xid).into_inner()) };
            let event = pg_sys::WaitEventIPC::WAIT_EVENT_SYNC_REP;
            (now != Some(xid))
                .then_some(false)
                .or(waits_for(process, event).then_some(true))
        });
        if waits {
            Some(xid)
        } else {
            session.finish().expect("a commit");
            None
        }
    })
}

#[pg_test]
fn a_cancel_is_kept_back_where_commits_wait_for_standbys() {
    assert!(
        Ending::ALL
            .iter()
            .all(|ending| !may_cut_commit(*ending, false))
    );
    set(c"synchronous_standby_names", "nobody", FILE).expect("a name");
    assert!(may_cut_commit(Ending::Cancel, false));
    assert!(
        !may_cut_commit(Ending::Cancel, true),
        "an autovacuum has no client"
    );
    assert!(!may_cut_commit(Ending::Terminate, false));

    let mut session = Session::open();
    let xid = session.begin_with_xid();
    until_idle(&session);
    assert_eq!(
        guard(end(&session, xid, Ending::Cancel)),
        Some(Guard::CancelMayCutCommit)
    );
    with_flags(&session, pg_sys::PROC_IS_AUTOVACUUM, || {
        end(&session, xid, Ending::Cancel).expect("it is told");
    });
    session.run("SELECT 1");
}

#[pg_test]
fn an_autovacuum_against_wraparound_is_left_alone() {
    let mut session = Session::open();
    let xid = session.begin_with_xid();
    until_idle(&session);
    let flags = pg_sys::PROC_IS_AUTOVACUUM | pg_sys::PROC_VACUUM_FOR_WRAPAROUND;
    with_flags(&session, flags, || {
        for ending in Ending::ALL {
            assert_eq!(
                guard(end(&session, xid, ending)),
                Some(Guard::PreventsWraparound)
            );
        }
    });
    with_flags(&session, pg_sys::PROC_IS_AUTOVACUUM, || {
        end(&session, xid, Ending::Terminate).expect("any other is told");
    });
    session.try_run("SELECT 1").expect_err("it has ended");
}

#[pg_test]
fn a_creation_is_cancelled_only_if_it_is_the_one_that_was_judged() {
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let building = Building::start("judged");
    let other = Building::start("other");
    let (slot, pid, lsn) = (
        SlotName::new("judged"),
        building.pid(),
        building.restart_lsn(),
    );
    let further = Lsn::new(lsn.get() + 1);
    for (slot, pid, lsn) in [
        (&slot, other.pid(), Some(lsn)),
        (&slot, pid, Some(further)),
        (&slot, pid, None),
        (&SlotName::new("other"), pid, Some(lsn)),
        (&SlotName::new("gone"), pid, Some(lsn)),
        (&SlotName::new("judged\0"), pid, Some(lsn)),
    ] {
        let outcome = cancel_creation(slot, pid, lsn);
        assert!(is_over(&outcome), "{slot:?} {pid} {lsn:?}: {outcome:?}");
    }
    cancel_creation(&slot, pid, Some(lsn)).expect("it is told");
    let mut building = building;
    let refused = building.finish().expect_err("it was cancelled");
    assert_eq!(refused.sqlstate, "57014");
    assert!(
        is_over(&cancel_creation(&slot, pid, Some(lsn))),
        "it is gone"
    );
    other.cancel();
}

#[pg_test]
fn a_slot_that_is_used_keeps_its_session() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    create(&mut session, "used");
    let lsn = super::slots::restart_lsn(&mut session, "used");
    let slot = SlotName::new("used");
    assert!(
        is_over(&cancel_creation(&slot, session.pid(), Some(lsn))),
        "nobody holds it"
    );

    let temporary = "SELECT pg_create_logical_replication_slot('mine', 'pgoutput', true)";
    session.run(temporary);
    let lsn = super::slots::restart_lsn(&mut session, "mine");
    // SAFETY: the slot is its session's, which waits.
    let holder = unsafe { version::holder(super::slots::named("mine")) };
    assert_eq!(holder, Some(session.pid()));
    let outcome = cancel_creation(&SlotName::new("mine"), session.pid(), Some(lsn));
    assert!(is_over(&outcome), "it is usable: {outcome:?}");
    session.run("SELECT pg_drop_replication_slot('mine')");
}
