//! `slot_self_heal.primary_conninfo`: a setting that may hold a password, and is never shown.
//!
//! Its value is kept beside the variable that Postgres shows, which stays empty: then neither SHOW
//! nor `pg_settings` has it, and a reload does not log what it changed to
//! (`ProcessConfigFileInternal`, `guc.c`). SHOW tells whether it is set.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use pgrx::pg_sys;

use super::version::guc_alloc;

/// What Postgres shows: an empty string.
static mut SHOWN: *mut c_char = ptr::null_mut();
/// The value, in memory of the setting's machinery; null where it is not set.
static mut VALUE: *const c_char = ptr::null();

/// Defines the setting. Runs once, in the postmaster.
pub fn define(name: &'static CStr, summary: &'static CStr, description: &'static CStr) {
    // SAFETY: the texts live for ever, and the hooks do as guc.h asks.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            name.as_ptr(),
            summary.as_ptr(),
            description.as_ptr(),
            &raw mut SHOWN,
            c"".as_ptr(),
            pg_sys::GucContext::PGC_SIGHUP,
            pg_sys::GUC_SUPERUSER_ONLY.cast_signed(),
            Some(hide),
            Some(keep),
            Some(show),
        );
    }
}

/// The value; `None` where it is not set.
pub fn value() -> Option<CString> {
    // SAFETY: written by `keep` only, in this process.
    unsafe {
        let value = VALUE;
        (!value.is_null()).then(|| CStr::from_ptr(value).to_owned())
    }
}

/// The check hook: takes the value aside, and leaves an empty one.
unsafe extern "C-unwind" fn hide(
    new: *mut *mut c_char,
    aside: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: a string that is the setting's own to change, and memory that it frees itself.
    unsafe {
        let text = *new;
        if text.is_null() || *text == 0 {
            return true;
        }
        let size = CStr::from_ptr(text).to_bytes_with_nul().len();
        let copy = guc_alloc(size);
        if copy.is_null() {
            return false;
        }
        ptr::copy_nonoverlapping(text.cast::<u8>(), copy.cast::<u8>(), size);
        *aside = copy;
        *text = 0;
    }
    true
}

/// The assign hook.
unsafe extern "C-unwind" fn keep(_new: *const c_char, aside: *mut c_void) {
    // SAFETY: `aside` is what `hide` made, or null, and lives as long as the setting has this value.
    unsafe { VALUE = aside.cast() };
}

/// The show hook.
unsafe extern "C-unwind" fn show() -> *const c_char {
    // SAFETY: as in `value`.
    let is_set = unsafe { !VALUE.is_null() };
    if is_set { c"********" } else { c"" }.as_ptr()
}
