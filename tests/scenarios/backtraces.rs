//! A RUST_BACKTRACE in the environment that the server is started in, as an
//! administrator's shell may have it, is nothing to a client.

use harness::{Blocker, Creator, Setup, SqlError};

use crate::{Major, break_the_scan, with_extension};

scenarios!(on_every_major:
    short = says_the_same("RUST_BACKTRACE", "1"),
    full = says_the_same("RUST_BACKTRACE", "full"),
    of_libraries = says_the_same("RUST_LIB_BACKTRACE", "1"),
);

fn says_the_same(variable: &str, value: &str, major: Major) {
    let usual = || Setup::new(major);
    let chatty = || Setup::new(major).environment(variable, value);
    assert_eq!(errors(chatty), errors(usual));
}

/// Errors of ours, and errors of Postgres that pass through us.
#[track_caller]
fn errors(setup: impl Fn() -> Setup) -> Vec<SqlError> {
    let not_preloaded = with_extension(setup().without_extension());
    let mut session = not_preloaded.connect();
    let mut errors = vec![
        session.error("TABLE slot_self_heal_status"),
        session.error("SELECT slot_self_heal_nudge()"),
    ];

    let without_wal = setup()
        .conf("wal_level = minimal")
        .conf("max_wal_senders = 0");
    let without_wal = with_extension(without_wal);
    errors.push(without_wal.connect().error("SELECT slot_self_heal_nudge()"));

    let broken = with_extension(setup());
    let mut superuser = break_the_scan(&broken);
    let ended = superuser.error("SELECT slot_self_heal_end_blocker('750', '1 s')");
    assert!(ended.message.contains("pg_prepared_xacts"), "{ended}");
    errors.push(ended);

    // the worker's own, in the log
    let blocking = Blocker::IdleInTransaction.start(&broken);
    let creation = Creator::Walsender.start(&broken, "cdc_slot");
    broken.wait_for_worker("the error", |worker| worker.last_error.is_some());
    for server in [&not_preloaded, &without_wal, &broken] {
        let log = server.log();
        let frames = log.lines().filter(|line| line.contains("slot_self_heal::"));
        assert_eq!(frames.count(), 0, "{log}");
    }
    drop((creation, blocking));
    errors
}
