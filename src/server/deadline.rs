//! A time limit on what waits for another server.
//!
//! Core's own timeouts do not serve: a background worker's statements have none, and a session's
//! belongs to its user. Ours cancels whatever runs, as a user's request would.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

use super::version::USER_TIMEOUT;

// Not bound by pgrx (`timeout.h`). SetLatch is, but wrapped to catch errors, which has no place in
// a signal handler.
unsafe extern "C-unwind" {
    fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
    fn enable_timeout_after(id: c_int, milliseconds: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
    fn SetLatch(latch: *mut pg_sys::Latch);
}

/// This process's timeout; negative before it has one.
static TIMEOUT: AtomicI32 = AtomicI32::new(-1);
static EXPIRED: AtomicBool = AtomicBool::new(false);

/// Runs `body`, which is cancelled once `limit` is over: the next interrupt check in it raises an
/// error. Whether that is why it ended, [`has_expired`] tells.
pub fn within<T>(limit: Duration, body: impl FnOnce() -> T) -> T {
    let _armed = Armed::new(limit);
    body()
}

/// Whether the last [`within`] ran into its limit.
pub fn has_expired() -> bool {
    EXPIRED.load(Ordering::Relaxed)
}

struct Armed(c_int);

impl Armed {
    fn new(limit: Duration) -> Self {
        let mut id = TIMEOUT.load(Ordering::Relaxed);
        if id < 0 {
            // SAFETY: once a process, which has set up its timeouts long ago.
            id = unsafe { RegisterTimeout(USER_TIMEOUT, on_timeout) };
            TIMEOUT.store(id, Ordering::Relaxed);
        }
        EXPIRED.store(false, Ordering::Relaxed);
        let milliseconds = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: a registered timeout.
        unsafe { enable_timeout_after(id, milliseconds) };
        Self(id)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        // SAFETY: as above. A cancellation that nobody took notice of must not hit what follows.
        unsafe {
            disable_timeout(self.0, false);
            if has_expired() {
                ptr::write_volatile(&raw mut pg_sys::QueryCancelPending, 0);
            }
        }
    }
}

/// As `StatementCancelHandler` (`postgres.c`).
unsafe extern "C-unwind" fn on_timeout() {
    EXPIRED.store(true, Ordering::Relaxed);
    // SAFETY: flags that signal handlers set, and a function made for them.
    unsafe {
        ptr::write_volatile(&raw mut pg_sys::InterruptPending, 1);
        ptr::write_volatile(&raw mut pg_sys::QueryCancelPending, 1);
        SetLatch(pg_sys::MyLatch);
    }
}
