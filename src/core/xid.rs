//! Transaction ids and WAL positions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 32-bit transaction id, as in `pg_stat_activity.backend_xid` and in running-xacts records.
///
/// Ids wrap around, so they have no total order: of two ids the one that comes less than 2^31
/// before the other precedes it (`TransactionIdPrecedes`, `transam.c`). The permanent ids below
/// [`Xid::FIRST_NORMAL`] never stand for a running transaction, so they cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Xid(u32);

impl Xid {
    /// `FirstNormalTransactionId` (`transam.h`).
    const FIRST_NORMAL: u32 = 3;

    /// `None` for a permanent id, 0 ("no transaction") among them.
    pub fn new(xid: u32) -> Option<Self> {
        (xid >= Self::FIRST_NORMAL).then_some(Self(xid))
    }

    /// The id that Postgres's `age()` counted from when it gave this for the first normal one: the
    /// distance, negative from 2^31 on (`xid_age`, `xid.c`).
    pub fn from_age_of_first(age: i32) -> Option<Self> {
        Self::new(Self::FIRST_NORMAL.wrapping_add_signed(age))
    }

    pub fn precedes(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() < 0
    }

    /// The id that is given out after this one.
    pub fn following(self) -> Self {
        Self(self.0.wrapping_add(1).max(Self::FIRST_NORMAL))
    }

    pub fn or_later(self, other: Self) -> Self {
        if self.precedes(other) { other } else { self }
    }

    /// How many ids lie between this one and `next`, the id that will be handed out next. Sorts
    /// transactions by age: all running ones lie within 2^31 of it.
    pub fn age(self, next: Self) -> u32 {
        next.0.wrapping_sub(self.0)
    }

    /// The number itself, for messages and JSON.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text that is not a transaction id or not a WAL position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl FromStr for Xid {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        text.parse().ok().and_then(Self::new).ok_or(Malformed)
    }
}

/// A WAL position, in bytes since the beginning of the WAL (type `pg_lsn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(u64);

impl Lsn {
    pub fn new(lsn: u64) -> Self {
        Self(lsn)
    }

    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (high, low) = text.split_once('/').ok_or(Malformed)?;
        let half = |digits| u32::from_str_radix(digits, 16).map_err(|_| Malformed);
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn permanent_ids_are_refused() {
        for xid in 0..3 {
            assert_eq!(Xid::new(xid), None);
            assert_eq!(xid.to_string().parse::<Xid>(), Err(Malformed));
        }
        assert!(Xid::new(3).is_some());
    }

    #[test]
    fn each_normal_id_has_its_distance_from_the_first() {
        for (age, xid) in [
            (0, 3),
            (i32::MAX, 0x8000_0002),
            (i32::MIN, 0x8000_0003),
            (-4, u32::MAX),
        ] {
            assert_eq!(Xid::from_age_of_first(age), Some(Xid(xid)));
        }
        for permanent in -3..0 {
            assert_eq!(Xid::from_age_of_first(permanent), None);
        }
    }

    #[test]
    fn order_survives_wrap_around() {
        let before = Xid(u32::MAX - 5);
        let after = Xid(10);
        assert!(before.precedes(after));
        assert!(!after.precedes(before));
        assert!(before.age(after) == 16 && after.age(after) == 0);
    }

    proptest! {
        #[test]
        fn exactly_one_of_two_precedes(a: u32, distance in 1..i32::MAX.cast_unsigned()) {
            let (a, b) = (Xid(a), Xid(a.wrapping_add(distance)));
            prop_assert!(a.precedes(b) && !b.precedes(a) && !a.precedes(a));
        }

        #[test]
        fn lsn_reads_what_it_writes(lsn: u64) {
            prop_assert_eq!(Lsn(lsn).to_string().parse(), Ok(Lsn(lsn)));
        }
    }

    #[test]
    fn lsn_is_written_as_postgres_does() {
        assert_eq!(Lsn(0x0001_0000_03B0).to_string(), "1/3B0");
        for text in ["", "1", "1/", "/1", "1/G", "1/2/3", "123456789/0"] {
            assert_eq!(text.parse::<Lsn>(), Err(Malformed), "{text}");
        }
    }
}
