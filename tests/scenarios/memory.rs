//! A worker that runs for months keeps nothing of a tick that is over.

use harness::{Blocker, Cluster, Creator, PATIENCE, Setup, free_port, wait_for};

use crate::{
    Major,
    blocker_action::{acting_primary, app},
    with_extension,
};

const SLOT: &str = "cdc_slot";

on_every_major!(of_a_list_that_is_none);
on_majors_with_standby_slots!(of_failed_requests);

/// If each of these kept the least that can be allocated, it would come to more
/// than what the worker needs for a moment, and has when it is looked at.
const SCANS: i64 = 500;
const OF_A_SCAN: i64 = 16;

/// As often as can be.
const BUSY: &str = "slot_self_heal.scan_interval = 10ms";

/// A server starts with whatever its file has.
fn of_a_list_that_is_none(major: Major) {
    let setup = Setup::new(major)
        .conf(BUSY)
        .conf("slot_self_heal.protected_roles = 'ops,'");
    let cluster = acting_primary("terminate", "100ms", "any", setup);
    let blocking = Blocker::IdleInTransaction.start_as(&cluster, &app(&cluster));
    let creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_log("slot_self_heal.protected_roles names roles that do not exist: \"ops,\"");
    check_that_nothing_is_kept(&cluster);
    drop((creation, blocking));
}

/// A standby that asks again and again, and in vain.
fn of_failed_requests(major: Major) {
    let primary = with_extension(Setup::new(major));
    let _frozen = primary.freeze_bgwriter();
    let standby = Setup::new(major)
        .conf(BUSY)
        .conf("slot_self_heal.nudge_interval = 100ms")
        .conf(&format!(
            "slot_self_heal.primary_conninfo = 'host=127.0.0.1 port={}'",
            free_port()
        ))
        .standby_of(&primary);
    standby.wait_for_replay_of(&primary);
    let creation = Creator::Walsender.start(&standby, SLOT);
    standby.wait_for_worker("the trouble", |worker| {
        worker.upstream.as_deref() == Some("unreachable")
    });
    check_that_nothing_is_kept(&standby);
    drop(creation);
}

/// The first scans fill caches: the plans, the catalogs' rows.
#[track_caller]
fn check_that_nothing_is_kept(cluster: &Cluster) {
    wait_for_scans(cluster, SCANS / 5);
    let before = kept(cluster);
    wait_for_scans(cluster, SCANS);
    let after = kept(cluster);
    assert!(
        after - before < OF_A_SCAN * SCANS,
        "TopMemoryContext had {before} bytes, and {after} after {SCANS} scans"
    );
}

#[track_caller]
fn wait_for_scans(cluster: &Cluster, more: i64) {
    let scans = || cluster.worker().scans.unwrap_or_default();
    let before = scans();
    wait_for("scans", 5 * PATIENCE, || match scans() - before {
        done if done >= more => Ok(()),
        done => Err(format!("{done} of {more}")),
    });
}

/// The bytes in the worker's TopMemoryContext, which nobody empties.
#[track_caller]
fn kept(cluster: &Cluster) -> i64 {
    let said = || -> Vec<String> {
        cluster
            .worker_log()
            .into_iter()
            .filter(|line| line.contains("; TopMemoryContext: "))
            .collect()
    };
    let before = said().len();
    let worker = cluster.worker().pid.expect("it runs");
    cluster.run(&format!("SELECT pg_log_backend_memory_contexts({worker})"));
    // … TopMemoryContext: 97664 total in 5 blocks; 10136 free (6 chunks); 87528 used
    wait_for("the worker's memory in the log", PATIENCE, || {
        let said = said();
        let used = said.get(before).and_then(|line| {
            let (_, used) = line.strip_suffix(" used")?.rsplit_once(' ')?;
            used.parse().ok()
        });
        used.ok_or_else(|| format!("{said:?}"))
    })
}
