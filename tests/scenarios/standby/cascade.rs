//! A standby of a standby: the request goes up hop by hop, or straight to the
//! primary.

use std::time::{Duration, Instant};

use harness::{
    Cluster, Creation, Creator, Frozen, Lsn, PATIENCE, Setup, for_a_while, free_port, wait_until,
};

use super::{Pair, RECEIVE_SOON, SLOT, TRY_SOON, ask, ask_now, check_hint};
use crate::{Major, primary};

on_majors_with_standby_slots!(
    hop_by_hop,
    hop_by_hop_as_an_ordinary_role,
    straight_to_the_primary,
    several_hosts,
    nudge_by_hand,
    upstream_without_extension,
    upstream_with_trouble_of_its_own,
    both_standbys_at_once,
    standby_that_names_itself,
    upstream_that_receives_nothing,
    upstream_whose_receiver_comes_again,
    upstream_that_is_silent,
);

/// `last` is a standby of `middle`, which is one of `primary`.
struct Chain {
    // dropped in this order
    last: Cluster,
    middle: Cluster,
    frozen: Option<Frozen>,
    primary: Cluster,
}

impl Chain {
    #[track_caller]
    fn of(primary: Cluster, middle: Setup, last: Setup) -> Chain {
        let frozen = Some(primary.freeze_bgwriter());
        let middle = middle.standby_of(&primary);
        middle.wait_for_replay_of(&primary);
        let last = last.standby_of(&middle);
        last.wait_for_replay_of(&primary);
        Chain {
            last,
            middle,
            frozen,
            primary,
        }
    }

    #[track_caller]
    fn create(&self) -> Creation {
        Creator::Walsender.start(&self.last, SLOT)
    }

    #[track_caller]
    fn finish(&self, mut creation: Creation) {
        self.last.wait_for_state(SLOT, "ready");
        creation.finish().unwrap();
        self.last.wait_for_worker("an upstream", |worker| {
            worker.upstream.as_deref() == Some("ok") && worker.hint.is_none()
        });
    }

    #[track_caller]
    fn heals(&self) {
        let before = self.primary.insert_lsn();
        let creation = self.create();
        self.finish(creation);
        assert_eq!(self.primary.running_xacts_since(before).len(), 1);
    }

    /// Creates a slot, which waits because its upstream is no primary; the
    /// hint.
    #[track_caller]
    fn meets_a_standby(&self) -> (Creation, String) {
        let creation = self.create();
        let worker = self.last.wait_for_worker("the trouble", |worker| {
            worker.upstream.as_deref() == Some("upstream is a standby") && worker.hint.is_some()
        });
        let status = self.last.wait_for_state(SLOT, "waiting_for_record");
        check_hint(status.hint());
        let hint = worker.hint.expect("waited for");
        check_hint(&hint);
        (creation, hint)
    }
}

fn hop_by_hop(major: Major) {
    let chain = Chain::of(primary(major), Setup::new(major), Setup::new(major));
    chain.heals();
    // whoever passes it on needs no slot of its own
    let middle = chain.middle.worker();
    assert_eq!(middle.role.as_deref(), Some("standby"));
    assert_eq!(middle.last_error, None);
}

/// With one grant, made on the primary, that the standbys have replayed.
fn hop_by_hop_as_an_ordinary_role(major: Major) {
    let primary = primary(major);
    primary.run("CREATE ROLE replicator LOGIN REPLICATION");
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    let standby = || Setup::new(major).upstream_role("replicator");
    let chain = Chain::of(primary, standby(), standby());
    chain.heals();
}

/// Where the standbys have no extension.
fn straight_to_the_primary(major: Major) {
    let primary = Setup::new(major).without_extension().start();
    let last = Setup::new(major)
        .conf("shared_preload_libraries = 'slot_self_heal'")
        .conf(&ask(primary.login()));
    let chain = Chain::of(primary, Setup::new(major), last);
    let before = chain.primary.insert_lsn();
    chain.create().finish().unwrap();
    chain
        .last
        .wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
    assert_eq!(chain.primary.running_xacts_since(before).len(), 1);
}

/// libpq finds the primary among the servers, whichever it is.
fn several_hosts(major: Major) {
    let chain = Chain::of(primary(major), Setup::new(major), Setup::new(major));
    ask_now(
        &chain.last,
        &format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres \
             target_session_attrs=read-write",
            chain.middle.port(),
            chain.primary.port()
        ),
    );
    chain.heals();
}

fn nudge_by_hand(major: Major) {
    let chain = Chain::of(primary(major), Setup::new(major), Setup::new(major));
    let before = chain.primary.insert_lsn();
    let nudged = chain.last.value("SELECT slot_self_heal_nudge()");
    assert!(before < nudged.parse::<Lsn>().unwrap(), "{before} {nudged}");
    assert_eq!(chain.primary.running_xacts_since(before).len(), 1);
}

/// In the database that the worker is in, that is.
fn upstream_without_extension(major: Major) {
    let primary = primary(major);
    primary.run("CREATE DATABASE plain");
    let last = Setup::new(major)
        .conf("slot_self_heal.database = 'plain'")
        .conf(TRY_SOON);
    let chain = Chain::of(primary, Setup::new(major), last);
    let (creation, hint) = chain.meets_a_standby();
    assert!(hint.contains("slot_self_heal.primary_conninfo"), "{hint}");
    let login = chain.primary.login().database("plain");
    ask_now(&chain.last, &login.conninfo());
    chain.finish(creation);
}

fn upstream_with_trouble_of_its_own(major: Major) {
    let nobody = format!("host=127.0.0.1 port={} user=postgres", free_port());
    let middle = Setup::new(major)
        .conf(&format!("slot_self_heal.primary_conninfo = '{nobody}'"))
        .conf(TRY_SOON);
    // a copy of the other's settings, but for that one
    let last = Setup::new(major).conf("slot_self_heal.primary_conninfo = ''");
    let chain = Chain::of(primary(major), middle, last);
    let (creation, hint) = chain.meets_a_standby();
    // Pasted where it says, it tells what is the matter; and once that is mended, it is a request.
    let nudge = "SELECT public.slot_self_heal_nudge();";
    assert!(hint.starts_with(nudge), "{hint}");
    let error = chain.middle.connect().error(&hint);
    assert!(!error.hint.is_empty(), "{error}");
    ask_now(&chain.middle, "");
    chain.finish(creation);
    chain.middle.paste_as_one("postgres", &hint);
}

/// A moved address, say: the request would go round for ever, and take every
/// connection that the server has.
fn standby_that_names_itself(major: Major) {
    let pair = Pair::of(primary(major), Setup::new(major).conf(TRY_SOON));
    ask_now(&pair.standby, &pair.standby.login().conninfo());
    let mut creation = pair.create(Creator::Walsender);
    pair.standby
        .wait_for_worker("an upstream that is a standby", |worker| {
            worker.upstream.as_deref() == Some("upstream is a standby")
        });
    pair.standby
        .connect()
        .error("SELECT slot_self_heal_nudge()");
    let refusals = pair.standby.count_in_log("was passed on 4 times");
    assert!(refusals > 0, "it went on");
    assert_eq!(pair.standby.count_in_log("too many clients"), 0);
    ask_now(&pair.standby, "");
    pair.finish(&mut creation);
}

/// Slots on both are built at the same time.
fn both_standbys_at_once(major: Major) {
    let pair = Pair::start(major);
    let last = Setup::new(major).standby_of(&pair.standby);
    last.wait_for_replay_of(&pair.primary);
    let blocking = pair.start_blocker_that_wrote();
    last.wait_for_replay_of(&pair.primary);
    let before = pair.primary.insert_lsn();
    let mut near = Creator::Walsender.start(&pair.standby, SLOT);
    let mut far = Creator::SqlFunction.start(&last, SLOT);
    for standby in [&pair.standby, &last] {
        standby.wait_for_state(SLOT, "waiting_for_transactions");
    }
    blocking.commit();
    last.wait_for_state(SLOT, "ready");
    far.finish().unwrap();
    pair.finish(&mut near);
    let records = pair.records_since(before);
    assert!((1..=6).contains(&records), "{records} records");
}

/// Often enough for many records while a scenario looks on.
const OFTEN: &str = "slot_self_heal.nudge_interval = 500ms";

/// A chain whose middle asks the primary for itself, whatever its WAL receiver
/// does.
#[track_caller]
fn chain_that_asks_often(primary: Cluster, middle: Setup) -> Chain {
    let middle = middle.conf(&ask(primary.login()));
    let last = Setup::new(primary.major())
        .conf("slot_self_heal.primary_conninfo = ''")
        .conf(OFTEN);
    Chain::of(primary, middle, last)
}

/// The states that a slot is shown in for a while.
#[track_caller]
fn states_for_a_while(standby: &Cluster) -> Vec<String> {
    let mut states = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let status = standby.status(SLOT).expect("it is being created");
        if states.last() != Some(&status.state) {
            states.push(status.state);
        }
    }
    states
}

/// The record is written on the primary and gets no further, however often it
/// were asked for.
fn upstream_that_receives_nothing(major: Major) {
    let chain = chain_that_asks_often(primary(major), Setup::new(major).conf(RECEIVE_SOON));
    let conninfo = chain.middle.value("SHOW primary_conninfo");
    let nobody = format!("'host=127.0.0.1 port={} user=postgres'", free_port());
    chain.middle.set("primary_conninfo", &nobody);
    chain.middle.wait_until_sql(
        "the WAL receiver to end",
        "NOT EXISTS (SELECT FROM pg_stat_wal_receiver)",
    );
    let before = chain.primary.insert_lsn();
    let creation = chain.create();
    let status = chain.last.wait_for_state(SLOT, "waiting_for_replay");
    assert!(status.detail().contains("upstream standby"), "{status:#?}");
    check_hint(status.hint());
    assert!(status.hint().contains("on the upstream"), "{status:#?}");
    // where it is to be pasted it tells that there is none
    let told = chain.middle.paste_as_one("postgres", status.hint());
    assert!(told.contains("(0 rows)"), "{told}");
    assert_eq!(states_for_a_while(&chain.last), ["waiting_for_replay"]);
    assert_eq!(chain.primary.running_xacts_since(before).len(), 1);

    let conninfo = conninfo.replace('\'', "''");
    chain
        .middle
        .set("primary_conninfo", &format!("'{conninfo}'"));
    chain.finish(creation);
    assert_eq!(chain.primary.running_xacts_since(before).len(), 1);
    let finished = chain.last.wait_for_end_of(SLOT);
    assert_eq!(finished.nudges, 1);
    assert!(
        finished.waited_for_replay > finished.waited_for_record,
        "{finished:#?}"
    );
}

/// As after a restart of the primary: the WAL receiver tries again in
/// `wal_retrieve_retry_interval`, and all is well.
fn upstream_whose_receiver_comes_again(major: Major) {
    let mut chain = chain_that_asks_often(primary(major), Setup::new(major));
    chain.frozen = None;
    chain.primary.restart();
    chain.frozen = Some(chain.primary.freeze_bgwriter());
    let before = chain.primary.insert_lsn();
    let creation = chain.create();
    chain.finish(creation);
    assert_eq!(chain.primary.running_xacts_since(before).len(), 1);
}

/// Nothing tells that its WAL receiver will never receive anything.
fn upstream_that_is_silent(major: Major) {
    let chain = chain_that_asks_often(primary(major), Setup::new(major));
    let silent = chain.middle.freeze_wal_receiver();
    let before = chain.primary.insert_lsn();
    let records = || chain.primary.running_xacts_since(before).len();
    let creation = chain.create();
    chain.last.wait_for_state(SLOT, "waiting_for_replay");
    wait_until("the last record", PATIENCE, || records() == 3);
    assert_eq!(states_for_a_while(&chain.last), ["waiting_for_replay"]);
    for_a_while();
    assert_eq!(records(), 3);
    drop(silent);
    chain.finish(creation);
}
