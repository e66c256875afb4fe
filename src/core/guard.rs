//! Whether a session that blocks a creation may be ended, and how.

use std::fmt;
use std::mem::discriminant;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::diagnosis::{Kinship, kinship};
use super::observation::{CreatorIdentity, Holder, Pid, Transaction};
use super::policy::{BlockerAction, BlockerRule, BlockerScope};
use super::time::Timestamp;
use super::xid::Xid;

/// A session that is between two statements is not idle yet.
const IDLE_FOR: Duration = Duration::from_secs(1);

/// What ends a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// As `pg_cancel_backend()` does: ends the statement under way.
    Cancel,
    /// As `pg_terminate_backend()` does: ends the session.
    Terminate,
}

impl Ending {
    pub const ALL: [Self; 2] = [Self::Cancel, Self::Terminate];

    /// As `slot_self_heal_end_blocker()` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Terminate => "terminate",
        }
    }
}

/// What a primary says of a transaction that it was asked to end.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub xid: Xid,
    pub answer: Answer,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Told(Ending),
    /// It has ended by itself.
    Over,
    /// With the reason.
    Spared(String),
}

impl Answer {
    /// What `slot_self_heal_end_blocker()` says for [`Self::Over`].
    pub const OVER: &str = "ended";
    /// And for [`Self::Spared`].
    pub const SPARED: &str = "none";

    pub fn from_columns(action: &str, reason: String) -> Self {
        let ending = Ending::ALL.into_iter().find(|e| e.as_str() == action);
        match ending {
            Some(ending) => Self::Told(ending),
            None if action == Self::OVER => Self::Over,
            None => Self::Spared(reason),
        }
    }
}

/// What keeps us from ending a session, whatever the settings otherwise say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guard {
    Prepared,
    /// `blocker_action` is `report`.
    ReportOnly,
    /// It has not blocked for `blocker_grace`, or not even run for so long.
    Grace,
    Superuser,
    Replication,
    /// A member of this role, which `protected_roles` names.
    ProtectedRole(String),
    /// `protected_roles` names these, and there are no such roles: who is to be protected is not
    /// known.
    UnknownRoles(String),
    PreventsWraparound,
    /// Neither a client's session nor an autovacuum worker, by its `backend_type`.
    NotAClient(String),
    Creator,
    Peer,
    /// `blocker_scope` is `idle`, and this is its state.
    NotIdle(String),
    /// It may be between two statements.
    JustIdle,
    /// `track_activities` is off for it, say.
    NotKnown,
    /// Postgres ignores a cancel request in an idle session.
    CancelInVain,
    /// It has committed but for a synchronous standby. Ended now, its client would take for safe
    /// what is not (`SyncRepWaitForLSN`, `syncrep.c`).
    Committed,
    /// On a standby: its role on the primary may not see what the session does.
    Unseen,
    /// On a standby of a standby, which can end nothing of the primary's either.
    UpstreamIsStandby,
    /// What the primary answered a standby that asked.
    Primary(String),
    /// Why a standby could not ask.
    NotAsked(String),
}

impl Guard {
    /// Whether to know of one is to know of the other.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Primary(these), Self::Primary(those))
            | (Self::NotAsked(these), Self::NotAsked(those)) => these == those,
            _ => discriminant(self) == discriminant(other),
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepared => f.write_str("it is a prepared transaction"),
            Self::ReportOnly => f.write_str("slot_self_heal.blocker_action is report"),
            Self::Grace => f.write_str("it has not blocked for slot_self_heal.blocker_grace"),
            Self::Superuser => f.write_str("it is a superuser's session, or its role is gone"),
            Self::Replication => f.write_str("it is a replication session"),
            Self::ProtectedRole(role) => write!(
                f,
                "its role is a member of \"{role}\", which slot_self_heal.protected_roles names"
            ),
            Self::UnknownRoles(names) => write!(
                f,
                "slot_self_heal.protected_roles names roles that do not exist: {names}"
            ),
            Self::PreventsWraparound => f.write_str("it is an autovacuum to prevent wraparound"),
            Self::NotAClient(backend_type) => {
                write!(f, "it is no client's session, but a {backend_type}")
            }
            Self::Creator => f.write_str("it creates a slot itself"),
            Self::Peer => f.write_str(
                "it is a peer of the creator of the slot: the same application at the same address, \
                 or a session that waits for the slot",
            ),
            Self::NotIdle(state) => {
                write!(f, "it is {state}, and slot_self_heal.blocker_scope is idle")
            }
            Self::NotKnown => f.write_str("what it does is not known; is track_activities off?"),
            Self::CancelInVain => f.write_str(
                "it is idle in transaction, and Postgres ignores a cancel request there; \
                 slot_self_heal.blocker_action = terminate would end it",
            ),
            Self::Committed => {
                f.write_str("it has committed, and waits for a synchronous standby")
            }
            Self::Unseen => f.write_str(
                "this standby may not see that session on the primary, nor tell whether it is a \
                 peer of the creator of the slot",
            ),
            Self::UpstreamIsStandby => f.write_str(
                "this standby's upstream is itself a standby, and only the primary could end it",
            ),
            Self::JustIdle => f.write_str("it has been idle in transaction for less than a second"),
            Self::NotAsked(reason) => write!(f, "the primary could not be asked: {reason}"),
            Self::Primary(reason) => write!(f, "on the primary, {reason}"),
        }
    }
}

/// Whose a session is that holds a transaction (`sql/standing.sql`).
#[derive(Clone, Debug)]
pub struct Standing {
    pub xid: Xid,
    /// `pg_stat_activity.backend_type`
    pub backend_type: String,
    /// True as well where it can't be told.
    pub is_superuser: bool,
    /// The first of `protected_roles` that its role is a member of.
    pub protected_as: Option<String>,
    /// Those of `protected_roles` that do not exist.
    pub unknown_roles: Option<String>,
}

/// Whether a transaction that has blocked for so long may be ended, and how. `standing`: none
/// where it has no session. `creators` are those of the creations that it blocks.
pub fn judge<'a>(
    transaction: &Transaction,
    standing: Option<&Standing>,
    blocked_for: Duration,
    mut creators: impl Iterator<Item = &'a CreatorIdentity>,
    rule: &BlockerRule,
    now: Timestamp,
) -> Result<(Pid, Ending), Guard> {
    let pid = match transaction.holder {
        Holder::Session(pid) | Holder::Autovacuum(pid) => pid,
        Holder::Prepared { .. } => return Err(Guard::Prepared),
        Holder::Unknown => return Err(Guard::NotKnown),
    };
    let ending = match rule.action {
        BlockerAction::Report => return Err(Guard::ReportOnly),
        BlockerAction::Cancel => Ending::Cancel,
        BlockerAction::Terminate => Ending::Terminate,
    };
    if blocked_for < rule.grace {
        return Err(Guard::Grace);
    }
    creators.try_for_each(|creator| kin(creator, pid, transaction))?;
    if transaction.waits_for_sync_standby {
        return Err(Guard::Committed);
    }
    let standing = standing.ok_or(Guard::NotKnown)?;
    // Whoever says so may be another server: what has blocked for so long has run for so long.
    let has_run = || {
        let lasts = |started: Timestamp| now.since(started) >= rule.grace;
        transaction.started.is_some_and(lasts)
    };
    match standing.backend_type.as_str() {
        "walsender" => return Err(Guard::Replication),
        "autovacuum worker" if !has_run() => return Err(Guard::Grace),
        "autovacuum worker" => return autovacuum(transaction, rule).map(|ending| (pid, ending)),
        "client backend" => {}
        other => return Err(Guard::NotAClient(other.to_owned())),
    }
    if standing.is_superuser {
        return Err(Guard::Superuser);
    }
    if let Some(role) = &standing.protected_as {
        return Err(Guard::ProtectedRole(role.clone()));
    }
    if let Some(names) = &standing.unknown_roles {
        return Err(Guard::UnknownRoles(names.clone()));
    }
    let state = transaction.state.as_deref().unwrap_or_default();
    // Nor is it known then since when it runs.
    if matches!(state, "" | "disabled") {
        return Err(Guard::NotKnown);
    }
    if !has_run() {
        return Err(Guard::Grace);
    }
    match (state, rule.scope, ending) {
        (idle, BlockerScope::Idle, ending) if is_idle(idle) => {
            let lasts = |since: Timestamp| now.since(since) >= IDLE_FOR;
            match ending {
                _ if !transaction.state_since.is_some_and(lasts) => Err(Guard::JustIdle),
                Ending::Cancel => Err(Guard::CancelInVain),
                Ending::Terminate => Ok((pid, ending)),
            }
        }
        (other, BlockerScope::Idle, _) => Err(Guard::NotIdle(other.to_owned())),
        (idle, BlockerScope::Any, Ending::Cancel) if is_idle(idle) => Err(Guard::CancelInVain),
        (_, BlockerScope::Any, ending) => Ok((pid, ending)),
    }
}

/// What forbids a standby to ask its primary to end a transaction; the rest the primary judges by
/// its own settings. It does not know the creators here.
pub fn may_ask<'a>(
    transaction: &Transaction,
    mut creators: impl Iterator<Item = &'a CreatorIdentity>,
) -> Result<(), Guard> {
    match transaction.holder {
        Holder::Prepared { .. } => Err(Guard::Prepared),
        Holder::Unknown => Err(Guard::UpstreamIsStandby),
        // Its address and its query are not shown either.
        Holder::Session(_) if transaction.state.is_none() => Err(Guard::Unseen),
        Holder::Session(_) | Holder::Autovacuum(_) => {
            creators.try_for_each(|creator| match kinship(creator, transaction) {
                Kinship::SameApplication | Kinship::WaitsForTheSlot => Err(Guard::Peer),
                Kinship::None => Ok(()),
            })
        }
    }
}

fn is_idle(state: &str) -> bool {
    state.starts_with("idle in transaction")
}

fn kin(creator: &CreatorIdentity, pid: Pid, transaction: &Transaction) -> Result<(), Guard> {
    match kinship(creator, transaction) {
        _ if creator.pid == pid => Err(Guard::Creator),
        Kinship::SameApplication | Kinship::WaitsForTheSlot => Err(Guard::Peer),
        Kinship::None => Ok(()),
    }
}

/// One is only ever cancelled: it starts again later. Why it runs stands in what it shows as its
/// query (`autovac_report_activity`, `autovacuum.c`).
fn autovacuum(transaction: &Transaction, rule: &BlockerRule) -> Result<Ending, Guard> {
    let query = transaction.query.as_deref().unwrap_or_default();
    match rule.scope {
        _ if query.is_empty() => Err(Guard::NotKnown),
        _ if query.contains("(to prevent wraparound)") => Err(Guard::PreventsWraparound),
        BlockerScope::Idle => Err(Guard::NotIdle("an autovacuum".into())),
        BlockerScope::Any => Ok(Ending::Cancel),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);
    const BLOCKER: i32 = 7;

    /// Everything that a judgement goes by; as it stands, the session may be terminated.
    struct Case {
        transaction: Transaction,
        standing: Standing,
        creator: CreatorIdentity,
        blocked_for: Duration,
        rule: BlockerRule,
    }

    fn case() -> Case {
        Case {
            transaction: session(700, BLOCKER),
            standing: Standing {
                xid: xid(700),
                backend_type: "client backend".into(),
                is_superuser: false,
                protected_as: None,
                unknown_roles: None,
            },
            creator: creator().identity,
            blocked_for: GRACE,
            rule: BlockerRule {
                action: BlockerAction::Terminate,
                grace: GRACE,
                scope: BlockerScope::Idle,
                protected_roles: Vec::new(),
            },
        }
    }

    /// What becomes of a case in which one thing is different.
    fn with(change: impl FnOnce(&mut Case)) -> Result<Ending, Guard> {
        let mut case = case();
        change(&mut case);
        let creators = std::iter::once(&case.creator);
        let verdict = judge(
            &case.transaction,
            Some(&case.standing),
            case.blocked_for,
            creators,
            &case.rule,
            at(300_000),
        );
        verdict.map(|(pid, ending)| {
            assert_eq!(pid.get(), BLOCKER);
            ending
        })
    }

    fn active(case: &mut Case) {
        case.transaction.state = Some("active".into());
    }

    #[test]
    fn a_forgotten_session_is_terminated() {
        assert_eq!(with(|_| {}), Ok(Ending::Terminate));
    }

    #[test]
    fn nothing_while_it_is_only_reported() {
        let spared = with(|case| case.rule.action = BlockerAction::Report);
        assert_eq!(spared, Err(Guard::ReportOnly));
    }

    #[test]
    fn grace_is_given_in_full() {
        let briefly = GRACE - Duration::from_millis(1);
        let spared = with(|case| case.blocked_for = briefly);
        assert_eq!(spared, Err(Guard::Grace));
        // Whoever says that it has blocked for so long.
        let spared = with(|case| case.transaction.started = Some(at(1)));
        assert_eq!(spared, Err(Guard::Grace));
        let spared = with(|case| case.transaction.started = None);
        assert_eq!(spared, Err(Guard::Grace));
    }

    #[test]
    fn privileged_sessions_are_spared() {
        let spared = with(|case| case.standing.is_superuser = true);
        assert_eq!(spared, Err(Guard::Superuser));
        let spared = with(|case| {
            case.standing.backend_type = "walsender".into();
            // As pg_stat_activity shows one.
            case.transaction.started = None;
        });
        assert_eq!(spared, Err(Guard::Replication));
        let spared = with(|case| case.standing.protected_as = Some("ops".into()));
        assert_eq!(spared, Err(Guard::ProtectedRole("ops".into())));
        let spared = with(|case| case.standing.unknown_roles = Some("opps".into()));
        assert_eq!(spared, Err(Guard::UnknownRoles("opps".into())));
        let spared = with(|case| case.standing.backend_type = "pg_cron".into());
        assert_eq!(spared, Err(Guard::NotAClient("pg_cron".into())));
    }

    #[test]
    fn whoever_waits_for_a_synchronous_standby_is_spared() {
        let spared = with(|case| {
            active(case);
            case.rule.scope = BlockerScope::Any;
            case.transaction.waits_for_sync_standby = true;
        });
        assert_eq!(spared, Err(Guard::Committed));
    }

    #[test]
    fn prepared_transactions_are_spared() {
        let spared = with(|case| case.transaction = prepared(700, "g"));
        assert_eq!(spared, Err(Guard::Prepared));
    }

    #[test]
    fn whoever_wants_the_slot_is_spared() {
        let spared = with(|case| case.creator.pid = pid(BLOCKER));
        assert_eq!(spared, Err(Guard::Creator));
        let spared = with(|case| {
            case.transaction.application_name = Some("sub".into());
            case.transaction.client_addr = Some("10.0.0.5".into());
        });
        assert_eq!(spared, Err(Guard::Peer));
        let spared = with(|case| {
            case.transaction.waits_for_walsender = true;
            case.transaction.query = Some("CREATE SUBSCRIPTION sub …".into());
        });
        assert_eq!(spared, Err(Guard::Peer));
    }

    #[test]
    fn scope_tells_idle_sessions_from_others() {
        assert_eq!(with(active), Err(Guard::NotIdle("active".into())));
        let any = |case: &mut Case| case.rule.scope = BlockerScope::Any;
        assert_eq!(with(any), Ok(Ending::Terminate));
        let ended = with(|case| {
            any(case);
            active(case);
        });
        assert_eq!(ended, Ok(Ending::Terminate));
        // Between two statements.
        let spared = with(|case| case.transaction.state_since = Some(at(299_500)));
        assert_eq!(spared, Err(Guard::JustIdle));
        for unknown in [None, Some("disabled".to_owned())] {
            let spared = with(|case| {
                case.transaction.state = unknown;
                // As pg_stat_activity shows one.
                case.transaction.started = None;
            });
            assert_eq!(spared, Err(Guard::NotKnown));
        }
    }

    #[test]
    fn an_idle_session_is_not_cancelled() {
        let cancel = |scope| {
            move |case: &mut Case| {
                case.rule.action = BlockerAction::Cancel;
                case.rule.scope = scope;
            }
        };
        for scope in [BlockerScope::Idle, BlockerScope::Any] {
            assert_eq!(with(cancel(scope)), Err(Guard::CancelInVain));
        }
        let ended = with(|case| {
            cancel(BlockerScope::Any)(case);
            active(case);
        });
        assert_eq!(ended, Ok(Ending::Cancel));
    }

    #[test]
    fn an_autovacuum_is_cancelled_unless_it_prevents_wraparound() {
        let vacuum = |scope, query: &str| {
            let query = query.to_owned();
            move |case: &mut Case| {
                case.transaction.holder = Holder::Autovacuum(pid(BLOCKER));
                case.transaction.query = Some(query);
                case.standing.backend_type = "autovacuum worker".into();
                // It has no role.
                case.standing.is_superuser = true;
                case.rule.scope = scope;
                active(case);
            }
        };
        let ordinary = "autovacuum: VACUUM ANALYZE public.t";
        let urgent = "autovacuum: VACUUM public.t (to prevent wraparound)";
        let ended = with(vacuum(BlockerScope::Any, ordinary));
        assert_eq!(ended, Ok(Ending::Cancel));
        let spared = with(vacuum(BlockerScope::Any, urgent));
        assert_eq!(spared, Err(Guard::PreventsWraparound));
        let spared = with(vacuum(BlockerScope::Any, ""));
        assert_eq!(spared, Err(Guard::NotKnown));
        let spared = with(vacuum(BlockerScope::Idle, ordinary));
        assert!(matches!(spared, Err(Guard::NotIdle(_))), "{spared:?}");
    }

    #[test]
    fn a_standby_asks_for_no_more_than_it_may() {
        let creator = creator().identity;
        let ask = |transaction: &Transaction| may_ask(transaction, std::iter::once(&creator));
        assert_eq!(ask(&session(700, 1)), Ok(()));
        // A pid on the primary is no pid here.
        assert_eq!(ask(&session(700, creator.pid.get())), Ok(()));
        assert_eq!(ask(&prepared(700, "g")), Err(Guard::Prepared));
        let peer = Transaction {
            application_name: Some("sub".into()),
            client_addr: Some("10.0.0.5".into()),
            ..session(700, 1)
        };
        assert_eq!(ask(&peer), Err(Guard::Peer));
        let unseen = Transaction {
            client_addr: None,
            state: None,
            ..peer
        };
        assert_eq!(ask(&unseen), Err(Guard::Unseen));
    }
}
