//! When another running-xacts record can move a slot's creation on.
//!
//! The creator's snapshot builder takes one step at most for each record that it decodes
//! (`SnapBuildFindSnapshot`, `snapbuild.c`):
//!
//! ```text
//!       oldestRunningXid >= N0    oldestRunningXid >= N1    oldestRunningXid >= N2
//!  START ────────────────► BUILDING ────────────────► FULL ────────────────► CONSISTENT
//!    │    N1 = its nextXid       N2 = its nextXid                                ▲
//!    └────── a record of N0 or later that names no running transaction ──────────┘
//! ```
//!
//! `N0` is the slot's `catalog_xmin`: on a standby the id that the next transaction had when the
//! creation began, or older if another slot keeps an older one (`GetOldestSafeDecodingTransactionId`,
//! `procarray.c`). A primary writes the first record itself, with nothing older than that running.
//!
//! So one to three records suffice, each only once the transactions that ran at the one before
//! have ended, and any other record is wasted. The builder's phase is private to its process;
//! [`Schedule`] follows it from outside. Records of others move a builder as well. They need not
//! be seen: each of ours is written when the transactions of our last one have ended, and so have
//! those of any record before it. Whatever others did, it takes a step.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observation::Running;
use super::time::{Step, Timestamp};
use super::upstream::Relay;
use super::xid::{Lsn, Xid};

/// How often a record is asked for once more while one is on its way through another standby, which
/// can't tell whether that was lost. With the first that makes the three that a slot may need.
const REPEATS: u32 = 2;

/// What is seen of the creator's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    ForTransaction,
    /// On a primary, where a wait for a transaction would be seen. A record that moved the builder
    /// shows there: the creator waits again, or is ready.
    ForAnythingElse,
    /// On a standby, a walsender: for WAL, and so not for a transaction.
    ForWal,
    /// On a standby otherwise: for a transaction or for WAL.
    NotKnown,
}

/// Follows one slot's builder.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Schedule {
    phase: Phase,
    /// The next record is of use once all transactions before this one have ended. `None`: no
    /// record is known to be of use, as the last one named no running transaction, or was the last
    /// that can be needed.
    needs: Option<Xid>,
    /// Records of ours since the creator was last seen to wait for a transaction.
    unanswered: u32,
    /// The last record, or its arrival, or the creation's first sight.
    last: Timestamp,
    /// The last record, while it is on its way from the upstream.
    in_flight: Option<Flight>,
    /// Records that were asked for while another was on its way through a standby, all in all.
    repeated: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Start,
    /// Whatever runs when this phase ends will be waited for as well.
    Building,
    /// Only what ran when it was reached is waited for.
    Full,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Flight {
    /// Where the record ends in the WAL.
    lsn: Lsn,
    /// Whether it is known what the record says.
    read: bool,
    /// When it was asked for, or the first of several on their way.
    since: Timestamp,
    /// What the upstream, being itself a standby, last said of itself, and when.
    relay: Option<(Relay, Timestamp)>,
}

impl Flight {
    /// Whether the upstream, which receives WAL, had not received it so long after `sent`.
    fn may_be_lost(&self, sent: Timestamp, patience: Duration) -> bool {
        self.relay.is_some_and(|(relay, at)| {
            at.since(sent) >= patience && relay.receives && relay.received < self.lsn
        })
    }
}

impl Schedule {
    /// For a creator on a standby, whose records somebody else has to write.
    ///
    /// `horizon`: the slot's `catalog_xmin`. Records that name an older transaction are passed over.
    pub fn without_record(horizon: Xid, now: Timestamp) -> Self {
        Self {
            phase: Phase::Start,
            needs: Some(horizon),
            unanswered: 0,
            last: now,
            in_flight: None,
            repeated: 0,
        }
    }

    /// For a creator on a primary, which writes the first record itself before it waits
    /// (`ReplicationSlotReserveWal`, `slot.c`). `running` as at first sight, which may come
    /// later: what began in between, and is not known to, is taken for running at the record.
    pub fn with_own_record(running: Running, now: Timestamp) -> Self {
        let mut schedule = Self {
            phase: Phase::Start,
            needs: None,
            unanswered: 0,
            last: now,
            in_flight: None,
            repeated: 0,
        };
        schedule.recorded(running, now);
        schedule.unanswered = 0;
        schedule
    }

    /// The creator waits for a transaction's end, so it has decoded a record that named some.
    pub fn creator_waits(&mut self, running: Running) {
        self.unanswered = 0;
        match self.needs {
            Some(bound) if running.oldest.precedes(bound) => return,
            // Those of the last record have ended, and the creator waits again: it took a step.
            Some(_) => self.phase = self.phase.next(),
            None => {}
        }
        self.needs = Some(running.next);
    }

    /// A record was written that says `running`.
    pub fn recorded(&mut self, running: Running, now: Timestamp) {
        self.unanswered += 1;
        self.last = now;
        if self.waits_for_transactions(running) {
            return;
        }
        // As the builder does: a record without a running transaction is the last one needed, and
        // so is one that ends the last phase.
        let is_last = running.is_idle() || self.phase == Phase::Full;
        self.needs = (!is_last).then_some(running.next);
        self.phase = self.phase.next();
    }

    /// An upstream wrote a record that ends at `lsn`. Where it is not known what it says, that is
    /// taken from the standby's own view when it has been replayed.
    pub fn requested(&mut self, lsn: Lsn, running: Option<Running>, now: Timestamp) {
        self.last = now;
        self.repeated += u32::from(self.in_flight.is_some_and(|before| !before.read));
        self.in_flight = Some(Flight {
            lsn,
            read: running.is_some(),
            since: self.in_flight.map_or(now, |before| before.since),
            relay: None,
        });
        if let Some(running) = running {
            self.recorded(running, now);
        }
    }

    /// The standby has replayed WAL up to `replayed`.
    pub fn replayed(&mut self, replayed: Lsn, running: Running, now: Timestamp) {
        if let Some(flight) = self.in_flight.take_if(|flight| flight.lsn <= replayed) {
            self.last = now;
            if !flight.read {
                self.recorded(running, now);
            }
        }
    }

    /// The upstream, itself a standby, said so much of itself.
    pub fn relayed(&mut self, relay: Relay, at: Timestamp) {
        if let Some(flight) = &mut self.in_flight {
            flight.relay = Some((relay, at));
        }
    }

    /// Whether the record can't come because the upstream, itself a standby, receives nothing.
    pub fn is_cut_off(&self) -> bool {
        let relay = |flight: Flight| flight.relay.map(|(relay, _)| (relay, flight.lsn));
        self.in_flight
            .and_then(relay)
            .is_some_and(|(relay, lsn)| !relay.receives && relay.received < lsn)
    }

    /// The clock was set: no time has passed.
    pub fn clock_was_set(&mut self, step: Step) {
        self.last += step;
        if let Some(flight) = &mut self.in_flight {
            flight.since += step;
            if let Some((_, at)) = &mut flight.relay {
                *at += step;
            }
        }
    }

    /// Whether the record on its way is not part of the upstream's WAL, which ends at `position`:
    /// the server that wrote it is gone, and another one took over without it.
    pub fn is_lost(&self, position: Lsn) -> bool {
        self.in_flight.is_some_and(|flight| position < flight.lsn)
    }

    /// Whether a record has been on its way for so long.
    pub fn awaits_replay(&self, now: Timestamp, patience: Duration) -> bool {
        self.in_flight
            .is_some_and(|flight| now.since(flight.since) >= patience)
    }

    /// The record that is on its way.
    pub fn in_flight(&self) -> Option<Lsn> {
        self.in_flight.map(|flight| flight.lsn)
    }

    /// The standby was promoted: from now on waits are seen, and what was on its way may never
    /// arrive.
    pub fn promoted(&mut self, running: Running) {
        self.in_flight = None;
        self.unanswered = 0;
        self.needs = self.needs.or(Some(running.oldest));
    }

    /// Whether transactions must end before a record is of use, as far as is known.
    pub fn waits_for_transactions(&self, running: Running) -> bool {
        self.needs
            .is_some_and(|bound| running.oldest.precedes(bound))
    }

    /// Whether a record written now can move the builder, or enough time has gone by to try what
    /// can't be seen from outside: VACUUM's own transaction counts in a record but not in a
    /// snapshot, and somebody else's record may have moved the builder.
    ///
    /// A creator on a primary that is still reading its way to the last record needs no other,
    /// however many transactions have come and gone meanwhile.
    pub fn wants_record(
        &self,
        running: Running,
        waiting: Waiting,
        now: Timestamp,
        nudge_interval: Duration,
    ) -> bool {
        // A clock that was set back must not put it off for ever.
        let overdue = now < self.last || now.since(self.last) >= nudge_interval;
        let useful = self.needs.is_some() && !self.waits_for_transactions(running);
        let certain = match waiting {
            Waiting::ForTransaction => return false,
            Waiting::ForAnythingElse => return useful && self.unanswered == 0 || overdue,
            // Its last wait for transactions is over. In the first phase it may not have begun.
            Waiting::ForWal => self.phase != Phase::Start,
            Waiting::NotKnown => false,
        };
        match self.in_flight {
            Some(Flight { read: true, .. }) => useful,
            // Another standby passed it on. Should its primary have been replaced meanwhile, nothing
            // tells whether the new one has it.
            Some(flight) => {
                overdue && self.repeated < REPEATS && flight.may_be_lost(self.last, nudge_interval)
            }
            None => useful || overdue && (self.needs.is_none() || certain),
        }
    }

    /// Whether a running transaction must end before the builder leaves its present phase.
    pub fn waits_for(&self, xid: Xid) -> bool {
        self.needs.is_some_and(|bound| xid.precedes(bound))
    }

    /// Whether a running transaction must end before the slot can be usable. `lasting`: it has run
    /// for so long that it will still run when the builder reaches its next phase, which then
    /// waits for it.
    pub fn must_end(&self, xid: Xid, lasting: bool) -> bool {
        self.waits_for(xid)
            || match self.phase {
                Phase::Start | Phase::Building => lasting,
                Phase::Full => false,
            }
    }
}

impl Phase {
    fn next(self) -> Self {
        match self {
            Self::Start => Self::Building,
            Self::Building | Self::Full => Self::Full,
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
        /// With the slot's `catalog_xmin`.
        Start(Xid),
        Building(Xid),
        Full(Xid),
        Consistent,
    }

    impl Builder {
        fn decode(self, record: Running) -> Self {
            match self {
                Self::Start(horizon) if record.oldest.precedes(horizon) => self,
                _ if record.is_idle() => Self::Consistent,
                Self::Start(_) => Self::Building(record.next),
                Self::Building(bound) if !record.oldest.precedes(bound) => Self::Full(record.next),
                Self::Full(bound) if !record.oldest.precedes(bound) => Self::Consistent,
                Self::Building(_) | Self::Full(_) | Self::Consistent => self,
            }
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
        /// The same, and longer than the distance between safety records.
        Absence,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                3 => Just(Step::Begin),
                3 => any::<usize>().prop_map(Step::End),
                4 => Just(Step::Tick),
                1 => Just(Step::Pause),
                1 => Just(Step::Absence),
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

        /// A standby: whatever its replay lags behind, whoever else writes records, and however old
        /// what was last heard of the primary, no more than three of ours lead the builder to its
        /// end. None of them is wasted as long as nobody else writes any. One that has to come
        /// through another standby is asked for again twice at most, and not while that one
        /// receives nothing. If both arrive after all, or one for safety beside one of which it is
        /// not known what it says, the builder is further than is known, as after somebody else's.
        #[test]
        fn leads_a_standbys_builder_to_the_end(
            first in first_xid(),
            before in 0..=MOST_BEFORE,
            known in 0..=MOST_BEFORE,
            steps in steps(),
            standby_steps in prop::collection::vec(standby_step(), 200),
            tells_its_wait: bool,
            tells_the_record in prop::collection::vec(prop::bool::weighted(0.8), 20),
        ) {
            let mut server = Server::new(first);
            (0..before.min(known)).for_each(|_| server.begin());
            // Those that begin now are not yet replayed when the creation begins.
            let horizon = server.next_xid();
            let mut standby = Standby::new(&server, horizon);
            (known..before).for_each(|_| server.begin());
            let mut schedule = Schedule::without_record(horizon, server.now());
            let mut tells_the_record = tells_the_record.into_iter().cycle();
            let mut look = server.running();
            let (mut records, mut safety, mut foreign, mut repeats) = (0, 0, 0, 0);
            let mut relay_told = None;
            let standby_steps = standby_steps.into_iter().chain(std::iter::repeat(StandbyStep::CatchUp));
            for (step, standby_step) in and_then_all_end(steps).into_iter().zip(standby_steps) {
                match step {
                    Step::Begin => server.begin(),
                    Step::End(choice) => server.end(choice),
                    Step::Pause => server.now += TICK * 50,
                    Step::Absence => server.now += TICK * 600,
                    Step::Tick => server.now += TICK,
                }
                standby.receive(&server);
                match standby_step {
                    StandbyStep::Lag => {}
                    StandbyStep::CatchUp => {
                        standby.upstream_receives = true;
                        standby.relay();
                        standby.replay(usize::MAX);
                    }
                    StandbyStep::CutOff => standby.upstream_receives = false,
                    StandbyStep::Mend => standby.upstream_receives = true,
                    StandbyStep::Replay(count) => standby.replay(count),
                    StandbyStep::Look => look = server.running(),
                    StandbyStep::Foreign => {
                        standby.record(&server);
                        foreign += 1;
                    }
                }
                standby.relay();
                if !matches!(step, Step::Tick) || standby.builder == Builder::Consistent {
                    continue;
                }
                let running = standby.running().or_later(look);
                schedule.replayed(standby.replayed(), running, server.now());
                let waiting = match standby.waits() {
                    false if tells_its_wait => Waiting::ForWal,
                    _ => Waiting::NotKnown,
                };
                let is_old = relay_told.is_none_or(|at| server.now().since(at) >= INTERVAL);
                if schedule.awaits_replay(server.now(), INTERVAL) && is_old {
                    relay_told = Some(server.now());
                    schedule.relayed(standby.upstream(), server.now());
                    prop_assert!(!schedule.is_cut_off() || !standby.upstream_receives);
                }
                if schedule.wants_record(running, waiting, server.now(), INTERVAL) {
                    if schedule.in_flight.is_some_and(|flight| !flight.read) {
                        repeats += 1;
                        prop_assert!(!schedule.is_cut_off());
                    }
                    let end = standby.written();
                    if server.now().since(schedule.last) >= INTERVAL {
                        safety += 1;
                    } else {
                        records += 1;
                        prop_assert!(
                            foreign + repeats + safety > 0 || end.decode(server.running()) != end,
                            "wasted on {end:?}: {:?}", server.running()
                        );
                    }
                    standby.record(&server);
                    let says = (tells_the_record.next() == Some(true)).then(|| server.running());
                    schedule.requested(standby.end(), says, server.now());
                }
            }
            prop_assert_eq!(standby.builder, Builder::Consistent);
            prop_assert!(records <= 3, "{records} records, and {safety} for safety");
            prop_assert!(repeats <= REPEATS, "{repeats} repeated");
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
                    Step::Pause | Step::Absence => server.now += TICK * 50,
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

    #[derive(Clone, Debug)]
    enum StandbyStep {
        Lag,
        Replay(usize),
        CatchUp,
        /// The worker asks the primary for its transactions.
        Look,
        /// Somebody else writes a record.
        Foreign,
        /// The standby in between receives nothing any more.
        CutOff,
        /// It receives again.
        Mend,
    }

    fn standby_step() -> impl Strategy<Value = StandbyStep> {
        prop_oneof![
            4 => Just(StandbyStep::Lag),
            3 => (1..5usize).prop_map(StandbyStep::Replay),
            1 => Just(StandbyStep::CatchUp),
            1 => Just(StandbyStep::Look),
            1 => Just(StandbyStep::Foreign),
            1 => Just(StandbyStep::CutOff),
            1 => Just(StandbyStep::Mend),
        ]
    }

    /// A standby of another one, and the WAL of their primary: after each entry the transactions that
    /// run, and some of the entries are records.
    struct Standby {
        wal: Vec<(Running, Vec<Xid>, bool)>,
        /// Whether the one in between receives, and how many entries it has.
        upstream_receives: bool,
        upstream_received: usize,
        /// How many entries it has replayed.
        position: usize,
        builder: Builder,
        /// What the builder waits for (`SnapBuildWaitSnapshot`).
        waits_for: Vec<Xid>,
        /// Records that it has not read yet.
        unread: Vec<usize>,
    }

    impl Standby {
        fn new(server: &Server, horizon: Xid) -> Self {
            Self {
                wal: vec![(server.running(), server.running.clone(), false)],
                upstream_receives: true,
                upstream_received: 1,
                position: 1,
                builder: Builder::Start(horizon),
                waits_for: Vec::new(),
                unread: Vec::new(),
            }
        }

        fn receive(&mut self, server: &Server) {
            self.wal
                .push((server.running(), server.running.clone(), false));
        }

        fn record(&mut self, server: &Server) {
            self.wal
                .push((server.running(), server.running.clone(), true));
        }

        fn relay(&mut self) {
            if self.upstream_receives {
                self.upstream_received = self.wal.len();
            }
        }

        /// What the one in between says of itself.
        fn upstream(&self) -> Relay {
            Relay {
                received: Lsn::new(self.upstream_received as u64),
                receives: self.upstream_receives,
            }
        }

        fn replay(&mut self, count: usize) {
            for _ in 0..count.min(self.upstream_received - self.position) {
                if self.wal[self.position].2 {
                    self.unread.push(self.position);
                }
                self.position += 1;
                let (_, running, _) = &self.wal[self.position - 1];
                self.waits_for.retain(|xid| running.contains(xid));
                while self.waits_for.is_empty() && !self.unread.is_empty() {
                    self.read();
                }
            }
        }

        fn read(&mut self) {
            let (record, named, _) = self.wal[self.unread.remove(0)].clone();
            let before = self.builder;
            self.builder = before.decode(record);
            if self.builder != Builder::Consistent && (self.builder != before) {
                let (_, running, _) = &self.wal[self.position - 1];
                self.waits_for = named;
                self.waits_for.retain(|xid| running.contains(xid));
            }
        }

        /// What runs, as far as it has been replayed.
        fn running(&self) -> Running {
            self.wal[self.position - 1].0
        }

        fn replayed(&self) -> Lsn {
            Lsn::new(self.position as u64)
        }

        /// Where the last entry ends.
        fn end(&self) -> Lsn {
            Lsn::new(self.wal.len() as u64)
        }

        fn waits(&self) -> bool {
            !self.waits_for.is_empty()
        }

        /// The builder once it has read all that is written.
        fn written(&self) -> Builder {
            let unread = self.unread.iter().copied();
            let on_its_way = (self.position..self.wal.len()).filter(|&entry| self.wal[entry].2);
            unread
                .chain(on_its_way)
                .fold(self.builder, |builder, entry| {
                    builder.decode(self.wal[entry].0)
                })
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
                builder: Builder::Start(record.oldest),
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
                Waiting::ForAnythingElse
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

    fn idle() -> Running {
        Running {
            oldest: xid(700),
            next: xid(700),
        }
    }

    fn wants(schedule: &Schedule, running: Running, waiting: Waiting, seconds: i64) -> bool {
        schedule.wants_record(running, waiting, at(seconds), INTERVAL)
    }

    #[test]
    fn a_record_is_repeated_only_after_the_interval() {
        let mut schedule = Schedule::without_record(xid(700), at(0));
        let wants =
            |schedule: &Schedule, seconds| wants(schedule, idle(), Waiting::NotKnown, seconds);
        assert!(wants(&schedule, 0));
        schedule.recorded(idle(), at(0));
        assert!(!wants(&schedule, 9));
        assert!(wants(&schedule, 10));
        schedule.recorded(idle(), at(10));
        assert!(!wants(&schedule, 19));
    }

    #[test]
    fn the_interval_begins_when_the_record_has_arrived() {
        let mut schedule = Schedule::without_record(xid(700), at(0));
        schedule.requested(Lsn::new(50), Some(idle()), at(0));
        schedule.replayed(Lsn::new(49), idle(), at(60));
        assert!(!wants(&schedule, idle(), Waiting::ForWal, 60));
        schedule.replayed(Lsn::new(50), idle(), at(61));
        assert!(!wants(&schedule, idle(), Waiting::ForWal, 70));
        assert!(wants(&schedule, idle(), Waiting::ForWal, 71));
    }

    fn relay(received: u64, receives: bool) -> Relay {
        Relay {
            received: Lsn::new(received),
            receives,
        }
    }

    #[test]
    fn a_record_on_its_way_through_a_standby_is_repeated_twice_at_most() {
        let mut schedule = Schedule::without_record(xid(700), at(0));
        let wants =
            |schedule: &Schedule, seconds| wants(schedule, idle(), Waiting::ForWal, seconds);
        schedule.requested(Lsn::new(50), None, at(0));
        schedule.relayed(relay(49, true), at(9));
        assert!(!wants(&schedule, 60), "it was not asked for lately");
        for repeat in 1..=i64::from(REPEATS) {
            let now = repeat * 10;
            schedule.relayed(relay(60, true), at(now));
            assert!(!wants(&schedule, now), "it has come so far");
            schedule.relayed(relay(49, false), at(now));
            assert!(schedule.is_cut_off());
            schedule.relayed(relay(49, true), at(now));
            assert!(!schedule.is_cut_off());
            assert!(wants(&schedule, now));
            schedule.requested(Lsn::new(50), None, at(now));
            assert!(schedule.awaits_replay(at(now), INTERVAL), "of the first");
        }
        schedule.relayed(relay(49, true), at(3600));
        assert!(!wants(&schedule, 3600));
        schedule.replayed(Lsn::new(50), idle(), at(3600));
        assert!(wants(&schedule, 3610), "as any that has arrived");
    }

    #[test]
    fn a_record_that_the_new_primary_lacks_is_lost() {
        let mut schedule = Schedule::without_record(xid(700), at(0));
        assert!(!schedule.is_lost(Lsn::new(1)));
        schedule.requested(Lsn::new(50), Some(idle()), at(0));
        assert!(schedule.is_lost(Lsn::new(49)));
        assert!(!schedule.is_lost(Lsn::new(50)));
    }

    #[test]
    fn a_record_older_than_the_slot_allows_is_not_asked_for() {
        let old = Running {
            oldest: xid(690),
            next: xid(700),
        };
        let schedule = Schedule::without_record(xid(700), at(0));
        assert!(!wants(&schedule, old, Waiting::ForWal, 3600));
        assert!(schedule.must_end(xid(690), false));
        assert!(wants(&schedule, idle(), Waiting::ForWal, 0));
    }

    #[test]
    fn no_record_while_the_creator_waits_for_a_transaction() {
        let schedule = Schedule::without_record(xid(700), at(0));
        assert!(!wants(&schedule, idle(), Waiting::ForTransaction, 3600));
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
