//! Whether a session that blocks a creation may be ended, and how.

use std::collections::{HashMap, HashSet};
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
    /// `enabled` is off.
    Disabled,
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
    /// Postgres serves no cancel request in a session that waits for its client, be it between two
    /// statements or within a COPY (`ProcessClientReadInterrupt`, `postgres.c`).
    CancelInVain,
    /// It has stayed in its transaction after all that it may be told.
    Stayed,
    /// A cancel that comes while it commits would end its wait for a synchronous standby, and its
    /// client would be told that the commit is done (`SyncRepWaitForLSN`, `syncrep.c`).
    CancelMayCutCommit,
    /// Its commit record is on its way to disk. A cancel would be served once that is done: in the
    /// session's next transaction.
    Commits,
    /// It has committed but for a synchronous standby. Ended now, its client would take for safe
    /// what is not (`SyncRepWaitForLSN`, `syncrep.c`).
    Committed,
    /// Whatever became of it, the creations that it blocks would wait on for this one.
    InVain(Xid),
    /// The server's locks are not those that this library was made for.
    UnknownLocks,
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
    /// Whether it holds until somebody does something about it. Else it passes by itself, soon.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Grace | Self::JustIdle | Self::Commits => false,
            Self::Prepared
            | Self::Disabled
            | Self::ReportOnly
            | Self::Superuser
            | Self::Replication
            | Self::ProtectedRole(_)
            | Self::UnknownRoles(_)
            | Self::PreventsWraparound
            | Self::NotAClient(_)
            | Self::Creator
            | Self::Peer
            | Self::NotIdle(_)
            | Self::NotKnown
            | Self::CancelInVain
            | Self::Stayed
            | Self::CancelMayCutCommit
            | Self::Committed
            | Self::InVain(_)
            | Self::UnknownLocks
            | Self::Unseen
            | Self::UpstreamIsStandby
            | Self::Primary(_)
            | Self::NotAsked(_) => true,
        }
    }

    /// Whether the end of others is in vain as long as it holds. A session that runs short statements
    /// in one long transaction is by turns at work and just idle: it stays.
    fn is_obstacle(&self) -> bool {
        self.is_lasting() || *self == Self::JustIdle
    }

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
            Self::Disabled => f.write_str("slot_self_heal.enabled is off"),
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
                "it is a peer of the creator of the slot: of the same client, of the same role, \
                 address and application, or a session that waits for the slot",
            ),
            Self::NotIdle(state) => {
                write!(f, "it is {state}, and slot_self_heal.blocker_scope is idle")
            }
            Self::NotKnown => f.write_str("what it does is not known; is track_activities off?"),
            Self::CancelInVain => f.write_str(
                "it waits for its client, and Postgres ignores a cancel request there; \
                 slot_self_heal.blocker_action = terminate would end it",
            ),
            Self::Stayed => f.write_str(
                "it was told to end, as far as slot_self_heal.blocker_action allows, and has stayed in \
                 its transaction",
            ),
            Self::CancelMayCutCommit => f.write_str(
                "synchronous_standby_names is set, and a cancel could cut a commit's wait for a \
                 synchronous standby short; slot_self_heal.blocker_action = terminate would end it",
            ),
            Self::Commits => f.write_str("it is just committing"),
            Self::Committed => f.write_str("it has committed, and waits for a synchronous standby"),
            Self::InVain(xid) => write!(f, "transaction {xid} would have to end first"),
            Self::UnknownLocks => f.write_str(
                "this server's locks are not those that slot_self_heal was made for; its log says \
                 more",
            ),
            Self::Unseen => f.write_str(
                "this standby may not see that session on the primary, nor tell whether it is a \
                 peer of the creator of the slot",
            ),
            Self::UpstreamIsStandby => f.write_str(
                "this standby's upstream is itself a standby, and only the primary could end it",
            ),
            Self::JustIdle => f.write_str("its client has been silent for less than a second"),
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
    /// How long its client has sent nothing, by the clock of the session's server; `None` while it
    /// works.
    pub idle_for: Option<Duration>,
}

/// What is to be done to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sentence {
    pub pid: Pid,
    pub ending: Ending,
    /// It was judged as one that waits for its client, and must still do so when it is told.
    pub must_be_idle: bool,
}

/// What is known of a transaction that is judged.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    pub transaction: &'a Transaction,
    /// `None` where it has no session.
    pub standing: Option<&'a Standing>,
    /// How long creations could not go on for it.
    pub blocked_for: Duration,
    /// Since when its client has sent nothing, as far as it was followed.
    pub quiet_since: Option<Timestamp>,
    /// When something came, though not a whole message, as far as it was followed.
    pub heard: Option<Timestamp>,
}

/// Whether it may be ended, and how. `creators` are those of the creations that it blocks.
///
/// The grace comes last: whoever would stay when it is over is known for that before.
pub fn judge<'a>(
    evidence: Evidence<'_>,
    creators: impl Iterator<Item = &'a CreatorIdentity>,
    rule: &BlockerRule,
    now: Timestamp,
) -> Result<Sentence, Guard> {
    let (pid, ending) = judge_holder(evidence.transaction, evidence.standing, creators, rule)?;
    let transaction = evidence.transaction;
    if transaction.waits_for_sync_standby {
        return Err(Guard::Committed);
    }
    let must_be_idle = judge_activity(evidence, ending, rule.scope, now)?;
    // Whoever says so may be another server: what has blocked for so long has run for so long.
    let lasts = |started: Timestamp| now.since(started) >= rule.grace;
    if evidence.blocked_for < rule.grace || !transaction.started.is_some_and(lasts) {
        return Err(Guard::Grace);
    }
    Ok(Sentence {
        pid,
        ending,
        must_be_idle,
    })
}

/// By what the session does at the moment. Returns whether it must be idle when it is told.
fn judge_activity(
    evidence: Evidence<'_>,
    ending: Ending,
    scope: BlockerScope,
    now: Timestamp,
) -> Result<bool, Guard> {
    let transaction = evidence.transaction;
    if let Holder::Autovacuum(_) = transaction.holder {
        return match scope {
            BlockerScope::Idle => Err(Guard::NotIdle("an autovacuum".into())),
            BlockerScope::Any => Ok(false),
        };
    }
    let state = transaction.state.as_deref().unwrap_or_default();
    let is_idle = is_idle(state);
    let idle_since = match is_idle {
        true => transaction.state_since.max(evidence.heard),
        false => evidence
            .quiet_since
            .filter(|_| transaction.waits_for_client),
    };
    let has_been_idle = idle_since.is_some_and(|since| now.since(since) >= IDLE_FOR);
    match (scope, ending) {
        (_, Ending::Cancel) if is_idle || has_been_idle => Err(Guard::CancelInVain),
        (BlockerScope::Any, Ending::Cancel | Ending::Terminate) => Ok(false),
        (BlockerScope::Idle, Ending::Terminate) if has_been_idle => Ok(true),
        (BlockerScope::Idle, Ending::Cancel | Ending::Terminate) => Err(match idle_since {
            Some(_) => Guard::JustIdle,
            None => Guard::NotIdle(state.to_owned()),
        }),
    }
}

/// As far as it does not depend on what the session does at the moment, nor since when.
fn judge_holder<'a>(
    transaction: &Transaction,
    standing: Option<&Standing>,
    mut creators: impl Iterator<Item = &'a CreatorIdentity>,
    rule: &BlockerRule,
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
    creators.try_for_each(|creator| kin(creator, pid, transaction))?;
    let standing = standing.ok_or(Guard::NotKnown)?;
    let ending = match standing.backend_type.as_str() {
        "walsender" => return Err(Guard::Replication),
        "autovacuum worker" => return autovacuum(transaction).map(|ending| (pid, ending)),
        "client backend" => ending,
        other => return Err(Guard::NotAClient(other.to_owned())),
    };
    if standing.is_superuser {
        return Err(Guard::Superuser);
    }
    if let Some(role) = &standing.protected_as {
        return Err(Guard::ProtectedRole(role.clone()));
    }
    if let Some(names) = &standing.unknown_roles {
        return Err(Guard::UnknownRoles(names.clone()));
    }
    match transaction.state.as_deref() {
        // Nor is it known then since when it runs.
        None | Some("" | "disabled") => Err(Guard::NotKnown),
        Some(_) => Ok((pid, ending)),
    }
}

/// Spares whoever would be ended in vain. A creation waits for all of its front: as long as one of
/// these stays, the end of the others does not let it go on.
///
/// `fronts`: of each creation that matters, the transactions that must end before it gets any further.
pub fn spare_in_vain<T>(fronts: &[Vec<Xid>], judged: &mut HashMap<Xid, Result<T, Guard>>) {
    let stays = |xid: &&Xid| match judged.get(xid) {
        Some(Err(guard)) => guard.is_obstacle(),
        Some(Ok(_)) | None => false,
    };
    let mut served: HashSet<Xid> = HashSet::new();
    let mut obstacles = HashMap::new();
    for front in fronts {
        match front.iter().find(stays) {
            None => served.extend(front),
            Some(obstacle) => obstacles.extend(front.iter().map(|xid| (*xid, *obstacle))),
        }
    }
    for (xid, verdict) in judged.iter_mut().filter(|(_, verdict)| verdict.is_ok()) {
        if let Some(obstacle) = obstacles.get(xid)
            && !served.contains(xid)
        {
            *verdict = Err(Guard::InVain(*obstacle));
        }
    }
}

/// What forbids a standby to ask its primary to end a transaction, as far as the standby itself can
/// tell.
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
            match creators.any(|creator| kinship(creator, transaction) != Kinship::None) {
                true => Err(Guard::Peer),
                false => Ok(()),
            }
        }
    }
}

/// Whether the primary would end it in the end, going by its own settings (`rule`) and roles. It does
/// not know the creators. Whether it is the time, it judges when it is asked to.
pub fn would_be_ended(
    transaction: &Transaction,
    standing: &Standing,
    rule: &BlockerRule,
) -> Result<(), Guard> {
    let state = transaction.state.as_deref().unwrap_or_default();
    let is_in_copy = transaction.waits_for_client && !is_idle(state);
    let guard = match judge_holder(transaction, Some(standing), std::iter::empty(), rule) {
        Err(guard) => guard,
        Ok(_) if transaction.waits_for_sync_standby => Guard::Committed,
        Ok((_, ending)) => match (rule.scope, ending, standing.idle_for) {
            (_, Ending::Cancel, Some(_)) => Guard::CancelInVain,
            (BlockerScope::Any, _, _) => return Ok(()),
            (BlockerScope::Idle, _, Some(idle_for)) if idle_for < IDLE_FOR => {
                return Err(Guard::JustIdle);
            }
            (BlockerScope::Idle, _, Some(_)) => return Ok(()),
            // Whether its client is silent meanwhile, the primary follows.
            (BlockerScope::Idle, _, None) if is_in_copy => return Ok(()),
            (BlockerScope::Idle, _, None) => Guard::NotIdle("active".into()),
        },
    };
    Err(Guard::Primary(guard.to_string()))
}

fn is_idle(state: &str) -> bool {
    state.starts_with("idle in transaction")
}

fn kin(creator: &CreatorIdentity, pid: Pid, transaction: &Transaction) -> Result<(), Guard> {
    match kinship(creator, transaction) {
        _ if creator.pid == pid => Err(Guard::Creator),
        Kinship::SameClient | Kinship::SameApplication | Kinship::WaitsForTheSlot => {
            Err(Guard::Peer)
        }
        Kinship::None => Ok(()),
    }
}

/// One is only ever cancelled: it starts again later. Why it runs stands in what it shows as its
/// query (`autovac_report_activity`, `autovacuum.c`).
fn autovacuum(transaction: &Transaction) -> Result<Ending, Guard> {
    match transaction.query.as_deref() {
        None | Some("") => Err(Guard::NotKnown),
        Some(query) if query.contains("(to prevent wraparound)") => Err(Guard::PreventsWraparound),
        Some(_) => Ok(Ending::Cancel),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);
    const BLOCKER: i32 = 7;

    /// Everything that a judgement goes by; as it stands, the session may be terminated.
    struct Facts {
        transaction: Transaction,
        standing: Standing,
        creator: CreatorIdentity,
        blocked_for: Duration,
        quiet_since: Option<Timestamp>,
        heard: Option<Timestamp>,
        rule: BlockerRule,
    }

    fn case() -> Facts {
        Facts {
            transaction: session(700, BLOCKER),
            standing: Standing {
                xid: xid(700),
                backend_type: "client backend".into(),
                is_superuser: false,
                protected_as: None,
                unknown_roles: None,
                idle_for: Some(IDLE_FOR),
            },
            creator: creator().identity,
            blocked_for: GRACE,
            quiet_since: None,
            heard: None,
            rule: BlockerRule {
                action: BlockerAction::Terminate,
                grace: GRACE,
                scope: BlockerScope::Idle,
                protected_roles: Vec::new(),
            },
        }
    }

    /// What becomes of a case in which one thing is different.
    fn with(change: impl FnOnce(&mut Facts)) -> Result<Ending, Guard> {
        let mut facts = case();
        change(&mut facts);
        let creators = std::iter::once(&facts.creator);
        let evidence = Evidence {
            transaction: &facts.transaction,
            standing: Some(&facts.standing),
            blocked_for: facts.blocked_for,
            quiet_since: facts.quiet_since,
            heard: facts.heard,
        };
        let verdict = judge(evidence, creators, &facts.rule, at(300_000));
        verdict.map(|sentence| {
            assert_eq!(sentence.pid.get(), BLOCKER);
            let may_work = facts.rule.scope == BlockerScope::Any;
            assert_eq!(sentence.must_be_idle, !may_work);
            sentence.ending
        })
    }

    fn active(case: &mut Facts) {
        case.transaction.state = Some("active".into());
        case.transaction.waits_for_client = false;
        case.standing.idle_for = None;
    }

    /// A COPY FROM STDIN whose client has sent nothing since.
    fn silent_since(milliseconds: i64) -> impl Fn(&mut Facts) {
        move |case| {
            active(case);
            case.transaction.waits_for_client = true;
            case.quiet_since = Some(at(milliseconds));
        }
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

    /// What must be known of one transaction before others are ended.
    #[test]
    fn what_lasts_is_known_before_the_grace_is_over() {
        let in_grace = |change: fn(&mut Facts)| {
            with(|case| {
                change(case);
                case.blocked_for = Duration::ZERO;
            })
        };
        let protect = |case: &mut Facts| case.standing.protected_as = Some("ops".into());
        assert_eq!(in_grace(protect), Err(Guard::ProtectedRole("ops".into())));
        assert_eq!(
            in_grace(|case| case.standing.is_superuser = true),
            Err(Guard::Superuser)
        );
        let commits = |case: &mut Facts| case.transaction.waits_for_sync_standby = true;
        assert_eq!(in_grace(commits), Err(Guard::Committed));
        assert_eq!(in_grace(active), Err(Guard::NotIdle("active".into())));
        assert_eq!(in_grace(|_| {}), Err(Guard::Grace));
    }

    /// What becomes of 701 where 700 was judged so, each in the fronts given.
    fn beside(guard: Result<(), Guard>, fronts: &[&[u32]]) -> Result<(), Guard> {
        let fronts: Vec<Vec<Xid>> = fronts
            .iter()
            .map(|front| front.iter().map(|&number| xid(number)).collect())
            .collect();
        let mut judged = HashMap::from([(xid(700), guard.clone()), (xid(701), Ok(()))]);
        spare_in_vain(&fronts, &mut judged);
        assert_eq!(judged[&xid(700)], guard);
        judged[&xid(701)].clone()
    }

    #[test]
    fn nobody_is_ended_in_vain() {
        let in_vain = Err(Guard::InVain(xid(700)));
        assert_eq!(beside(Err(Guard::Prepared), &[&[700, 701]]), in_vain);
        assert_eq!(beside(Err(Guard::Superuser), &[&[701, 700]]), in_vain);
        // What passes by itself makes nothing vain, nor what may be ended as well.
        for passing in [Guard::Grace, Guard::Commits] {
            assert_eq!(beside(Err(passing), &[&[700, 701]]), Ok(()));
        }
        assert_eq!(beside(Ok(()), &[&[700, 701]]), Ok(()));
        // By turns at work and just idle, it would never be ended.
        assert_eq!(beside(Err(Guard::JustIdle), &[&[700, 701]]), in_vain);
        // One creation at least is served by its end.
        let prepared = || Err(Guard::Prepared);
        assert_eq!(beside(prepared(), &[&[700, 701], &[701]]), Ok(()));
        assert_eq!(beside(prepared(), &[&[700], &[701]]), Ok(()));
        assert_eq!(beside(prepared(), &[&[700, 701], &[700, 701]]), in_vain);
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
            case.transaction.usename = Some("cdc".into());
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
        let any = |case: &mut Facts| case.rule.scope = BlockerScope::Any;
        assert_eq!(with(any), Ok(Ending::Terminate));
        let ended = with(|case| {
            any(case);
            active(case);
        });
        assert_eq!(ended, Ok(Ending::Terminate));
        assert_eq!(with(silent_since(299_000)), Ok(Ending::Terminate));
        assert_eq!(with(silent_since(299_001)), Err(Guard::JustIdle));
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
            move |case: &mut Facts| {
                case.rule.action = BlockerAction::Cancel;
                case.rule.scope = scope;
            }
        };
        for scope in [BlockerScope::Idle, BlockerScope::Any] {
            assert_eq!(with(cancel(scope)), Err(Guard::CancelInVain));
            let spared = with(|case| {
                cancel(scope)(case);
                silent_since(0)(case);
            });
            assert_eq!(spared, Err(Guard::CancelInVain));
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
            move |case: &mut Facts| {
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
            usename: Some("cdc".into()),
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

    #[test]
    fn a_standby_knows_whom_the_primary_would_spare() {
        let spared = |change: fn(&mut Facts)| {
            let mut facts = case();
            change(&mut facts);
            would_be_ended(&facts.transaction, &facts.standing, &facts.rule)
        };
        let on_primary = |guard: Guard| Err(Guard::Primary(guard.to_string()));
        assert_eq!(spared(|_| {}), Ok(()));
        let superuser = spared(|case| case.standing.is_superuser = true);
        assert_eq!(superuser, on_primary(Guard::Superuser));
        assert_eq!(spared(active), on_primary(Guard::NotIdle("active".into())));
        let report = spared(|case| case.rule.action = BlockerAction::Report);
        assert_eq!(report, on_primary(Guard::ReportOnly));
        // What passes by itself.
        assert_eq!(spared(|case| case.transaction.started = None), Ok(()));
        assert_eq!(spared(|case| silent_since(0)(case)), Ok(()));
    }

    /// What it does now, says the primary: it may have been idle when the standby last looked.
    #[test]
    fn a_standby_asks_whether_a_session_is_idle_for_long() {
        let verdict = |idle_for, scope, action| {
            let mut facts = case();
            facts.standing.idle_for = idle_for;
            facts.rule.scope = scope;
            facts.rule.action = action;
            would_be_ended(&facts.transaction, &facts.standing, &facts.rule)
        };
        let on_primary = |guard: Guard| Err(Guard::Primary(guard.to_string()));
        let (idle, any) = (BlockerScope::Idle, BlockerScope::Any);
        let (terminate, cancel) = (BlockerAction::Terminate, BlockerAction::Cancel);
        let briefly = Some(IDLE_FOR - Duration::from_millis(1));
        assert_eq!(verdict(Some(IDLE_FOR), idle, terminate), Ok(()));
        assert_eq!(verdict(briefly, idle, terminate), Err(Guard::JustIdle));
        let at_work = on_primary(Guard::NotIdle("active".into()));
        assert_eq!(verdict(None, idle, terminate), at_work);
        assert_eq!(verdict(briefly, any, terminate), Ok(()));
        assert_eq!(verdict(None, any, cancel), Ok(()));
        let in_vain = on_primary(Guard::CancelInVain);
        assert_eq!(verdict(briefly, any, cancel), in_vain);
    }
}
