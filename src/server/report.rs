//! What the log is told.

use std::backtrace::Backtrace;
use std::env;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{function_name, pg_sys};

use super::auto_conf::AutoConf;
use super::version;
use crate::core::hint::Hint;

/// A message in Postgres's own style: the message in lower case without a full stop, the detail
/// whole sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub code: PgSqlErrorCode,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<NoticeHint>,
}

/// What stands in a message's HINT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoticeHint {
    /// To be pasted, as what the views show.
    Paste(Hint),
    /// A sentence, as errors have it that the server itself raises in a session.
    Sentence(&'static str),
}

impl Notice {
    /// Its hint, if that can be pasted.
    pub fn pasteable(&self) -> Option<Hint> {
        match &self.hint {
            Some(NoticeHint::Paste(hint)) => Some(hint.clone()),
            Some(NoticeHint::Sentence(_)) | None => None,
        }
    }
}

impl From<&'static str> for NoticeHint {
    fn from(sentence: &'static str) -> Self {
        Self::Sentence(sentence)
    }
}

impl From<Hint> for NoticeHint {
    fn from(hint: Hint) -> Self {
        Self::Paste(hint)
    }
}

/// Makes errors the same whatever the environment that the server was started in.
///
/// pgrx adds a backtrace to the DETAIL of each error that passes through Rust, Postgres's own
/// included, where one is captured (`detail_with_backtrace`, `panic.rs`). With a `RUST_BACKTRACE` in
/// the postmaster's environment one is: clients would be sent pages of it. Whether to capture is
/// decided by the environment at the first time and remembered (`std::backtrace`), in a variable of
/// this library's own copy of std; so it is decided here, and other libraries are left alone.
pub fn without_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = env::var_os(VARIABLE);
    // SAFETY: a server process has one thread, as setenv(3) asks for.
    unsafe {
        env::set_var(VARIABLE, "0");
        drop(Backtrace::capture());
        match before {
            Some(value) => env::set_var(VARIABLE, value),
            None => env::remove_var(VARIABLE),
        }
    }
}

pub fn log(notice: Notice) {
    report(notice, PgLogLevel::LOG);
}

pub fn warning(notice: Notice) {
    report(notice, PgLogLevel::WARNING);
}

/// Raises an error in the current session.
pub fn error(notice: Notice) -> ! {
    report(notice, PgLogLevel::ERROR);
    unreachable!("an error does not return")
}

fn report(notice: Notice, level: PgLogLevel) {
    let mut report = ErrorReport::new(notice.code, notice.message, function_name!());
    if let Some(detail) = notice.detail {
        report = report.set_detail(detail);
    }
    if let Some(hint) = notice.hint {
        report = report.set_hint(match hint {
            NoticeHint::Paste(hint) => hint.given(&AutoConf).to_string(),
            NoticeHint::Sentence(sentence) => sentence.to_owned(),
        });
    }
    report.report(level);
}

/// Takes what `core` has to say for the curious to the server's log, as DEBUG1.
struct ServerLog;

static SERVER_LOG: ServerLog = ServerLog;

impl log::Log for ServerLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        // It would be swallowed otherwise, after it was put together.
        version::log_min_messages() <= pg_sys::DEBUG1.cast_signed()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = format!("slot_self_heal: {}", record.args());
            report(
                Notice {
                    code: PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
                    message,
                    detail: None,
                    hint: None,
                },
                PgLogLevel::DEBUG1,
            );
        }
    }

    fn flush(&self) {}
}

/// Only the worker's process talks to the log this way.
pub fn init_debug_log() {
    if log::set_logger(&SERVER_LOG).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}
