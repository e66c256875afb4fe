//! A client that gives up and tries again: one story, in the views and in the
//! log.

use std::process::Stdio;

use harness::{
    Blocker, Cluster, Creator, Finished, Leaving, Login, PATIENCE, Running, Setup, wait_for,
    wait_until,
};

use crate::{Major, primary, with_extension, worker::renew_worker};

const SLOT: &str = "cdc_slot";

on_every_major!(
    until_the_slot_is_there,
    the_last_too_quick_to_be_seen,
    two_clients_by_turns,
    by_another_role,
    cancelled_each_time,
    abandoned,
    a_blocker_spared_once,
    of_many_slots,
);
scenarios!(on_every_major:
    by_psql = a_client_with_a_timeout("psql"),
    by_pg_recvlogical = a_client_with_a_timeout("pg_recvlogical"),
);

/// A client of ours, which gives up when it is told to.
pub(crate) fn client(cluster: &Cluster) -> Login {
    cluster.login().application("zero")
}

#[track_caller]
pub(crate) fn begin(cluster: &Cluster, login: &Login, tries: i64) -> Running {
    let running = login.start(&format!(
        "SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
    ));
    cluster.wait_for_status(SLOT, &format!("try {tries}"), |status| {
        status.tries == Some(tries) && status.state == "waiting_for_transactions"
    });
    running
}

#[track_caller]
pub(crate) fn try_in_vain(cluster: &Cluster, login: &Login, tries: i64) {
    let all = || -> i64 { cluster.history().iter().map(|row| row.tries).sum() };
    let before = all();
    let mut running = begin(cluster, login, tries);
    running.cancel();
    running.result().expect_err("its client cancelled it");
    wait_until("the try to be history", PATIENCE, || all() == before + 1);
}

/// Waits for the newest row of the history.
#[track_caller]
pub(crate) fn wait_for_row(
    cluster: &Cluster,
    what: &str,
    wanted: impl Fn(&Finished) -> bool,
) -> Finished {
    wait_for(&format!("{what} in the history"), PATIENCE, || {
        let history = cluster.history();
        match history.first() {
            Some(row) if wanted(row) => Ok(row.clone()),
            _ => Err(format!("{history:#?}")),
        }
    })
}

fn count(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}

fn until_the_slot_is_there(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    for tries in 1..=6 {
        try_in_vain(&cluster, &client(&cluster), tries);
    }
    let before = wait_for_row(&cluster, "six tries", |row| row.tries == 6);
    assert_eq!(cluster.history().len(), 1);
    assert_eq!((before.outcome.as_str(), &before.reason), ("gone", &None));
    assert_eq!(before.blockers.len(), 1, "{before:#?}");
    assert_eq!(before.blockers[0].xid, blocking.xid);

    renew_worker(&cluster);
    try_in_vain(&cluster, &client(&cluster), 7);

    let mut last = begin(&cluster, &client(&cluster), 8);
    let row = wait_for_row(&cluster, "seven tries", |row| row.tries == 7);
    assert!(row.waited_for_transactions > before.waited_for_transactions);
    assert_eq!(row.started_at, before.started_at);
    let xid = blocking.xid.clone();
    blocking.commit();
    last.result().unwrap();
    let ready = wait_for_row(&cluster, "the slot", |row| row.outcome == "ready");
    assert_eq!((ready.tries, &ready.reason), (8, &None));
    assert_eq!(ready.started_at, before.started_at);
    assert!(ready.waited_for_transactions > before.waited_for_transactions);
    assert_eq!(ready.blockers[0].xid, xid);
    assert_eq!(cluster.history().len(), 1);
    let status = cluster.wait_until_ready(SLOT);
    assert_eq!((status.tries, status.state_since), (None, ready.ended_at));
    cluster.wait_for_log(&format!(
        "logical replication slot \"{SLOT}\" is ready after"
    ));
    assert_eq!(cluster.count_in_log(", at the 8th try"), 1);

    // the next one of this name is another story
    cluster.run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    try_in_vain(&cluster, &client(&cluster), 1);
    assert_eq!(cluster.history().len(), 2);
}

/// Its blocker ended between two tries.
fn the_last_too_quick_to_be_seen(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.scan_interval = '5s'");
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    try_in_vain(&cluster, &client(&cluster), 1);
    try_in_vain(&cluster, &client(&cluster), 2);
    blocking.commit();
    client(&cluster).connect().run(&format!(
        "SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
    ));
    let row = wait_for_row(&cluster, "the slot", |row| row.outcome == "ready");
    assert_eq!(row.tries, 3);
    assert_eq!(cluster.history().len(), 1);
    let status = cluster.wait_until_ready(SLOT);
    assert_eq!((status.tries, status.state_since), (None, row.ended_at));
    cluster.wait_for_log(", at the 3rd try");
}

fn two_clients_by_turns(major: Major) {
    let cluster = primary(major);
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    let other = cluster.login().application("debezium");
    for tries in 1..=3 {
        try_in_vain(&cluster, &client(&cluster), tries);
        try_in_vain(&cluster, &other, tries);
    }
    let rows: Vec<_> = cluster
        .history()
        .into_iter()
        .map(|row| (row.creator_application, row.tries))
        .collect();
    let row = |application: &str| (Some(application.to_owned()), 3);
    assert_eq!(rows, [row("debezium"), row("zero")]);
}

fn by_another_role(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE ROLE other LOGIN REPLICATION");
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    try_in_vain(&cluster, &client(&cluster), 1);
    try_in_vain(&cluster, &client(&cluster).role("other"), 1);
    try_in_vain(&cluster, &client(&cluster).role("other"), 2);
    assert_eq!(cluster.history().len(), 2);
}

/// As Patroni and others do: `lock_timeout`, and then once more.
fn a_client_with_a_timeout(program: &str, major: Major) {
    const TRIES: i64 = 12;

    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let conninfo = client(&cluster).conninfo();
    let give_up = || {
        let mut client = cluster.client(program);
        match program {
            "psql" => client
                .args([
                    "--no-psqlrc",
                    "--dbname",
                    &format!("{conninfo} replication=database"),
                ])
                .args([
                    "--command",
                    &format!("CREATE_REPLICATION_SLOT {SLOT} LOGICAL pgoutput"),
                ]),
            _ => client
                .args(["--create-slot", "--slot", SLOT, "--plugin", "pgoutput"])
                .args(["--dbname", &conninfo]),
        };
        client
            .env("PGOPTIONS", "-c lock_timeout=700ms")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        assert!(!client.status().expect("a client runs").success());
    };
    let row = wait_for("many tries", PATIENCE, || {
        give_up();
        match cluster.history().first() {
            Some(row) if row.tries >= TRIES => Ok(row.clone()),
            row => Err(format!("{row:?}")),
        }
    });
    assert_eq!(cluster.history().len(), 1);
    assert_eq!((row.outcome.as_str(), row.blockers.len()), ("gone", 1));

    // It took some 10 s, or minutes on a busy machine: each pause is twice the
    // last, so that some tries, and the ends of as many, are all there is.
    let lines = cluster.worker_log();
    let begun = count(&lines, &format!("slot \"{SLOT}\" is being created"));
    let gone = count(
        &lines,
        &format!("slot \"{SLOT}\" is gone before it became ready"),
    );
    assert!((2..=8).contains(&begun), "{lines:#?}");
    assert!((2..=begun).contains(&gone), "{lines:#?}");
    let said = count(&lines, " LOG: ") + count(&lines, " WARNING: ");
    assert_eq!(said, begun + gone, "{lines:#?}");

    let pid = blocking.pid.expect("a session");
    let again: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("ended by its client; transaction"))
        .collect();
    let holder = format!("; transaction {} holds it up: pid {pid}", blocking.xid);
    let held = format!("; transaction {} held it up: pid {pid}", blocking.xid);
    let tries = |line: &str| line.contains(" try in ");
    assert!(
        again
            .iter()
            .any(|line| line.contains(&holder) && tries(line)),
        "{lines:#?}"
    );
    assert!(
        again.iter().any(|line| line.contains(&held) && tries(line)),
        "{lines:#?}"
    );
    assert!(count(&lines, "is being created again and waits for transactions") >= 1);
}

fn cancelled_each_time(major: Major) {
    const TRIES: i64 = 6;

    let setup = Setup::new(major).conf("slot_self_heal.creation_timeout = '700ms'");
    let cluster = with_extension(setup);
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    for _ in 0..TRIES {
        let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
        creation.finish().expect_err("it is cancelled");
    }
    let row = wait_for_row(&cluster, "all tries", |row| row.tries == TRIES);
    assert_eq!(cluster.history().len(), 1);
    assert_eq!(row.outcome, "cancelled by slot_self_heal");
    assert_eq!(
        row.reason.as_deref(),
        Some("slot_self_heal.creation_timeout: it takes longer than 700 ms")
    );
    assert_eq!(cluster.worker().cancelled, Some(TRIES));
    let lines = cluster.worker_log();
    let cancelling = count(&lines, "LOG:  cancelling the creation");
    assert!((1..TRIES as usize).contains(&cancelling), "{lines:#?}");
    assert!(cancelling < 2 || count(&lines, "try in") >= 1, "{lines:#?}");
}

fn abandoned(major: Major) {
    let setup = Setup::new(major).conf("slot_self_heal.cancel_abandoned = off");
    let cluster = with_extension(setup);
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Psycopg.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    creation.leave(Leaving::Close);
    let status = cluster.wait_for_state(SLOT, "abandoned");
    let pid = status.creator_pid.expect("a pid");
    cluster.wait_for_log("is being created for a client that is gone");
    cluster.run(&format!("SELECT pg_cancel_backend({pid})"));
    let row = cluster.wait_for_end_of(SLOT);
    let reason = "its client closed the connection";
    assert_eq!(
        (row.outcome.as_str(), row.reason.as_deref()),
        ("gone", Some(reason))
    );
    wait_until("the log's word", PATIENCE, || {
        let lines = cluster.worker_log();
        lines
            .iter()
            .any(|line| line.contains("DETAIL:  Transaction") && line.contains("Its client closed"))
    });
}

/// What is said of a transaction is said once, not once a try.
fn a_blocker_spared_once(major: Major) {
    let setup = Setup::new(major)
        .conf("slot_self_heal.blocker_action = terminate")
        .conf("slot_self_heal.blocker_grace = '100ms'");
    let cluster = with_extension(setup);
    // a superuser's
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let sparing = format!("does not end transaction {}", blocking.xid);
    let running = begin(&cluster, &client(&cluster), 1);
    cluster.wait_for_log(&sparing);
    drop(running);
    for tries in 2..=4 {
        wait_for_row(&cluster, "the last try", |row| row.tries == tries - 1);
        let running = begin(&cluster, &client(&cluster), tries);
        cluster.wait_for_status(SLOT, "the guard", |status| {
            status.detail().contains("slot_self_heal does not end it")
        });
        drop(running);
    }
    wait_for_row(&cluster, "the last try", |row| row.tries == 4);
    assert_eq!(cluster.count_in_log(&sparing), 1);
    assert!(blocking.goes_on(&cluster));
}

/// More than are remembered.
fn of_many_slots(major: Major) {
    const SLOTS: usize = 160;

    let setup = Setup::new(major)
        .conf("max_connections = 60")
        .conf("max_replication_slots = 60");
    let cluster = with_extension(setup);
    let _blocking = Blocker::IdleInTransaction.start(&cluster);
    let names: Vec<String> = (0..SLOTS).map(|number| format!("slot_{number}")).collect();
    for names in names.chunks(40) {
        let mut running: Vec<_> = names
            .iter()
            .map(|name| {
                let create =
                    format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
                client(&cluster).start(&create)
            })
            .collect();
        for name in names {
            cluster.wait_for_state(name, "waiting_for_transactions");
        }
        running.iter_mut().for_each(|running| running.cancel());
        wait_until("them to be gone", PATIENCE, || {
            cluster.number("SELECT count(*) FROM pg_replication_slots") == 0
        });
    }
    let last = &names[SLOTS - 40..];
    wait_until("the last of them to be history", PATIENCE, || {
        let history = cluster.history();
        let of_last = history.iter().filter(|row| last.contains(&row.slot_name));
        of_last.count() == last.len()
    });
    assert!(cluster.history().len() <= 128);
    let worker = cluster.worker();
    assert_eq!(worker.last_error, None);
    renew_worker(&cluster);
    cluster.run("SELECT slot_self_heal_reset()");
    try_in_vain(&cluster, &client(&cluster), 1);
    try_in_vain(&cluster, &client(&cluster), 2);
}
