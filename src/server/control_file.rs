//! What the control file says of the primary that this server has its WAL from.

use pgrx::pg_sys;

use crate::core::pause::Capacities;

/// `None` if the file is being written just now.
pub fn primary_capacities() -> Option<Capacities> {
    let mut is_valid = false;
    // SAFETY: a copy in the current memory context, of which other processes know nothing. Without
    // ControlFileLock it may be half written, which its checksum tells.
    let control = unsafe { pg_sys::get_controlfile(pg_sys::DataDir, &raw mut is_valid).as_ref() }?;
    is_valid.then_some(Capacities {
        connections: control.MaxConnections,
        worker_processes: control.max_worker_processes,
        wal_senders: control.max_wal_senders,
        prepared_transactions: control.max_prepared_xacts,
        locks_per_transaction: control.max_locks_per_xact,
    })
}
