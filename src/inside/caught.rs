//! Errors of the server's, caught.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{PgTryBuilder, pg_sys};

#[derive(Debug, PartialEq, Eq)]
pub struct Raised {
    pub code: PgSqlErrorCode,
    pub message: String,
    pub hint: String,
}

impl From<CaughtError> for Raised {
    fn from(error: CaughtError) -> Self {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic {
            ereport: report, ..
        }) = error;
        Self {
            code: report.sql_error_code(),
            message: report.message().to_owned(),
            hint: report.hint().unwrap_or_default().to_owned(),
        }
    }
}

/// Runs `body` in a subtransaction; an error takes back what it did. A panic goes on.
pub fn in_subtransaction<T>(body: impl FnOnce() -> T) -> Result<T, Raised> {
    // SAFETY: as PL/pgSQL runs a block with an exception clause (`exec_stmt_block`, `pl_exec.c`).
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::CurrentMemoryContext = context;
        let answer = PgTryBuilder::new(AssertUnwindSafe(|| Ok(body())))
            .catch_others(|error| Err(error.into()))
            .catch_rust_panic(|error| error.rethrow())
            .execute();
        if answer.is_ok() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
        answer
    }
}

/// Runs `body` in a subtransaction that is taken back.
pub fn taken_back(body: impl FnOnce()) {
    // SAFETY: as above.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::CurrentMemoryContext = context;
        body();
        pg_sys::RollbackAndReleaseCurrentSubTransaction();
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
    }
}
