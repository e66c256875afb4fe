//! Settings that Postgres should check before it takes them.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Whether this process is the worker, while it connects to its database.
static CONNECTING: AtomicBool = AtomicBool::new(false);

/// Connects, without what ALTER DATABASE and ALTER ROLE set of [limits](define_limit): the worker
/// would take it for everybody's.
pub fn without_limits_of_database(connect: impl FnOnce()) {
    CONNECTING.store(true, Ordering::Relaxed);
    connect();
    CONNECTING.store(false, Ordering::Relaxed);
}

/// Reads a limit as Postgres reads it from postgresql.conf, in the setting's own unit.
pub fn parse_limit(text: &str, unit: GucFlags) -> Option<i32> {
    let text = CString::new(text).ok()?;
    let mut value = 0;
    // SAFETY: a text, and a place for the value; a hint is not asked for.
    let is_valid =
        unsafe { pg_sys::parse_int(text.as_ptr(), &mut value, unit.bits(), ptr::null_mut()) };
    is_valid.then_some(value)
}

/// Defines a limit that postgresql.conf sets for all creations, and ALTER DATABASE and ALTER ROLE
/// for some. The worker reads both; what a session sets for itself it can't see, so that is refused.
pub fn define_limit(
    name: &'static CStr,
    summary: &'static CStr,
    description: &'static CStr,
    setting: &'static GucSetting<i32>,
    off: i32,
    unit: GucFlags,
) {
    let check = if off == 0 {
        check_limit
    } else {
        check_nonzero_limit
    };
    // SAFETY: the hooks do not panic.
    unsafe {
        GucRegistry::define_int_guc_with_hooks(
            name,
            summary,
            description,
            setting,
            off,
            i32::MAX,
            GucContext::Suset,
            unit,
            Some(check),
            None,
            None,
        );
    }
}

unsafe extern "C-unwind" fn check_limit(
    _value: *mut i32,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    use pg_sys::GucSource::{
        PGC_S_CLIENT, PGC_S_DATABASE, PGC_S_DATABASE_USER, PGC_S_GLOBAL, PGC_S_SESSION, PGC_S_USER,
    };
    match source {
        PGC_S_SESSION | PGC_S_CLIENT => refuse(
            PgSqlErrorCode::ERRCODE_CANT_CHANGE_RUNTIME_PARAM,
            None,
            c"The worker of slot_self_heal applies it, and does not see what a session sets for itself.",
            c"Set it in postgresql.conf, or with ALTER DATABASE or ALTER ROLE.",
        ),
        PGC_S_GLOBAL | PGC_S_DATABASE | PGC_S_USER | PGC_S_DATABASE_USER
            if CONNECTING.load(Ordering::Relaxed) =>
        {
            refuse(
                PgSqlErrorCode::ERRCODE_WARNING,
                Some(c"a limit of slot_self_heal is set for the database or the role of its worker"),
                c"It applies to slots that are created there, as it should, and not to all others.",
                c"To be told so no more, let slot_self_heal.database name another database.",
            )
        }
        _ => true,
    }
}

unsafe extern "C-unwind" fn check_nonzero_limit(
    value: *mut i32,
    extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the new value, and what Postgres passes on to a hook.
    unsafe {
        if *value == 0 {
            refuse(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                None,
                c"Every creation would exceed a limit of zero.",
                c"-1 means no limit.",
            )
        } else {
            check_limit(value, extra, source)
        }
    }
}

/// Defines a list of names, written as in `search_path`.
pub fn define_names(
    name: &'static CStr,
    summary: &'static CStr,
    description: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
) {
    // SAFETY: the hook does not panic.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            summary,
            description,
            setting,
            GucContext::Sighup,
            // Without GUC_LIST_INPUT, with which SET would take `a, "B"` and lose the quotes.
            GucFlags::default(),
            Some(check_names),
            None,
            None,
        );
    }
}

unsafe extern "C-unwind" fn check_names(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the new value, which is a string.
    let text = unsafe { CStr::from_ptr(*value) };
    // Refused while the server starts, it would be the default, an empty list, with a warning only.
    super::is_preloading()
        || names(text).is_some()
        || refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            None,
            c"List syntax is invalid: it is a list of names, separated by commas.",
            c"A name with capital letters or other characters stands in double quotes.",
        )
}

/// The names in a list, as Postgres would read them.
pub fn names(list: &CStr) -> Option<Vec<String>> {
    let mut list = list.to_bytes_with_nul().to_vec();
    let mut found: *mut pg_sys::List = ptr::null_mut();
    // SAFETY: a text of ours, which the function cuts into names, and a list that it makes of them:
    // also where it then finds something that is no name.
    unsafe {
        let separator = b','.cast_signed();
        let is_list =
            pg_sys::SplitIdentifierString(list.as_mut_ptr().cast(), separator, &mut found);
        let names = is_list.then(|| {
            (0..pg_sys::list_length(found))
                .map(|index| CStr::from_ptr(pg_sys::list_nth(found, index).cast()))
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        });
        pg_sys::list_free(found);
        names
    }
}

/// What a check hook says of a value that it refuses. Without a message Postgres names the
/// parameter and the value.
fn refuse(
    code: PgSqlErrorCode,
    message: Option<&'static CStr>,
    detail: &'static CStr,
    hint: &'static CStr,
) -> bool {
    // SAFETY: as the macros GUC_check_errmsg and its like do (`guc.h`); texts that live for ever.
    unsafe {
        pg_sys::GUC_check_errcode(code as i32);
        if let Some(message) = message {
            pg_sys::GUC_check_errmsg_string = message.as_ptr().cast_mut();
        }
        pg_sys::GUC_check_errdetail_string = detail.as_ptr().cast_mut();
        pg_sys::GUC_check_errhint_string = hint.as_ptr().cast_mut();
    }
    false
}
