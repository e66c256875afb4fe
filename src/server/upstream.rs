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
use super::deadline;
use super::report::Notice;
use super::scan::oldest_first;
use super::transaction::{catch, internal_error};
use super::walreceiver::{Connection, Query, QueryError, Table};
use crate::core::observation::{Row, Running, Transaction, UnreadableRow};
use crate::core::upstream::{Introduction, Login, Look, Problem, Record, Writer};
use crate::core::xid::Lsn;

/// For one conversation, connecting included.
const LIMIT: Duration = Duration::from_secs(5);
/// For one that another standby asked for, which should hear what became of it within its own.
const LIMIT_FOR_ANOTHER: Duration = Duration::from_secs(4);
/// After the first failure; it doubles with each.
const FIRST_REST: Duration = Duration::from_millis(250);

/// Values are taken as bytes, whatever encoding they are in: otherwise the upstream would refuse to
/// send what it can't convert. No object that a user made there is ever found by name. And what we
/// no longer wait for should not go on for long.
const SESSION_SETTINGS: Query<'_> = Query {
    sql: "SET client_encoding = 'SQL_ASCII'; SET search_path = pg_catalog, pg_temp; \
          SET statement_timeout = '10s'",
    columns: 0,
};
const INTRODUCTION: Query<'_> = Query {
    sql: include_str!("../../sql/upstream.sql"),
    columns: 12,
};
const TRANSACTIONS: Query<'_> = Query {
    sql: include_str!("../../sql/transactions.sql"),
    columns: 14,
};
const REMOTE_SLOTS: Query<'_> = Query {
    sql: include_str!("../../sql/remote_slots.sql"),
    columns: 3,
};

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

impl Upstream {
    pub fn disconnect(&mut self) {
        self.session = None;
        self.rest = None;
    }

    /// Whether it failed so recently that it is not asked. Another target is tried at once.
    pub fn rests(&self, database: &str) -> bool {
        self.rest.as_ref().is_some_and(|rest| {
            Instant::now() < rest.until && rest.target == Target::from_settings(database.to_owned())
        })
    }

    /// Asks. After a failure it rests, for `longest` at most.
    ///
    /// An error of this server's own is an `Err`; in a transaction it must be raised again.
    pub fn ask(&mut self, wish: Wish, database: &str, longest: Duration) -> Result<Answer, Notice> {
        let target = Target::from_settings(database.to_owned());
        let mut answer = Answer::default();
        let outcome = catch(|| {
            deadline::within(LIMIT, || {
                self.converse(wish, target.as_ref(), LIMIT, &mut answer)
            })
        });
        answer.problem = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_) if deadline::has_expired() => {
                self.session = None;
                Some(Problem::timed_out(LIMIT))
            }
            Err(notice) => {
                self.session = None;
                return Err(notice);
            }
        };
        self.rest = answer.problem.is_some().then(|| {
            let failures = self.rest.as_ref().map_or(0, |rest| rest.failures) + 1;
            let pause = FIRST_REST * 2_u32.saturating_pow(failures.min(16) - 1);
            Rest {
                target,
                failures,
                until: Instant::now() + pause.min(longest),
            }
        });
        Ok(answer)
    }

    fn converse(
        &mut self,
        wish: Wish,
        target: Option<&Target>,
        limit: Duration,
        answer: &mut Answer,
    ) -> Result<(), Problem> {
        let target = target.ok_or_else(Problem::no_conninfo)?;
        let introduction = self.introduce(target, limit)?;
        let here = system_identifier();
        if introduction.system_identifier != here {
            self.session = None;
            let there = introduction.system_identifier;
            return Err(Problem::other_cluster(target.source, &here, &there));
        }
        let mut look = self.look(&introduction)?;
        let record = introduction.writer().and_then(|writer| match wish {
            Wish::News => Ok(None),
            Wish::Record => self.write(&writer, &introduction, &look).map(Some),
        });
        if let Ok(Some(record)) = &record {
            // Its WAL goes at least so far, which tells whether the record is still part of it.
            look.position = look.position.max(Some(record.lsn));
        }
        answer.look = Some(Rc::new(look));
        answer.record = record?;
        Ok(())
    }

    /// Connects if need be, and asks who it is. A connection that was lost since it was last used
    /// is made anew.
    fn introduce(&mut self, target: &Target, limit: Duration) -> Result<Introduction, Problem> {
        if let Some(session) = &self.session
            && session.target == *target
            && let Ok(introduction) = self.query(&INTRODUCTION, |row| row.into_introduction())
        {
            return first(introduction);
        }
        self.session = None;
        let (conninfo, login) = target.conninfo(limit)?;
        let connection = Connection::open(&conninfo)
            .map_err(|message| Problem::unreachable(&message, &login))?;
        let session = self.session.insert(Session {
            target: target.clone(),
            login,
            connection,
        });
        session.query(&SESSION_SETTINGS)?;
        first(self.query(&INTRODUCTION, |row| row.into_introduction())?)
    }

    fn look(&mut self, introduction: &Introduction) -> Result<Look, Problem> {
        let at = super::now();
        let next = introduction.next_xid;
        let transactions = if introduction.in_recovery {
            Vec::new()
        } else {
            oldest_first(
                self.query(&TRANSACTIONS, |row| row.into_transaction())?,
                next,
            )
        };
        let running = (!introduction.in_recovery).then(|| Running::of(&transactions, next));
        Ok(Look {
            at,
            running,
            blind: (!introduction.sees_all && has_strangers(&transactions))
                .then(|| introduction.role.clone()),
            transactions,
            position: introduction.position,
            slots: self.query(&REMOTE_SLOTS, |row| row.into_remote_slot())?,
        })
    }

    /// Has the upstream write a record.
    fn write(
        &mut self,
        writer: &Writer,
        introduction: &Introduction,
        look: &Look,
    ) -> Result<Record, Problem> {
        // The next xid is read after the record is written: columns are computed in order.
        let sql = format!(
            "SELECT {writer}::pg_catalog.text AS lsn, ((pg_catalog.age('3'::pg_catalog.xid)\
             ::pg_catalog.int8 OPERATOR(pg_catalog.+) 4294967299) OPERATOR(pg_catalog.%) \
             4294967296)::pg_catalog.text AS next_xid"
        );
        let query = Query {
            sql: &sql,
            columns: 2,
        };
        let session = self.session.as_ref().ok_or_else(not_connected)?;
        let answer = session
            .connection
            .query(&query)
            .map_err(|error| match error.code {
                Some(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE) => {
                    introduction.not_permitted(writer)
                }
                Some(_) if introduction.in_recovery => Problem::not_passed_on(&error.message),
                _ => session.problem(error),
            });
        if answer.is_err() {
            self.session = None;
        }
        let (lsn, next) = first(read(answer?, |row| row.into_answer())?)?;
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

    fn query<T>(
        &mut self,
        query: &Query<'_>,
        read_row: impl Fn(Row<'_>) -> Result<T, UnreadableRow>,
    ) -> Result<Vec<T>, Problem> {
        let session = self.session.as_ref().ok_or_else(not_connected)?;
        let answer = session.query(query);
        if answer.is_err() {
            self.session = None;
        }
        read(answer?, read_row)
    }
}

/// Passes a request for a record on to the upstream, for a session of this standby. Connects and
/// disconnects.
pub fn pass_on(database: &str) -> Result<Result<Lsn, Problem>, Notice> {
    let target = Target::from_settings(database.to_owned());
    let mut answer = Answer::default();
    let outcome = super::transaction::attempt(|| {
        let mut upstream = Upstream::default();
        deadline::within(LIMIT_FOR_ANOTHER, || {
            upstream.converse(
                Wish::Record,
                target.as_ref(),
                LIMIT_FOR_ANOTHER,
                &mut answer,
            )
        })
    });
    match outcome {
        Ok(Ok(())) => answer
            .record
            .map(|record| Ok(record.lsn))
            .ok_or_else(|| internal_error("the upstream wrote no record".into())),
        Ok(Err(problem)) => Ok(Err(problem)),
        Err(_) if deadline::has_expired() => Ok(Err(Problem::timed_out(LIMIT_FOR_ANOTHER))),
        Err(notice) => Err(notice),
    }
}

/// Whether there are sessions among them whose state the role may not see.
fn has_strangers(transactions: &[Transaction]) -> bool {
    transactions
        .iter()
        .any(|transaction| transaction.pid().is_some() && transaction.state.is_none())
}

impl Session {
    fn query(&self, query: &Query<'_>) -> Result<Table, Problem> {
        let answer = self.connection.query(query);
        answer.map_err(|error| self.problem(error))
    }

    fn problem(&self, error: QueryError) -> Problem {
        use PgSqlErrorCode as Code;
        match error.code {
            None | Some(Code::ERRCODE_ADMIN_SHUTDOWN | Code::ERRCODE_CRASH_SHUTDOWN) => {
                Problem::unreachable(&error.message, &self.login)
            }
            Some(_) => Problem::refused(&error.message),
        }
    }
}

fn not_connected() -> Problem {
    Problem::refused("the connection is closed")
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
