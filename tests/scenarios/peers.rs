//! Sessions that belong to whoever asked for the slot: `is_creator_peer`, and
//! none of them is ended.

use std::fs;

use harness::{Blocker, Cluster, Process, Running, Setup, for_a_while};

use crate::{
    Major,
    blocker_action::{acting_primary, app, check_nobody_was_told, check_terminated},
};

const SLOT: &str = "cdc_slot";
const PEER: &str = "it is a peer of the creator of the slot";

on_every_major!(
    sessions_of_one_program,
    the_same_name_without_a_first_word,
    the_same_name_for_another_role,
    the_same_name_elsewhere,
    sessions_of_one_process,
);

on_majors_with_dblink!(through_dblink, two_sessions_through_dblink);

/// A primary that ends whatever blocks but its superusers' sessions, and a role
/// that may create slots.
#[track_caller]
fn merciless(major: Major) -> Cluster {
    let cluster = acting_primary("terminate", "100ms", "any", Setup::new(major));
    cluster.run("CREATE ROLE cdc LOGIN REPLICATION");
    cluster
}

#[track_caller]
fn create_as(cluster: &Cluster, application: &str) -> Running {
    let login = cluster.login().role("cdc").application(application);
    login.start(&format!(
        "SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
    ))
}

/// The transaction stays, and it is said why; and not that of somebody else.
#[track_caller]
fn check_peer(cluster: &Cluster, xid: &str) {
    cluster.wait_for_log(&format!(
        "slot_self_heal does not end transaction {xid}: {PEER}"
    ));
    let status = cluster.wait_for_status(SLOT, "the peer", |status| {
        status.blocker_xids() == [xid] && status.detail().contains(PEER)
    });
    assert_eq!(
        status.blockers[0].is_creator_peer,
        Some(true),
        "{status:#?}"
    );
    for_a_while();
    check_nobody_was_told(cluster);
}

/// A name that is the same is the same, whatever it begins with.
fn the_same_name_without_a_first_word(major: Major) {
    let cluster = merciless(major);
    let login = cluster.login().role("cdc").application("[cdc] sync");
    let blocking = Blocker::IdleInTransaction.start_as(&cluster, &login);
    let _creation = create_as(&cluster, "[cdc] sync");
    check_peer(&cluster, &blocking.xid);
}

/// As Debezium names its sessions.
fn sessions_of_one_program(major: Major) {
    let cluster = merciless(major);
    let general = cluster.login().role("cdc").application("Debezium General");
    let guarded = Blocker::IdleInTransaction.start_as(&cluster, &general);
    let mut creation = create_as(&cluster, "Debezium Streaming");
    check_peer(&cluster, &guarded.xid);
    guarded.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.result().unwrap();
}

/// As a driver names everybody's.
fn the_same_name_for_another_role(major: Major) {
    let cluster = merciless(major);
    let name = "PostgreSQL JDBC Driver";
    let login = app(&cluster).application(name);
    let mut blocking = Blocker::IdleInTransaction.start_as(&cluster, &login);
    let mut creation = create_as(&cluster, name);
    check_terminated(&cluster, &mut blocking);
    cluster.wait_for_state(SLOT, "ready");
    creation.result().unwrap();
}

/// An application of the same name at another address is another one.
fn the_same_name_elsewhere(major: Major) {
    let cluster = merciless(major);
    let login = cluster.login().role("cdc").application("cdc");
    let mut psql = harness::psql(&cluster, &login.conninfo_by_socket());
    psql.type_line("BEGIN;");
    psql.type_line("SELECT pg_current_xact_id();");
    cluster.wait_until_sql(
        "its xid",
        "EXISTS (SELECT FROM pg_stat_activity \
         WHERE application_name = 'cdc' AND backend_xid IS NOT NULL)",
    );
    let mut creation = create_as(&cluster, "cdc");
    cluster.wait_for_log("terminating the session of transaction");
    cluster.wait_for_state(SLOT, "ready");
    creation.result().unwrap();
}

/// A pgbench of which one client holds a transaction and the other creates a
/// slot, each under a name of its own, over TCP.
#[track_caller]
fn pgbench(cluster: &Cluster, conninfo: &str) -> Process {
    let script = cluster.dir().join("script");
    fs::write(
        &script,
        format!(
            "\\if :client_id = 0\n\
             SET application_name = 'holder';\n\
             BEGIN;\n\
             SELECT pg_current_xact_id();\n\
             \\sleep 600 s\n\
             \\else\n\
             SET application_name = 'maker';\n\
             \\sleep 1 s\n\
             SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput');\n\
             \\endif\n"
        ),
    )
    .expect("the directory is ours");
    let mut pgbench = cluster.client("pgbench");
    pgbench
        .args(["--no-vacuum", "--client=2", "--transactions=1", "--file"])
        .arg(&script)
        .arg(conninfo);
    Process::start(pgbench, cluster.dir())
}

/// As far as the kernel lets the server know: here both run as the same user.
fn sessions_of_one_process(major: Major) {
    let cluster = merciless(major);
    let login = cluster.login().role("cdc").application("");
    for (conninfo, round) in [(login.conninfo(), 1), (login.conninfo_by_socket(), 2)] {
        let pgbench = pgbench(&cluster, &conninfo.replace("application_name=", ""));
        let status = cluster.wait_for_status(SLOT, "the holder", |status| {
            status.blockers.len() == 1
                && status.blockers[0].application_name.as_deref() == Some("holder")
        });
        check_peer(&cluster, &status.blockers[0].xid);
        assert_eq!(cluster.count_in_log(PEER), round);
        // In this order: the holder's end would make the slot. pgbench's own would end it first.
        for name in ["maker", "holder"] {
            cluster.run(&format!(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                 WHERE application_name = '{name}'"
            ));
        }
        drop(pgbench);
        cluster.wait_until_sql(
            "the end of the creation",
            "NOT EXISTS (SELECT FROM pg_replication_slots)",
        );
    }
}

/// A session whose own transaction blocks the slot that it waits for.
fn through_dblink(major: Major) {
    let cluster = merciless(major);
    cluster.run("CREATE EXTENSION dblink");
    let login = cluster.login().application("maker");
    let mut session = login.connect();
    session.run("BEGIN");
    let xid = session.value("SELECT pg_current_xact_id()::xid");
    let conninfo = cluster.login().application("other").conninfo();
    let pid = session.pid();
    let mut creation = session.start(&format!(
        "SELECT * FROM dblink('{conninfo}', \
         $$SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')$$) AS t (slot text)"
    ));
    check_peer(&cluster, &xid);
    let status = cluster.status(SLOT).expect("it is being created");
    assert!(status.has_blocker(pid));
    assert!(
        status.detail().contains("which itself waits for the slot"),
        "{status:#?}"
    );
    assert!(!creation.is_finished());
}

/// Both are sessions of one backend.
fn two_sessions_through_dblink(major: Major) {
    let cluster = merciless(major);
    cluster.run("CREATE EXTENSION dblink");
    let mut session = cluster.connect();
    let mut open = |name: &str| {
        let login = cluster.login().role("cdc").application(name);
        session.run(&format!(
            "SELECT dblink_connect('{name}', '{}')",
            login.conninfo()
        ));
    };
    open("holder");
    open("maker");
    let xid = session.value(
        "SELECT xid FROM dblink_exec('holder', 'BEGIN'), \
         dblink('holder', 'SELECT pg_current_xact_id()::xid') AS t (xid text)",
    );
    session.run(&format!(
        "SELECT dblink_send_query('maker', \
         $$SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')$$)"
    ));
    check_peer(&cluster, &xid);
    session.run("SELECT dblink_exec('holder', 'COMMIT')");
    cluster.wait_for_state(SLOT, "ready");
}
