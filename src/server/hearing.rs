//! What is true of transactions at the moment when they are judged.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

use super::scan::{self, ScanError};
use crate::core::guard::Standing;
use crate::core::observation::Transaction;
use crate::core::xid::Xid;

const STANDING: &str = include_str!("../../sql/standing.sql");

/// A transaction that has not ended, and whose it is; a prepared one has no session.
pub struct Case {
    pub transaction: Transaction,
    pub standing: Option<Standing>,
}

/// Looks at these transactions anew. Those that have ended are left out. Must run in a transaction.
pub fn hear(xids: &[Xid], protected_roles: Vec<String>) -> Result<Vec<Case>, ScanError> {
    // SAFETY: forgets what this transaction saw of pg_stat_activity before.
    unsafe { pg_sys::pgstat_clear_snapshot() };
    let transactions = scan::transactions()?;
    let xids_as_text: Vec<String> = xids.iter().map(Xid::to_string).collect();
    // SAFETY: text[] is what these are turned into.
    let arguments = unsafe {
        [
            DatumWithOid::new(xids_as_text, pg_sys::TEXTARRAYOID),
            DatumWithOid::new(protected_roles, pg_sys::TEXTARRAYOID),
        ]
    };
    let mut standings = scan::query(STANDING, &arguments, |row| row.into_standing())?;
    Ok(transactions
        .into_iter()
        .filter(|transaction| xids.contains(&transaction.xid))
        .map(|transaction| {
            let index = standings
                .iter()
                .position(|standing| standing.xid == transaction.xid);
            Case {
                standing: index.map(|index| standings.swap_remove(index)),
                transaction,
            }
        })
        .collect())
}
