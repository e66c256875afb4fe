//! Shared memory of the tests' own.

use pgrx::pg_shmem_init;

use crate::ledger::page::Page;

/// What is written and read at the same time.
pub static SUBJECT: Page<{ 256 << 10 }> = Page::named(c"slot_self_heal inside subject");
/// How a background worker has found what it was to look at.
pub static VERDICT: Page<4096> = Page::named(c"slot_self_heal inside verdict");

/// Asks for it. Runs once, in the postmaster.
pub fn init() {
    pg_shmem_init!(SUBJECT);
    pg_shmem_init!(VERDICT);
}
