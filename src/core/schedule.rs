//! When another running-xacts record can move a slot's creation on.
//!
//! The creator's snapshot builder takes one step at most for each record that it decodes
//! (`SnapBuildFindSnapshot`, `snapbuild.c`):
//!
//! ```text
//!            first record          oldestRunningXid >= N1       oldestRunningXid >= N2
//!  START ─────────────────► BUILDING ─────────────────► FULL ─────────────────► CONSISTENT
//!            N1 = its nextXid           N2 = its nextXid                            ▲
//!    └──────────────────── any record without a running transaction ─────────────────┘
//! ```
//!
//! So one to three records suffice, each only once the transactions that ran at the one before
//! have ended, and any other record is wasted. The builder's phase is private to its process;
//! [`Schedule`] follows it from outside.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;
use super::xid::Xid;

/// What a running-xacts record would say if it were written now.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// `oldestRunningXid`; the same as `next` when no transaction runs.
    pub oldest: Xid,
    /// `nextXid`
    pub next: Xid,
}

/// Whether the creator was seen to wait for a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    ForTransaction,
    /// For something else, or nobody can tell.
    NotKnown,
}

/// Follows one slot's builder.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Schedule {
    needs: Needs,
    phase: Phase,
    waits: Waits,
    /// Records of ours since the creator was last seen to wait for a transaction.
    unanswered: u32,
    /// The last record, or the creation's first sight.
    last: Timestamp,
}

/// The builder takes three steps at most, so no more records than that can be of use.
const STEPS: u32 = 3;

/// Whether it can be seen when the creator waits for a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Waits {
    /// On a primary. A record that moved the builder shows: the creator waits again, or is ready.
    Seen,
    /// On a standby.
    Unseen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Needs {
    /// A record, whatever it says: none came after the slot's `restart_lsn` yet.
    FirstRecord,
    /// A record written after all transactions before this one have ended.
    RecordAfter(Xid),
    /// Nothing that is known of: the last record named no running transaction.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// START or BUILDING: whatever runs when this phase ends will be waited for as well.
    First,
    /// FULL: only what ran when it was reached is waited for.
    Second,
}

impl Schedule {
    /// For a creator whose first record somebody else has to write: a standby's.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "standbys are only watched so far")
    )]
    pub fn without_record(now: Timestamp) -> Self {
        Self {
            needs: Needs::FirstRecord,
            phase: Phase::First,
            waits: Waits::Unseen,
            unanswered: 0,
            last: now,
        }
    }

    /// For a creator on a primary, which writes the first record itself before it waits
    /// (`ReplicationSlotReserveWal`, `slot.c`). `running` as at first sight, at most a tick later:
    /// what began in between is taken for running at the record.
    pub fn with_own_record(running: Running, now: Timestamp) -> Self {
        let mut schedule = Self {
            needs: Needs::FirstRecord,
            phase: Phase::First,
            waits: Waits::Seen,
            unanswered: 0,
            last: now,
        };
        schedule.recorded(running, now);
        schedule.unanswered = 0;
        schedule
    }

    /// The creator waits for a transaction's end, so it has decoded a record that named some.
    pub fn creator_waits(&mut self, running: Running) {
        self.unanswered = 0;
        match self.needs {
            Needs::RecordAfter(bound) if running.oldest.precedes(bound) => return,
            // Those of the last record have ended, and the creator waits again: it took a step.
            Needs::RecordAfter(_) => self.phase = Phase::Second,
            Needs::FirstRecord | Needs::Nothing => {}
        }
        self.needs = Needs::RecordAfter(running.next);
    }

    /// A record was written that says `running`.
    pub fn recorded(&mut self, running: Running, now: Timestamp) {
        self.unanswered += 1;
        self.last = now;
        match self.needs {
            Needs::RecordAfter(bound) if running.oldest.precedes(bound) => return,
            Needs::RecordAfter(_) => self.phase = Phase::Second,
            Needs::FirstRecord | Needs::Nothing => {}
        }
        self.needs = if running.oldest == running.next {
            Needs::Nothing
        } else {
            Needs::RecordAfter(running.next)
        };
    }

    /// Whether a record written now can move the builder, or enough time has gone by to try what
    /// can't be seen from outside: VACUUM's own transaction counts in a record but not in a
    /// snapshot, and somebody else's record may have moved the builder.
    ///
    /// A creator that is still reading its way to the last record needs no other, however many
    /// transactions have come and gone meanwhile.
    pub fn wants_record(
        &self,
        running: Running,
        waiting: Waiting,
        now: Timestamp,
        nudge_interval: Duration,
    ) -> bool {
        if waiting == Waiting::ForTransaction {
            return false;
        }
        // A clock that was set back must not put it off for ever.
        let overdue = now < self.last || now.since(self.last) >= nudge_interval;
        let (useful, try_anyway) = match self.needs {
            Needs::FirstRecord => (true, overdue),
            Needs::RecordAfter(bound) => {
                let ended = !running.oldest.precedes(bound);
                // Where waits are seen, a creator that is not seen to wait does not.
                (ended, overdue && (ended || self.waits == Waits::Seen))
            }
            Needs::Nothing => (false, overdue),
        };
        let enough = match self.waits {
            Waits::Seen => 1,
            Waits::Unseen => STEPS,
        };
        (useful && self.unanswered < enough) || try_anyway
    }

    /// Whether a running transaction must end before the slot can be usable. `lasting`: it has run
    /// for so long that it will still run when the builder reaches its next phase, which then
    /// waits for it.
    pub fn must_end(&self, xid: Xid, lasting: bool) -> bool {
        let in_this_phase = match self.needs {
            Needs::RecordAfter(bound) => xid.precedes(bound),
            Needs::FirstRecord | Needs::Nothing => false,
        };
        in_this_phase
            || match self.phase {
                Phase::First => lasting,
                Phase::Second => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tick of the worker while a slot is being built, and the distance between safety records,
    /// both in the model's microseconds.
    const TICK: i64 = 20_000;
    const INTERVAL: Duration = Duration::from_secs(10);

    /// `SnapBuildFindSnapshot`, without the parts that a slot's creation never takes.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Builder {
        Start,
        Building(Xid),
        Full(Xid),
        Consistent,
    }

    impl Builder {
        fn decode(self, record: Running) -> Self {
            match self {
                _ if record.oldest == record.next => Self::Consistent,
                Self::Start => Self::Building(record.next),
                Self::Building(bound) if !record.oldest.precedes(bound) => Self::Full(record.next),
                Self::Full(bound) if !record.oldest.precedes(bound) => Self::Consistent,
                Self::Building(_) | Self::Full(_) | Self::Consistent => self,
            }
        }

        /// Whether a record could move it now.
        fn can_move(self, record: Running) -> bool {
            self.decode(record) != self
        }
    }

    /// A server on which transactions begin and end.
    #[derive(Debug)]
    struct Server {
        next: u32,
        running: Vec<Xid>,
        now: i64,
    }

    impl Server {
        /// `first`: the next xid, often just before the wrap-around.
        fn new(first: u32) -> Self {
            Self {
                next: first.max(3),
                running: Vec::new(),
                now: 0,
            }
        }

        fn begin(&mut self) {
            let xid = self.next_xid();
            self.running.push(xid);
            self.next = self.next.wrapping_add(1).max(3);
        }

        fn end(&mut self, choice: usize) {
            if !self.running.is_empty() {
                self.running.remove(choice % self.running.len());
            }
        }

        fn next_xid(&self) -> Xid {
            Xid::new(self.next).expect("a normal xid")
        }

        fn running(&self) -> Running {
            Running {
                oldest: self.running.first().copied().unwrap_or(self.next_xid()),
                next: self.next_xid(),
            }
        }

        fn now(&self) -> Timestamp {
            Timestamp::new(self.now)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        End(usize),
        Tick,
        /// Time in which the worker does not come round.
        Pause,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                3 => Just(Step::Begin),
                3 => any::<usize>().prop_map(Step::End),
                4 => Just(Step::Tick),
                1 => Just(Step::Pause),
            ],
            0..80,
        )
    }

    /// How many transactions run when the creation begins, at most.
    const MOST_BEFORE: usize = 5;

    fn first_xid() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), u32::MAX - 40..=u32::MAX, 3..40u32]
    }

    /// Every transaction ends, and the worker comes round often enough for three records and one
    /// of the safety net.
    fn and_then_all_end(mut steps: Vec<Step>) -> Vec<Step> {
        steps.extend((0..steps.len() + MOST_BEFORE).map(|_| Step::End(0)));
        steps.extend((0..1000).map(|_| Step::Tick));
        steps
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Nobody but us writes records, and the creator's wait cannot be seen: a standby whose
        /// primary rests.
        #[test]
        fn leads_a_silent_builder_to_the_end(first in first_xid(), before in 0..=MOST_BEFORE, steps in steps()) {
            let mut server = Server::new(first);
            (0..before).for_each(|_| server.begin());
            let mut builder = Builder::Start;
            let mut schedule = Schedule::without_record(server.now());
            let mut records = 0;
            for step in and_then_all_end(steps) {
                match step {
                    Step::Begin => server.begin(),
                    Step::End(choice) => server.end(choice),
                    Step::Pause => server.now += TICK * 50,
                    Step::Tick => {
                        server.now += TICK;
                        let running = server.running();
                        if builder != Builder::Consistent
                            && schedule.wants_record(running, Waiting::NotKnown, server.now(), INTERVAL)
                        {
                            prop_assert!(builder.can_move(running), "wasted on {builder:?}: {running:?}");
                            builder = builder.decode(running);
                            schedule.recorded(running, server.now());
                            records += 1;
                        }
                    }
                }
            }
            prop_assert_eq!(builder, Builder::Consistent);
            prop_assert!(records <= 3, "{records} records");
        }

        /// The creator writes its own records after each wait, which nobody flushes but us and,
        /// now and then, the WAL writer; and it may take long to read up to them: a primary.
        #[test]
        fn flushes_for_a_builder_that_writes_itself(
            first in first_xid(),
            before in 0..=MOST_BEFORE,
            steps in steps(),
            wal_writer in prop::collection::vec(any::<bool>(), 100),
            reads in prop::collection::vec(prop::bool::weighted(0.2), 100),
        ) {
            let mut server = Server::new(first);
            (0..before).for_each(|_| server.begin());
            // The first record is flushed by the creator.
            let mut creator = Creator::new(server.running(), &server.running);
            let mut schedule: Option<Schedule> = None;
            let mut wal_writer = wal_writer.into_iter().cycle();
            let mut reads = reads.into_iter().chain(std::iter::repeat(true));
            let (mut records, mut safety) = (0, 0);
            for step in and_then_all_end(steps) {
                match step {
                    Step::Begin => server.begin(),
                    Step::End(choice) => server.end(choice),
                    Step::Pause => server.now += TICK * 50,
                    Step::Tick => server.now += TICK,
                }
                creator.go_on(&server);
                if matches!(step, Step::Pause) && wal_writer.next() == Some(true) {
                    creator.flush();
                }
                if reads.next() == Some(true) {
                    creator.read(&server);
                }
                if !matches!(step, Step::Tick) || creator.builder == Builder::Consistent {
                    continue;
                }
                let running = server.running();
                let Some(schedule) = &mut schedule else {
                    schedule = Some(Schedule::with_own_record(running, server.now()));
                    continue;
                };
                let waiting = creator.waiting();
                if waiting == Waiting::ForTransaction {
                    schedule.creator_waits(running);
                }
                if schedule.wants_record(running, waiting, server.now(), INTERVAL) {
                    prop_assert!(creator.waits_for.is_empty());
                    if server.now().since(schedule.last) >= INTERVAL {
                        safety += 1;
                    }
                    creator.written.push((running, server.running.clone()));
                    creator.flush();
                    schedule.recorded(running, server.now());
                    records += 1;
                }
            }
            prop_assert_eq!(creator.builder, Builder::Consistent);
            prop_assert!(records <= 3 + safety, "{records} records, {safety} of them for safety");
        }
    }

    /// A creator on a primary: its builder, the transactions that it waits for
    /// (`SnapBuildWaitSnapshot`) and the records that it has not read yet, each with the transactions
    /// it names.
    struct Creator {
        builder: Builder,
        waits_for: Vec<Xid>,
        written: Vec<(Running, Vec<Xid>)>,
        /// How many of them it can read.
        flushed: usize,
    }

    impl Creator {
        fn new(record: Running, named: &[Xid]) -> Self {
            let mut creator = Self {
                builder: Builder::Start,
                waits_for: Vec::new(),
                written: Vec::new(),
                flushed: 0,
            };
            creator.decode(record, named);
            creator
        }

        fn decode(&mut self, record: Running, named: &[Xid]) {
            let before = self.builder;
            self.builder = before.decode(record);
            if self.builder != before && self.builder != Builder::Consistent {
                self.waits_for = named.to_vec();
            }
        }

        /// Once the transactions that it waits for have ended, it writes a record.
        fn go_on(&mut self, server: &Server) {
            if self.waits_for.is_empty() {
                return;
            }
            self.waits_for.retain(|xid| server.running.contains(xid));
            if self.waits_for.is_empty() {
                self.written
                    .push((server.running(), server.running.clone()));
            }
        }

        /// All that was written becomes readable.
        fn flush(&mut self) {
            self.flushed = self.written.len();
        }

        /// Decodes what is readable, up to the next wait.
        fn read(&mut self, server: &Server) {
            while self.waits_for.is_empty() && self.flushed > 0 {
                let (record, named) = self.written.remove(0);
                self.flushed -= 1;
                self.decode(record, &named);
                self.go_on(server);
            }
        }

        fn waiting(&self) -> Waiting {
            if self.waits_for.is_empty() {
                Waiting::NotKnown
            } else {
                Waiting::ForTransaction
            }
        }
    }

    fn xid(xid: u32) -> Xid {
        Xid::new(xid).expect("a normal xid")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::new(seconds * 1_000_000)
    }

    #[test]
    fn a_record_is_repeated_only_after_the_interval() {
        let idle = Running {
            oldest: xid(700),
            next: xid(700),
        };
        let mut schedule = Schedule::without_record(at(0));
        let wants = |schedule: &Schedule, seconds| {
            schedule.wants_record(idle, Waiting::NotKnown, at(seconds), INTERVAL)
        };
        assert!(wants(&schedule, 0));
        schedule.recorded(idle, at(0));
        assert!(!wants(&schedule, 9));
        assert!(wants(&schedule, 10));
        schedule.recorded(idle, at(10));
        assert!(!wants(&schedule, 19));
    }

    #[test]
    fn no_record_while_the_creator_waits_for_a_transaction() {
        let idle = Running {
            oldest: xid(700),
            next: xid(700),
        };
        let schedule = Schedule::without_record(at(0));
        assert!(!schedule.wants_record(idle, Waiting::ForTransaction, at(3600), INTERVAL));
    }

    #[test]
    fn later_transactions_must_end_too_until_the_second_phase() {
        let mut schedule = Schedule::with_own_record(
            Running {
                oldest: xid(700),
                next: xid(702),
            },
            at(0),
        );
        assert!(schedule.must_end(xid(700), false));
        assert!(
            !schedule.must_end(xid(702), false),
            "it may end before it matters"
        );
        assert!(schedule.must_end(xid(702), true));

        // 700 has ended and the creator waits for 702.
        schedule.creator_waits(Running {
            oldest: xid(702),
            next: xid(705),
        });
        assert!(schedule.must_end(xid(702), false));
        assert!(!schedule.must_end(xid(705), true));
    }
}
