//! Who is at the end of a queue for a lock. A blocker that waits for one cannot end before those do
//! that hold it, and the one that is to be ended is the last of them, which may have no xid and so
//! be no blocker itself.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::observation::{Pid, Subscription, Transaction};
use super::time::Timestamp;
use super::xid::Xid;

/// How many transactions that wait for a lock are looked at: the oldest, which are waited for
/// themselves.
const LOOKED_AT: usize = 8;
/// How many of those at the end are told of.
const ROOTS: usize = 3;
/// How many of those directly before it.
const WAITED_FOR: usize = 20;
/// The longest part of a query that is kept, in bytes: it is read for what kind it is.
const QUERY_LIMIT: usize = 100;

/// What a transaction that waits for a lock waits for; empty as long as that is not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockWait {
    /// Those directly before it. A prepared transaction has no pid.
    pub waits_for: Vec<Pid>,
    /// Those at the end of the queue, who wait for no lock themselves.
    pub roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Root {
    /// One that has an xid.
    Transaction(Box<Transaction>),
    /// One that has none, as long as it only reads.
    Session(Box<Session>),
}

/// A process that holds a lock (`pg_stat_activity`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub pid: Pid,
    pub database: Option<String>,
    pub usename: Option<String>,
    pub application_name: Option<String>,
    pub client_addr: Option<String>,
    pub backend_type: Option<String>,
    pub subscription: Option<Subscription>,
    pub state: Option<String>,
    pub state_since: Option<Timestamp>,
    pub started: Option<Timestamp>,
    /// To the microsecond, as ISO 8601. `None` for a lock that is held without a transaction, and
    /// for a walsender, of which nobody is told (`pg_stat_get_activity`, `pgstatfuncs.c`).
    pub xact_start: Option<String>,
    pub backend_start: Option<String>,
    pub query: Option<String>,
}

/// A process on the way, itself at its end if it waits for nobody.
#[derive(Clone, Debug)]
pub struct LockWaiter {
    pub xid: Option<Xid>,
    pub waits_for: Vec<Pid>,
    /// The same of prepared transactions, subtransactions among them.
    pub waits_for_prepared: Vec<Xid>,
    pub session: Session,
}

/// Whose queue is to be looked at. `transactions`: the oldest first.
pub fn waiting(transactions: &[Transaction]) -> Vec<Pid> {
    transactions
        .iter()
        .filter(|transaction| transaction.lock_wait.is_some())
        .filter_map(Transaction::pid)
        .take(LOOKED_AT)
        .collect()
}

/// Tells each transaction that waits for a lock whom it waits for, as of a look at the queues a
/// moment ago.
pub fn follow(transactions: &mut [Transaction], waiters: &[LockWaiter]) {
    let chain = Chain {
        transactions,
        waiters: waiters
            .iter()
            .map(|waiter| (waiter.session.pid, waiter))
            .collect(),
    };
    let found: Vec<Option<LockWait>> = transactions
        .iter()
        .map(|transaction| {
            transaction.lock_wait.as_ref()?;
            let waiter = chain.waiters.get(&transaction.pid()?)?;
            // Another transaction of the same session by now.
            (waiter.xid == Some(transaction.xid)).then(|| LockWait {
                waits_for: waiter.waits_for.iter().copied().take(WAITED_FOR).collect(),
                roots: chain.roots(waiter),
            })
        })
        .collect();
    for (transaction, found) in transactions.iter_mut().zip(found) {
        if found.is_some() {
            transaction.lock_wait = found;
        }
    }
}

struct Chain<'a> {
    transactions: &'a [Transaction],
    waiters: HashMap<Pid, &'a LockWaiter>,
}

impl Chain<'_> {
    /// None where all on the way wait in a circle, which Postgres breaks after deadlock_timeout.
    fn roots(&self, from: &LockWaiter) -> Vec<Root> {
        let mut roots = Vec::new();
        let mut seen = HashSet::from([from.session.pid]);
        let mut ahead = vec![from];
        while let Some(waiter) = ahead.pop() {
            for xid in &waiter.waits_for_prepared {
                // Subtransactions are none of these.
                roots.extend(self.transaction(|transaction| transaction.xid == *xid));
            }
            for pid in &waiter.waits_for {
                // What was not followed so far is not known to be at the end.
                let Some(holder) = self.waiters.get(pid).filter(|_| seen.insert(*pid)) else {
                    continue;
                };
                if holder.waits_for.is_empty() && holder.waits_for_prepared.is_empty() {
                    roots.push(self.root(holder));
                } else {
                    ahead.push(holder);
                }
            }
        }
        roots.truncate(ROOTS);
        roots
    }

    fn root(&self, holder: &LockWaiter) -> Root {
        self.transaction(|transaction| {
            transaction.pid() == Some(holder.session.pid) && Some(transaction.xid) == holder.xid
        })
        .unwrap_or_else(|| {
            let mut session = holder.session.clone();
            if let Some(query) = &mut session.query {
                query.truncate(query.floor_char_boundary(QUERY_LIMIT));
            }
            Root::Session(Box::new(session))
        })
    }

    fn transaction(&self, is_it: impl Fn(&Transaction) -> bool) -> Option<Root> {
        let transaction = self.transactions.iter().find(|t| is_it(t))?;
        let mut transaction = transaction.clone();
        transaction.lock_wait = None;
        transaction.cut_query(QUERY_LIMIT);
        Some(Root::Transaction(Box::new(transaction)))
    }
}

/// Whether there are workers of subscriptions among these, of which more can be told.
pub fn has_subscribers(transactions: &[Transaction], waiters: &[LockWaiter]) -> bool {
    let types = transactions
        .iter()
        .map(|transaction| &transaction.backend_type)
        .chain(waiters.iter().map(|waiter| &waiter.session.backend_type));
    types
        .flatten()
        .any(|backend_type| is_subscriber(backend_type))
}

/// `logical replication worker`, from 17 on one of `apply`, `tablesync` and `parallel worker`
/// (`logicalrep_worker_launch`, `launcher.c`).
pub fn is_subscriber(backend_type: &str) -> bool {
    backend_type.starts_with("logical replication ")
}

/// Tells these what they work for.
pub fn name_subscribers(
    transactions: &mut [Transaction],
    waiters: &mut [LockWaiter],
    subscriptions: &[(Pid, Subscription)],
) {
    let of = |pid: Pid| {
        let found = subscriptions.iter().find(|(worker, _)| *worker == pid);
        found.map(|(_, subscription)| subscription.clone())
    };
    for transaction in transactions {
        transaction.subscription = transaction.pid().and_then(of);
    }
    for waiter in waiters {
        waiter.session.subscription = of(waiter.session.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    fn waiter(holder: i32, number: Option<u32>, waits_for: &[i32]) -> LockWaiter {
        LockWaiter {
            xid: number.map(xid),
            waits_for: waits_for.iter().map(|number| pid(*number)).collect(),
            waits_for_prepared: Vec::new(),
            session: reader(holder),
        }
    }

    fn waits(number: u32, holder: i32) -> Transaction {
        Transaction {
            lock_wait: Some(LockWait::default()),
            ..session(number, holder)
        }
    }

    /// Whom the first transaction waits for: its next, and who is at the end.
    fn followed(
        mut transactions: Vec<Transaction>,
        waiters: &[LockWaiter],
    ) -> (Vec<i32>, Vec<Root>) {
        follow(&mut transactions, waiters);
        let wait = transactions.remove(0).lock_wait.expect("it waits");
        let pids = wait.waits_for.iter().map(|pid| pid.get()).collect();
        (pids, wait.roots)
    }

    #[test]
    fn the_end_of_the_queue_is_found() {
        let others = vec![waits(700, 7), waits(701, 8), session(702, 9)];
        let queue = [
            waiter(7, Some(700), &[8]),
            waiter(8, Some(701), &[9, 10]),
            waiter(9, Some(702), &[]),
            waiter(10, None, &[]),
        ];
        let roots = vec![
            Root::Transaction(Box::new(session(702, 9))),
            Root::Session(Box::new(reader(10))),
        ];
        assert_eq!(followed(others, &queue), (vec![8], roots));
    }

    #[test]
    fn a_prepared_transaction_is_found_by_its_xid() {
        let others = vec![waits(700, 7), prepared(701, "g")];
        let queue = [LockWaiter {
            // one of them a subtransaction's
            waits_for_prepared: vec![xid(701), xid(702)],
            ..waiter(7, Some(700), &[])
        }];
        let root = Root::Transaction(Box::new(prepared(701, "g")));
        assert_eq!(followed(others, &queue), (vec![], vec![root]));
    }

    #[test]
    fn a_circle_ends() {
        let queue = [
            waiter(7, Some(700), &[8]),
            waiter(8, None, &[9]),
            waiter(9, None, &[7, 8]),
        ];
        assert_eq!(followed(vec![waits(700, 7)], &queue), (vec![8], Vec::new()));
    }

    /// Not followed to its end, nobody is known to be there.
    #[test]
    fn a_queue_that_is_too_long_has_no_end() {
        let queue = [waiter(7, Some(700), &[8]), waiter(8, None, &[9])];
        assert_eq!(followed(vec![waits(700, 7)], &queue), (vec![8], Vec::new()));
        let many: Vec<_> = (700..800).map(|n| waits(n, 1)).collect();
        assert_eq!(waiting(&many).len(), LOOKED_AT);
    }

    #[test]
    fn the_sessions_next_transaction_does_not_count() {
        let queue = [waiter(7, Some(699), &[8]), waiter(8, None, &[])];
        assert_eq!(
            followed(vec![waits(700, 7)], &queue),
            (Vec::new(), Vec::new())
        );
    }
}
