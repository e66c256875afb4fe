//! A page's text is whole, whoever writes and reads it at the same time.
//!
//! Each of several sessions runs the same code, as the worker and the views' sessions do. A text says
//! of itself whether it is whole: it is one byte over and over, as often as that byte tells.

use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::session::Session;
use super::shared::SUBJECT;
use crate::ledger;

const ROOM: usize = 256 << 10;
/// For how long is written and read. Without the lock the first torn text comes within a
/// hundredth of that.
const HAMMERED_FOR: Duration = Duration::from_millis(300);
const ROUNDS: u32 = 200_000;

fn text_of(byte: u8) -> Vec<u8> {
    vec![byte; ROOM - usize::from(byte) * 64]
}

fn is_whole(text: &[u8]) -> bool {
    // A comparison of memory, which is fast in a debug build too.
    text.first().is_none_or(|byte| {
        text.len() == text_of(*byte).len() && text[1..] == text[..text.len() - 1]
    })
}

/// Run by other sessions: writes one text after the other.
#[pg_extern]
fn hammer_writes() {
    let texts: Vec<_> = (1..=9).map(text_of).collect();
    let begun = Instant::now();
    while begun.elapsed() < HAMMERED_FOR {
        for text in &texts {
            assert!(SUBJECT.set(text));
        }
        check_for_interrupts!();
    }
}

/// Run by other sessions: reads, and fails at the first text that is not whole.
#[pg_extern]
fn hammer_reads() {
    let begun = Instant::now();
    while begun.elapsed() < HAMMERED_FOR {
        assert!(is_whole(&SUBJECT.text()), "a torn text");
        check_for_interrupts!();
    }
}

/// Run by other sessions.
#[pg_extern]
fn hammer_counts() {
    for _ in 0..ROUNDS {
        ledger::count(|counters| counters.healed += 1);
    }
}

fn all_at_once(functions: &[&str]) {
    let mut sessions: Vec<_> = functions.iter().map(|_| Session::open()).collect();
    for (session, function) in sessions.iter_mut().zip(functions) {
        session.start(&format!("SELECT tests.{function}()"));
    }
    for session in &mut sessions {
        session.finish().expect("a whole text at each look");
    }
}

#[pg_test]
fn no_reader_gets_a_torn_text() {
    SUBJECT.set(b"");
    all_at_once(&["hammer_writes", "hammer_reads", "hammer_reads"]);
    assert!(is_whole(&SUBJECT.text()) && !SUBJECT.text().is_empty());
}

#[pg_test]
fn writers_do_not_mix_their_texts() {
    SUBJECT.set(b"");
    all_at_once(&["hammer_writes", "hammer_writes", "hammer_reads"]);
    assert!(is_whole(&SUBJECT.text()) && !SUBJECT.text().is_empty());
}

#[pg_test]
fn a_text_that_does_not_fit_leaves_the_page_as_it_was() {
    assert!(SUBJECT.set(&[7; ROOM]), "as much as there is room for");
    assert_eq!(SUBJECT.text(), [7; ROOM]);
    assert!(SUBJECT.set(b"short"));
    assert_eq!(SUBJECT.text(), b"short", "nothing of the longer one");
    assert!(!SUBJECT.set(&[8; ROOM + 1]));
    assert_eq!(SUBJECT.text(), b"short");
    assert!(Session::open().run("SELECT tests.page_is_short()").len() == 1);
}

/// Run by another session.
#[pg_extern]
fn page_is_short() {
    assert_eq!(SUBJECT.text(), b"short", "in another process");
}

#[pg_test]
fn a_page_leaves_no_lock_behind() {
    // A lock that is held counts.
    // SAFETY: a count of this process's own.
    let holds = || unsafe { pg_sys::InterruptHoldoffCount };
    assert_eq!(holds(), 0);
    SUBJECT.set(b"text");
    assert_eq!(holds(), 0, "after a write");
    SUBJECT.set(&[8; ROOM + 1]);
    assert_eq!(holds(), 0, "after what did not fit");
    SUBJECT.text();
    assert_eq!(holds(), 0, "after a look");
}

#[pg_test]
fn no_count_is_lost() {
    let before = ledger::worker().counters.healed;
    all_at_once(&["hammer_counts"; 3]);
    let counted = ledger::worker().counters.healed - before;
    assert_eq!(counted, u64::from(3 * ROUNDS));
}
