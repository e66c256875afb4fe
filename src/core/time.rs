//! Points in time and how long things took.

use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds since 2000-01-01 00:00 UTC, as the server's own `TimestampTz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    pub fn new(microseconds: i64) -> Self {
        Self(microseconds)
    }

    pub fn get(self) -> i64 {
        self.0
    }

    /// The time from `earlier` until this; zero if the clock was set back in between.
    pub fn since(self, earlier: Self) -> Duration {
        let microseconds = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
    }
}

/// How far the clock was set, in microseconds; negative if it was set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(i64);

impl Step {
    /// Less may be nothing but the time between a look at one clock and a look at the other.
    const LEAST: Duration = Duration::from_secs(5);

    /// Between two looks at the clock, `passed` being the time that has really gone by.
    pub fn between(earlier: Timestamp, later: Timestamp, passed: Duration) -> Option<Self> {
        let shown = later.0.saturating_sub(earlier.0);
        let passed = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        let step = shown.saturating_sub(passed);
        (u128::from(step.unsigned_abs()) >= Self::LEAST.as_micros()).then_some(Self(step))
    }
}

impl AddAssign<Step> for Timestamp {
    fn add_assign(&mut self, step: Step) {
        self.0 = self.0.saturating_add(step.0);
    }
}

/// A length of time in words short enough for a log line: `850 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (large, small) = match seconds {
        0 => return format!("{} ms", duration.as_millis()),
        1..60 => return format!("{seconds} s"),
        60..3600 => ((seconds / 60, "min"), (seconds % 60, "s")),
        3600..86_400 => ((seconds / 3600, "h"), (seconds % 3600 / 60, "min")),
        _ => ((seconds / 86_400, "d"), (seconds % 86_400 / 3600, "h")),
    };
    match small {
        (0, _) => format!("{} {}", large.0, large.1),
        _ => format!("{} {} {} {}", large.0, large.1, small.0, small.1),
    }
}

/// An amount of WAL as Postgres would write it, rounded: `96 MB`, `1.5 GB`.
pub fn in_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "kB", "MB", "GB"];
    let mut unit = UNITS[0];
    let mut rest = 0;
    let mut amount = bytes;
    for larger in &UNITS[1..] {
        if amount < 1024 {
            break;
        }
        (amount, rest, unit) = (amount / 1024, amount % 1024 * 10 / 1024, larger);
    }
    if rest > 0 && amount < 10 {
        format!("{amount}.{rest} {unit}")
    } else {
        format!("{amount} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_gives_no_negative_time() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
        assert_eq!(
            Timestamp(i64::MIN).since(Timestamp(i64::MAX)),
            Duration::ZERO
        );
        assert_eq!(Timestamp(9).since(Timestamp(5)), Duration::from_micros(4));
    }

    #[test]
    fn a_step_is_what_the_clock_shows_too_much() {
        let second = |seconds: i64| Timestamp(seconds * 1_000_000);
        let between =
            |shown, passed| Step::between(second(0), second(shown), Duration::from_secs(passed));
        assert_eq!(between(10, 10), None);
        assert_eq!(between(3610, 10), Some(Step(3_600_000_000)));
        assert_eq!(between(-3590, 10), Some(Step(-3_600_000_000)));
        let almost = Duration::from_millis(5_001);
        assert_eq!(Step::between(second(0), second(10), almost), None);
    }

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!(in_bytes(56), "56 bytes");
        assert_eq!(in_bytes(1023 << 10), "1023 kB");
        assert_eq!(in_bytes(3 << 19), "1.5 MB");
        assert_eq!(in_bytes(96 << 20), "96 MB");
        assert_eq!(in_bytes(2 << 40), "2048 GB");
    }

    #[test]
    fn words_follow_the_size() {
        let words = |seconds| in_words(Duration::from_secs(seconds));
        assert_eq!(in_words(Duration::from_millis(850)), "850 ms");
        assert_eq!(words(12), "12 s");
        assert_eq!(words(60), "1 min");
        assert_eq!(words(200), "3 min 20 s");
        assert_eq!(words(7500), "2 h 5 min");
        assert_eq!(words(200_000), "2 d 7 h");
    }
}
