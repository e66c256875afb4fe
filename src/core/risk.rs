//! When a slot will be lost to `max_slot_wal_keep_size` if WAL is written on as it is now.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observation::Slot;
use super::time::Timestamp;
use super::xid::Lsn;

/// Less is not worth waking somebody for.
const SOON: Duration = Duration::from_secs(3600);
/// Between two samples of the WAL's position.
const SAMPLE: Duration = Duration::from_secs(1);
/// The time that the rate is taken over. A burst says little about the next hour.
const SAMPLES: usize = 60;
/// The least of it from which a rate is told.
const FEWEST: usize = 3;
/// As long after the last sample it may be told: none is taken while no slot is being created.
const FRESH: Duration = Duration::from_secs(10);

/// How fast WAL is written, or, on a standby, replayed, while slots are being created.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WalRate {
    /// The oldest first.
    samples: VecDeque<(Timestamp, Lsn)>,
}

impl WalRate {
    pub fn observe(&mut self, position: Lsn, now: Timestamp) {
        match self.samples.back() {
            Some((last, _)) if now >= *last && now.since(*last) < SAMPLE => return,
            // The clock was set back, or another server's WAL is followed.
            Some((last, before)) if now < *last || position < *before => self.samples.clear(),
            // Nobody has measured for a while.
            Some((last, _)) if now.since(*last) > FRESH => self.samples.clear(),
            Some(_) | None => {}
        }
        self.samples.push_back((now, position));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// Bytes a second; `None` as long as that can't be told.
    pub fn per_second(&self, now: Timestamp) -> Option<u64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        if now.since(last.0) > FRESH {
            return None;
        }
        let seconds = last.0.since(first.0).as_secs();
        if self.samples.len() < FEWEST {
            return None;
        }
        last.1
            .get()
            .saturating_sub(first.1.get())
            .checked_div(seconds)
    }
}

/// A slot that will be lost soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Risk {
    /// By the next checkpoint: as much WAL as it may hold back was written.
    Now,
    Within {
        time: Duration,
        /// Bytes that may still be written.
        left: u64,
        /// Bytes a second.
        rate: u64,
    },
}

/// Whether this slot will be lost soon.
pub fn of(slot: &Slot, rate: &WalRate, now: Timestamp) -> Option<Risk> {
    let left = match u64::try_from(slot.safe_wal_size?) {
        Ok(0) | Err(_) => return Some(Risk::Now),
        Ok(left) => left,
    };
    let rate = rate.per_second(now)?;
    let time = Duration::from_secs(left.checked_div(rate)?);
    (time <= SOON).then_some(Risk::Within { time, left, rate })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::observation::Progress;
    use super::*;

    const MEGABYTE: u64 = 1 << 20;

    /// A megabyte a second for so many seconds.
    fn rate(seconds: u32) -> WalRate {
        let mut rate = WalRate::default();
        for tick in 0..seconds * 50 {
            let position = Lsn::new((1 << 30) + u64::from(tick) * MEGABYTE / 50);
            rate.observe(position, at(i64::from(tick) * 20));
        }
        rate
    }

    fn safe(bytes: Option<i64>) -> Slot {
        Slot {
            safe_wal_size: bytes,
            ..slot("x", Progress::Usable)
        }
    }

    #[test]
    fn the_rate_is_taken_over_some_time() {
        assert_eq!(rate(2).per_second(at(2000)), None);
        assert_eq!(rate(3).per_second(at(3000)), Some(MEGABYTE));
        let mut rate = rate(300);
        assert_eq!(rate.per_second(at(300_000)), Some(MEGABYTE));
        assert_eq!(rate.samples.len(), SAMPLES);
        // Then nothing for a minute.
        let position = rate.samples.back().expect("samples").1;
        for second in 300..360 {
            rate.observe(position, at(second * 1000));
        }
        assert_eq!(rate.per_second(at(360_000)), Some(0));
    }

    #[test]
    fn a_clock_set_back_begins_anew() {
        let mut rate = rate(10);
        rate.observe(Lsn::new(1 << 31), at(0));
        assert_eq!(rate.per_second(at(0)), None);
    }

    #[test]
    fn a_rate_of_long_ago_says_nothing() {
        assert_eq!(rate(10).per_second(at(19_000)), Some(MEGABYTE));
        assert_eq!(rate(10).per_second(at(21_000)), None);
    }

    #[test]
    fn a_slot_is_at_risk_if_it_is_lost_within_an_hour() {
        let hour = 3600 * MEGABYTE.cast_signed();
        let within = |seconds| Risk::Within {
            time: Duration::from_secs(seconds),
            left: seconds * MEGABYTE,
            rate: MEGABYTE,
        };
        assert_eq!(
            of(&safe(Some(hour)), &rate(10), at(10_000)),
            Some(within(3600))
        );
        let later = hour + MEGABYTE.cast_signed();
        assert_eq!(of(&safe(Some(later)), &rate(10), at(10_000)), None);
        assert_eq!(of(&safe(Some(-5)), &rate(10), at(10_000)), Some(Risk::Now));
        // max_slot_wal_keep_size is -1, or nothing is known of the rate.
        assert_eq!(of(&safe(None), &rate(10), at(10_000)), None);
        assert_eq!(of(&safe(Some(hour)), &rate(1), at(1000)), None);
    }
}
