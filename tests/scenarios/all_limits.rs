//! Every limit at once, on a server where much goes on.

use harness::{
    Blocker, Blocking, Cluster, Creation, Creator, PATIENCE, Running, Setup, for_a_while, wait_for,
};

use crate::{
    Major,
    blocker_action::{acting_primary, app, check_terminated, sparing, terminating},
};

on_every_major!(each_does_its_own);

/// Of each kind of blocker, and there are five.
const EACH: usize = 6;
/// Of each kind of creation, and there are two.
const CREATIONS: usize = 15;

const CANCELLED: &str = "cancelled by slot_self_heal";

fn each_does_its_own(major: Major) {
    let setup = Setup::new(major)
        .conf("max_replication_slots = 40")
        .conf("max_wal_senders = 40")
        .conf("slot_self_heal.creation_timeout = '20s'")
        .conf("slot_self_heal.max_retained_wal = '8MB'")
        .conf("slot_self_heal.protected_roles = 'watchman'");
    let cluster = acting_primary("terminate", "1s", "any", setup);
    cluster.run("CREATE ROLE watchman LOGIN");
    cluster.run("CREATE ROLE patient LOGIN REPLICATION");
    cluster.run("ALTER ROLE patient SET slot_self_heal.max_retained_wal = -1");
    let mut ordinary = gather(&cluster, ordinary);

    let mut by_walsender: Vec<Creation> = (0..CREATIONS)
        .map(|n| Creator::Walsender.start(&cluster, &format!("impatient_{n}")))
        .collect();
    cluster.wait_until_sql(
        "all of these to wait",
        &format!(
            "(SELECT count(*) = {CREATIONS} FROM slot_self_heal_status \
             WHERE state = 'waiting_for_transactions')"
        ),
    );
    // For those that begin now, the end of the others alone would be in vain.
    let guarded = gather(&cluster, guarded);
    let mut by_function: Vec<Running> = (0..CREATIONS)
        .map(|n| create_as_patient(&cluster, &format!("patient_{n}")))
        .collect();
    for blocking in &mut ordinary {
        check_terminated(&cluster, blocking);
    }
    cluster.run("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)) FROM generate_series(1, 12)");
    for creation in &mut by_walsender {
        creation.finish().expect_err("it was to be cancelled");
    }
    for creation in &mut by_function {
        let error = creation.result().expect_err("it was to be cancelled");
        assert_eq!(error.code, "57014", "{error}");
    }
    wait_for("all creations to be over", PATIENCE, || {
        match cluster.history().len() {
            30 => Ok(()),
            ended => Err(format!("{ended} have ended")),
        }
    });
    for_a_while();

    check_accounts(&cluster);
    for blocking in &guarded {
        assert!(blocking.goes_on(&cluster), "it was ended");
        assert_eq!(cluster.count_in_log(&sparing(blocking)), 1);
        assert_eq!(cluster.count_in_log(&terminating(blocking)), 0);
    }
    let told = cluster.count_in_log("terminating the session of transaction");
    assert_eq!(told, ordinary.len());
}

#[track_caller]
fn gather<const N: usize>(
    cluster: &Cluster,
    some: fn(&Cluster, usize) -> [Blocking; N],
) -> Vec<Blocking> {
    (0..EACH).flat_map(|n| some(cluster, n)).collect()
}

fn ordinary(cluster: &Cluster, _: usize) -> [Blocking; 2] {
    [Blocker::IdleInTransaction, Blocker::Active]
        .map(|blocker| blocker.start_as(cluster, &app(cluster)))
}

fn guarded(cluster: &Cluster, n: usize) -> [Blocking; 3] {
    let as_role = |role| app(cluster).role(role);
    let idle = Blocker::IdleInTransaction;
    [
        idle.start_as(cluster, &as_role("postgres")),
        idle.start_as(cluster, &as_role("watchman")),
        prepare(cluster, n),
    ]
}

#[track_caller]
fn prepare(cluster: &Cluster, n: usize) -> Blocking {
    let mut blocking = Blocker::IdleInTransaction.start_as(cluster, &app(cluster));
    blocking
        .session()
        .run(&format!("PREPARE TRANSACTION 'prepared {n}'"));
    blocking
}

#[track_caller]
fn create_as_patient(cluster: &Cluster, slot: &str) -> Running {
    let patient = cluster.login().role("patient").application("cdc");
    patient.start(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))
}

/// What was counted, what is remembered and what was said is the same.
#[track_caller]
fn check_accounts(cluster: &Cluster) {
    let worker = cluster.worker();
    assert_eq!(worker.cancelled, Some(30));
    assert_eq!(worker.healed, Some(0));
    assert_eq!(worker.last_error, None);
    let history = cluster.history();
    for finished in &history {
        let slot = &finished.slot_name;
        assert_eq!(finished.outcome, CANCELLED, "{slot}");
        assert!(cluster.status(slot).is_none(), "{slot} is still there");
        let lines = cluster.worker_log();
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        let cancelling = format!("cancelling the creation of logical replication slot \"{slot}\"");
        assert_eq!(count(&cancelling), 1, "{slot}: {lines:#?}");
        let cancelled =
            format!("the creation of logical replication slot \"{slot}\" was cancelled after");
        assert_eq!(count(&cancelled), 1, "{slot}: {lines:#?}");
        let reason = match slot.starts_with("patient") {
            true => "it takes longer than 20 s",
            false => "it holds back ",
        };
        assert!(
            lines
                .iter()
                .any(|line| line.contains(&cancelling) && line.contains(reason)),
            "{slot}: {lines:#?}"
        );
    }
    for severity in ["ERROR: ", "WARNING: ", "FATAL: "] {
        let lines = cluster.worker_log();
        let bad: Vec<_> = lines
            .iter()
            .filter(|line| line.contains(severity))
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }
}
