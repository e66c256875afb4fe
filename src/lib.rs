//! `slot_self_heal`: a Postgres extension that names what the creation of a logical replication
//! slot waits for, and lets it go on.
//!
//! One background worker ([`worker`]) looks at the slots from inside the server ([`server`]),
//! judges what it sees ([`core`]) and publishes it in shared memory ([`ledger`]) for the views
//! ([`views`]). The judgement is pure and knows no server; everything unsafe is in `server` and
//! `ledger`.
#![deny(unsafe_code)]

use pgrx::prelude::*;

mod core;
#[cfg(feature = "pg_test")]
mod inside;
mod ledger;
mod narrate;
mod server;
mod settings;
mod views;
mod worker;

// Where #[pg_test] looks for it.
#[cfg(all(test, feature = "pg_test"))]
use inside::pg_test;

::pgrx::pg_module_magic!(name, version);

/// Runs when a process loads the library.
///
/// Outside `shared_preload_libraries` there is no shared memory to be had and no worker to be
/// registered. The views say so when they are read ([`ledger::require`]); CREATE EXTENSION works
/// all the same.
#[pg_guard]
#[allow(non_snake_case)]
pub extern "C-unwind" fn _PG_init() {
    server::report::without_backtraces();
    if !server::is_preloading() {
        return;
    }
    settings::init();
    ledger::init();
    worker::init();
    #[cfg(feature = "pg_test")]
    inside::init();
}
