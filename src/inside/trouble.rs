//! What an error in a tick leaves behind: nothing. And what a tick takes: no transaction id.
//!
//! All of it runs in a background worker, outside of a transaction, as a tick does.

use std::collections::HashSet;
use std::ffi::{c_char, c_void};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::session::{Afterwards, Session};
use super::slots::Building;
use super::worker;
use crate::server::process;
use crate::server::report::Notice;
use crate::server::scan::Scanner;
use crate::server::transaction::{catch, read_only, read_only_fallible};
use crate::server::version;

/// What a process has open.
#[derive(Debug, PartialEq)]
struct Open {
    memory_context: *mut c_void,
    resource_owner: *mut c_void,
    exception_stack: *mut c_void,
    error_context_stack: *mut c_void,
    is_in_transaction: bool,
    block_status: c_char,
    has_active_snapshot: bool,
    has_any_snapshot: bool,
    holdoffs: [u32; 3],
    has_proc_array_lock: bool,
    has_slot_lock: bool,
    has_spi_table: bool,
    user: (u32, i32),
    advertises: (u32, u32),
}

fn open() -> Open {
    let locks = version::locks().expect("known locks");
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: reads of what is this process's own.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        Open {
            memory_context: pg_sys::CurrentMemoryContext.cast(),
            resource_owner: pg_sys::CurrentResourceOwner.cast(),
            exception_stack: pg_sys::PG_exception_stack.cast(),
            error_context_stack: pg_sys::error_context_stack.cast(),
            is_in_transaction: pg_sys::IsTransactionState(),
            block_status: pg_sys::TransactionBlockStatusCode(),
            has_active_snapshot: pg_sys::ActiveSnapshotSet(),
            has_any_snapshot: pg_sys::HaveRegisteredOrActiveSnapshot(),
            holdoffs: [
                pg_sys::InterruptHoldoffCount,
                pg_sys::QueryCancelHoldoffCount,
                pg_sys::CritSectionCount,
            ],
            has_proc_array_lock: pg_sys::LWLockHeldByMe(locks.proc_array),
            has_slot_lock: pg_sys::LWLockHeldByMe(locks.replication_slot_control),
            has_spi_table: !pg_sys::SPI_tuptable.is_null(),
            user: (user.to_u32(), context),
            advertises: (
                (*pg_sys::MyProc).xid.into_inner(),
                (*pg_sys::MyProc).xmin.into_inner(),
            ),
        }
    }
}

type Trouble = fn() -> Result<(), Notice>;

/// How things can go wrong, and what is said of it.
const TROUBLES: &[(Trouble, &str)] = &[
    (|| read_only(divide_by_zero), "division by zero"),
    (|| read_only(write), "not allowed"),
    (|| read_only(take_an_xid), "division by zero"),
    (|| read_only(panic_in_rust), "a bug in Rust"),
    (|| read_only(wait_for_a_lock), "lock timeout"),
    (|| read_only(in_lwlock), "division by zero"),
    (|| read_only(in_lwlocks_of_rust), "with locks"),
    (|| read_only(in_subtransaction), "division by zero"),
    (|| read_only(with_a_registered_snapshot), "division by zero"),
    (|| read_only(with_a_cursor), "division by zero"),
    (|| read_only(as_another_user), "division by zero"),
    (|| catch(outside_a_transaction), "no transaction"),
    (|| catch(in_lwlock_without_a_transaction), "no transaction"),
    (|| catch(panic_in_rust), "a bug in Rust"),
    (
        || catch(|| read_only(divide_by_zero)).flatten(),
        "division by zero",
    ),
    (|| read_only_fallible(ours), "of our own making"),
];

fn divide_by_zero() {
    query("SELECT 1 / (pg_catalog.current_setting('server_version_num')::int4 * 0)");
}

fn query(sql: &str) {
    Spi::connect(|client| client.select(sql, None, &[]).map(drop)).expect("a query");
}

fn write() {
    query("CREATE TABLE public.written (n int)");
}

fn take_an_xid() {
    query("SELECT 1 / (pg_catalog.pg_current_xact_id()::text::int8 * 0)");
}

fn panic_in_rust() {
    panic!("a bug in Rust");
}

fn wait_for_a_lock() {
    query("SELECT * FROM public.locked");
}

fn in_lwlock() {
    let locks = version::locks().expect("known locks");
    // SAFETY: released by what the tests are about.
    unsafe {
        pg_sys::LWLockAcquire(
            locks.replication_slot_control,
            pg_sys::LWLockMode::LW_SHARED,
        )
    };
    divide_by_zero();
}

/// An error that Rust raises does not pass through core's `errfinish`.
fn in_lwlocks_of_rust() {
    let locks = version::locks().expect("known locks");
    // SAFETY: released by what the tests are about.
    unsafe {
        pg_sys::LWLockAcquire(locks.proc_array, pg_sys::LWLockMode::LW_SHARED);
        pg_sys::LWLockAcquire(
            locks.replication_slot_control,
            pg_sys::LWLockMode::LW_SHARED,
        );
    }
    error!("with locks");
}

fn in_subtransaction() {
    // SAFETY: in a transaction.
    unsafe { pg_sys::BeginInternalSubTransaction(std::ptr::null()) };
    divide_by_zero();
}

fn with_a_registered_snapshot() {
    // SAFETY: in a transaction.
    unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) };
    divide_by_zero();
}

fn with_a_cursor() {
    Spi::connect(|client| {
        let mut cursor = client.open_cursor(
            "SELECT 1 / (3 - n) FROM pg_catalog.generate_series(1, 9) AS n",
            &[],
        );
        cursor.fetch(9).map(drop)
    })
    .expect("an error of the server's");
}

fn as_another_user() {
    // SAFETY: as a SECURITY DEFINER function does (`fmgr_security_definer`).
    unsafe {
        pg_sys::SetUserIdAndSecContext(
            pg_sys::Oid::from_u32(3373),
            pg_sys::SECURITY_LOCAL_USERID_CHANGE.cast_signed(),
        );
    }
    divide_by_zero();
}

fn outside_a_transaction() {
    error!("no transaction");
}

fn in_lwlock_without_a_transaction() {
    let locks = version::locks().expect("known locks");
    // SAFETY: as above.
    unsafe { pg_sys::LWLockAcquire(locks.proc_array, pg_sys::LWLockMode::LW_EXCLUSIVE) };
    error!("no transaction");
}

fn ours() -> Result<(), Notice> {
    Err(crate::server::transaction::internal_error(
        "of our own making".into(),
    ))
}

#[pg_test]
fn an_error_leaves_nothing_open() {
    let _table = Afterwards::run(&["DROP TABLE public.locked"]);
    let mut session = Session::open();
    session.run("CREATE TABLE public.locked (n int)");
    session.run("BEGIN; LOCK TABLE public.locked");
    worker::run(nothing_is_left_open);
}

fn nothing_is_left_open() {
    let before = open();
    for (index, (trouble, said)) in TROUBLES.iter().enumerate() {
        let notice = trouble().expect_err("an error");
        assert!(notice.message.contains(said), "trouble {index}: {notice:?}");
        assert_eq!(open(), before, "after trouble {index}, {said}");
        assert_eq!(
            locks(),
            Vec::<String>::new(),
            "after trouble {index}, {said}"
        );
        // The next tick goes on.
        read_only(|| query("SELECT 1")).expect("a query");
        assert_eq!(open(), before);
    }
}

/// The locks of this process, but for those of the look itself.
fn locks() -> Vec<String> {
    let sql = "SELECT locktype || ' ' || mode
                 FROM pg_locks
                WHERE pid = pg_backend_pid()
                  AND locktype <> 'virtualxid'
                  AND relation IS DISTINCT FROM 'pg_locks'::regclass";
    read_only(|| {
        Spi::connect(|client| {
            let table = client.select(sql, None, &[])?;
            table
                .map(|row| row.get::<String>(1))
                .collect::<Result<Vec<_>, _>>()
        })
        .expect("a query")
        .into_iter()
        .flatten()
        .collect()
    })
    .expect("a look")
}

#[pg_test]
fn an_error_leaves_no_memory_behind() {
    worker::run(|| {
        let troubles: [Trouble; 6] = [
            || read_only(divide_by_zero),
            || read_only(panic_in_rust),
            || read_only(in_lwlock),
            || read_only(with_a_cursor),
            || catch(outside_a_transaction),
            || read_only_fallible(ours),
        ];
        // So many that a leak of what each says would show.
        takes_no_memory(3000, || {
            for trouble in troubles {
                trouble().expect_err("an error");
            }
        });
    });
}

/// Runs it so many times. What is kept for good, as caches and plans are, comes at the beginning.
fn takes_no_memory(rounds: usize, mut round: impl FnMut()) {
    // SAFETY: adds up the sizes of the blocks of this process's own.
    let allocated = || unsafe { pg_sys::MemoryContextMemAllocated(pg_sys::TopMemoryContext, true) };
    (0..100).for_each(|_| round());
    let before = (allocated(), process::memory());
    (0..rounds).for_each(|_| round());
    let after = (allocated(), process::memory());
    assert!(
        after.0 <= before.0 + (8 << 10),
        "contexts: {before:?} {after:?}"
    );
    assert!(
        after.1 <= before.1 + (256 << 10),
        "all: {before:?} {after:?}"
    );
}

#[pg_test]
fn a_scan_takes_no_memory_and_no_xid() {
    let mut blocker = Session::open();
    blocker.begin_with_xid();
    let building = Building::start("scanned");
    worker::run(scans);
    building.cancel();
}

fn scans() {
    let mut scanner = Scanner::default();
    // SAFETY: reads shared memory under a lock.
    let next = || unsafe { pg_sys::ReadNextFullTransactionId().value };
    let before = (next(), open());
    takes_no_memory(1000, || {
        let observation = scanner.observe(&HashSet::new()).expect("a scan");
        assert!(observation.sees_a_creation());
        assert_eq!(observation.transactions.len(), 1);
    });
    assert_eq!((next(), open()), before);
    assert_eq!(locks(), Vec::<String>::new());
}

#[pg_test]
fn a_read_only_transaction_takes_no_xid_and_writes_nothing() {
    let _function = Afterwards::run(&["DROP FUNCTION public.writes"]);
    Session::open().run(
        "CREATE FUNCTION public.writes() RETURNS int8 LANGUAGE plpgsql AS
             $$ BEGIN CREATE TABLE public.t (n int); RETURN 1; END $$",
    );
    worker::run(reads_only);
}

fn reads_only() {
    read_only(|| {
        query("SELECT count(*) FROM pg_class");
        // SAFETY: in a transaction.
        unsafe {
            assert_eq!(
                pg_sys::GetTopTransactionIdIfAny(),
                pg_sys::InvalidTransactionId
            );
            assert!(pg_sys::XactReadOnly && pg_sys::ActiveSnapshotSet());
        }
    })
    .expect("a query");
    // What SPI itself does not refuse, because a volatile function may write.
    let refused = read_only(|| query("SELECT public.writes()")).expect_err("refused");
    let code = PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION;
    assert_eq!(refused.code, code, "{refused:?}");
}

/// An end that was asked for is no trouble in a tick: nothing catches it.
#[pg_test]
fn a_tick_that_is_told_to_end_ends_its_process() {
    let verdict = worker::verdict(|| {
        // SAFETY: a system call, to this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
        let slept = catch(|| read_only(|| query("SELECT pg_catalog.pg_sleep(60)")));
        unreachable!("{slept:?}");
    });
    assert_eq!(verdict, worker::DIED);
}
