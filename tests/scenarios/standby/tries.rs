//! A client that tries again and again on a standby, each time with records of
//! its own.

use harness::Blocker;

use super::{Pair, SLOT};
use crate::{
    Major,
    tries::{begin, client, try_in_vain, wait_for_row},
    worker::renew_worker,
};

on_majors_with_standby_slots!(until_the_slot_is_there);

fn until_the_slot_is_there(major: Major) {
    let pair = Pair::start(major);
    let standby = &pair.standby;
    let blocking = Blocker::IdleInTransaction.start(&pair.primary);
    let xid = blocking.xid.clone();
    for tries in 1..=3 {
        try_in_vain(standby, &client(standby), tries);
    }
    renew_worker(standby);
    try_in_vain(standby, &client(standby), 4);
    let mut last = begin(standby, &client(standby), 5);
    blocking.commit();
    last.result().unwrap();
    let row = wait_for_row(standby, "the slot", |row| row.outcome == "ready");
    assert_eq!((standby.history().len(), row.tries), (1, 5));
    assert_eq!(row.blockers.len(), 1, "{row:#?}");
    assert_eq!(row.blockers[0].xid, xid);
    let status = standby.wait_until_ready(SLOT);
    assert!(
        status.nudges.is_some_and(|nudges| nudges <= row.nudges),
        "{status:#?} {row:#?}"
    );
    // once for the story, whatever was asked for
    assert_eq!(
        standby.count_in_log("had the upstream write a running-xacts record"),
        1
    );
    assert_eq!(standby.count_in_log(", at the 5th try"), 1);
    standby.wait_for_log(&format!("ransaction {xid} on the primary held it up"));
}
