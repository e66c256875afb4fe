//! The running-xacts record that a slot's creation needs.

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::SpiError;

use super::report::Notice;
use super::transaction::internal_error;
use super::version::log_standby_snapshot;
use super::{WalLevel, role, wal_level};
use crate::core::observation::Role;
use crate::core::xid::Lsn;

/// Why no record was written.
#[derive(Debug)]
pub enum Refusal {
    /// Only the primary can write WAL.
    InRecovery,
    /// `LogStandbySnapshot` asserts that `wal_level` is at least `replica`.
    WalLevelMinimal,
    Query(SpiError),
}

impl From<Refusal> for Notice {
    fn from(refusal: Refusal) -> Self {
        let (message, hint) = match refusal {
            Refusal::InRecovery => (
                "recovery is in progress, so no running-xacts record can be written here",
                "Run it on the primary.",
            ),
            Refusal::WalLevelMinimal => (
                "\"wal_level\" is minimal, so running-xacts records mean nothing",
                "Set wal_level = logical and restart the server.",
            ),
            Refusal::Query(error) => {
                return internal_error(format!("could not write a running-xacts record: {error}"));
            }
        };
        Self {
            code: PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            message: message.into(),
            detail: None,
            hint: Some(hint.into()),
        }
    }
}

/// Writes a running-xacts record and flushes it. Returns where the record ends.
///
/// Must run in a transaction, on 16 and later. It takes no transaction id.
pub fn write() -> Result<Lsn, Refusal> {
    if role() == Role::Standby {
        return Err(Refusal::InRecovery);
    }
    if wal_level() < WalLevel::Replica {
        return Err(Refusal::WalLevelMinimal);
    }
    let end = log_standby_snapshot().map_err(Refusal::Query)?;
    // Neither LogStandbySnapshot nor its SQL function waits for the flush, and a creation reads
    // flushed WAL only.
    // SAFETY: a position that was just written.
    unsafe { pg_sys::XLogFlush(end) };
    Ok(Lsn::new(end))
}
