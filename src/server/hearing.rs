//! What is true of transactions at the moment when they are judged.

use std::time::Duration;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

use super::clients;
use super::scan::{self, ScanError};
use crate::core::blocker::Blocker;
use crate::core::guard::{self, Evidence, Guard, Sentence, Standing};
use crate::core::hint::quote_literal;
use crate::core::observation::{CreatorIdentity, Transaction};
use crate::core::policy::BlockerRule;
use crate::core::time::Timestamp;
use crate::core::xid::Xid;

const STANDING: &str = include_str!("../../sql/standing.sql");

/// A transaction that has not ended, and whose it is; a prepared one has no session.
pub struct Case {
    pub transaction: Transaction,
    pub standing: Option<Standing>,
}

/// The query for a connection that takes no parameters.
pub fn standing_of(xids: &[Xid], protected_roles: &[String]) -> String {
    let array = |texts: Vec<String>| format!("ARRAY[{}]::pg_catalog.text[]", texts.join(", "));
    let xids = xids.iter().map(|xid| quote_literal(&xid.to_string()));
    let roles = protected_roles.iter().map(|role| quote_literal(role));
    STANDING
        .replace("$1", &array(xids.collect()))
        .replace("$2", &array(roles.collect()))
}

impl Case {
    /// `remembered`: what was seen of it before.
    pub fn judge<'a>(
        &self,
        remembered: &Blocker,
        blocked_for: Duration,
        creators: impl Iterator<Item = &'a CreatorIdentity>,
        rule: &BlockerRule,
        now: Timestamp,
    ) -> Result<Sentence, Guard> {
        let mut transaction = self.transaction.clone();
        if remembered.is_of(&transaction) {
            transaction.client_process = remembered.transaction.client_process;
        }
        let evidence = Evidence {
            transaction: &transaction,
            standing: self.standing.as_ref(),
            blocked_for,
            quiet_since: remembered.quiet_since(&transaction, now),
            heard: remembered.heard(&transaction, now),
        };
        guard::judge(evidence, creators, rule, now)
    }
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
        .map(|mut transaction| {
            transaction.wakes = transaction.pid().and_then(clients::wakes);
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
