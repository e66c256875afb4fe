//! Code that runs in a background worker: outside of any transaction, as a tick does.

use std::panic::AssertUnwindSafe;

use pgrx::bgworkers::BackgroundWorkerBuilder;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{PgTryBuilder, pg_sys};

use super::session::current_database;
use super::shared::VERDICT;
use crate::server::process;

const GOOD: &str = "good";
pub const DIED: &str = "the background worker died";

/// Runs `body` in a background worker that is connected to this session's database as the worker of
/// `slot_self_heal` is to its own. What it panics with is this session's error.
pub fn run(body: fn()) {
    let verdict = verdict(body);
    assert!(verdict == GOOD, "{verdict}");
}

/// What came of it.
pub fn verdict(body: fn()) -> String {
    VERDICT.set(DIED.as_bytes());
    // The library was loaded by the postmaster, so the function is at the same place in each
    // process.
    let worker = BackgroundWorkerBuilder::new("slot_self_heal inside")
        .set_library("slot_self_heal")
        .set_function("slot_self_heal_inside_main")
        .set_argument(Some(pg_sys::Datum::from(body as usize)))
        .set_extra(&current_database())
        // SAFETY: set when this process started.
        .set_notify_pid(unsafe { pg_sys::MyProcPid })
        .enable_spi_access()
        .load_dynamic()
        .expect("room for a background worker");
    worker.wait_for_shutdown().expect("its end");
    String::from_utf8_lossy(&VERDICT.text()).into_owned()
}

/// The background worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn slot_self_heal_inside_main(body: pg_sys::Datum) {
    // SAFETY: what `run` was given.
    let body: fn() = unsafe { std::mem::transmute(body.value()) };
    process::handle_signals();
    let database = pgrx::bgworkers::BackgroundWorker::get_extra();
    process::connect(&std::ffi::CString::new(database).expect("a name"));
    let verdict = PgTryBuilder::new(AssertUnwindSafe(|| {
        body();
        GOOD.to_owned()
    }))
    .catch_others(|error| said(&error))
    .catch_rust_panic(|error| said(&error))
    .execute();
    let mut verdict = verdict.into_bytes();
    verdict.truncate(4096);
    VERDICT.set(&verdict);
}

fn said(error: &CaughtError) -> String {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic {
        ereport: report, ..
    }) = error;
    report.message().to_owned()
}
