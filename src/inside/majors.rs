//! What is taken for granted of this major of Postgres, and no compiler checks.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::session::{Afterwards, Session};
use super::settings::{SESSION, reload, set, shown};
use super::slots::{SLOTS, create, dropped_afterwards, named};
use super::wait::PATIENCE;
use super::worker;
use crate::core::observation::Pid;
use crate::server::{process, version};

/// One of the server's own locks.
pub fn lock_named(name: &str) -> *mut pg_sys::LWLock {
    // SAFETY: made when the server started, with more locks than that; each of them has its number
    // as its tranche. A name is a constant, or null.
    (1..50_u16)
        .find_map(|number| unsafe {
            let lock = &raw mut (*pg_sys::MainLWLockArray.add(number.into())).lock;
            let its_name = pg_sys::GetLWLockIdentifier(pg_sys::PG_WAIT_LWLOCK, number);
            let is_it = (*lock).tranche == number
                && !its_name.is_null()
                && CStr::from_ptr(its_name).to_bytes() == name.as_bytes();
            is_it.then_some(lock)
        })
        .unwrap_or_else(|| panic!("no lock {name}"))
}

/// What a session waits for that runs `sql` while this process holds the lock.
fn waits_for(lock: *mut pg_sys::LWLock, sql: &str) -> String {
    let mut session = Session::open();
    // SAFETY: takes and releases a lock; the session outlives the last look. What raises an error
    // comes after the lock's release.
    let event = unsafe {
        let process = pg_sys::BackendPidGetProc(session.pid().get());
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        session.start(sql);
        let begun = std::time::Instant::now();
        let event = loop {
            let event = ptr::read_volatile(&raw const (*process).wait_event_info);
            if event & 0xff00_0000 == pg_sys::PG_WAIT_LWLOCK || begun.elapsed() > PATIENCE {
                break event;
            }
            std::thread::yield_now();
        };
        pg_sys::LWLockRelease(lock);
        event
    };
    session.finish().expect("it goes on");
    // SAFETY: constants.
    unsafe {
        let kind = CStr::from_ptr(pg_sys::pgstat_get_wait_event_type(event));
        let name = CStr::from_ptr(pg_sys::pgstat_get_wait_event(event));
        format!("{} {}", kind.to_string_lossy(), name.to_string_lossy())
    }
}

#[pg_test]
fn the_lock_that_keeps_transactions_is_the_one_that_their_end_takes() {
    let locks = version::locks().expect("known locks");
    let end = "BEGIN; SELECT pg_current_xact_id(); COMMIT";
    assert_eq!(waits_for(locks.proc_array, end), "LWLock ProcArray");
}

#[pg_test]
fn the_lock_that_keeps_slots_is_the_one_that_their_views_take() {
    let locks = version::locks().expect("known locks");
    let look = "SELECT slot_name FROM pg_replication_slots";
    let waits = waits_for(locks.replication_slot_control, look);
    assert_eq!(waits, "LWLock ReplicationSlotControl");
}

#[pg_test]
fn the_least_level_of_the_log_is_this_process_s_own() {
    const NAME: &CStr = c"log_min_messages";
    set(NAME, "fatal", SESSION).expect("a level");
    assert_eq!(version::log_min_messages(), pg_sys::FATAL.cast_signed());
    set(NAME, "debug1", SESSION).expect("a level");
    assert_eq!(version::log_min_messages(), pg_sys::DEBUG1.cast_signed());
}

#[cfg(feature = "pg19")]
#[pg_test]
fn the_least_level_of_the_log_is_that_of_this_kind_of_process() {
    const LEVELS: &CStr = c"log_min_messages";
    set(LEVELS, "error, backend:debug2, bgworker:panic", SESSION).expect("levels");
    assert_eq!(version::log_min_messages(), pg_sys::DEBUG2.cast_signed());
    worker::run(|| {
        reload(LEVELS, "error, backend:debug2, bgworker:panic");
        assert_eq!(version::log_min_messages(), pg_sys::PANIC.cast_signed());
    });
}

/// The symbol's size, as the server's own program has it.
#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
#[pg_test]
fn the_head_of_the_list_of_workers_is_as_long_as_is_read() {
    unsafe extern "C" {
        static BackgroundWorkerList: c_void;
        /// Not bound by libc (`dladdr(3)`).
        fn dladdr1(
            address: *const c_void,
            found: *mut libc::Dl_info,
            extra: *mut *const libc::Elf64_Sym,
            flags: c_int,
        ) -> c_int;
    }
    /// `RTLD_DL_SYMENT`
    const SYMBOL: c_int = 1;
    let mut symbol: *const libc::Elf64_Sym = ptr::null();
    // SAFETY: places for what is found; an entry of a table that stays.
    let size = unsafe {
        let mut found = std::mem::zeroed();
        let address = &raw const BackgroundWorkerList;
        assert!(dladdr1(address, &raw mut found, &raw mut symbol, SYMBOL) != 0);
        assert_eq!(CStr::from_ptr(found.dli_sname), c"BackgroundWorkerList");
        (*symbol).st_size
    };
    let words = version::LIST_HEAD_WORDS * size_of::<usize>();
    assert_eq!(usize::try_from(size), Ok(words));
    assert!(
        crate::server::registered_workers()
            .iter()
            .all(|word| *word != 0)
    );
}

#[pg_test]
fn the_array_of_slots_is_as_long_as_the_server_made_it() {
    let of_repack = if cfg!(feature = "pg19") {
        shown(c"max_repack_replication_slots")
            .parse()
            .expect("a number")
    } else {
        0
    };
    assert_eq!(version::most_slots(), SLOTS + of_repack);
}

/// A worker's settings outrank what the operator, or a database's owner, sets.
#[pg_test]
fn what_the_worker_pins_stays_pinned() {
    let _reset = Afterwards::run(&["ALTER DATABASE pgrx_tests RESET ALL"]);
    let mut operator = Session::open();
    operator.run("ALTER DATABASE pgrx_tests SET search_path = nowhere");
    operator.run("ALTER DATABASE pgrx_tests SET lock_timeout = '9s'");
    worker::run(pins_hold);
}

fn pins_hold() {
    let mut pinned = vec![
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_isolation", c"read committed"),
        (c"lock_timeout", c"1s"),
        (c"jit", c"off"),
    ];
    // That every major that has one pins it.
    pinned.extend(version::SETTINGS);
    let has = |name: &CStr| {
        // SAFETY: null where there is no such setting.
        unsafe { !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() }
    };
    let is_pinned = version::SETTINGS
        .iter()
        .any(|(name, _)| *name == c"transaction_timeout");
    assert_eq!(has(c"transaction_timeout"), is_pinned);
    for (name, value) in pinned {
        let value = value.to_str().expect("ASCII");
        assert_eq!(shown(name), value, "{name:?}");
        let other = match value {
            "1s" | "0" => "7s",
            "off" => "on",
            "read committed" => "serializable",
            _ => "public",
        };
        reload(name, other);
        assert_eq!(shown(name), value, "{name:?} after a reload");
    }
}

#[pg_test]
fn the_wait_of_an_idle_worker_has_a_name() {
    // SAFETY: a constant, or a name in shared memory.
    let name = unsafe { CStr::from_ptr(pg_sys::pgstat_get_wait_event(process::wait_event())) };
    let expected = if cfg!(any(feature = "pg15", feature = "pg16")) {
        c"Extension"
    } else {
        c"SlotSelfHealMain"
    };
    assert_eq!(name, expected);
}

#[cfg(not(any(feature = "pg15", feature = "pg16")))]
#[pg_test]
fn the_time_of_a_slot_s_release_is_the_one_that_is_shown() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    create(&mut session, "released");
    // SAFETY: the slot is there, and nobody uses it.
    let since = unsafe { version::inactive_since(named("released")) }.expect("a time");
    let shown = session.value(
        "SELECT (date_part('epoch', inactive_since) * 1000000)::int8 - 946684800000000
           FROM pg_replication_slots",
    );
    assert_eq!(since.get().to_string(), shown);
    // SAFETY: as above.
    assert_eq!(unsafe { version::holder(named("released")) }, None::<Pid>);
}

/// PostgreSQL 15's and 16's slots do not tell.
#[cfg(any(feature = "pg15", feature = "pg16"))]
#[pg_test]
fn the_time_of_a_slot_s_release_is_not_known() {
    let _slots = dropped_afterwards();
    let mut session = Session::open();
    create(&mut session, "released");
    // SAFETY: the slot is there, and nobody uses it.
    let (since, holder) = unsafe {
        (
            version::inactive_since(named("released")),
            version::holder(named("released")),
        )
    };
    assert!(since.is_none());
    assert_eq!(holder, None::<Pid>);
}
