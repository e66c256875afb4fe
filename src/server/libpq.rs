//! A connection to another server, over libpq: the one that comes with `libpqwalreceiver`, the
//! server's own client.
//!
//! While it waits it serves interrupts (the end of the process, barriers), and it waits no longer
//! than it is told to. `libpqwalreceiver`'s functions know no time limit, and before PostgreSQL 18
//! an error raised to end their wait leaves the connection behind.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::time::Instant;

use pgrx::prelude::*;
use pgrx::{check_for_interrupts, pg_sys};

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
            fn look_up() -> Option<Self> {
                Some(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: a name that ends with NUL; the types are those of libpq-fe.h.
                        unsafe {
                            let symbol = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr().cast());
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
    PQconninfoFree: fn(*mut ConninfoOption);
    PQconninfoParse: fn(*const c_char, *mut *mut c_char) -> *mut ConninfoOption;
    PQconsumeInput: fn(*mut PgConn) -> c_int;
    PQerrorMessage: fn(*const PgConn) -> *const c_char;
    PQfinish: fn(*mut PgConn);
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
    PQsetNoticeReceiver: fn(*mut PgConn, NoticeReceiver, *mut c_void) -> Option<NoticeReceiver>;
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
/// `postgres_ext.h`
const PG_DIAG_SQLSTATE: c_int = b'C' as c_int;

/// libpq, loaded when it is first needed. An error is raised where it can't be.
fn libpq() -> &'static Functions {
    static LIBPQ: OnceLock<Functions> = OnceLock::new();
    if let Some(functions) = LIBPQ.get() {
        return functions;
    }
    // SAFETY: a library of the server's own. Its symbols, and those of the libpq that it is linked
    // with, are public from then on (`internal_load_library`, `dfmgr.c`).
    unsafe { pg_sys::load_file(c"libpqwalreceiver".as_ptr(), false) };
    match Functions::look_up() {
        Some(functions) => LIBPQ.get_or_init(|| functions),
        None => {
            super::report::error(super::transaction::internal_error(
                "libpq lacks a function that slot_self_heal needs".into(),
            ));
        }
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
        if options.is_null() {
            return None;
        }
        let mut parameters = Vec::new();
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
        (libpq.PQconninfoFree)(options);
        Some(parameters)
    }
}

/// An open connection, closed when it is dropped, also while an error is on its way.
pub struct Connection(NonNull<PgConn>);

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
}

/// The names of a result's columns, and its rows, each value as text.
pub type Table = (Vec<String>, Vec<Vec<Option<String>>>);

impl Connection {
    pub fn open(parameters: &Parameters, deadline: Instant) -> Result<Self, Failure> {
        let libpq = libpq();
        let names: Result<Vec<_>, _> = parameters
            .iter()
            .map(|(keyword, _)| CString::new(keyword.as_str()))
            .collect();
        let names = names.map_err(|_| Failure::Lost("a keyword contains a NUL".into()))?;
        let end = [ptr::null()];
        let keywords: Vec<_> = names.iter().map(|k| k.as_ptr()).chain(end).collect();
        let values = parameters.iter().map(|(_, value)| value.as_ptr());
        let values: Vec<_> = values.chain(end).collect();
        // SAFETY: both arrays end with a null, and live until libpq has copied them.
        let raw = unsafe { (libpq.PQconnectStartParams)(keywords.as_ptr(), values.as_ptr(), 0) };
        let connection = Self(NonNull::new(raw).ok_or(Failure::Lost("out of memory".into()))?);
        // SAFETY: a connection that is just being made.
        unsafe {
            if (libpq.PQstatus)(raw) == CONNECTION_BAD {
                return Err(connection.lost());
            }
            // Else libpq would write the other server's warnings into this one's log.
            (libpq.PQsetNoticeReceiver)(raw, ignore_notice, ptr::null_mut());
        }
        let mut events = pg_sys::WL_SOCKET_WRITEABLE;
        loop {
            if connection.wait(events, deadline)? {
                // SAFETY: as above.
                match unsafe { (libpq.PQconnectPoll)(raw) } {
                    PGRES_POLLING_OK => return Ok(connection),
                    PGRES_POLLING_FAILED => return Err(connection.lost()),
                    PGRES_POLLING_READING => events = pg_sys::WL_SOCKET_READABLE,
                    _ => events = pg_sys::WL_SOCKET_WRITEABLE,
                }
            }
        }
    }

    /// Runs SQL; of several statements the last one's result is returned.
    pub fn query(&self, sql: &str, deadline: Instant) -> Result<Table, Failure> {
        let libpq = libpq();
        let sql = CString::new(sql).map_err(|_| Failure::Lost("SQL contains a NUL".into()))?;
        // SAFETY: an open connection.
        if unsafe { (libpq.PQsendQuery)(self.0.as_ptr(), sql.as_ptr()) } == 0 {
            return Err(self.lost());
        }
        let mut last: Option<Answer> = None;
        loop {
            // SAFETY: an open connection.
            while unsafe { (libpq.PQisBusy)(self.0.as_ptr()) } != 0 {
                if !self.wait(pg_sys::WL_SOCKET_READABLE, deadline)? {
                    continue;
                }
                // SAFETY: an open connection, which has something to read.
                if unsafe { (libpq.PQconsumeInput)(self.0.as_ptr()) } == 0 {
                    return Err(self.lost());
                }
            }
            // SAFETY: does not wait, as libpq is not busy.
            match NonNull::new(unsafe { (libpq.PQgetResult)(self.0.as_ptr()) }) {
                Some(answer) => last = Some(Answer(answer)),
                None => break,
            }
        }
        match last {
            Some(answer) => answer.table(),
            None => Err(self.lost()),
        }
    }

    /// Waits until the socket is ready; false when something else came up.
    fn wait(&self, events: u32, deadline: Instant) -> Result<bool, Failure> {
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
            let occurred = pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                wanted.cast_signed(),
                (libpq().PQsocket)(self.0.as_ptr()),
                milliseconds,
                pg_sys::PG_WAIT_EXTENSION,
            );
            if occurred.cast_unsigned() & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
            }
            occurred.cast_unsigned()
        };
        check_for_interrupts!();
        Ok(occurred & events != 0)
    }

    fn lost(&self) -> Failure {
        // SAFETY: a connection's message, copied.
        Failure::Lost(unsafe { text((libpq().PQerrorMessage)(self.0.as_ptr())) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: made by `open`, and finished once.
        unsafe { (libpq().PQfinish)(self.0.as_ptr()) }
    }
}

unsafe extern "C" fn ignore_notice(_: *mut c_void, _: *const PgResult) {}

/// A result, cleared when it is dropped.
struct Answer(NonNull<PgResult>);

impl Answer {
    fn table(&self) -> Result<Table, Failure> {
        let libpq = libpq();
        let raw = self.0.as_ptr();
        // SAFETY: a result, asked for rows and columns that it has; texts are copied.
        unsafe {
            match (libpq.PQresultStatus)(raw) {
                PGRES_TUPLES_OK | PGRES_COMMAND_OK => {}
                _ => {
                    let message = text((libpq.PQresultErrorMessage)(raw));
                    let code = (libpq.PQresultErrorField)(raw, PG_DIAG_SQLSTATE);
                    return Err(if code.is_null() {
                        Failure::Lost(message)
                    } else {
                        Failure::Refused {
                            code: sqlstate(CStr::from_ptr(code)),
                            message,
                        }
                    });
                }
            }
            let columns = 0..(libpq.PQnfields)(raw);
            let names = columns
                .clone()
                .map(|column| text((libpq.PQfname)(raw, column)))
                .collect();
            let value = |row, column| {
                let is_null = (libpq.PQgetisnull)(raw, row, column) != 0;
                (!is_null).then(|| text((libpq.PQgetvalue)(raw, row, column)))
            };
            let rows = (0..(libpq.PQntuples)(raw))
                .map(|row| columns.clone().map(|column| value(row, column)).collect())
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
fn sqlstate(code: &CStr) -> PgSqlErrorCode {
    let six_bits = |character: &u8| i32::from(character.wrapping_sub(b'0') & 0x3F);
    let digits = code.to_bytes().iter().take(5).map(six_bits);
    let code = digits.rev().fold(0, |code, digit| code << 6 | digit);
    PgSqlErrorCode::from(code)
}

/// # Safety
///
/// `text` is null or ends with NUL.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
