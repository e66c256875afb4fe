//! A client that gives up and tries again: creations of one slot, one after the other.
//!
//! Zero gives up after 29 s, Debezium after 90 s, Patroni after 2 s, and each begins anew. To whoever
//! reads the log or the history that is one thing that goes on, not one a try.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::episode::Waited;
use super::history::Finished;
use super::limit::Reason;
use super::observation::{CreatorIdentity, SlotName};
use super::time::{Step, Timestamp, in_words};

/// The least time between two log lines of a story. Blockers end one by one, many a second on a busy
/// server, and a client may try every second, for days: each line doubles the time until the next,
/// up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// After so long without a try the next one begins another story. A client that makes its own pauses
/// longer and longer has twice the longest of them so far.
const SILENCE: Duration = Duration::from_secs(600);
const LONGEST_SILENCE: Duration = Duration::from_secs(86_400);

/// How many stories are remembered between two tries: as many as there are creations in the history.
pub const REMEMBERED: usize = 128;

/// The tries of one client to create one slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Story {
    /// When the first of them was first seen.
    pub began: Timestamp,
    /// The same as the clock had it, which may have been set since: no other story of the slot has it.
    id: Timestamp,
    /// How many there were, the one that goes on included.
    pub tries: u32,
    /// Of those that are over.
    pub ends: Ends,
    pub waited: Waited,
    pub nudges: u32,
    pub max_retained_wal: i64,
    /// The longest time between two tries.
    silence: Duration,
    /// When the log last had a line about it, and for how long there is none from then on.
    told: Option<(Timestamp, Duration)>,
    /// One for each setting that had a try cancelled.
    told_of: Vec<Reason>,
}

/// How many tries ended how, without a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The slot vanished, and not for us: its client gave up, or somebody ended it.
    pub by_client: u32,
    pub by_us: u32,
    /// The slot is there, and unusable.
    pub otherwise: u32,
}

/// A story between two tries, while there is no creation to remember it with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unfinished {
    pub slot: SlotName,
    /// Of the last try.
    creator: CreatorIdentity,
    /// When the last try ended.
    pub ended: Timestamp,
    pub story: Story,
    /// The log knows of the story, but not of this end.
    pub is_untold: bool,
}

impl Story {
    pub fn begin(now: Timestamp) -> Self {
        Self {
            began: now,
            id: now,
            tries: 1,
            ends: Ends::default(),
            waited: Waited::default(),
            nudges: 0,
            max_retained_wal: 0,
            silence: Duration::ZERO,
            told: None,
            told_of: Vec::new(),
        }
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// The clock was set: no time has passed.
    pub fn clock_was_set(&mut self, step: Step) {
        self.began += step;
        if let Some((at, _)) = &mut self.told {
            *at += step;
        }
    }

    /// Whether any line of the log is about it.
    pub fn was_told(&self) -> bool {
        self.told.is_some()
    }

    /// Whether the log may have another line about it.
    pub fn may_be_told(&self, now: Timestamp) -> bool {
        self.told.is_none_or(|(at, pause)| now.since(at) >= pause)
    }

    pub fn tell(&mut self, now: Timestamp) {
        let pause = match self.told {
            None => PAUSE,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
        };
        self.told = Some((now, pause));
    }

    /// Whether no try was cancelled before that setting said so: what is done to somebody is said
    /// at once.
    pub fn is_news(&mut self, reason: &Reason) -> bool {
        let is_named = |told: &Reason| told.setting() == reason.setting();
        let is_news = !self.told_of.iter().any(is_named);
        if is_news {
            self.told_of.push(reason.clone());
        }
        is_news
    }

    /// `10th try in 23 s, each ended by its client`, of a try that goes on or has just ended; `None`
    /// of the first.
    pub fn of_try(&self, now: Timestamp) -> Option<String> {
        (self.tries > 1).then(|| {
            let time = in_words(now.since(self.began));
            format!("{} try in {time}{}", ordinal(self.tries), self.ends)
        })
    }

    /// `10 tries in 23 s, each ended by its client`, of a story that is over.
    pub fn of_tries(&self, ended: Timestamp) -> String {
        let time = in_words(ended.since(self.began));
        format!("{} tries in {time}{}", self.tries, self.ends)
    }
}

impl fmt::Display for Ends {
    /// Empty, or with a comma before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.by_client, "ended by its client"),
            (self.by_us, "cancelled by slot_self_heal"),
            (self.otherwise, "left an unusable slot"),
        ];
        let mut counts = counts.into_iter().filter(|(count, _)| *count > 0);
        match (counts.next(), counts.next()) {
            (None, _) => Ok(()),
            (Some((1, how)), None) => write!(f, ", the first {how}"),
            (Some((_, how)), None) => write!(f, ", each {how}"),
            (Some(first), Some(second)) => [first, second]
                .into_iter()
                .chain(counts)
                .try_for_each(|(count, how)| write!(f, ", {count} {how}")),
        }
    }
}

/// `1st`, `2nd`, `3rd`, `4th`
pub fn ordinal(number: u32) -> String {
    let suffix = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}

impl Unfinished {
    /// After a try that ended without a slot.
    pub fn new(finished: &Finished) -> Self {
        let episode = &finished.episode;
        Self {
            slot: episode.slot.clone(),
            creator: episode.creator.clone(),
            ended: finished.ended,
            is_untold: episode.story.was_told() && !finished.is_worth_telling,
            story: episode.story.clone(),
        }
    }

    /// The clock was set: no time has passed.
    pub fn clock_was_set(&mut self, step: Step) {
        self.ended += step;
        self.story.clock_was_set(step);
    }

    /// Whether its client has been silent for so long that the next try is another story.
    pub fn is_over(&self, now: Timestamp) -> bool {
        let silence = (self.story.silence * 2).clamp(SILENCE, LONGEST_SILENCE);
        now.since(self.ended) > silence
    }

    /// Whether a creation of this slot by this creator is the next try. Each try has a process or
    /// a statement of its own; what stays is the role, the application and the address.
    pub fn goes_on_with(&self, slot: &SlotName, creator: &CreatorIdentity) -> bool {
        let who = |creator: &CreatorIdentity| {
            (
                creator.usename.clone(),
                creator.application_name.clone(),
                creator.client_addr.clone(),
            )
        };
        self.slot == *slot && who(&self.creator) == who(creator)
    }

    /// The next try begins.
    pub fn next_try(&self, now: Timestamp) -> Story {
        Story {
            tries: self.story.tries.saturating_add(1),
            silence: self.story.silence.max(now.since(self.ended)),
            ..self.story.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::history::{self, Outcome};
    use super::super::observation::{
        Connection, Creator, CreatorWait, Pid, Progress, Slot, Transaction,
    };
    use super::super::time::Step;
    use super::super::watch::{Change, Watch};
    use super::super::xid::Lsn;
    use super::super::{episode::Nudge, episode::Telling};
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// A client that tries to create `x`, each time with another process.
    struct Client {
        creator: Creator,
    }

    impl Client {
        fn new(application: &str) -> Self {
            let mut creator = creator();
            creator.identity.application_name = application.into();
            Self { creator }
        }

        fn slot(&mut self) -> Slot {
            slot("x", Progress::Building(Box::new(self.creator.clone())))
        }

        fn reconnects(&mut self) {
            let pid = self.creator.identity.pid.get() + 1;
            self.creator.identity.pid = Pid::new(pid).expect("a pid");
        }
    }

    /// What is told of one after the other.
    #[derive(Default)]
    struct Told {
        watch: Watch,
        history: Vec<Finished>,
        lines: Vec<&'static str>,
    }

    impl Told {
        fn see(&mut self, milliseconds: i64, slots: Vec<Slot>, others: Vec<Transaction>) {
            for change in self.watch.update(&observation(milliseconds, slots, others)) {
                match change {
                    Change::Waits(Telling::First, _) => self.lines.push("first"),
                    Change::Waits(Telling::Again, _) => self.lines.push("again"),
                    Change::Waits(Telling::NextTry, _) => self.lines.push("next try"),
                    Change::Abandoned(_) => self.lines.push("abandoned"),
                    Change::Ended(finished) => {
                        if finished.is_worth_telling {
                            self.lines.push(finished.outcome.as_str());
                        }
                        history::add(&mut self.history, vec![*finished]);
                    }
                }
            }
        }

        /// A try that waits for a transaction until its client gives up.
        fn tries(&mut self, client: &mut Client, from: i64, until: i64) {
            client.reconnects();
            self.see(from, vec![client.slot()], vec![session(700, 1)]);
            self.see(until, Vec::new(), vec![session(700, 1)]);
        }

        /// The same as many times, each 2 s after the one before.
        fn tries_again(&mut self, client: &mut Client, tries: i64) {
            for number in 0..tries {
                self.tries(client, number * 2000, number * 2000 + 1500);
            }
        }

        fn is_built(&self) -> &Story {
            let slot = SlotName::new("x");
            &self.watch.episodes.get(&slot).expect("an episode").story
        }
    }

    #[test]
    fn tries_are_one_story() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        told.tries_again(&mut client, 10);
        // After pauses of 1, 2, 4 and 8 s.
        let lines = [
            "first", "gone", "next try", "gone", "next try", "gone", "next try", "gone",
            "next try", "gone",
        ];
        assert_eq!(told.lines, lines);

        let [row] = told.history.as_slice() else {
            panic!("{:?}", told.history);
        };
        let story = &row.episode.story;
        assert_eq!(
            (story.tries, story.began, row.ended),
            (10, at(0), at(19_500))
        );
        assert_eq!(story.waited.for_transactions, Duration::from_secs(15));
        assert_eq!(row.outcome, Outcome::Gone);
        assert_eq!(
            (row.blockers.len(), row.held_up_by),
            (1, Some((xid(700), 1)))
        );

        client.reconnects();
        told.see(23_000, vec![client.slot()], vec![session(700, 1)]);
        let words = told.is_built().of_try(at(23_000)).expect("not the first");
        assert_eq!(words, "11th try in 23 s, each ended by its client");
    }

    #[test]
    fn an_hour_of_tries_is_twenty_lines() {
        let mut told = Told::default();
        told.tries_again(&mut Client::new("zero"), 1800);
        // Ten while the pause doubles, then one in five minutes, and as many ends.
        assert_eq!(told.lines.len(), 2 * (10 + 10));
        assert_eq!(told.history.len(), 1);
        assert_eq!(told.history[0].episode.story.tries, 1800);
    }

    #[test]
    fn a_story_ends_with_the_slot() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        told.tries_again(&mut client, 3);
        told.lines.clear();
        // Nothing is said of it but the end.
        client.reconnects();
        client.creator.wait = CreatorWait::Working;
        told.see(6000, vec![client.slot()], Vec::new());
        told.see(6500, vec![slot("x", Progress::Usable)], Vec::new());
        assert_eq!(told.lines, ["ready"]);
        let [row] = told.history.as_slice() else {
            panic!("{:?}", told.history);
        };
        assert_eq!((row.outcome, row.episode.story.tries), (Outcome::Ready, 4));
        assert_eq!(row.episode.story.began, at(0));
        assert_eq!((row.blockers.len(), row.reason()), (1, None));

        // The slot was dropped, and is created once more.
        told.tries(&mut client, 7000, 8000);
        assert_eq!(told.history.len(), 2);
        assert_eq!(told.history[1].episode.story.tries, 1);
    }

    #[test]
    fn another_client_has_a_story_of_its_own() {
        let role = |client: &mut Client| client.creator.identity.usename = None;
        let application = |client: &mut Client| client.creator.identity.application_name.clear();
        let address = |client: &mut Client| client.creator.identity.client_addr = None;
        for change in [role as fn(&mut Client), application, address] {
            let mut told = Told::default();
            let mut one = Client::new("zero");
            let mut other = Client::new("zero");
            change(&mut other);
            // They take turns.
            for turn in 0..4 {
                told.tries(&mut one, turn * 4000, turn * 4000 + 1500);
                told.tries(&mut other, turn * 4000 + 2000, turn * 4000 + 3500);
            }
            let tries: Vec<_> = told
                .history
                .iter()
                .map(|row| row.episode.story.tries)
                .collect();
            assert_eq!(tries, [4, 4]);
            assert_eq!(told.watch.unfinished.len(), 2);
        }
    }

    #[test]
    fn whoever_gets_the_slot_ends_the_others_stories() {
        let mut told = Told::default();
        told.tries_again(&mut Client::new("zero"), 3);
        told.see(8000, vec![Client::new("debezium").slot()], Vec::new());
        told.see(8100, vec![slot("x", Progress::Usable)], Vec::new());
        assert!(told.watch.unfinished.is_empty());
        assert_eq!(told.history.len(), 2);
    }

    #[test]
    fn another_slot_has_a_story_of_its_own() {
        let mut told = Told::default();
        told.see(
            0,
            vec![building("x", CreatorWait::Transaction)],
            vec![session(700, 1)],
        );
        told.see(
            1000,
            vec![building("y", CreatorWait::Transaction)],
            vec![session(700, 1)],
        );
        told.see(2000, Vec::new(), Vec::new());
        let tries: Vec<_> = told
            .history
            .iter()
            .map(|row| row.episode.story.tries)
            .collect();
        assert_eq!(tries, [1, 1]);
    }

    #[test]
    fn after_a_long_silence_it_is_another_story() {
        let tries_after = |pauses: &[i64]| {
            let mut told = Told::default();
            let mut client = Client::new("zero");
            let mut from = 0;
            told.tries(&mut client, from, from + 1000);
            for pause in pauses {
                from += pause + 1000;
                told.tries(&mut client, from, from + 1000);
            }
            let rows = told.history.iter();
            rows.map(|row| row.episode.story.tries).collect::<Vec<_>>()
        };
        let minute = 60_000;
        assert_eq!(tries_after(&[10 * minute]), [2]);
        assert_eq!(tries_after(&[10 * minute + 1]), [1, 1]);
        // One that backs off.
        assert_eq!(tries_after(&[8 * minute, 16 * minute, 32 * minute]), [4]);
        assert_eq!(tries_after(&[8 * minute, 16 * minute + 1]), [2, 1]);
    }

    #[test]
    fn silence_is_told_where_the_last_tries_were_not() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        told.tries_again(&mut client, 5);
        assert!(
            told.watch
                .forget_silent(at(8000 + 1500 + 600_000))
                .is_empty()
        );
        let over = told.watch.forget_silent(at(8000 + 1500 + 600_001));
        assert!(
            matches!(over.as_slice(), [story] if !story.is_untold),
            "{over:?}"
        );
        assert!(told.watch.unfinished.is_empty());

        let mut told = Told::default();
        told.tries_again(&mut client, 7);
        let over = told.watch.forget_silent(at(HOUR));
        let [silent] = over.as_slice() else {
            panic!("{over:?}");
        };
        assert!(silent.is_untold);
        let words = silent.story.of_tries(silent.ended);
        assert_eq!(words, "7 tries in 13 s, each ended by its client");
    }

    #[test]
    fn a_slot_that_is_there_ends_the_story() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        told.tries_again(&mut client, 3);
        assert!(told.watch.take_made(|_| None).is_empty());
        let lsn = Lsn::new(1 << 24);
        let made = told
            .watch
            .take_made(|slot| (slot.as_str() == "x").then_some(lsn));
        let [(unfinished, restart_lsn)] = made.as_slice() else {
            panic!("{made:?}");
        };
        assert_eq!(*restart_lsn, lsn);
        let story = unfinished.next_try(at(7000));
        let row = told.history.remove(0).made_unseen(&story, lsn, at(7000));
        assert!(row.is_of(&SlotName::new("x"), &story));
        assert_eq!((row.outcome, row.episode.story.tries), (Outcome::Ready, 4));

        // Somebody else creates it at the moment: the next scan tells.
        told.tries_again(&mut client, 1);
        let mut other = Client::new("debezium");
        told.see(20_000, vec![other.slot()], vec![session(700, 1)]);
        assert!(told.watch.take_made(|_| Some(lsn)).is_empty());
    }

    #[test]
    fn a_story_outlives_the_worker_and_the_clock() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        told.tries_again(&mut client, 3);
        let text = serde_json::to_string(&told.watch).expect("serializable");
        told.watch = serde_json::from_str(&text).expect("its own text");
        let step = Step::between(at(6000), at(6000 - HOUR), Duration::ZERO).expect("a step");
        told.watch.clock_was_set(step);
        told.tries(&mut client, 6000 - HOUR, 7500 - HOUR);
        let [row] = told.history.as_slice() else {
            panic!("{:?}", told.history);
        };
        assert_eq!(row.episode.story.tries, 4);
        assert_eq!(
            row.ended.since(row.episode.story.began),
            Duration::from_millis(7500)
        );
    }

    #[test]
    fn what_is_done_to_a_client_is_told_once_a_setting() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        let timeout = Reason::Timeout(Duration::from_secs(1));
        let cancelled_for = |told: &mut Told, client: &mut Client, from, reason: &Reason| {
            client.reconnects();
            told.see(from, vec![client.slot()], vec![session(700, 1)]);
            let says = told
                .watch
                .cancelled(&SlotName::new("x"), reason.clone(), at(from));
            // Once more, where it did not help.
            assert!(
                !told
                    .watch
                    .cancelled(&SlotName::new("x"), reason.clone(), at(from))
            );
            told.see(from + 100, Vec::new(), vec![session(700, 1)]);
            says
        };
        let said: Vec<_> = (0..5)
            .map(|number| cancelled_for(&mut told, &mut client, number * 1000, &timeout))
            .collect();
        assert_eq!(said, [true, true, false, true, false]);
        let abandoned = Reason::Abandoned;
        assert!(cancelled_for(&mut told, &mut client, 5000, &abandoned));
        assert!(!cancelled_for(&mut told, &mut client, 6000, &abandoned));
        let cancelled = told
            .lines
            .iter()
            .filter(|line| line.starts_with("cancelled"));
        assert_eq!(
            cancelled.count(),
            4,
            "of those that were told: {:?}",
            told.lines
        );

        let [row] = told.history.as_slice() else {
            panic!("{:?}", told.history);
        };
        assert_eq!(row.outcome, Outcome::Cancelled);
        let reason = "slot_self_heal.cancel_abandoned: its client has closed the connection";
        assert_eq!(row.reason().as_deref(), Some(reason));
        assert_eq!(row.episode.story.ends.by_us, 7);
    }

    #[test]
    fn a_client_that_is_gone_is_told_with_its_try() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        for number in 0..5 {
            let from = number * 5000;
            client.reconnects();
            client.creator.connection = Connection::Open;
            told.see(from, vec![client.slot()], vec![session(700, 1)]);
            client.creator.connection = Connection::Closed;
            told.see(from + 1000, vec![client.slot()], vec![session(700, 1)]);
            told.see(from + 2000, vec![client.slot()], vec![session(700, 1)]);
            told.see(from + 2100, Vec::new(), vec![session(700, 1)]);
        }
        let of_one = |first| [first, "abandoned", "gone"];
        let lines: Vec<_> = ["first", "next try", "next try", "next try"]
            .map(of_one)
            .concat();
        assert_eq!(told.lines, lines);
        let reason = told.history[0].reason();
        assert_eq!(reason.as_deref(), Some("its client closed the connection"));
    }

    #[test]
    fn the_first_record_of_a_story_is_told() {
        let mut told = Told::default();
        let mut client = Client::new("zero");
        let name = [SlotName::new("x")];
        for number in 0..3 {
            let from = number * 2000;
            client.reconnects();
            told.see(from, vec![client.slot()], vec![session(700, 1)]);
            let seen = observation(from, vec![client.slot()], vec![session(700, 1)]);
            let nudge = Nudge {
                at: at(from),
                lsn: Lsn::new(1),
            };
            let first = told.watch.recorded(&name, nudge, &seen);
            assert_eq!(first.len(), usize::from(number == 0));
            told.see(from + 1500, Vec::new(), vec![session(700, 1)]);
        }
        assert_eq!(told.history[0].episode.story.nudges, 3);
    }

    #[test]
    fn nothing_grows_with_the_slots_that_were_tried() {
        let mut told = Told::default();
        for number in 0..1000 {
            let slots = vec![building(&format!("s{number}"), CreatorWait::Transaction)];
            told.see(number * 1000, slots, vec![session(700, 1)]);
        }
        told.see(1_000_000, Vec::new(), Vec::new());
        assert_eq!(told.watch.unfinished.len(), REMEMBERED);
        let size = |watch: &Watch| serde_json::to_vec(watch).expect("serializable").len();
        let limit = size(&told.watch) / 2;
        let mut part = told.watch.clone();
        part.shrink_until(|part| size(part) <= limit);
        assert!(size(&part) <= limit);
        let latest = part
            .unfinished
            .last()
            .map(|unfinished| unfinished.slot.as_str());
        assert_eq!(latest, Some("s999"), "the latest stay");
    }

    #[test]
    fn words_count() {
        let ends = |by_client, by_us, otherwise| {
            let ends = Ends {
                by_client,
                by_us,
                otherwise,
            };
            ends.to_string()
        };
        assert_eq!(ends(0, 0, 0), "");
        assert_eq!(ends(1, 0, 0), ", the first ended by its client");
        assert_eq!(ends(0, 2, 0), ", each cancelled by slot_self_heal");
        assert_eq!(
            ends(7, 1, 2),
            ", 7 ended by its client, 1 cancelled by slot_self_heal, 2 left an unusable slot"
        );
        let numbers = [1, 2, 3, 4, 10, 11, 12, 13, 21, 101, 111, 122];
        let words = numbers.map(ordinal).join(" ");
        assert_eq!(
            words,
            "1st 2nd 3rd 4th 10th 11th 12th 13th 21st 101st 111th 122nd"
        );
    }
}
