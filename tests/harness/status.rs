//! Rows of the extension's views.

use serde::Deserialize;

use crate::process::Pid;

/// A row of `slot_self_heal_status`. All columns must be there.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub slot_name: String,
    pub database: String,
    pub plugin: String,
    pub state: String,
    pub state_since: Option<String>,
    pub creation_started: Option<String>,
    pub creator_pid: Option<Pid>,
    pub creator_type: Option<String>,
    pub creator_application: Option<String>,
    pub blockers: Vec<BlockerRow>,
    pub nudges: Option<i64>,
    pub last_nudge_at: Option<String>,
    pub last_nudge_lsn: Option<String>,
    pub retained_wal: Option<i64>,
    pub wal_status: Option<String>,
    pub safe_wal_size: Option<i64>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub tries: Option<i64>,
}

/// An element of the column `blockers`.
#[derive(Clone, Debug, Deserialize)]
pub struct BlockerRow {
    #[serde(deserialize_with = "text_of_number")]
    pub xid: String,
    pub pid: Option<Pid>,
    pub gid: Option<String>,
    pub database: Option<String>,
    pub usename: Option<String>,
    pub application_name: Option<String>,
    pub client_addr: Option<String>,
    pub state: Option<String>,
    pub xact_start: Option<String>,
    pub query: Option<String>,
    pub is_creator_peer: Option<bool>,
    pub client_gone: Option<bool>,
    pub backend_type: Option<String>,
    pub waits_for: Vec<Pid>,
}

/// An xid has no JSON type of its own: take both ways to write it.
fn text_of_number<'de, D: serde::Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(value)? {
        serde_json::Value::String(text) => Ok(text),
        other => Ok(other.to_string()),
    }
}

impl Status {
    pub fn detail(&self) -> &str {
        self.detail.as_deref().unwrap_or_default()
    }

    pub fn hint(&self) -> &str {
        self.hint.as_deref().unwrap_or_default()
    }

    pub fn blocker_pids(&self) -> Vec<Option<Pid>> {
        self.blockers.iter().map(|blocker| blocker.pid).collect()
    }

    pub fn blocker_xids(&self) -> Vec<&str> {
        self.blockers
            .iter()
            .map(|blocker| blocker.xid.as_str())
            .collect()
    }

    pub fn has_blocker(&self, pid: Pid) -> bool {
        self.blockers.iter().any(|blocker| blocker.pid == Some(pid))
    }
}

/// A row of `slot_self_heal_history`.
#[derive(Clone, Debug, Deserialize)]
pub struct Finished {
    pub slot_name: String,
    pub database: String,
    pub creator_type: Option<String>,
    pub creator_application: Option<String>,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub outcome: String,
    /// In seconds.
    pub waited_for_transactions: f64,
    pub waited_for_record: f64,
    pub waited_for_replay: f64,
    pub nudges: i64,
    pub max_retained_wal: Option<i64>,
    pub blockers: Vec<BlockerRow>,
    pub reason: Option<String>,
    pub tries: i64,
}

/// The row of `slot_self_heal_worker`.
#[derive(Clone, Debug, Deserialize)]
pub struct Worker {
    pub pid: Option<Pid>,
    pub role: Option<String>,
    pub database: Option<String>,
    pub started_at: Option<String>,
    pub last_scan_at: Option<String>,
    pub scans: Option<i64>,
    pub nudges: Option<i64>,
    pub healed: Option<i64>,
    pub cancelled: Option<i64>,
    pub upstream: Option<String>,
    pub last_error: Option<String>,
    pub last_error_at: Option<String>,
    pub hint: Option<String>,
}

/// Whether a hint does anything where it is pasted: it has more than comments.
pub fn runs(hint: &str) -> bool {
    hint.lines().any(|line| !line.starts_with("--"))
}

/// The statements in a hint that an operator would paste, each from its verb
/// to its semicolon; one inside quotes ends nothing.
pub fn statements(hint: &str) -> Vec<String> {
    const VERBS: [&str; 6] = [
        "DO '",
        "SELECT ",
        "ROLLBACK PREPARED ",
        "COMMIT PREPARED ",
        "ALTER ",
        "GRANT ",
    ];
    let mut found = Vec::new();
    let mut rest = hint;
    while let Some(start) = VERBS.iter().filter_map(|verb| rest.find(verb)).min() {
        rest = &rest[start..];
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '\'';
            c == ';' && !quoted
        });
        let Some(end) = end else { break };
        found.push(rest[..=end].to_owned());
        rest = &rest[end + 1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::statements;

    #[test]
    fn statements_are_found_in_prose() {
        assert_eq!(
            statements(
                "End it with \"SELECT pg_terminate_backend(7);\", or ROLLBACK PREPARED 'a;''b'; then."
            ),
            [
                "SELECT pg_terminate_backend(7);",
                "ROLLBACK PREPARED 'a;''b';"
            ]
        );
        assert!(statements("Wait.").is_empty());
    }
}
