//! The server that can write what a slot on this standby waits for: this standby's primary, or a
//! standby on the way there that passes the request on.
//!
//! Connected only while a slot is being built. A connection can fail in many ways and at any time;
//! each is a [`Problem`] with its remedy, and tries come less and less often until one succeeds.
//! Those that the other server refuses come least often: it writes a line into its log for each.

use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::conninfo::Target;
use super::hearing;
use super::libpq::{Connection, Failure, Table};
use super::process;
use crate::core::guard::{Standing, Verdict};
use crate::core::hint::{Identifier, sql};
use crate::core::locks;
use crate::core::observation::{Pid, Row, Running, Transaction, UnreadableRow, by_age};
use crate::core::policy::BlockerRule;
use crate::core::time::Timestamp;
use crate::core::upstream::{
    Hop, Introduction, Kind, Login, Look, Problem, Record, Refusal, Writer,
};
use crate::core::xid::{Lsn, Xid};
use crate::settings;

/// For one conversation, connecting included.
const LIMIT: Duration = Duration::from_secs(5);
/// For one that another standby asked for, which should hear what became of it within its own.
const LIMIT_FOR_ANOTHER: Duration = Duration::from_secs(4);
/// After the first failure; it doubles with each of its kind.
const FIRST_REST: Duration = Duration::from_millis(250);
/// The longest after what only a person can mend.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// What is set in our session there, all in one message.
const SESSION_SETTINGS: &str = include_str!("../../sql/upstream_session.sql");
const INTRODUCTION: &str = include_str!("../../sql/upstream.sql");
const REMOTE_SLOTS: &str = include_str!("../../sql/remote_slots.sql");
/// The oldest transactions, and the queries of the oldest of those: a creation waits for the oldest
/// longest, and the answer must not be longer than libpq may keep ([`Failure::TooMuch`]), however
/// large the other server's `track_activity_query_size`. A query is not cut there: it may be in
/// another encoding than the database, in which functions on text fail.
static TRANSACTIONS: LazyLock<String> = LazyLock::new(|| {
    let all = include_str!("../../sql/transactions.sql").replace(
        QUERY,
        "CASE WHEN pg_catalog.sum(pg_catalog.octet_length(t.query)) \
                       OVER (ORDER BY pg_catalog.age(t.xid) DESC) OPERATOR(pg_catalog.<) 4194304 \
              THEN t.query END AS query",
    );
    format!("SELECT t.* FROM ({all}) AS t ORDER BY pg_catalog.age(t.xid) DESC LIMIT 1000")
});
/// The column as it stands in that file.
const QUERY: &str = "t.query";

/// See [`Failure::TooMuch`].
const TOO_MUCH: &str = "much more than was asked for";
const LOCK_HOLDERS: &str = include_str!("../../sql/lock_holders.sql");
const SUBSCRIPTIONS: &str = include_str!("../../sql/subscriptions.sql");

/// What the upstream is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Which transactions run there.
    News,
    /// The same, and a record.
    Record,
}

/// What came of it. A problem can come after the news.
#[derive(Default)]
pub struct Answer {
    pub look: Option<Rc<Look>>,
    pub record: Option<Record>,
    pub problem: Option<Problem>,
}

#[derive(Default)]
pub struct Upstream {
    session: Option<Session>,
    rest: Option<Rest>,
}

/// An open connection.
struct Session {
    target: Target,
    login: Login,
    connection: Connection,
}

/// A problem, and how soon it may be over.
struct Setback {
    problem: Problem,
    mended: Mended,
}

/// Who mends what went wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mended {
    /// Nobody need, or the next try costs the other server nothing to speak of.
    Soon,
    /// A person: the other server said no, and will as long as it is what it is.
    ByHand,
}

impl Mended {
    /// After an error with this SQLSTATE. Servers that start or stop, are full, or gave up for lack
    /// of time will be better soon.
    fn after(code: PgSqlErrorCode) -> Self {
        use PgSqlErrorCode::{
            ERRCODE_CONNECTION_EXCEPTION, ERRCODE_INSUFFICIENT_RESOURCES,
            ERRCODE_OPERATOR_INTERVENTION, ERRCODE_SYSTEM_ERROR, ERRCODE_TRANSACTION_ROLLBACK,
        };
        let passing = [
            ERRCODE_CONNECTION_EXCEPTION,
            ERRCODE_TRANSACTION_ROLLBACK,
            ERRCODE_INSUFFICIENT_RESOURCES,
            ERRCODE_OPERATOR_INTERVENTION,
            ERRCODE_SYSTEM_ERROR,
        ];
        // As `ERRCODE_TO_CATEGORY` (`elog.h`): two characters of six bits.
        let class = |code: PgSqlErrorCode| code as i32 & 0xFFF;
        if passing.map(class).contains(&class(code)) {
            Self::Soon
        } else {
            Self::ByHand
        }
    }
}

impl From<Problem> for Setback {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            mended: Mended::Soon,
        }
    }
}

/// Pause after failures.
struct Rest {
    target: Option<Target>,
    /// When the server's configuration was last loaded.
    configured: Timestamp,
    mended: Mended,
    /// One after the other, of this kind.
    failures: u32,
    until: Instant,
}

impl Rest {
    fn is_for(&self, target: Option<&Target>) -> bool {
        self.target.as_ref() == target && self.configured == process::configured_at()
    }

    /// It was over so long ago that what happened then says nothing of now.
    fn is_long_over(&self) -> bool {
        self.until.elapsed() > LONGEST_REST
    }
}

/// One conversation.
struct Call {
    hop: Hop,
    limit: Duration,
    /// When `limit` is over.
    deadline: Instant,
}

impl Call {
    fn new(hop: Hop, limit: Duration) -> Self {
        Self {
            hop,
            limit,
            deadline: Instant::now() + limit,
        }
    }
}

impl Upstream {
    /// A failure is not forgotten: a client that gives up soon and tries again would begin with
    /// short pauses each time.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// Whether it failed so recently that it is not asked. Another target is tried at once, and so
    /// is the same one when the configuration was reloaded.
    pub fn rests(&self, database: &str) -> bool {
        self.rest.as_ref().is_some_and(|rest| {
            Instant::now() < rest.until
                && rest.is_for(Target::from_settings(database.to_owned()).as_ref())
        })
    }

    /// Somebody else has been answered, so that it may be asked.
    pub fn is_back(&mut self) {
        self.rest = None;
    }

    /// Asks. After a failure it rests, for `longest` at most, or longer if only a person can mend
    /// what it was.
    pub fn ask(&mut self, wish: Wish, database: &str, longest: Duration) -> Answer {
        let target = Target::from_settings(database.to_owned());
        let call = Call::new(Hop::default(), LIMIT);
        let mut answer = Answer::default();
        match self.converse(wish, target.as_ref(), &call, &mut answer) {
            Ok(()) => self.rest = None,
            Err(setback) => answer.problem = Some(self.fail(setback, target, longest)),
        }
        answer
    }

    /// It rests a while, longer with each failure.
    fn fail(&mut self, setback: Setback, target: Option<Target>, longest: Duration) -> Problem {
        let Setback { problem, mended } = setback;
        let before = self.rest.as_ref().filter(|rest| {
            // What was refused for the first time should not rest as what was away for hours.
            rest.mended == mended && rest.is_for(target.as_ref()) && !rest.is_long_over()
        });
        let failures = before.map_or(0, |rest| rest.failures) + 1;
        let pause = FIRST_REST * 2_u32.saturating_pow(failures.min(16) - 1);
        let longest = match mended {
            Mended::Soon => longest,
            Mended::ByHand => LONGEST_REST,
        };
        self.rest = Some(Rest {
            target,
            configured: process::configured_at(),
            mended,
            failures,
            until: Instant::now() + pause.min(longest),
        });
        match mended {
            Mended::Soon => problem,
            Mended::ByHand => problem.tried_again_within(LONGEST_REST),
        }
    }

    fn converse(
        &mut self,
        wish: Wish,
        target: Option<&Target>,
        call: &Call,
        answer: &mut Answer,
    ) -> Result<(), Setback> {
        let target = target.ok_or_else(Problem::no_conninfo)?;
        let introduction = self.introduce(target, call)?;
        self.refuse_another_cluster(target, &introduction)?;
        let mut look = self.look(&introduction, call)?;
        // Asked for news only, it is of interest all the same whether it could write a record.
        let record = match (introduction.writer(), wish) {
            (Ok(_), Wish::News) => Ok(None),
            (Ok(writer), Wish::Record) => self.write(&writer, &introduction, &look, call).map(Some),
            (Err(problem), Wish::News | Wish::Record) => Err(problem.into()),
        };
        if let Ok(Some(record)) = &record {
            // Its WAL goes at least so far, which tells whether the record is still part of it.
            look.position = look.position.max(Some(record.lsn));
        }
        answer.look = Some(Rc::new(look));
        answer.record = record?;
        Ok(())
    }

    /// Asks a primary to end these transactions, each of which has blocked for so long. The primary
    /// judges each by its own rules. If it is out of reach, it rests as after [`Self::ask`]; one that
    /// only refuses this may be asked for other things.
    pub fn end_blockers(
        &mut self,
        blockers: &[(Xid, Duration)],
        database: &str,
        longest_rest: Duration,
    ) -> Result<Vec<Verdict>, Problem> {
        let target = Target::from_settings(database.to_owned()).ok_or_else(Problem::no_conninfo)?;
        let answer = self.ask_to_end(blockers, &target);
        answer.map_err(|setback| self.fail_if_away(setback, target, longest_rest))
    }

    /// Whose these sessions are, and what the primary's settings let be done to them. It rests as
    /// after [`Self::end_blockers`].
    pub fn standings(
        &mut self,
        xids: &[Xid],
        database: &str,
        longest_rest: Duration,
    ) -> Result<(Vec<Standing>, BlockerRule), Problem> {
        let target = Target::from_settings(database.to_owned()).ok_or_else(Problem::no_conninfo)?;
        let answer = self.ask_for_standings(xids, &target);
        answer.map_err(|setback| self.fail_if_away(setback, target, longest_rest))
    }

    fn fail_if_away(&mut self, setback: Setback, target: Target, longest: Duration) -> Problem {
        match setback.problem.kind {
            Kind::Unreachable => self.fail(setback, Some(target), longest),
            Kind::NotConfigured | Kind::NotPermitted | Kind::IsStandby => setback.problem,
        }
    }

    fn ask_for_standings(
        &mut self,
        xids: &[Xid],
        target: &Target,
    ) -> Result<(Vec<Standing>, BlockerRule), Setback> {
        let call = Call::new(Hop::default(), LIMIT);
        let introduction = self.introduce(target, &call)?;
        self.refuse_another_cluster(target, &introduction)?;
        introduction.blocker_ender()?;
        let rule = settings::blocker_rule_of(&introduction);
        let sql = hearing::standing_of(xids, &rule.protected_roles);
        let standings = self.query(&sql, |row| row.into_standing(), &call)?;
        Ok((standings, rule))
    }

    fn ask_to_end(
        &mut self,
        blockers: &[(Xid, Duration)],
        target: &Target,
    ) -> Result<Vec<Verdict>, Setback> {
        let call = Call::new(Hop::default(), LIMIT);
        let introduction = self.introduce(target, &call)?;
        self.refuse_another_cluster(target, &introduction)?;
        let schema = introduction.blocker_ender()?;
        let values: Vec<String> = blockers
            .iter()
            .map(|(xid, blocked_for)| format!("('{xid}', {})", blocked_for.as_secs_f64()))
            .collect();
        let schema = sql![Identifier(schema)];
        let sql = format!(
            "SELECT v.xid, e.action, e.reason FROM (VALUES {}) AS v (xid, seconds), LATERAL \
             {schema}.slot_self_heal_end_blocker(v.xid::pg_catalog.xid, \
             pg_catalog.make_interval(secs => v.seconds)) AS e",
            values.join(", ")
        );
        self.query(&sql, |row| row.into_verdict(), &call)
    }

    fn refuse_another_cluster(
        &mut self,
        target: &Target,
        introduction: &Introduction,
    ) -> Result<(), Setback> {
        let here = system_identifier();
        let there = &introduction.system_identifier;
        if *there == here {
            return Ok(());
        }
        self.session = None;
        Err(Setback {
            problem: Problem::other_cluster(target.source, &here, there),
            mended: Mended::ByHand,
        })
    }

    /// Connects if need be, and asks who it is. A connection that was lost since it was last used
    /// is made anew.
    fn introduce(&mut self, target: &Target, call: &Call) -> Result<Introduction, Setback> {
        let is_open = self
            .session
            .as_ref()
            .is_some_and(|session| session.target == *target && !session.connection.has_grown());
        if is_open
            && let Ok(introduction) = self.query(INTRODUCTION, |row| row.into_introduction(), call)
        {
            return Ok(first(introduction)?);
        }
        self.session = Some(Session::open(target, call)?);
        self.query(SESSION_SETTINGS, |_| Ok(()), call)?;
        Ok(first(self.query(
            INTRODUCTION,
            |row| row.into_introduction(),
            call,
        )?)?)
    }

    fn look(&mut self, introduction: &Introduction, call: &Call) -> Result<Look, Setback> {
        let at = super::now();
        let (transactions, running) = if introduction.in_recovery {
            (Vec::new(), None)
        } else {
            let transactions = self.query(&TRANSACTIONS, |row| row.into_transaction(), call)?;
            let (mut transactions, running) = by_age(transactions, introduction.next_xid);
            self.follow(&mut transactions, call)?;
            (transactions, Some(running))
        };
        Ok(Look {
            at,
            running,
            blind: (!introduction.sees_all && has_strangers(&transactions))
                .then(|| introduction.role.clone()),
            transactions,
            position: introduction.position,
            relay: introduction.relay,
            slots: self.query(REMOTE_SLOTS, |row| row.into_remote_slot(), call)?,
        })
    }

    /// As the scan does on a primary, if more seldom: the upstream is asked once a second at most.
    fn follow(&mut self, transactions: &mut [Transaction], call: &Call) -> Result<(), Setback> {
        let waiting: Vec<String> = locks::waiting(transactions)
            .iter()
            .map(Pid::to_string)
            .collect();
        let mut waiters = if waiting.is_empty() {
            Vec::new()
        } else {
            let pids = format!("'{{{}}}'", waiting.join(","));
            let sql = LOCK_HOLDERS.replace("$1::", &format!("{pids}::"));
            self.query(&sql, |row| row.into_lock_waiter(), call)?
        };
        if locks::has_subscribers(transactions, &waiters) {
            let subscriptions = self.query(SUBSCRIPTIONS, |row| row.into_subscription(), call)?;
            locks::name_subscribers(transactions, &mut waiters, &subscriptions);
        }
        locks::follow(transactions, &waiters);
        Ok(())
    }

    /// Has the upstream write a record.
    fn write(
        &mut self,
        writer: &Writer,
        introduction: &Introduction,
        look: &Look,
        call: &Call,
    ) -> Result<Record, Setback> {
        let mut answer = self.run(writer, call);
        if let (Err(Failure::Refused { .. }), Some(other)) =
            (&answer, introduction.other_writer(writer))
        {
            answer = self.run(&other, call);
        }
        let (columns, rows) = answer.map_err(|failure| match failure {
            Failure::Refused { code, message } => Setback {
                problem: introduction.refusal(
                    writer,
                    &message,
                    match code {
                        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE => Refusal::NotPermitted,
                        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE => {
                            Refusal::NotInPrerequisiteState
                        }
                        _ => Refusal::Other,
                    },
                ),
                mended: Mended::after(code),
            },
            failure @ (Failure::TimedOut
            | Failure::Lost(_)
            | Failure::Unexpected(_)
            | Failure::TooMuch) => self.setback(failure, call),
        })?;
        let (lsn, next) = first(read((columns, rows), |row| row.into_answer())?)?;
        Ok(Record {
            lsn,
            // Nothing ran at the record if nothing ran before and nothing has begun since.
            running: look.running.map(|before| Running {
                oldest: if before.is_idle() && before.next == next {
                    next
                } else {
                    before.oldest
                },
                next,
            }),
        })
    }

    /// The next xid is read after the record is written: columns are computed in order.
    fn run(&self, writer: &Writer, call: &Call) -> Result<Table, Failure> {
        let sql = format!(
            "SELECT {}::pg_catalog.text AS lsn, \
             pg_catalog.age('3'::pg_catalog.xid)::pg_catalog.text AS age_of_first_xid",
            writer.call()
        );
        match &self.session {
            Some(session) => session.connection.query(&sql, call.deadline),
            None => Err(Failure::Lost("not connected".into())),
        }
    }

    fn query<T>(
        &mut self,
        sql: &str,
        read_row: impl Fn(Row<'_>) -> Result<T, UnreadableRow>,
        call: &Call,
    ) -> Result<Vec<T>, Setback> {
        let answer = match &self.session {
            Some(session) => session.connection.query(sql, call.deadline),
            None => Err(Failure::Lost("not connected".into())),
        };
        let answer = answer.map_err(|failure| self.setback(failure, call))?;
        read(answer, read_row).map_err(|problem| {
            self.session = None;
            Setback {
                problem,
                mended: Mended::ByHand,
            }
        })
    }

    /// What a failure means; one of the connection, or an answer that is none, closes it.
    fn setback(&mut self, failure: Failure, call: &Call) -> Setback {
        use PgSqlErrorCode::{ERRCODE_ADMIN_SHUTDOWN, ERRCODE_CRASH_SHUTDOWN};
        if let Failure::Refused { code, message } = &failure
            && !matches!(*code, ERRCODE_ADMIN_SHUTDOWN | ERRCODE_CRASH_SHUTDOWN)
        {
            return Setback {
                problem: Problem::refused(message),
                mended: Mended::after(*code),
            };
        }
        match self.session.take() {
            Some(session) => setback(failure, &session.login, call),
            None => Problem::refused("not connected").into(),
        }
    }
}

/// What it means that a connection failed, or was not made.
fn setback(failure: Failure, login: &Login, call: &Call) -> Setback {
    let unusable = |what| Setback {
        problem: Problem::unusable(what),
        mended: Mended::ByHand,
    };
    match failure {
        Failure::TimedOut => Problem::timed_out(call.limit).into(),
        Failure::Lost(message) => Problem::unreachable(&message, login).into(),
        Failure::Refused { code, message } => Setback {
            problem: Problem::unreachable(&message, login),
            mended: Mended::after(code),
        },
        Failure::Unexpected(what) => unusable(what),
        Failure::TooMuch => unusable(TOO_MUCH),
    }
}

impl Session {
    /// Tries one address after the other; each may take its part of the time that is left.
    fn open(target: &Target, call: &Call) -> Result<Self, Setback> {
        let route = target.route(call.hop)?;
        let mut last = Problem::timed_out(call.limit).into();
        for (index, parameters) in route.addresses.iter().enumerate() {
            let now = Instant::now();
            let left = u32::try_from(route.addresses.len() - index).unwrap_or(u32::MAX);
            let share = call.deadline.saturating_duration_since(now) / left;
            match Connection::open(parameters, now + share) {
                Ok(connection) => {
                    return Ok(Self {
                        target: target.clone(),
                        login: route.login,
                        connection,
                    });
                }
                // Of several, what another said is worth more than that one was silent.
                Err(Failure::TimedOut) => {}
                Err(failure) => last = setback(failure, &route.login, call),
            }
        }
        Err(last)
    }
}

/// Passes a request for a record on to the upstream, for a session of this standby. Connects and
/// disconnects.
pub fn pass_on(database: &str) -> Result<Lsn, Problem> {
    let hop = Hop::after(&super::application_name())?;
    let target = Target::from_settings(database.to_owned());
    let mut answer = Answer::default();
    let mut upstream = Upstream::default();
    let call = Call::new(hop, LIMIT_FOR_ANOTHER);
    upstream
        .converse(Wish::Record, target.as_ref(), &call, &mut answer)
        .map_err(|setback| setback.problem)?;
    answer
        .record
        .map(|record| record.lsn)
        .ok_or_else(|| Problem::refused("no record"))
}

/// Whether there are sessions among them whose state the role may not see.
fn has_strangers(transactions: &[Transaction]) -> bool {
    transactions
        .iter()
        .any(|transaction| transaction.pid().is_some() && transaction.state.is_none())
}

fn read<T>(
    (columns, rows): Table,
    read_row: impl Fn(Row<'_>) -> Result<T, UnreadableRow>,
) -> Result<Vec<T>, Problem> {
    rows.into_iter()
        .map(|values| read_row(Row::new(&columns, values)))
        .collect::<Result<_, _>>()
        .map_err(|error| Problem::refused(&error.to_string()))
}

fn first<T>(rows: Vec<T>) -> Result<T, Problem> {
    rows.into_iter()
        .next()
        .ok_or_else(|| Problem::refused("no row where one was expected"))
}

fn system_identifier() -> String {
    // SAFETY: reads the control file's copy in shared memory, which does not change.
    unsafe { pg_sys::GetSystemIdentifier() }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queries_of_transactions_are_bounded() {
        let file = include_str!("../../sql/transactions.sql");
        assert_eq!(file.matches(QUERY).count(), 1);
        assert!(TRANSACTIONS.contains("THEN t.query END AS query"));
    }
}
