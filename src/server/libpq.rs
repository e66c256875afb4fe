//! A connection to another server, over libpq: the one that comes with `libpqwalreceiver`, the
//! server's own client.
//!
//! While it waits it serves interrupts (the end of the process, barriers), and it waits no longer
//! than it is told to. `libpqwalreceiver`'s functions know no time limit, and before PostgreSQL 18
//! an error raised to end their wait leaves the connection behind.
//!
//! What is on the other side may be anything that listens on a port. Each step of a conversation
//! checks the deadline and serves interrupts, whether there was anything to wait for or not; libpq
//! never waits by itself (it is set to non-blocking); and an answer may have [`MOST_BYTES`].

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::time::Instant;

use pgrx::prelude::*;
use pgrx::{check_for_interrupts, pg_sys};

use super::process;

/// What one answer may bring, and what libpq may take to keep it.
///
/// The longest that is expected are a thousand transactions with a kilobyte of query each.
const MOST_BYTES: usize = 16 << 20;
/// Values in one answer. A NULL costs the other side four bytes, and us many more.
const MOST_VALUES: usize = 100_000;
/// The longest part of a value or message that is kept, in bytes: the longest value that is of use
/// is a blocker's query, of which a kilobyte is kept.
const MOST_TEXT: usize = 4096;

/// `PGconn` and `PGresult` (`libpq-fe.h`), which only libpq looks into.
enum PgConn {}
enum PgResult {}

/// `PQconninfoOption` (`libpq-fe.h`).
#[repr(C)]
struct ConninfoOption {
    keyword: *const c_char,
    envvar: *const c_char,
    compiled: *const c_char,
    val: *const c_char,
    label: *const c_char,
    dispchar: *const c_char,
    dispsize: c_int,
}

type NoticeReceiver = unsafe extern "C" fn(*mut c_void, *const PgResult);

/// Declares functions of libpq, to be looked up by name: the server is not linked with it.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $answer:ty)?;)+) => {
        #[allow(non_snake_case)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)+
        }

        impl Functions {
            /// # Safety
            ///
            /// The handle is one of libpq, or of a library that is linked with it.
            unsafe fn look_up(library: *mut c_void) -> Option<Self> {
                Some(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: the caller's promise; a name that ends with NUL; the types are those of libpq-fe.h.
                        unsafe {
                            let symbol = libc::dlsym(library, name.as_ptr().cast());
                            if symbol.is_null() {
                                return None;
                            }
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $answer)?,
                            >(symbol)
                        }
                    },)+
                })
            }
        }
    };
}

functions! {
    PQclear: fn(*mut PgResult);
    PQconnectPoll: fn(*mut PgConn) -> c_int;
    PQconnectStartParams: fn(*const *const c_char, *const *const c_char, c_int) -> *mut PgConn;
    PQconninfo: fn(*mut PgConn) -> *mut ConninfoOption;
    PQconninfoFree: fn(*mut ConninfoOption);
    PQconninfoParse: fn(*const c_char, *mut *mut c_char) -> *mut ConninfoOption;
    PQconsumeInput: fn(*mut PgConn) -> c_int;
    PQerrorMessage: fn(*const PgConn) -> *const c_char;
    PQfinish: fn(*mut PgConn);
    PQflush: fn(*mut PgConn) -> c_int;
    PQfname: fn(*const PgResult, c_int) -> *const c_char;
    PQfreemem: fn(*mut c_void);
    PQgetResult: fn(*mut PgConn) -> *mut PgResult;
    PQgetisnull: fn(*const PgResult, c_int, c_int) -> c_int;
    PQgetvalue: fn(*const PgResult, c_int, c_int) -> *const c_char;
    PQisBusy: fn(*mut PgConn) -> c_int;
    PQnfields: fn(*const PgResult) -> c_int;
    PQntuples: fn(*const PgResult) -> c_int;
    PQresultErrorField: fn(*const PgResult, c_int) -> *const c_char;
    PQresultErrorMessage: fn(*const PgResult) -> *const c_char;
    PQresultStatus: fn(*const PgResult) -> c_int;
    PQsendQuery: fn(*mut PgConn, *const c_char) -> c_int;
    PQsetErrorVerbosity: fn(*mut PgConn, c_int) -> c_int;
    PQsetNoticeReceiver: fn(*mut PgConn, NoticeReceiver, *mut c_void) -> Option<NoticeReceiver>;
    PQsetnonblocking: fn(*mut PgConn, c_int) -> c_int;
    PQsocket: fn(*const PgConn) -> c_int;
    PQstatus: fn(*const PgConn) -> c_int;
}

/// `PostgresPollingStatusType`
const PGRES_POLLING_FAILED: c_int = 0;
const PGRES_POLLING_READING: c_int = 1;
const PGRES_POLLING_OK: c_int = 3;
/// `ConnStatusType`
const CONNECTION_BAD: c_int = 1;
/// `ExecStatusType`
const PGRES_COMMAND_OK: c_int = 1;
const PGRES_TUPLES_OK: c_int = 2;
const PGRES_FATAL_ERROR: c_int = 7;
/// `PGVerbosity`
const PQERRORS_DEFAULT: c_int = 1;
const PQERRORS_VERBOSE: c_int = 2;
/// `postgres_ext.h`
const PG_DIAG_SQLSTATE: c_int = b'C' as c_int;

/// libpq, loaded when it is first needed. An error is raised where it can't be.
fn libpq() -> &'static Functions {
    static LIBPQ: OnceLock<Functions> = OnceLock::new();
    if let Some(functions) = LIBPQ.get() {
        return functions;
    }
    // SAFETY: the library is of the server's own.
    match unsafe { Functions::look_up(walreceiver()) } {
        Some(functions) => LIBPQ.get_or_init(|| functions),
        None => {
            super::report::error(super::transaction::internal_error(
                "libpq lacks a function that slot_self_heal needs".into(),
            ));
        }
    }
}

/// A handle of `libpqwalreceiver`, through which its own libpq is seen, and no other: in the scope
/// of the whole process another extension's libpq, or functions of such names, may come first. Null
/// where there is none.
fn walreceiver() -> *mut c_void {
    // SAFETY: a library that is loaded and stays so; it has set the functions (`_PG_init`,
    // `libpqwalreceiver.c`), by one of which its file is known.
    unsafe {
        pg_sys::load_file(c"libpqwalreceiver".as_ptr(), false);
        let mut file: libc::Dl_info = std::mem::zeroed();
        let Some(functions) = pg_sys::WalReceiverFunctions.as_ref() else {
            return ptr::null_mut();
        };
        let Some(connect) = functions.walrcv_connect else {
            return ptr::null_mut();
        };
        if libc::dladdr(connect as *const c_void, &raw mut file) == 0 {
            return ptr::null_mut();
        }
        libc::dlopen(file.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD)
    }
}

/// Keywords and values of a connection string.
pub type Parameters = Vec<(String, CString)>;

/// Takes a connection string apart, be it `key=value` or a URI. `None` if it is not valid; libpq's
/// words for why are not passed on, since they may quote a password.
///
/// `service` is left as it is: only connecting reads the service file.
pub fn parse(conninfo: &CStr) -> Option<Parameters> {
    let libpq = libpq();
    let mut message = ptr::null_mut();
    // SAFETY: the options end with one that has no keyword; texts are copied before they are freed.
    unsafe {
        let options = (libpq.PQconninfoParse)(conninfo.as_ptr(), &raw mut message);
        if !message.is_null() {
            (libpq.PQfreemem)(message.cast());
        }
        (!options.is_null()).then(|| take(options))
    }
}

/// The same with what they leave to the environment and to a service file.
///
/// libpq puts these together only when it connects. It is kept from that by a value that it refuses
/// after that, before it does anything else (`connectOptions2`, `fe-connect.c`; since PostgreSQL 17
/// `pqConnectOptions2`).
pub fn with_defaults(parameters: &Parameters) -> Parameters {
    let libpq = libpq();
    let mut refused = parameters.clone();
    refused.retain(|(keyword, _)| keyword != "sslmode");
    refused.push(("sslmode".into(), c"none of them".into()));
    let Some(raw) = start(&refused) else {
        return Vec::new();
    };
    let connection = Connection { raw, memory: 0 };
    // SAFETY: a connection that was not begun; its options end with one that has no keyword.
    unsafe {
        let options = (libpq.PQconninfo)(connection.raw.as_ptr());
        if options.is_null() {
            return Vec::new();
        }
        take(options)
    }
}

/// # Safety
///
/// The options end with one that has no keyword, and are libpq's to free.
unsafe fn take(options: *mut ConninfoOption) -> Parameters {
    let mut parameters = Vec::new();
    // SAFETY: the caller's promise; texts are copied before they are freed.
    unsafe {
        let mut option = options;
        while !(*option).keyword.is_null() {
            if !(*option).val.is_null() {
                parameters.push((
                    text((*option).keyword),
                    CStr::from_ptr((*option).val).into(),
                ));
            }
            option = option.add(1);
        }
        (libpq().PQconninfoFree)(options);
    }
    parameters
}

/// Begins to connect. `None` if there is no memory for it, or a keyword that is none.
fn start(parameters: &Parameters) -> Option<NonNull<PgConn>> {
    let names: Result<Vec<_>, _> = parameters
        .iter()
        .map(|(keyword, _)| CString::new(keyword.as_str()))
        .collect();
    let names = names.ok()?;
    let end = [ptr::null()];
    let keywords: Vec<_> = names.iter().map(|k| k.as_ptr()).chain(end).collect();
    let values = parameters.iter().map(|(_, value)| value.as_ptr());
    let values: Vec<_> = values.chain(end).collect();
    // SAFETY: both arrays end with a null, and live until libpq has copied them.
    NonNull::new(unsafe { (libpq().PQconnectStartParams)(keywords.as_ptr(), values.as_ptr(), 0) })
}

/// An open connection, closed when it is dropped, also while an error is on its way.
pub struct Connection {
    raw: NonNull<PgConn>,
    /// The process's memory when it was begun.
    memory: usize,
}

/// What kept a connection or a query from succeeding.
#[derive(Debug)]
pub enum Failure {
    TimedOut,
    /// The connection failed; libpq's message.
    Lost(String),
    /// The other server's answer is an error.
    Refused {
        code: PgSqlErrorCode,
        message: String,
    },
    /// The answer is none to what was asked; what it is instead.
    Unexpected(&'static str),
    /// There is more of it than [`MOST_BYTES`] or [`MOST_VALUES`].
    TooMuch,
}

/// The names of a result's columns, and its rows, each value as text.
pub type Table = (Vec<String>, Vec<Vec<Option<String>>>);

impl Connection {
    pub fn open(parameters: &Parameters, deadline: Instant) -> Result<Self, Failure> {
        let libpq = libpq();
        let mut intake = Intake::new();
        let connection = Self {
            raw: start(parameters).ok_or(Failure::Lost("out of memory".into()))?,
            memory: intake.memory,
        };
        let raw = connection.raw.as_ptr();
        // Whom it connects to, with which the message of a failure begins.
        let to_whom = connection.message();
        // SAFETY: a connection that is just being made.
        unsafe {
            if (libpq.PQstatus)(raw) == CONNECTION_BAD {
                return Err(connection.lost());
            }
            // Else libpq would write the other server's warnings into this one's log.
            (libpq.PQsetNoticeReceiver)(raw, ignore_notice, ptr::null_mut());
            // With its SQLSTATE in the text, the only place where that of a refusal is told.
            (libpq.PQsetErrorVerbosity)(raw, PQERRORS_VERBOSE);
            // Else libpq waits, deaf to interrupts, for one who does not read what it is sent
            // (`pqSendSome`, `fe-misc.c`), in the authentication exchange, too. This forgets the
            // message.
            if (libpq.PQsetnonblocking)(raw, 1) != 0 {
                return Err(connection.lost());
            }
        }
        let mut events = pg_sys::WL_SOCKET_WRITEABLE;
        loop {
            if connection.wait(events, deadline)? == 0 {
                continue;
            }
            intake.comes(connection.readable());
            // SAFETY: as above.
            match unsafe { (libpq.PQconnectPoll)(raw) } {
                PGRES_POLLING_OK => break,
                PGRES_POLLING_FAILED => return Err(connection.not_made(to_whom)),
                PGRES_POLLING_READING => events = pg_sys::WL_SOCKET_READABLE,
                _ => events = pg_sys::WL_SOCKET_WRITEABLE,
            }
            intake.check()?;
        }
        // SAFETY: an open connection.
        unsafe { (libpq.PQsetErrorVerbosity)(raw, PQERRORS_DEFAULT) };
        Ok(connection)
    }

    /// Whether the process has grown much since the connection was made, be it by what libpq keeps
    /// as long as there is the connection: each parameter that the other side ever named, and
    /// notifications.
    pub fn has_grown(&self) -> bool {
        process::memory().saturating_sub(self.memory) > MOST_BYTES
    }

    /// Runs SQL; of several statements the last one's result is returned.
    pub fn query(&self, sql: &str, deadline: Instant) -> Result<Table, Failure> {
        let sql = CString::new(sql).map_err(|_| Failure::Lost("SQL contains a NUL".into()))?;
        let mut intake = Intake::new();
        self.send(&sql, deadline, &mut intake)?;
        let mut last: Option<Answer> = None;
        while let Some(answer) = self.next_answer(deadline, &mut intake)? {
            match answer.status() {
                PGRES_COMMAND_OK | PGRES_TUPLES_OK => {}
                PGRES_FATAL_ERROR => return self.refuse(&answer, deadline, &mut intake),
                // A state of COPY, which lasts for ever: each further `PQgetResult` gives another
                // result that says so.
                _ => {
                    return Err(Failure::Unexpected(
                        "COPY, or what only a walsender answers",
                    ));
                }
            }
            last = Some(answer);
        }
        match last {
            Some(answer) => answer.table(),
            None => Err(self.lost()),
        }
    }

    /// The error that is the answer; nothing more may come after it.
    fn refuse(
        &self,
        answer: &Answer,
        deadline: Instant,
        intake: &mut Intake,
    ) -> Result<Table, Failure> {
        let failure = answer.failure();
        match (&failure, self.next_answer(deadline, intake)?) {
            (_, None) => Err(failure),
            (_, Some(_)) => Err(Failure::Unexpected("more after an error")),
        }
    }

    fn send(&self, sql: &CStr, deadline: Instant, intake: &mut Intake) -> Result<(), Failure> {
        let libpq = libpq();
        // SAFETY: an open connection; libpq copies the text.
        if unsafe { (libpq.PQsendQuery)(self.raw.as_ptr(), sql.as_ptr()) } == 0 {
            return Err(self.lost());
        }
        loop {
            // SAFETY: an open connection.
            match unsafe { (libpq.PQflush)(self.raw.as_ptr()) } {
                0 => return Ok(()),
                1 => {
                    let events = pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE;
                    if self.wait(events, deadline)? & pg_sys::WL_SOCKET_READABLE != 0 {
                        self.take_in(intake)?;
                    }
                }
                _ => return Err(self.lost()),
            }
        }
    }

    /// The next result; `None` once the answer is complete.
    fn next_answer(
        &self,
        deadline: Instant,
        intake: &mut Intake,
    ) -> Result<Option<Answer>, Failure> {
        let libpq = libpq();
        loop {
            check_for_interrupts!();
            if Instant::now() >= deadline {
                return Err(Failure::TimedOut);
            }
            // While nothing has come, libpq is not busy only if it could not send: asked for the
            // result, it would wait for the other side to say why.
            // SAFETY: an open connection.
            if intake.has_begun && unsafe { (libpq.PQisBusy)(self.raw.as_ptr()) } == 0 {
                // It may have made more room for what is announced.
                intake.check()?;
                // SAFETY: does not wait, as libpq is not busy.
                let answer = unsafe { (libpq.PQgetResult)(self.raw.as_ptr()) };
                return Ok(NonNull::new(answer).map(Answer));
            }
            intake.check()?;
            if self.wait(pg_sys::WL_SOCKET_READABLE, deadline)? != 0 {
                self.take_in(intake)?;
            }
        }
    }

    /// Reads what has come.
    fn take_in(&self, intake: &mut Intake) -> Result<(), Failure> {
        intake.comes(self.readable());
        // SAFETY: an open connection, which has something to read.
        if unsafe { (libpq().PQconsumeInput)(self.raw.as_ptr()) } == 0 {
            return Err(self.lost());
        }
        Ok(())
    }

    /// How much there is to read, as the kernel tells.
    fn readable(&self) -> usize {
        let mut bytes: c_int = 0;
        // SAFETY: a socket, or -1, for which it fails; the number is written where it belongs.
        unsafe {
            let socket = (libpq().PQsocket)(self.raw.as_ptr());
            libc::ioctl(socket, libc::FIONREAD, &raw mut bytes);
        }
        usize::try_from(bytes).unwrap_or(0)
    }

    /// Waits until the socket is ready; which of the events it is ready for, none when something
    /// else came up.
    fn wait(&self, events: u32, deadline: Instant) -> Result<u32, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::TimedOut);
        }
        let wanted =
            pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH | events;
        // Rounded up, so as not to spin for the last part of a millisecond.
        let milliseconds = i64::try_from(left.as_millis()).unwrap_or(i64::MAX) + 1;
        // SAFETY: this process's own latch, and a connection's socket.
        let occurred = unsafe {
            let socket = (libpq().PQsocket)(self.raw.as_ptr());
            if socket < 0 {
                // libpq closed it, having lost track of what it was sent (`handleSyncLoss`).
                return Err(self.lost());
            }
            let occurred = pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                wanted.cast_signed(),
                socket,
                milliseconds,
                pg_sys::PG_WAIT_EXTENSION,
            );
            if occurred.cast_unsigned() & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
            }
            occurred.cast_unsigned()
        };
        check_for_interrupts!();
        Ok(occurred & events)
    }

    fn lost(&self) -> Failure {
        Failure::Lost(self.message())
    }

    /// Why the connection was not made: an error of the other server has its SQLSTATE in the text.
    fn not_made(&self, to_whom: String) -> Failure {
        let message = to_whom + &self.message();
        match split_sqlstate(&message) {
            Some((code, message)) => Failure::Refused { code, message },
            None => Failure::Lost(message),
        }
    }

    fn message(&self) -> String {
        // SAFETY: a connection's message, copied.
        unsafe { text((libpq().PQerrorMessage)(self.raw.as_ptr())) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: made by `open`, and finished once. Does not wait: the socket is not waited for.
        unsafe { (libpq().PQfinish)(self.raw.as_ptr()) }
    }
}

/// What an answer has brought so far, and cost.
///
/// libpq has no limit of its own: it keeps all rows of a result, and makes room for as much as a
/// message's header announces, up to 2 GB (`pqParseInput3`, `fe-protocol3.c`), which one
/// `PQconsumeInput` then fills as fast as it comes (`pqReadData`, `fe-misc.c`). So what the process
/// has taken of memory is looked at before each of them. What costs no memory, as notices, is
/// counted by what the kernel has ready before each; that may be less than libpq reads, by not more
/// than it has room for.
struct Intake {
    /// The process's memory when it was begun.
    memory: usize,
    bytes: usize,
    has_begun: bool,
}

impl Intake {
    fn new() -> Self {
        Self {
            memory: process::memory(),
            bytes: 0,
            has_begun: false,
        }
    }

    fn comes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.has_begun = true;
    }

    fn check(&self) -> Result<(), Failure> {
        let grown = process::memory().saturating_sub(self.memory);
        if self.bytes > MOST_BYTES || grown > MOST_BYTES {
            return Err(Failure::TooMuch);
        }
        Ok(())
    }
}

unsafe extern "C" fn ignore_notice(_: *mut c_void, _: *const PgResult) {}

/// A result, cleared when it is dropped.
struct Answer(NonNull<PgResult>);

impl Answer {
    fn status(&self) -> c_int {
        // SAFETY: a result.
        unsafe { (libpq().PQresultStatus)(self.0.as_ptr()) }
    }

    /// Of a result that is an error. One that libpq made itself has no SQLSTATE: the connection
    /// was lost.
    fn failure(&self) -> Failure {
        let libpq = libpq();
        let raw = self.0.as_ptr();
        // SAFETY: a result; texts are copied.
        unsafe {
            let message = text((libpq.PQresultErrorMessage)(raw));
            let code = (libpq.PQresultErrorField)(raw, PG_DIAG_SQLSTATE);
            if code.is_null() {
                Failure::Lost(message)
            } else {
                Failure::Refused {
                    code: sqlstate(CStr::from_ptr(code).to_bytes()),
                    message,
                }
            }
        }
    }

    fn table(&self) -> Result<Table, Failure> {
        let libpq = libpq();
        let raw = self.0.as_ptr();
        // SAFETY: a result, asked for rows and columns that it has; texts are copied.
        unsafe {
            let (columns, rows) = ((libpq.PQnfields)(raw), (libpq.PQntuples)(raw));
            let size = |count: c_int| usize::try_from(count).unwrap_or(0);
            // Also without columns a row takes room.
            if size(columns).max(1).saturating_mul(size(rows).max(1)) > MOST_VALUES {
                return Err(Failure::TooMuch);
            }
            let names = (0..columns)
                .map(|column| text((libpq.PQfname)(raw, column)))
                .collect();
            let value = |row, column| {
                let is_null = (libpq.PQgetisnull)(raw, row, column) != 0;
                (!is_null).then(|| text((libpq.PQgetvalue)(raw, row, column)))
            };
            let rows = (0..rows)
                .map(|row| (0..columns).map(|column| value(row, column)).collect())
                .collect();
            Ok((names, rows))
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: libpq's answer, cleared once.
        unsafe { (libpq().PQclear)(self.0.as_ptr()) }
    }
}

/// As `MAKE_SQLSTATE` (`elog.h`).
fn sqlstate(code: &[u8]) -> PgSqlErrorCode {
    let six_bits = |character: &u8| i32::from(character.wrapping_sub(b'0') & 0x3F);
    let digits = code.iter().take(5).map(six_bits);
    let code = digits.rev().fold(0, |code, digit| code << 6 | digit);
    PgSqlErrorCode::from(code)
}

/// Takes the SQLSTATE out of an error's message, where `PQERRORS_VERBOSE` has put it: after the
/// severity, which is in the other server's language (`pqBuildErrorMessage3`, `fe-protocol3.c`).
fn split_sqlstate(message: &str) -> Option<(PgSqlErrorCode, String)> {
    const AFTER_SEVERITY: &str = ":  ";
    let (before, rest) = message.split_once(AFTER_SEVERITY)?;
    let (code, rest) = rest.split_once(": ")?;
    let is_code = |c: &u8| c.is_ascii_digit() || c.is_ascii_uppercase();
    if code.len() != 5 || !code.as_bytes().iter().all(is_code) {
        return None;
    }
    Some((
        sqlstate(code.as_bytes()),
        format!("{before}{AFTER_SEVERITY}{rest}"),
    ))
}

/// At most [`MOST_TEXT`] bytes of it.
///
/// # Safety
///
/// `text` is null or ends with NUL.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    let kept = bytes.get(..MOST_TEXT).unwrap_or(bytes);
    String::from_utf8_lossy(kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sqlstate_of_a_refusal_is_found_in_its_text() {
        let verbose = "connection to server at \"::1\", port 5432 failed: FATAL:  28P01: password \
                       authentication failed for user \"r\"\nLOCATION:  auth_failed, auth.c:326\n";
        let (code, message) = split_sqlstate(verbose).expect("it has one");
        assert_eq!(code, PgSqlErrorCode::ERRCODE_INVALID_PASSWORD);
        assert_eq!(
            message.lines().next(),
            Some(
                "connection to server at \"::1\", port 5432 failed: FATAL:  password \
                 authentication failed for user \"r\""
            )
        );
        for without in [
            "connection to server at \"::1\", port 5432 failed: Connection refused",
            "FATAL:  sorry: too many clients already",
            "FATAL:  no code",
        ] {
            assert!(split_sqlstate(without).is_none(), "{without}");
        }
    }
}
