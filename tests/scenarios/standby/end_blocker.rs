//! A creation on a standby waits for transactions of the primary. The primary
//! ends them for it, by its own rules, if both allow that.

use harness::{Blocker, Blocking, Cluster, Creation, Creator, Login, Session, Setup, for_a_while};

use super::{Pair, SLOT, check_hint};
use crate::{
    Major,
    blocker_action::{
        Batch, Stubborn, TERMINATED, acting_primary, app, cancelling, check_nobody_was_told,
        create_again_and_again, sparing, start_copy,
    },
    with_extension,
};

on_majors_with_standby_slots!(
    from_no_right_to_the_end,
    right_in_a_schema_of_its_own,
    cancelled_there,
    report_asks_for_nothing,
    superuser_there,
    protected_there,
    walsender_there,
    active_there,
    grace_there,
    same_application,
    same_application_of_unseen_address,
    prepared_is_not_asked_about,
    without_the_function,
    upstream_is_a_standby,
    function_for_superusers_alone,
    function_cancels_once,
    function_goes_by_what_has_run,
    function_and_no_such_transaction,
    function_and_null,
    function_on_a_standby,
    function_while_disabled,
    one_that_the_primary_spares_spares_the_others,
    silent_copy_there,
    beside_one_that_is_never_idle_for_long_there,
    beside_one_that_a_cancel_does_not_reach_there,
    cancelled_once_there,
    grace_across_tries,
);

/// A role for standbys that may have records written and sees every session.
#[track_caller]
fn primary_with(conf: &[&str], major: Major) -> Cluster {
    let mut setup = Setup::new(major);
    for line in conf {
        setup = setup.conf(line);
    }
    let primary = with_extension(setup);
    primary.run("CREATE ROLE app LOGIN");
    primary.run("CREATE ROLE watchman LOGIN");
    primary.run("CREATE ROLE replicator LOGIN REPLICATION");
    primary.run("GRANT EXECUTE ON FUNCTION slot_self_heal_nudge() TO replicator");
    primary.run("GRANT pg_read_all_stats TO replicator");
    primary
}

const GRANT: &str =
    "GRANT EXECUTE ON FUNCTION public.slot_self_heal_end_blocker(xid, interval) TO replicator;";

/// What ends every blocker.
const MERCILESS: [&str; 3] = [
    "slot_self_heal.blocker_action = 'terminate'",
    "slot_self_heal.blocker_grace = '100ms'",
    "slot_self_heal.blocker_scope = 'any'",
];

/// A standby with these settings, not those of its primary.
fn standby_with(conf: &[&str], major: Major) -> Setup {
    let mut setup = Setup::new(major)
        .upstream_role("replicator")
        // as after any GRANT: see the trouble with upstreams
        .conf("hot_standby_feedback = on");
    for line in conf {
        setup = setup.conf(line);
    }
    setup
}

/// A primary that ends every blocker, and a standby that may ask for it.
#[track_caller]
fn merciless_pair(more: &[&str], major: Major) -> Pair {
    let primary = primary_with(&[&MERCILESS, more].concat(), major);
    primary.run(GRANT);
    Pair::of(primary, standby_with(&[], major))
}

#[track_caller]
fn create_behind(pair: &Pair, blocking: &Blocking) -> Creation {
    let creation = pair.create(Creator::Walsender);
    pair.standby.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_xids().contains(&blocking.xid.as_str())
    });
    creation
}

/// What the primary's log says of one that it ended for the standby.
fn ended_there(blocking: &Blocking) -> String {
    format!(
        "terminating the session of transaction {}, which held up the creation of a replication \
         slot on a standby for",
        blocking.xid
    )
}

/// What the standby's log says of the same.
fn had_ended(blocking: &Blocking) -> String {
    format!(
        "had the primary terminate the session of transaction {}, which held up logical \
         replication slot \"{SLOT}\" for",
        blocking.xid
    )
}

#[track_caller]
fn is_ended(pair: &Pair, blocking: &mut Blocking) {
    pair.primary.wait_for_log(&ended_there(blocking));
    pair.standby.wait_for_log(&had_ended(blocking));
    let error = blocking.error();
    assert!([TERMINATED, ""].contains(&error.code.as_str()), "{error}");
    assert_eq!(pair.primary.count_in_log(&ended_there(blocking)), 1);
    assert_eq!(pair.standby.count_in_log(&had_ended(blocking)), 1);
}

/// The standby says once why not, and the blocker goes on.
#[track_caller]
fn check_spared(pair: &Pair, guarded: &Blocking, reason: &str) {
    pair.standby
        .wait_for_log(&format!("{}{reason}", sparing(guarded)));
    let detail = format!("slot_self_heal does not end it: {reason}");
    pair.standby.wait_for_status(SLOT, "the reason", |status| {
        status.blocker_xids().first() == Some(&guarded.xid.as_str())
            && status.detail().contains(&detail)
    });
    for_a_while();
    assert!(guarded.goes_on(&pair.primary), "it was ended");
    assert_eq!(pair.standby.count_in_log(&sparing(guarded)), 1);
}

/// By hand, on the primary.
#[track_caller]
fn is_over(pair: &Pair, mut creation: Creation) {
    let status = pair
        .standby
        .wait_for_state(SLOT, "waiting_for_transactions");
    check_hint(status.hint());
    pair.primary.paste_as_one("postgres", status.hint());
    pair.finish(&mut creation);
}

/// Someone who sets this up meets one obstacle after the other.
fn from_no_right_to_the_end(major: Major) {
    let primary = primary_with(&["slot_self_heal.blocker_grace = '100ms'"], major);
    let standby = standby_with(&["slot_self_heal.blocker_action = 'terminate'"], major);
    let pair = Pair::of(primary, standby);
    let mut blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let mut creation = create_behind(&pair, &blocking);
    check_spared(
        &pair,
        &blocking,
        "the primary could not be asked: role replicator may not execute \
         public.slot_self_heal_end_blocker(xid, interval)",
    );
    let hints = pair.standby.worker_hints();
    let hint = hints.iter().find(|hint| hint.contains(GRANT));
    let hint = hint.unwrap_or_else(|| panic!("no such hint: {hints:#?}"));
    check_hint(hint);
    pair.primary.paste_as_one("postgres", hint);

    let refused = "on the primary, slot_self_heal.blocker_action is report";
    pair.standby
        .wait_for_log(&format!("{}{refused}", sparing(&blocking)));
    pair.standby.wait_for_status(SLOT, "the reason", |status| {
        status.detail().contains(refused)
    });
    assert!(blocking.goes_on(&pair.primary), "it was ended");

    pair.primary
        .set("slot_self_heal.blocker_action", "'terminate'");
    pair.finish(&mut creation);
    is_ended(&pair, &mut blocking);
    let asked = "a standby asked for it as role replicator";
    assert_eq!(pair.primary.count_in_log(asked), 1);
    assert_eq!(pair.standby.count_in_log(&sparing(&blocking)), 2);
}

/// A function in a schema of its own takes a privilege on that schema, too.
fn right_in_a_schema_of_its_own(major: Major) {
    let setup = MERCILESS
        .iter()
        .fold(Setup::new(major), |setup, line| setup.conf(line));
    let primary = setup.start();
    primary.run("CREATE SCHEMA \"Slot Home\"");
    primary.run("CREATE EXTENSION slot_self_heal SCHEMA \"Slot Home\"");
    primary.run("ALTER ROLE postgres SET search_path = \"Slot Home\"");
    primary.forget_observer();
    primary.run("CREATE ROLE app LOGIN");
    primary.run("CREATE ROLE \"Repli\"\"cator\" LOGIN REPLICATION");
    primary.run("GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO \"Repli\"\"cator\"");
    primary.run("GRANT pg_read_all_stats TO \"Repli\"\"cator\"");
    let pair = Pair::of(
        primary,
        standby_with(&[], major).upstream_role("Repli\"cator"),
    );
    let mut blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let mut creation = create_behind(&pair, &blocking);
    pair.standby.wait_for_log(&sparing(&blocking));
    let hints = pair.standby.worker_hints();
    let hint = hints.iter().find(|hint| hint.contains("GRANT "));
    let hint = hint.unwrap_or_else(|| panic!("no such hint: {hints:#?}"));
    pair.primary.paste_as_one("postgres", hint);
    pair.finish(&mut creation);
    is_ended(&pair, &mut blocking);
}

fn cancelled_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_action = 'cancel'"], major);
    let mut blocking = Blocker::Active.start_as(&pair.primary, &app(&pair.primary));
    let mut creation = create_behind(&pair, &blocking);
    pair.finish(&mut creation);
    assert_eq!(blocking.error().code, "57014");
    assert_eq!(pair.primary.count_in_log(&cancelling(&blocking)), 1);
    let said = format!(
        "had the primary cancel the statement of transaction {}",
        blocking.xid
    );
    pair.standby.wait_for_log(&said);
    assert_eq!(pair.standby.count_in_log(&said), 1);
}

/// The standby's own setting, the default, is enough to leave the primary alone.
fn report_asks_for_nothing(major: Major) {
    let conf = ["slot_self_heal.blocker_action = 'report'"];
    let primary = primary_with(&MERCILESS, major);
    primary.run(GRANT);
    primary.set("log_statement", "'all'");
    let pair = Pair::of(primary, standby_with(&conf, major));
    let blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let creation = create_behind(&pair, &blocking);
    for_a_while();
    for_a_while();
    assert!(blocking.goes_on(&pair.primary), "it was ended");
    check_nobody_was_told(&pair.primary);
    // what it does ask is there
    assert!(pair.primary.count_in_log("pg_control_system") > 0);
    assert_eq!(pair.primary.count_in_log(".slot_self_heal_end_blocker("), 0);
    assert_eq!(pair.standby.count_in_log("slot_self_heal does not end"), 0);
    is_over(&pair, creation);
}

/// One that the primary guards, and one that it does not: that one's end would
/// be in vain, and it is not asked for before the other is over.
#[track_caller]
fn guarded_there(pair: &Pair, blocker: Blocker, login: impl Fn(&Cluster) -> Login, reason: &str) {
    let guarded = blocker.start_as(&pair.primary, &login(&pair.primary));
    let mut other = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let mut creation = create_behind(pair, &guarded);
    check_spared(pair, &guarded, &format!("on the primary, {reason}"));
    pair.standby.wait_for_log(&format!(
        "{}transaction {} would have to end first",
        sparing(&other),
        guarded.xid
    ));
    assert!(other.goes_on(&pair.primary), "it was ended in vain");
    check_nobody_was_told(&pair.primary);
    let pid = guarded.pid.expect("a session");
    pair.primary
        .run(&format!("SELECT pg_terminate_backend({pid})"));
    is_ended(pair, &mut other);
    pair.finish(&mut creation);
}

fn superuser_there(major: Major) {
    let pair = merciless_pair(&[], major);
    let login = |primary: &Cluster| app(primary).role("postgres");
    let reason = "it is a superuser's session";
    guarded_there(&pair, Blocker::IdleInTransaction, login, reason);
}

/// The standby has no word in who is protected: its own list is another one.
fn protected_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.protected_roles = 'watchman'"], major);
    pair.standby.set("slot_self_heal.protected_roles", "''");
    let login = |primary: &Cluster| app(primary).role("watchman");
    let reason = "its role is a member of \"watchman\"";
    guarded_there(&pair, Blocker::IdleInTransaction, login, reason);
}

fn walsender_there(major: Major) {
    let pair = merciless_pair(&[], major);
    let login = |primary: &Cluster| app(primary).role("replicator");
    guarded_there(
        &pair,
        Blocker::Walsender,
        login,
        "it is a replication session",
    );
}

fn active_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_scope = 'idle'"], major);
    // what the standby says of it is nothing to the primary
    pair.standby.set("slot_self_heal.blocker_scope", "'any'");
    let reason = "it is active, and slot_self_heal.blocker_scope is idle";
    guarded_there(&pair, Blocker::Active, app, reason);
}

/// The standby's is over at once; the primary's is not.
fn grace_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_grace = '1h'"], major);
    pair.standby.set("slot_self_heal.blocker_grace", "'100ms'");
    let mut blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let mut creation = create_behind(&pair, &blocking);
    let reason = "on the primary, it has not blocked for slot_self_heal.blocker_grace";
    check_spared(&pair, &blocking, reason);
    pair.primary.set("slot_self_heal.blocker_grace", "'1s'");
    pair.finish(&mut creation);
    is_ended(&pair, &mut blocking);
}

/// The creator's peer lives on the other server.
fn same_application(major: Major) {
    let pair = merciless_pair(&[], major);
    pair.primary.set("log_statement", "'all'");
    let peer = app(&pair.primary).application("cdc").role("postgres");
    let guarded = Blocker::IdleInTransaction.start_as(&pair.primary, &peer);
    let creation = create_behind(&pair, &guarded);
    check_spared(&pair, &guarded, "it is a peer of the creator of the slot");
    assert_eq!(pair.primary.count_in_log(".slot_self_heal_end_blocker("), 0);
    is_over(&pair, creation);
}

/// Without pg_read_all_stats a session's address can't be seen, and nobody can
/// tell whether it is the creator's peer.
fn same_application_of_unseen_address(major: Major) {
    let pair = merciless_pair(&[], major);
    pair.primary.run("REVOKE pg_read_all_stats FROM replicator");
    let peer = app(&pair.primary).application("cdc");
    let guarded = Blocker::IdleInTransaction.start_as(&pair.primary, &peer);
    let creation = create_behind(&pair, &guarded);
    check_spared(&pair, &guarded, "this standby may not see that session");
    let hint = "HINT:  GRANT pg_read_all_stats TO replicator; -- on the primary";
    assert!(pair.standby.count_in_log(hint) > 0, "no hint");
    is_over(&pair, creation);
}

fn prepared_is_not_asked_about(major: Major) {
    let pair = merciless_pair(&[], major);
    pair.primary.set("log_statement", "'all'");
    let guarded = Blocker::Prepared.start_as(&pair.primary, &app(&pair.primary));
    let creation = create_behind(&pair, &guarded);
    check_spared(&pair, &guarded, "it is a prepared transaction");
    assert_eq!(pair.primary.count_in_log(".slot_self_heal_end_blocker("), 0);
    is_over(&pair, creation);
}

/// Where the worker is in a database without the extension.
fn without_the_function(major: Major) {
    let primary = primary_with(&MERCILESS, major);
    primary.run("CREATE DATABASE plain");
    primary.paste_as_one(
        "plain",
        "GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO replicator;",
    );
    let standby = standby_with(&["slot_self_heal.database = 'plain'"], major);
    let pair = Pair::of(primary, standby);
    let blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let creation = create_behind(&pair, &blocking);
    let reason =
        "the primary could not be asked: it has no slot_self_heal_end_blocker(xid, interval)";
    check_spared(&pair, &blocking, reason);
    let hint = "CREATE EXTENSION slot_self_heal; -- on the primary, in database plain";
    assert!(pair.standby.count_in_log(hint) > 0, "no hint");
    check_nobody_was_told(&pair.primary);
    is_over(&pair, creation);
}

/// Nobody there can end a transaction of the primary, nor knows whose it is.
fn upstream_is_a_standby(major: Major) {
    let pair = merciless_pair(&[], major);
    let last = Setup::new(major)
        .upstream_role("replicator")
        .standby_of(&pair.standby);
    last.wait_for_replay_of(&pair.primary);
    let mut blocking = pair.start_blocker_that_wrote();
    last.wait_for_replay_of(&pair.primary);
    let mut creation = Creator::Walsender.start(&last, SLOT);
    last.wait_for_state(SLOT, "waiting_for_transactions");
    let reason = "this standby's upstream is itself a standby";
    last.wait_for_log(&format!("{}{reason}", sparing(&blocking)));
    last.wait_for_status(SLOT, "the reason", |status| {
        status.detail().contains(reason)
    });
    for_a_while();
    assert!(blocking.goes_on(&pair.primary), "it was ended");
    assert_eq!(last.count_in_log(&sparing(&blocking)), 1);
    assert_eq!(last.worker().last_error, None);
    blocking.session().run("COMMIT");
    last.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// What the function answers.
#[track_caller]
fn ask(session: &mut Session, xid: &str, blocked_for: &str) -> Vec<Vec<Option<String>>> {
    session.rows(&format!(
        "SELECT action, reason FROM slot_self_heal_end_blocker('{xid}', {blocked_for})"
    ))
}

fn none(reason: &str) -> Vec<Vec<Option<String>>> {
    vec![vec![Some("none".to_owned()), Some(reason.to_owned())]]
}

fn function_for_superusers_alone(major: Major) {
    let primary = primary_with(&MERCILESS, major);
    primary.run("GRANT pg_monitor, pg_signal_backend TO app");
    let blocking = Blocker::IdleInTransaction.start_as(&primary, &app(&primary));
    let error = app(&primary).connect().error(&format!(
        "SELECT slot_self_heal_end_blocker('{}', '1h')",
        blocking.xid
    ));
    assert_eq!(error.code, "42501", "{error}");
    assert!(blocking.goes_on(&primary));
}

/// Whatever the caller says.
fn function_goes_by_what_has_run(major: Major) {
    let primary = primary_with(&MERCILESS, major);
    primary.set("slot_self_heal.blocker_grace", "'1h'");
    let mut session = primary.connect();
    let mut blocking = Blocker::IdleInTransaction.start_as(&primary, &app(&primary));
    let refused = none("it has not blocked for slot_self_heal.blocker_grace");
    assert_eq!(ask(&mut session, &blocking.xid, "'2h'"), refused);
    assert_eq!(ask(&mut session, &blocking.xid, "'-2h'"), refused);
    primary.set("slot_self_heal.blocker_grace", "'100ms'");
    for_a_while();
    assert_eq!(ask(&mut session, &blocking.xid, "'0'"), refused);
    let ended = vec![vec![Some("terminate".to_owned()), None]];
    assert_eq!(ask(&mut session, &blocking.xid, "'2h'"), ended);
    assert_eq!(blocking.error().code, TERMINATED);
    assert_eq!(primary.count_in_log("asked for it as role postgres"), 1);
}

/// However often it is asked, it cancels once.
fn function_cancels_once(major: Major) {
    let primary = acting_primary("cancel", "100ms", "any", Setup::new(major));
    let mut session = primary.connect();
    let stubborn = Stubborn::start(&primary);
    for_a_while();
    let cancelled = vec![vec![Some("cancel".to_owned()), None]];
    assert_eq!(ask(&mut session, &stubborn.xid, "'1h'"), cancelled);
    stubborn.survives(&primary);
    let stayed = none(
        "it was told to end, as far as slot_self_heal.blocker_action allows, and has stayed in \
         its transaction",
    );
    assert_eq!(ask(&mut session, &stubborn.xid, "'1h'"), stayed);
    assert_eq!(primary.count_in_log("due to user request"), 1);
}

fn function_and_no_such_transaction(major: Major) {
    let primary = primary_with(&MERCILESS, major);
    let mut session = primary.connect();
    let over = vec![vec![Some("ended".to_owned()), None]];
    // over, never begun, no transaction's
    for xid in ["3", "4000000000", "0", "1", "2"] {
        assert_eq!(ask(&mut session, xid, "'1h'"), over, "{xid}");
    }
    check_nobody_was_told(&primary);
}

fn function_and_null(major: Major) {
    let primary = primary_with(&MERCILESS, major);
    let blocking = Blocker::IdleInTransaction.start_as(&primary, &app(&primary));
    let mut session = primary.connect();
    assert!(ask(&mut session, &blocking.xid, "NULL").is_empty());
    let no_xid = "SELECT action FROM slot_self_heal_end_blocker(NULL, '1h')";
    assert!(session.rows(no_xid).is_empty());
    for_a_while();
    assert!(blocking.goes_on(&primary));
}

fn function_on_a_standby(major: Major) {
    let pair = merciless_pair(&[], major);
    let blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let error = pair.standby.connect().error(&format!(
        "SELECT slot_self_heal_end_blocker('{}', '1h')",
        blocking.xid
    ));
    assert_eq!(error.code, "55000", "{error}");
    assert_eq!(error.hint, "Run it on the primary.");
    assert!(blocking.goes_on(&pair.primary));
}

/// Whoever may call it.
fn function_while_disabled(major: Major) {
    let primary = primary_with(&MERCILESS, major);
    let blocking = Blocker::IdleInTransaction.start_as(&primary, &app(&primary));
    primary.set("slot_self_heal.enabled", "off");
    let mut session = primary.connect();
    primary.wait_until_sql(
        "the reload",
        "current_setting('slot_self_heal.enabled') = 'off'",
    );
    let refused = none("slot_self_heal.enabled is off");
    assert_eq!(ask(&mut session, &blocking.xid, "'2h'"), refused);
    for_a_while();
    assert!(blocking.goes_on(&primary), "it was ended");
    check_nobody_was_told(&primary);
}

/// A prepared transaction, which is never asked about, holds back the request
/// for the session beside it.
fn one_that_the_primary_spares_spares_the_others(major: Major) {
    let pair = merciless_pair(&[], major);
    pair.primary.set("log_statement", "'all'");
    // The standby learns of both with the WAL of the second.
    let mut other = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let prepared = Blocker::Prepared.start_as(&pair.primary, &app(&pair.primary));
    pair.standby.wait_for_replay_of(&pair.primary);
    let mut creation = create_behind(&pair, &other);
    pair.standby.wait_for_log(&format!(
        "{}transaction {} would have to end first",
        sparing(&other),
        prepared.xid
    ));
    for_a_while();
    assert_eq!(pair.primary.count_in_log(".slot_self_heal_end_blocker("), 0);
    let gid = prepared.gid.as_deref().unwrap_or_default();
    pair.primary
        .run(&format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''")));
    is_ended(&pair, &mut other);
    pair.finish(&mut creation);
}

/// The primary hears of it from the standby, and goes by what it sees itself:
/// that takes it more than one look.
fn silent_copy_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_scope = 'idle'"], major);
    let (_psql, xid) = start_copy(&pair.primary);
    pair.standby.wait_for_replay_of(&pair.primary);
    let mut creation = pair.create(Creator::Walsender);
    pair.finish(&mut creation);
    let ended = format!("terminating the session of transaction {xid}, ");
    assert_eq!(pair.primary.count_in_log(&ended), 1);
}

/// As on a primary, for a client that gives up and begins again.
fn grace_across_tries(major: Major) {
    let pair = merciless_pair(&[], major);
    pair.standby.set("slot_self_heal.blocker_grace", "'5s'");
    let mut blocking = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    let mut client = pair.standby.login().application("cdc").connect();
    client.run("SET statement_timeout = '2s'");
    let tries = create_again_and_again(&mut client, "57014");
    assert!(tries >= 2, "5 s do not fit into one try");
    is_ended(&pair, &mut blocking);
}

/// Whether a session is idle for long is asked before others are ended.
fn beside_one_that_is_never_idle_for_long_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_scope = 'idle'"], major);
    let batch = Batch::start(&pair.primary);
    let idle = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    pair.standby.wait_for_replay_of(&pair.primary);
    let _creation = create_behind(&pair, &idle);
    pair.standby.wait_for_log(&sparing(&idle));
    // It is asked about again after 10 s.
    for _ in 0..8 {
        for_a_while();
    }
    assert!(idle.goes_on(&pair.primary));
    batch.finish();
}

/// Postgres ignores a cancel request in a session that waits for its client.
fn beside_one_that_a_cancel_does_not_reach_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_action = 'cancel'"], major);
    let busy = Blocker::Active.start_as(&pair.primary, &app(&pair.primary));
    let idle = Blocker::IdleInTransaction.start_as(&pair.primary, &app(&pair.primary));
    pair.standby.wait_for_replay_of(&pair.primary);
    let _creation = create_behind(&pair, &busy);
    pair.standby.wait_for_log(&format!(
        "{}transaction {} would have to end first",
        sparing(&busy),
        idle.xid
    ));
    for_a_while();
    assert!(busy.goes_on(&pair.primary));
    assert_eq!(pair.primary.count_in_log(&cancelling(&busy)), 0);
}

/// By the primary's action, though the standby's would allow more. A savepoint
/// keeps the transaction.
fn cancelled_once_there(major: Major) {
    let pair = merciless_pair(&["slot_self_heal.blocker_action = 'cancel'"], major);
    pair.standby
        .set("slot_self_heal.blocker_action", "'terminate'");
    let stubborn = Stubborn::start(&pair.primary);
    pair.standby.wait_for_replay_of(&pair.primary);
    let creation = pair.create(Creator::Walsender);
    stubborn.survives(&pair.primary);
    // It is asked about again after 10 s.
    pair.standby.wait_for_log(&format!(
        "slot_self_heal does not end transaction {}: it was told to end",
        stubborn.xid
    ));
    assert!(stubborn.goes_on(&pair.primary, "SELECT pg_sleep(7200);"));
    let cancelled = "canceling statement due to user request";
    assert_eq!(pair.primary.count_in_log(cancelled), 1);
    is_over(&pair, creation);
}
