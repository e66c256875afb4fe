//! Whom `slot_self_heal.blocker_action` is never for. Each time everything else
//! would let the session be ended, as that of somebody beside it is.

use harness::{
    Blocker, Blocking, Cluster, Creation, Creator, Login, Setup, for_a_while, runs, statements,
};

use crate::{
    Major,
    blocker_action::{
        acting_primary, app, cancelling, check_nobody_was_told, check_terminated, sparing,
    },
    blockers::cancel_autovacuum,
};

const SLOT: &str = "cdc_slot";

on_every_major!(
    superuser,
    superuser_in_another_role,
    role_that_was_dropped,
    walsender,
    prepared_transaction,
    background_worker,
    roles_that_do_not_exist,
    list_that_is_none,
    subscription_to_its_own_cluster,
    active_session,
    waits_for_a_synchronous_standby,
    without_track_activities,
    grace_of_each_transaction,
    disabled,
    autovacuum,
    idle_scope_and_autovacuum,
    wraparound,
);

scenarios!(
    on_every_major:
    protected_role = protected("watchman", ""),
    member_of_a_protected_role = protected("app_2", "GRANT watchman TO app_2"),
    member_of_a_member =
        protected("app_2", "CREATE ROLE team; GRANT watchman TO team; GRANT team TO app_2"),
    member_that_does_not_inherit =
        protected("app_2", "ALTER ROLE app_2 NOINHERIT; GRANT watchman TO app_2"),
    name_in_quotes = protected("On Call, really", ""),
);

scenarios!(
    on_majors_with_standby_slots:
    member_without_the_privileges =
        protected("app_2", "GRANT watchman TO app_2 WITH INHERIT FALSE, SET FALSE"),
);

/// A primary that ends whatever blocks.
#[track_caller]
fn merciless(setup: Setup) -> Cluster {
    acting_primary("terminate", "100ms", "any", setup)
}

/// A creation that waits for two transactions: one that is guarded, and one that
/// differs in nothing else.
struct Spared {
    creation: Creation,
    other: Blocking,
}

/// As long as the one that is guarded stays, the other's end would be in vain.
#[track_caller]
fn spared(cluster: &Cluster, guarded: &Blocking, reason: &str) -> Spared {
    let other = Blocker::IdleInTransaction.start_as(cluster, &app(cluster));
    let creation = Creator::Walsender.start(cluster, SLOT);
    let in_vain = format!("{}transaction {} would", sparing(&other), guarded.xid);
    cluster.wait_for_log(&in_vain);
    check_spared(cluster, guarded, reason);
    assert!(other.goes_on(cluster), "it was ended in vain");
    assert_eq!(cluster.count_in_log(&in_vain), 1);
    check_nobody_was_told(cluster);
    Spared { creation, other }
}

/// It goes on, and both the log, once, and the view say why.
#[track_caller]
fn check_spared(cluster: &Cluster, guarded: &Blocking, reason: &str) {
    let said = format!("{}{reason}", sparing(guarded));
    cluster.wait_for_log(&said);
    let detail = format!("slot_self_heal does not end it: {reason}");
    cluster.wait_for_status(SLOT, "the reason", |status| {
        status.blocker_xids().first() == Some(&guarded.xid.as_str())
            && status.detail().contains(&detail)
    });
    for_a_while();
    assert!(guarded.goes_on(cluster), "it was ended");
    assert_eq!(cluster.count_in_log(&sparing(guarded)), 1);
}

impl Spared {
    /// The operator ends what is guarded; now the other one is ended, too, and
    /// the slot is made.
    #[track_caller]
    fn end_guarded(self, cluster: &Cluster, guarded: &Blocking) {
        match (guarded.pid, &guarded.gid) {
            (Some(pid), _) => cluster.run(&format!("SELECT pg_terminate_backend({pid})")),
            (None, Some(gid)) => {
                let gid = gid.replace('\'', "''");
                cluster.run(&format!("ROLLBACK PREPARED '{gid}'"));
            }
            (None, None) => panic!("nobody to end"),
        }
        self.ends(cluster);
    }

    #[track_caller]
    fn ends(mut self, cluster: &Cluster) {
        cluster.wait_for_state(SLOT, "ready");
        self.creation.finish().unwrap();
        check_terminated(cluster, &mut self.other);
    }
}

fn superuser(major: Major) {
    let cluster = merciless(Setup::new(major));
    let guarded = Blocker::IdleInTransaction.start(&cluster);
    let creation = spared(&cluster, &guarded, "it is a superuser's session");
    creation.end_guarded(&cluster, &guarded);
}

/// Whose it is says the role that it was opened as.
fn superuser_in_another_role(major: Major) {
    let cluster = merciless(Setup::new(major));
    let mut guarded = Blocker::IdleInTransaction.start(&cluster);
    guarded.session().run("SET SESSION AUTHORIZATION app");
    let creation = spared(&cluster, &guarded, "it is a superuser's session");
    creation.end_guarded(&cluster, &guarded);
}

/// Postgres drops a role whose sessions live on; what it was nobody knows.
fn role_that_was_dropped(major: Major) {
    let cluster = merciless(Setup::new(major));
    cluster.run("CREATE ROLE contractor SUPERUSER LOGIN");
    let guarded = Blocker::IdleInTransaction.start_as(&cluster, &login(&cluster, "contractor"));
    cluster.run("DROP ROLE contractor");
    let creation = spared(&cluster, &guarded, "it is a superuser's session");
    creation.end_guarded(&cluster, &guarded);
}

fn login(cluster: &Cluster, role: &str) -> Login {
    app(cluster).role(role)
}

/// One that runs SQL, by an ordinary role.
fn walsender(major: Major) {
    let cluster = merciless(Setup::new(major));
    cluster.run("CREATE ROLE replicator LOGIN REPLICATION");
    let guarded = Blocker::Walsender.start_as(&cluster, &login(&cluster, "replicator"));
    let creation = spared(&cluster, &guarded, "it is a replication session");
    creation.end_guarded(&cluster, &guarded);
}

fn prepared_transaction(major: Major) {
    let cluster = merciless(Setup::new(major));
    let guarded = Blocker::Prepared.start_as(&cluster, &app(&cluster));
    let creation = spared(&cluster, &guarded, "it is a prepared transaction");
    creation.end_guarded(&cluster, &guarded);
}

/// One that works on behalf of an ordinary role.
fn background_worker(major: Major) {
    let cluster = merciless(Setup::new(major));
    let guarded = Blocker::BackgroundWorker.start_as(&cluster, &app(&cluster));
    let reason = "it is no client's session, but a background_creator";
    let creation = spared(&cluster, &guarded, reason);
    creation.end_guarded(&cluster, &guarded);
}

/// `role` is protected, or `grant` makes it a member of such a one.
fn protected(role: &str, grant: &str, major: Major) {
    let cluster = merciless(Setup::new(major));
    for role in ["watchman", "On Call, really", "app_2"] {
        cluster.run(&format!("CREATE ROLE \"{role}\" LOGIN"));
    }
    if !grant.is_empty() {
        cluster.run(grant);
    }
    let names = "'watchman, \"On Call, really\"'";
    cluster.set("slot_self_heal.protected_roles", names);
    let mut guarded = Blocker::IdleInTransaction.start_as(&cluster, &login(&cluster, role));
    let protector = if grant.is_empty() { role } else { "watchman" };
    let reason = format!("its role is a member of \"{protector}\"");
    let creation = spared(&cluster, &guarded, &reason);

    // it was protected by nothing else
    cluster.set("slot_self_heal.protected_roles", "''");
    creation.ends(&cluster);
    check_terminated(&cluster, &mut guarded);
}

/// Whoever is to be protected, it is not known: nobody is ended.
fn roles_that_do_not_exist(major: Major) {
    let setup = Setup::new(major)
        .conf("slot_self_heal.protected_roles = 'watchman, \"On Call\", postgres'");
    let cluster = merciless(setup);
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let reason =
        "slot_self_heal.protected_roles names roles that do not exist: watchman, \"On Call\"";
    check_spared(&cluster, &blocking, reason);
    check_nobody_was_told(&cluster);

    cluster.run("CREATE ROLE watchman");
    for_a_while();
    assert!(blocking.goes_on(&cluster), "one is still missing");
    cluster.run("CREATE ROLE \"On Call\"");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    check_terminated(&cluster, &mut blocking);
}

/// A reload refuses it, but a server starts with whatever its file has.
fn list_that_is_none(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.protected_roles = 'watchman,,app'");
    let cluster = merciless(setup);
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let reason = "slot_self_heal.protected_roles names roles that do not exist: \"watchman,,app\"";
    check_spared(&cluster, &blocking, reason);
    let error = cluster.observe(|session| {
        session.error("ALTER SYSTEM SET slot_self_heal.protected_roles = 'watchman,,app'")
    });
    assert!(error.detail.contains("List syntax is invalid"), "{error}");

    cluster.set("slot_self_heal.protected_roles", "''");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    check_terminated(&cluster, &mut blocking);
}

/// CREATE SUBSCRIPTION waits for its own transaction. The role is no superuser
/// any more when it is judged.
fn subscription_to_its_own_cluster(major: Major) {
    let cluster = merciless(Setup::new(major));
    cluster.set("slot_self_heal.blocker_action", "'report'");
    cluster.run("CREATE PUBLICATION cdc_slot");
    cluster.run("CREATE ROLE subscriber SUPERUSER LOGIN");
    let conninfo = cluster.login().application(SLOT).conninfo();
    let mut subscription = login(&cluster, "subscriber").start(&format!(
        "CREATE SUBSCRIPTION {SLOT} CONNECTION '{conninfo}' PUBLICATION {SLOT} \
         WITH (enabled = false, copy_data = false)"
    ));
    let pid = subscription.pid();
    let status = cluster.wait_for_status(SLOT, "the subscriber's own transaction", |status| {
        status.has_blocker(pid)
    });
    let xid = &status.blockers[0].xid;
    cluster.run("ALTER ROLE subscriber NOSUPERUSER");
    cluster.set("slot_self_heal.blocker_action", "'terminate'");
    let said = format!(
        "slot_self_heal does not end transaction {xid}: it is a peer of the creator of the slot"
    );
    cluster.wait_for_log(&said);
    for_a_while();
    assert!(!subscription.is_finished(), "it was ended");
    assert_eq!(cluster.count_in_log(&said), 1);
    check_nobody_was_told(&cluster);

    let status = cluster.status(SLOT).expect("it is being created");
    let remedy = statements(status.hint()).into_iter().next();
    cluster.run(&remedy.expect("a remedy"));
    subscription
        .result()
        .expect_err("the subscription was given up");
}

fn active_session(major: Major) {
    let cluster = acting_primary("terminate", "100ms", "idle", Setup::new(major));
    let mut guarded = Blocker::Active.start_as(&cluster, &app(&cluster));
    let reason = "it is active, and slot_self_heal.blocker_scope is idle";
    let creation = spared(&cluster, &guarded, reason);
    cluster.set("slot_self_heal.blocker_scope", "'any'");
    creation.ends(&cluster);
    check_terminated(&cluster, &mut guarded);
}

/// Ended then, its client would be told that the commit is done, which the
/// standby does not have.
fn waits_for_a_synchronous_standby(major: Major) {
    let setup = Setup::new(major)
        .conf("synchronous_standby_names = 'away'")
        .conf("synchronous_commit = local");
    let cluster = merciless(setup);
    let mut session = app(&cluster).connect();
    session.run("SET synchronous_commit = on");
    session.run("BEGIN");
    let xid = session.value("SELECT pg_current_xact_id()::xid");
    session.run("SELECT pg_logical_emit_message(true, '', '')");
    let mut commit = session.start("COMMIT");
    cluster.wait_until_sql(
        "the commit to wait",
        &format!(
            "EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid = '{xid}' \
             AND wait_event = 'SyncRep')"
        ),
    );
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    let reason = "it has committed, and waits for a synchronous standby";
    let said = format!("slot_self_heal does not end transaction {xid}: {reason}");
    cluster.wait_for_log(&said);
    for_a_while();
    assert!(!commit.is_finished(), "it was ended");
    assert_eq!(cluster.count_in_log(&said), 1);
    check_nobody_was_told(&cluster);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    cluster.paste_as_one("postgres", status.hint());
    assert!(!commit.is_finished(), "its hint ended it");
    cluster.set("synchronous_standby_names", "''");
    commit.result().expect("it is committed");
    cluster.paste_as_one("postgres", status.hint());
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// Nobody can tell whether it works or has been forgotten.
fn without_track_activities(major: Major) {
    let cluster = merciless(Setup::new(major));
    cluster.run("CREATE ROLE app_2 LOGIN");
    cluster.run("ALTER ROLE app_2 SET track_activities = off");
    let guarded = Blocker::IdleInTransaction.start_as(&cluster, &login(&cluster, "app_2"));
    let reason = "what it does is not known; is track_activities off?";
    let creation = spared(&cluster, &guarded, reason);
    creation.end_guarded(&cluster, &guarded);
}

/// Each has its own, whatever its session has done before.
fn grace_of_each_transaction(major: Major) {
    let cluster = acting_primary("terminate", "10s", "any", Setup::new(major));
    let most_of_it = || (0..3).for_each(|_| for_a_while());
    // While this one is open, the creation does not go on to wait for the next.
    let kept = Blocker::IdleInTransaction.start(&cluster);
    let first = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_status(SLOT, "both", |status| status.blockers.len() == 2);
    most_of_it();

    let mut session = first.into_session();
    session.run("COMMIT; BEGIN");
    let second = session.value("SELECT pg_current_xact_id()::xid");
    kept.commit();
    cluster.wait_for_status(SLOT, "the second", |status| {
        status.blocker_xids() == [second.as_str()]
    });
    most_of_it();
    assert!(session.is_true("SELECT true"), "it was ended");
    check_nobody_was_told(&cluster);

    cluster.wait_for_log(&format!(
        "terminating the session of transaction {second}, "
    ));
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// Nothing is done while nothing is watched.
fn disabled(major: Major) {
    let cluster = merciless(Setup::new(major).conf("slot_self_heal.enabled = off"));
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "starting");
    for_a_while();
    assert!(blocking.goes_on(&cluster), "it was ended");
    check_nobody_was_told(&cluster);
    cluster.set("slot_self_heal.enabled", "on");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    check_terminated(&cluster, &mut blocking);
}

/// Like Postgres itself, it cancels an autovacuum whatever else the settings
/// say: it comes again.
fn autovacuum(major: Major) {
    let cluster = merciless(Setup::new(major).conf(Blocker::AUTOVACUUM_CONF));
    let blocking = Blocker::Autovacuum.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log(&cancelling(&blocking));
    cluster.wait_for_log("canceling autovacuum task");
    assert_eq!(cluster.count_in_log(&cancelling(&blocking)), 1);
    assert_eq!(cluster.count_in_log("terminating the session"), 0);
    // It begins again at once, and may block again.
    cluster.set("autovacuum", "off");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

fn idle_scope_and_autovacuum(major: Major) {
    let setup = Setup::new(major).conf(Blocker::AUTOVACUUM_CONF);
    let cluster = acting_primary("terminate", "100ms", "idle", setup);
    let guarded = Blocker::Autovacuum.start(&cluster);
    let reason = "it is an autovacuum, and slot_self_heal.blocker_scope is idle";
    let creation = spared(&cluster, &guarded, reason);
    cluster.set("autovacuum", "off");
    creation.end_guarded(&cluster, &guarded);
}

fn wraparound(major: Major) {
    let cluster = merciless(Setup::new(major).conf(Blocker::AUTOVACUUM_CONF));
    let guarded = Blocker::WraparoundAutovacuum.start(&cluster);
    let reason = "it is an autovacuum to prevent wraparound";
    let creation = spared(&cluster, &guarded, reason);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(!runs(status.hint()), "{status:#?}");
    cluster.set("autovacuum", "off");
    cancel_autovacuum(&cluster, &guarded);
    creation.ends(&cluster);
}
