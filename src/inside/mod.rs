//! The tests that run inside a server: what only a process of it can show.
//!
//! Not part of what is shipped: the feature `pg_test` brings them, and `make test` runs them on each
//! major (`pgrx-config/inside`), against a server of their own. What a user sees is the scenarios'
//! matter (`tests/scenarios`), and what needs no server the unit tests', which lie beside their
//! code.
//!
//! | file | what it holds on to |
//! | --- | --- |
//! | `gate` | what the gate sees of slots in every phase |
//! | `page` | no text is torn between those that write it and those that read it |
//! | `queries` | nothing that somebody planted is called by the worker's queries |
//! | `limits`, `conninfo` | what the hooks of the settings take, refuse and keep |
//! | `quoting` | what is quoted is what the server reads |
//! | `trouble` | what an error in a tick leaves behind: nothing |
//! | `ending` | whom a signal is sent to, and who is spared |
//! | `majors` | what is taken for granted of this major of Postgres |
//!
//! A `#[pg_test]` runs in a session, in a transaction that is rolled back. Others that it needs it
//! opens itself ([`session`]), and what is to be seen outside of a transaction runs in a background
//! worker ([`worker`]). The worker of `slot_self_heal` rests. One test runs at a time: slots and
//! settings are the server's, not a session's.
// What may end a test must not end a server; but all of this is tests.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    unsafe_code
)]

mod caught;
mod conninfo;
mod ending;
mod gate;
mod limits;
mod majors;
mod page;
mod queries;
mod quoting;
mod session;
mod settings;
mod shared;
mod slots;
mod trouble;
mod wait;
mod worker;

pub use shared::init;

/// Where `#[pg_test]` looks for what the server is to be like.
#[cfg(test)]
pub mod pg_test {
    pub fn setup(_options: Vec<&str>) {}

    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![
            "shared_preload_libraries = 'slot_self_heal'",
            "slot_self_heal.enabled = off",
            // The last value of a name counts: pgrx has it listen at a socket in /tmp as well.
            "unix_socket_directories = ''",
            "wal_level = logical",
            // The array's end is to be reached.
            "max_replication_slots = 5",
            "max_prepared_transactions = 2",
            // Nobody else takes transaction ids or waits for locks.
            "autovacuum = off",
            "fsync = off",
            "lc_messages = 'C'",
            "log_statement = 'none'",
        ]
    }
}
