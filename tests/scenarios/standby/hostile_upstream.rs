//! An upstream that is no honest server: what it sends neither holds anybody up
//! nor makes anybody grow.

use std::{io, thread, time::Duration};

use harness::{Asked, Creator, Done, FakeUpstream, PATIENCE, Pid, Setup, Wire, wait_until};

use super::{Pair, SLOT, TRY_SOON, ask_now, network::check_it_looks_on, upstream::check_said_once};
use crate::{Major, primary};

scenarios!(on_majors_with_standby_slots:
    copy_out = is_survived(Misdeed::CopyOut),
    copy_out_and_its_data = is_survived(Misdeed::CopyData),
    copy_in = is_survived(Misdeed::CopyIn),
    copy_both = is_survived(Misdeed::CopyBoth),
    rows_without_end = is_survived(Misdeed::Rows),
    empty_rows_without_end = is_survived(Misdeed::EmptyRows),
    nulls_without_end = is_survived(Misdeed::Nulls),
    one_row_of_a_gigabyte = is_survived(Misdeed::OneRow),
    one_error_of_ten_megabytes = is_survived(Misdeed::OneError),
    results_without_end = is_survived(Misdeed::Results),
    errors_without_end = is_survived(Misdeed::Errors),
    notices_without_end = is_survived(Misdeed::Notices),
    parameters_without_end = is_survived(Misdeed::Parameters),
    notifications_without_end = is_survived(Misdeed::Notifications),
    one_byte_now_and_then = is_survived(Misdeed::Bytes),
    silence = is_survived(Misdeed::Silence),
    end_in_a_row = is_survived(Misdeed::End),
    no_protocol = is_survived(Misdeed::Garbage),
    more_than_the_answer = is_survived(Misdeed::AfterReady),
    rows_that_are_none_of_ours = is_survived(Misdeed::OtherColumns),
    refusal_without_end = is_survived(Misdeed::EndlessRefusal),
    questions_for_the_password_without_end = is_survived(Misdeed::Passwords),
    parameters_without_end_before_it_lets_in = is_survived(Misdeed::EarlyParameters),
    one_byte_now_and_then_before_it_lets_in = is_survived(Misdeed::EarlyBytes),
);
on_majors_with_standby_slots!(
    limits_are_kept_meanwhile,
    healthy_answers_of_many_transactions,
);

#[derive(Clone, Copy, Debug)]
enum Misdeed {
    CopyOut,
    CopyData,
    CopyIn,
    CopyBoth,
    Rows,
    EmptyRows,
    Nulls,
    OneRow,
    OneError,
    Results,
    Errors,
    Notices,
    Parameters,
    Notifications,
    Bytes,
    Silence,
    End,
    Garbage,
    AfterReady,
    OtherColumns,
    /// From here on: before a session is open.
    EndlessRefusal,
    Passwords,
    EarlyParameters,
    EarlyBytes,
}

impl Misdeed {
    fn is_done_at(self, asked: &Asked<'_>) -> bool {
        use Misdeed::*;
        match (self, asked) {
            (EndlessRefusal | Passwords | EarlyParameters | EarlyBytes, Asked::Startup(_)) => true,
            (EndlessRefusal | Passwords | EarlyParameters | EarlyBytes, Asked::Query(_)) => false,
            (_, Asked::Startup(_)) => false,
            // what it asks after it knows whom it talks to
            (_, Asked::Query(query)) => query.contains("backend_xid"),
        }
    }

    /// Goes on until the client closes the connection.
    fn be_done(self, to: &mut Wire) -> io::Result<()> {
        const MEGABYTE: usize = 1 << 20;
        /// How many small messages are sent at a time.
        const MANY: usize = 1000;
        let no_columns = [0, 0, 0];
        match self {
            Misdeed::CopyOut => {
                to.message(b'H', &no_columns)?;
                to.wait_for_end()
            }
            Misdeed::CopyData => {
                to.message(b'H', &no_columns)?;
                loop {
                    to.message(b'd', &vec![b'x'; MEGABYTE])?;
                }
            }
            Misdeed::CopyIn => {
                to.message(b'G', &no_columns)?;
                to.wait_for_end()
            }
            Misdeed::CopyBoth => {
                to.message(b'W', &no_columns)?;
                to.wait_for_end()
            }
            Misdeed::Rows => {
                to.columns(&["xid"])?;
                loop {
                    to.row(&[Some(&"7".repeat(MEGABYTE))])?;
                }
            }
            Misdeed::EmptyRows => {
                to.columns(&[])?;
                loop {
                    to.bytes(&[b'D', 0, 0, 0, 6, 0, 0].repeat(MANY))?;
                }
            }
            Misdeed::Nulls => {
                to.columns(&["c"; 1600])?;
                loop {
                    to.row(&[None; 1600])?;
                }
            }
            Misdeed::OneRow => {
                to.columns(&["xid"])?;
                to.bytes(&[b'D', 0x40, 0, 0, 0, 0, 1, 0x3f, 0xff, 0xff, 0])?;
                loop {
                    to.bytes(&vec![b'7'; MEGABYTE])?;
                }
            }
            Misdeed::OneError => {
                to.error("ERROR", "XX000", &"why? ".repeat(2 * MEGABYTE))?;
                to.ready()?;
                to.wait_for_end()
            }
            Misdeed::Results => loop {
                to.bytes(b"C\0\0\0\x08SET\0".repeat(MANY).as_slice())?;
            },
            Misdeed::Errors => loop {
                to.error("ERROR", "XX000", &"no ".repeat(MANY))?;
            },
            Misdeed::Notices => loop {
                to.notice(&"look ".repeat(MANY))?;
            },
            Misdeed::Parameters => (0..).try_for_each(|n| to.parameter(&format!("p{n}"), "on")),
            Misdeed::Notifications => loop {
                to.notification("channel", &"n".repeat(MANY))?;
            },
            Misdeed::Bytes => drip(to, b"T\0\0\x10\0"),
            Misdeed::Silence => to.wait_for_end(),
            Misdeed::End => {
                to.columns(&["xid", "pid"])?;
                to.bytes(&[b'D', 0, 0, 0, 30, 0, 2])
            }
            Misdeed::Garbage => {
                to.bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
                to.wait_for_end()
            }
            Misdeed::AfterReady => {
                to.columns(&["xid"])?;
                to.complete("SELECT 0")?;
                to.ready()?;
                loop {
                    to.row(&[Some(&"7".repeat(MEGABYTE))])?;
                }
            }
            Misdeed::OtherColumns => {
                to.columns(&["xid", "pid"])?;
                to.row(&[Some("none"), None])?;
                to.complete("SELECT 1")?;
                to.ready()?;
                to.wait_for_end()
            }
            Misdeed::EndlessRefusal => {
                // as a server of old said it: no length, no end
                to.bytes(b"ECould not ")?;
                loop {
                    to.bytes(&vec![b'x'; MEGABYTE])?;
                }
            }
            Misdeed::Passwords => loop {
                let md5 = [b'R', 0, 0, 0, 12, 0, 0, 0, 5, 1, 2, 3, 4];
                to.bytes(&md5.repeat(MANY))?;
            },
            Misdeed::EarlyParameters => {
                to.message(b'R', &[0; 4])?;
                (0..).try_for_each(|n| to.parameter(&format!("p{n}"), "on"))
            }
            Misdeed::EarlyBytes => drip(to, b"R\0\0\0"),
        }
    }
}

/// The bytes once, and then zeros, one by one, so slowly that nothing comes of it.
fn drip(to: &mut Wire, bytes: &[u8]) -> io::Result<()> {
    let mut bytes = bytes.iter().chain(std::iter::repeat(&0));
    bytes.try_for_each(|byte| {
        thread::sleep(Duration::from_millis(100));
        to.bytes(&[*byte])
    })
}

/// A standby that asks an upstream which does this.
#[track_caller]
fn pair_with(misdeed: Misdeed, standby: Setup, major: Major) -> (Pair, FakeUpstream) {
    let primary = primary(major);
    let fake = FakeUpstream::before(primary.port(), move |asked, to| {
        if !misdeed.is_done_at(asked) {
            return Ok(Done::PassOn);
        }
        to.begins();
        misdeed.be_done(to)?;
        Ok(Done::Answered)
    });
    let standby = standby.conf(TRY_SOON).conf(&format!(
        "slot_self_heal.primary_conninfo = 'host=127.0.0.1 port={} user=postgres password=x'",
        fake.port()
    ));
    (Pair::of(primary, standby), fake)
}

/// Waits until it does it once more, and so somebody is just being served.
#[track_caller]
fn wait_for_another(fake: &FakeUpstream) {
    let before = fake.answered();
    wait_until("the upstream to misbehave again", PATIENCE, || {
        fake.answered() > before
    });
}

/// Of what an answer may bring, twice: as libpq has it and as the worker takes it.
const MOST_GROWTH: usize = 64 << 20;

#[track_caller]
fn check_it_did_not_grow(pid: Pid, before: usize) {
    let grown = pid.peak_memory().saturating_sub(before);
    assert!(grown < MOST_GROWTH, "grown by {grown} bytes");
}

fn is_survived(misdeed: Misdeed, major: Major) {
    let (mut pair, fake) = pair_with(misdeed, Setup::new(major), major);
    let worker = pair
        .standby
        .wait_for_worker("a worker", |worker| worker.pid.is_some());
    let worker = worker.pid.expect("waited for");
    let before = worker.peak_memory();
    let mut creation = pair.create(Creator::Walsender);
    pair.standby
        .wait_for_worker("an upstream that is of no use", |worker| {
            worker.upstream.as_deref() == Some("unreachable") && worker.hint.is_some()
        });
    wait_for_another(&fake);
    check_it_looks_on(&pair);
    check_it_did_not_grow(worker, before);
    let error = pair.standby.worker().last_error.expect("it says why");
    assert!(error.len() < 1000, "{} bytes: {error}", error.len());
    let longest = pair.standby.worker_log().iter().map(String::len).max();
    assert!(
        longest < Some(2000),
        "{longest:?} bytes in a line of the log"
    );

    in_a_session(&pair, &fake);
    is_ended(&pair, &fake);

    ask_now(&pair.standby, "");
    pair.finish(&mut creation);
    check_said_once(&pair.standby);

    // and so is the server
    ask_now(
        &pair.standby,
        &format!(
            "host=127.0.0.1 port={} user=postgres password=x",
            fake.port()
        ),
    );
    let again = Creator::Walsender.start(&pair.standby, "another_slot");
    wait_for_another(&fake);
    pair.standby.stop_fast();
    drop(again);
}

/// A session that asks gets an error, soon or, when it is cancelled, sooner.
#[track_caller]
fn in_a_session(pair: &Pair, fake: &FakeUpstream) {
    const NUDGE: &str = "SELECT slot_self_heal_nudge()";
    let mut session = pair.standby.connect();
    let before = session.pid().peak_memory();
    let error = session.error(NUDGE);
    assert_eq!(error.code, "08006", "{error}");
    assert!(error.message.len() < 1000, "{} bytes", error.message.len());
    assert!(!error.hint.is_empty(), "{error}");
    check_it_did_not_grow(session.pid(), before);

    let before = fake.answered();
    let mut asking = session.start(NUDGE);
    wait_until("it to ask", PATIENCE, || fake.answered() > before);
    asking.cancel();
    let error = asking.result().expect_err("there is no answer");
    // the end of its statement may have come first
    assert!(["57014", "08006"].contains(&error.code.as_str()), "{error}");
}

/// The worker, told to end, does so in the middle of it.
#[track_caller]
fn is_ended(pair: &Pair, fake: &FakeUpstream) {
    wait_for_another(fake);
    let old = pair.standby.worker().pid.expect("it runs");
    let terminated = pair
        .standby
        .is_true(&format!("SELECT pg_terminate_backend({old}, 10000)"));
    assert!(terminated, "it did not end");
    pair.standby.wait_for_worker("a new worker", |worker| {
        worker.pid.is_some_and(|pid| pid != old)
    });
}

/// However long the upstream takes, a creation is cancelled when its time is over.
fn limits_are_kept_meanwhile(major: Major) {
    let standby = Setup::new(major).conf("slot_self_heal.creation_timeout = 3s");
    let (pair, fake) = pair_with(Misdeed::Notices, standby, major);
    let mut creation = pair.create(Creator::Walsender);
    let finished = pair.standby.wait_for_end_of(SLOT);
    assert_eq!(finished.outcome, "cancelled by slot_self_heal");
    assert!(creation.finish().is_err());
    assert!(fake.answered() > 0);
}

/// What an honest server may have to say is not too much.
fn healthy_answers_of_many_transactions(major: Major) {
    const LONG: usize = 900_000;
    let primary = crate::with_extension(
        Setup::new(major)
            .conf("track_activity_query_size = 1MB")
            .conf("max_connections = 60"),
    );
    let pair = Pair::of(primary, Setup::new(major).conf("max_connections = 60"));
    let blocking: Vec<_> = (0..30)
        .map(|_| {
            let mut session = pair.primary.connect();
            session.run("BEGIN");
            session.run(&format!(
                "SELECT pg_current_xact_id() /* {} */",
                "long ".repeat(LONG / 5)
            ));
            session
        })
        .collect();
    let mut creation = pair.create(Creator::Walsender);
    let oldest = blocking[0].pid();
    let status = pair
        .standby
        .wait_for_status(SLOT, "the blockers", |status| {
            status.blockers.len() == blocking.len()
        });
    assert!(status.has_blocker(oldest));
    let query = status.blockers[0].query.as_deref().unwrap_or_default();
    assert!(query.starts_with("SELECT pg_current_xact_id()"), "{query}");
    drop(blocking);
    pair.finish(&mut creation);
    assert_eq!(pair.standby.worker().last_error, None);
}
