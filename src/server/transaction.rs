//! A transaction of the worker's own: short, read-only, gone whatever happens in it.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{PgTryBuilder, pg_sys};

use super::report::Notice;
use crate::core::hint::{Comment, Hint};

/// Runs `body` in a transaction of its own, and commits.
///
/// It must take no transaction id: the worker would be one more transaction that a slot's creation
/// waits for. What is read through `Spi::connect` and `select` takes none, and in a read-only
/// transaction nothing can be written. On an error it is aborted, and the error is the answer.
pub fn read_only<T>(body: impl FnOnce() -> T) -> Result<T, Notice> {
    catch(|| {
        // SAFETY: as a background worker of core runs its queries (`worker_spi.c`). The calls come
        // in pairs, and `catch` aborts what an error leaves open.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::XactReadOnly = true;
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let answer = body();
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
            answer
        }
    })
}

/// Runs `body`; an error or a panic in it is the answer, with its transaction, if any, aborted.
pub fn catch<T>(body: impl FnOnce() -> T) -> Result<T, Notice> {
    let answer = PgTryBuilder::new(AssertUnwindSafe(|| Ok(body())))
        .catch_others(|error| Err(notice_of(error)))
        .catch_rust_panic(|error| Err(notice_of(error)))
        .execute();
    if answer.is_err() {
        // SAFETY: counts of this process's own. Where no transaction is open the abort leaves locks
        // as they are; the last does nothing where none is held.
        unsafe {
            // As `errfinish` does (`elog.c`), through which no panic has come, nor an error that Rust
            // raised. Each lock that was held counts as one and is released without counting:
            // interrupts would be held back for good, and nobody could end the worker.
            pg_sys::InterruptHoldoffCount = 0;
            pg_sys::QueryCancelHoldoffCount = 0;
            // Also of the subtransactions that the error came out of.
            pg_sys::AbortOutOfAnyTransaction();
            pg_sys::LWLockReleaseAll();
        }
    }
    answer
}

fn notice_of(error: CaughtError) -> Notice {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic {
        ereport: report, ..
    }) = error;
    Notice {
        code: report.sql_error_code(),
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        // Postgres's own, or another extension's.
        hint: report
            .hint()
            .map(|hint| Hint::say(Comment::new(hint)).into()),
    }
}

/// Runs `body`, which fails with an error of its own making, in [`read_only`].
pub fn read_only_fallible<T, E: Into<Notice>>(
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, Notice> {
    read_only(body)?.map_err(Into::into)
}

/// What an error of ours, not of Postgres, is reported as.
pub fn internal_error(message: String) -> Notice {
    Notice {
        code: PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        message,
        detail: None,
        hint: None,
    }
}
