//! The server that can write what a slot on this standby waits for: this standby's primary, or a
//! standby on the way there that passes the request on.
//!
//! Connected only while a slot is being built. A connection can fail in many ways and at any time;
//! each is a [`Problem`] with its remedy, and tries come less and less often until one succeeds.

use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::conninfo::Target;
use super::libpq::{Connection, Failure, Table};
use crate::core::guard::Verdict;
use crate::core::hint::{Identifier, sql};
use crate::core::locks;
use crate::core::observation::{Pid, Row, Running, Transaction, UnreadableRow, by_age};
use crate::core::upstream::{
    Hop, Introduction, Kind, Login, Look, Problem, Record, Refusal, Writer,
};
use crate::core::xid::{Lsn, Xid};

/// For one conversation, connecting included.
const LIMIT: Duration = Duration::from_secs(5);
/// For one that another standby asked for, which should hear what became of it within its own.
const LIMIT_FOR_ANOTHER: Duration = Duration::from_secs(4);
/// After the first failure; it doubles with each.
const FIRST_REST: Duration = Duration::from_millis(250);

/// Values are taken as bytes, whatever encoding they are in: otherwise the upstream would refuse to
/// send what it can't convert. No object that a user made there is ever found by name. And what we
/// no longer wait for should not go on for long.
const SESSION_SETTINGS: &str = "SET client_encoding = 'SQL_ASCII'; \
     SET search_path = pg_catalog, pg_temp; SET statement_timeout = '10s'";
const INTRODUCTION: &str = include_str!("../../sql/upstream.sql");
const TRANSACTIONS: &str = include_str!("../../sql/transactions.sql");
const REMOTE_SLOTS: &str = include_str!("../../sql/remote_slots.sql");
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

/// Pause after failures.
struct Rest {
    target: Option<Target>,
    failures: u32,
    until: Instant,
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
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// Whether it failed so recently that it is not asked. Another target is tried at once.
    pub fn rests(&self, database: &str) -> bool {
        self.rest.as_ref().is_some_and(|rest| {
            Instant::now() < rest.until && rest.target == Target::from_settings(database.to_owned())
        })
    }

    /// Asks. After a failure it rests, for `longest` at most.
    pub fn ask(&mut self, wish: Wish, database: &str, longest: Duration) -> Answer {
        let target = Target::from_settings(database.to_owned());
        let call = Call::new(Hop::default(), LIMIT);
        let mut answer = Answer::default();
        answer.problem = self
            .converse(wish, target.as_ref(), &call, &mut answer)
            .err();
        if answer.problem.is_some() {
            self.fail(target, longest);
        } else {
            self.rest = None;
        }
        answer
    }

    /// It rests a while, longer with each failure.
    fn fail(&mut self, target: Option<Target>, longest: Duration) {
        let failures = self.rest.as_ref().map_or(0, |rest| rest.failures) + 1;
        let pause = FIRST_REST * 2_u32.saturating_pow(failures.min(16) - 1);
        self.rest = Some(Rest {
            target,
            failures,
            until: Instant::now() + pause.min(longest),
        });
    }

    fn converse(
        &mut self,
        wish: Wish,
        target: Option<&Target>,
        call: &Call,
        answer: &mut Answer,
    ) -> Result<(), Problem> {
        let target = target.ok_or_else(Problem::no_conninfo)?;
        let introduction = self.introduce(target, call)?;
        self.refuse_another_cluster(target, &introduction)?;
        let mut look = self.look(&introduction, call)?;
        // Asked for news only, it is of interest all the same whether it could write a record.
        let record = introduction.writer().and_then(|writer| match wish {
            Wish::News => Ok(None),
            Wish::Record => self.write(&writer, &introduction, &look, call).map(Some),
        });
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
        if let Err(problem) = &answer
            && problem.kind == Kind::Unreachable
        {
            self.fail(Some(target), longest_rest);
        }
        answer
    }

    fn ask_to_end(
        &mut self,
        blockers: &[(Xid, Duration)],
        target: &Target,
    ) -> Result<Vec<Verdict>, Problem> {
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
    ) -> Result<(), Problem> {
        let here = system_identifier();
        let there = &introduction.system_identifier;
        if *there == here {
            return Ok(());
        }
        self.session = None;
        Err(Problem::other_cluster(target.source, &here, there))
    }

    /// Connects if need be, and asks who it is. A connection that was lost since it was last used
    /// is made anew.
    fn introduce(&mut self, target: &Target, call: &Call) -> Result<Introduction, Problem> {
        let is_open = self
            .session
            .as_ref()
            .is_some_and(|session| session.target == *target);
        if is_open
            && let Ok(introduction) = self.query(INTRODUCTION, |row| row.into_introduction(), call)
        {
            return first(introduction);
        }
        self.session = Some(Session::open(target, call)?);
        self.query(SESSION_SETTINGS, |_| Ok(()), call)?;
        first(self.query(INTRODUCTION, |row| row.into_introduction(), call)?)
    }

    fn look(&mut self, introduction: &Introduction, call: &Call) -> Result<Look, Problem> {
        let at = super::now();
        let (transactions, running) = if introduction.in_recovery {
            (Vec::new(), None)
        } else {
            let transactions = self.query(TRANSACTIONS, |row| row.into_transaction(), call)?;
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
            slots: self.query(REMOTE_SLOTS, |row| row.into_remote_slot(), call)?,
        })
    }

    /// As the scan does on a primary, if more seldom: the upstream is asked once a second at most.
    fn follow(&mut self, transactions: &mut [Transaction], call: &Call) -> Result<(), Problem> {
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
    ) -> Result<Record, Problem> {
        let mut answer = self.run(writer, call);
        if let (Err(Failure::Refused { .. }), Some(other)) =
            (&answer, introduction.other_writer(writer))
        {
            answer = self.run(&other, call);
        }
        let (columns, rows) = answer.map_err(|failure| match failure {
            Failure::Refused { code, message } => introduction.refusal(
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
            failure => self.problem(failure, call),
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
    ) -> Result<Vec<T>, Problem> {
        let answer = match &self.session {
            Some(session) => session.connection.query(sql, call.deadline),
            None => Err(Failure::Lost("not connected".into())),
        };
        read(
            answer.map_err(|failure| self.problem(failure, call))?,
            read_row,
        )
    }

    /// What a failure means; one of the connection closes it.
    fn problem(&mut self, failure: Failure, call: &Call) -> Problem {
        use PgSqlErrorCode::{ERRCODE_ADMIN_SHUTDOWN, ERRCODE_CRASH_SHUTDOWN};
        let message = match failure {
            Failure::TimedOut => {
                self.session = None;
                return Problem::timed_out(call.limit);
            }
            Failure::Lost(message)
            | Failure::Refused {
                code: ERRCODE_ADMIN_SHUTDOWN | ERRCODE_CRASH_SHUTDOWN,
                message,
            } => message,
            Failure::Refused { message, .. } => return Problem::refused(&message),
        };
        match self.session.take() {
            Some(session) => Problem::unreachable(&message, &session.login),
            None => Problem::refused(&message),
        }
    }
}

impl Session {
    /// Tries one address after the other; each may take its part of the time that is left.
    fn open(target: &Target, call: &Call) -> Result<Self, Problem> {
        let route = target.route(call.hop)?;
        let mut problem = Problem::timed_out(call.limit);
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
                Err(Failure::TimedOut) => {}
                Err(Failure::Lost(message) | Failure::Refused { message, .. }) => {
                    problem = Problem::unreachable(&message, &route.login);
                }
            }
        }
        Err(problem)
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
    upstream.converse(Wish::Record, target.as_ref(), &call, &mut answer)?;
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
