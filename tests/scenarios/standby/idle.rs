//! What a pair of servers pays while no slot is built: nothing.

use harness::{Creator, Login, Setup, for_a_while};

use super::{Pair, SLOT, strangers, wait_until_left_alone};
use crate::{Major, idle::check_no_transaction_at_rest, primary};

on_every_major!(connects_to_nobody);
on_majors_with_standby_slots!(opens_no_transaction, writes_nothing);

fn connects_to_nobody(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major));
    pair.standby
        .wait_for_worker("a pid", |worker| worker.pid.is_some());
    for_a_while();
    assert_eq!(strangers(&pair.primary), [""; 0]);
    let worker = pair.standby.worker();
    assert_eq!(worker.upstream.as_deref(), Some("not needed"));
}

/// Neither on the standby nor on the primary, also with a slot that is ready.
fn opens_no_transaction(major: Major) {
    let primary = Setup::new(major).start();
    primary.run("CREATE DATABASE watch");
    let pair = Pair::of(primary, Setup::new(major));
    pair.create(Creator::SqlFunction).finish().unwrap();
    wait_until_left_alone(&pair.primary);
    for server in [&pair.standby, &pair.primary] {
        server.forget_observer();
    }
    for server in [&pair.standby, &pair.primary] {
        let login: Login = server.login().database("watch");
        check_no_transaction_at_rest(&mut login.connect());
    }
}

fn writes_nothing(major: Major) {
    let pair = Pair::start(major);
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    wait_until_left_alone(&pair.primary);
    // what the creation itself leaves to be done
    for_a_while();
    let before = pair.primary.insert_lsn();
    for_a_while();
    assert_eq!(pair.primary.insert_lsn(), before, "WAL was written");
    assert_eq!(pair.standby.status(SLOT).unwrap().state, "ready");
}
