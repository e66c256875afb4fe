//! A connection to another server, over the server's own client, `libpqwalreceiver`: while it waits
//! it serves interrupts (the end of the process, barriers, our time limit).

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;

use super::transaction::without_snapshot;
use super::version;

pub struct Connection(NonNull<pg_sys::WalReceiverConn>);

/// A query to be sent: its text and the number of columns that it returns.
pub struct Query<'a> {
    pub sql: &'a str,
    pub columns: usize,
}

/// The names of the columns, and the rows, each value as text.
pub type Table = (Vec<String>, Vec<Vec<Option<String>>>);

/// A query that failed.
#[derive(Debug)]
pub struct QueryError {
    /// As the other server gave it; none if the connection failed.
    pub code: Option<PgSqlErrorCode>,
    pub message: String,
}

/// Loads `libpqwalreceiver`, as everybody does who wants to connect.
pub fn load() {
    // SAFETY: a pointer that the library sets when it is loaded.
    unsafe {
        if pg_sys::WalReceiverFunctions.is_null() {
            pg_sys::load_file(c"libpqwalreceiver".as_ptr(), false);
        }
    }
}

impl Connection {
    /// Connects; the error is libpq's message.
    pub fn open(conninfo: &CStr) -> Result<Self, String> {
        load();
        let mut message: *mut c_char = ptr::null_mut();
        // SAFETY: the library is loaded. The connection is to outlive the current transaction.
        unsafe {
            let connect = (*pg_sys::WalReceiverFunctions).walrcv_connect;
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let raw = pg_guard_ffi_boundary(|| {
                version::walrcv_connect(connect, conninfo, c"slot_self_heal", &raw mut message)
            });
            pg_sys::MemoryContextSwitchTo(context);
            NonNull::new(raw).map(Self).ok_or_else(|| take(message))
        }
    }

    /// Runs one query. It needs a transaction here, since column types are looked up, but no
    /// snapshot, which would hold back VACUUM while the other server takes its time.
    pub fn query(&self, query: &Query<'_>) -> Result<Table, QueryError> {
        // SAFETY: asks for the state of the current transaction.
        if unsafe { pg_sys::IsTransactionState() } {
            self.query_in_transaction(query)
        } else {
            without_snapshot(|| self.query_in_transaction(query))
        }
    }

    fn query_in_transaction(&self, query: &Query<'_>) -> Result<Table, QueryError> {
        let internal = |message: &str| QueryError {
            code: None,
            message: message.into(),
        };
        let sql = CString::new(query.sql).map_err(|_| internal("the query contains a NUL"))?;
        let types = vec![pg_sys::TEXTOID; query.columns];
        let columns = i32::try_from(types.len()).unwrap_or(0);
        // SAFETY: the connection is open, and the result is freed once it was copied.
        unsafe {
            let exec = (*pg_sys::WalReceiverFunctions).walrcv_exec;
            let Some(exec) = exec else {
                return Err(internal("libpqwalreceiver cannot run queries"));
            };
            let result = pg_guard_ffi_boundary(|| {
                exec(self.0.as_ptr(), sql.as_ptr(), columns, types.as_ptr())
            });
            let answer = match (*result).status {
                pg_sys::WalRcvExecStatus::WALRCV_OK_TUPLES => Ok(texts(&*result)),
                pg_sys::WalRcvExecStatus::WALRCV_OK_COMMAND => Ok((Vec::new(), Vec::new())),
                _ => Err(QueryError {
                    code: ((*result).sqlstate != 0)
                        .then(|| PgSqlErrorCode::from((*result).sqlstate)),
                    message: if (*result).err.is_null() {
                        "no answer".into()
                    } else {
                        CStr::from_ptr((*result).err).to_string_lossy().into_owned()
                    },
                }),
            };
            pg_sys::walrcv_clear_result(result);
            answer
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, and closed once.
        unsafe {
            if let Some(disconnect) = (*pg_sys::WalReceiverFunctions).walrcv_disconnect {
                pg_guard_ffi_boundary(|| disconnect(self.0.as_ptr()));
            }
        }
    }
}

/// Takes over a message that the library allocated.
///
/// # Safety
///
/// `message` is null or was allocated by palloc.
unsafe fn take(message: *mut c_char) -> String {
    if message.is_null() {
        return "no reason given".into();
    }
    // SAFETY: the caller's promise.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        pg_sys::pfree(message.cast());
        text
    }
}

/// Copies a result whose columns are all of type text.
///
/// # Safety
///
/// `result` has tuples.
unsafe fn texts(result: &pg_sys::WalRcvExecResult) -> Table {
    // SAFETY: the caller's promise; rows and columns are counted by the server.
    unsafe {
        let columns = usize::try_from((*result.tupledesc).natts).unwrap_or(0);
        let names = (1..=(*result.tupledesc).natts)
            .map(|column| {
                let name = pg_sys::SPI_fname(result.tupledesc, column);
                CStr::from_ptr(name).to_string_lossy().into_owned()
            })
            .collect();
        let slot = pg_sys::MakeSingleTupleTableSlot(
            result.tupledesc,
            &raw const pg_sys::TTSOpsMinimalTuple,
        );
        let mut rows = Vec::new();
        while pg_sys::tuplestore_gettupleslot(result.tuplestore, true, false, slot) {
            if usize::try_from((*slot).tts_nvalid).unwrap_or(0) < columns {
                pg_sys::slot_getsomeattrs_int(slot, (*result.tupledesc).natts);
            }
            let value = |column: usize| {
                (!*(*slot).tts_isnull.add(column)).then(|| {
                    let datum = *(*slot).tts_values.add(column);
                    let text = pg_sys::text_to_cstring(datum.cast_mut_ptr());
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                })
            };
            rows.push((0..columns).map(value).collect());
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        (names, rows)
    }
}
