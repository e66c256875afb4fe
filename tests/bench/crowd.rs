//! What the worker costs while many slots are being created among many
//! connections, and whether it does no more than it must.

use std::{thread::sleep, time::Duration};

use harness::{
    Blocker, Blocking, Cluster, Creation, Creator, Major, PATIENCE, Session, Setup, wait_until,
};

use crate::{Effort, idle::cpu_time};

struct Crowd {
    connections: usize,
    slots: usize,
}

const FEW: Crowd = Crowd {
    connections: 10,
    slots: 1,
};
const MANY: Crowd = Crowd {
    connections: 1000,
    slots: 100,
};

pub fn measure(effort: &Effort) {
    raise_file_limit();
    println!(
        "\n### Slots being created among connections\n\n\
         Half of the creators are walsenders, half SQL functions; one idle transaction blocks them \
         all. Counted for {:?}.\n\n\
         | major | connections | slots being created | ticks a second | CPU a tick | of a core |\n\
         | --- | --- | --- | --- | --- | --- |",
        effort.idle
    );
    let mut deeds = Vec::new();
    for &major in Major::ASKED_FOR {
        for crowd in [FEW, MANY] {
            deeds.push(work(major, &crowd, effort.idle));
        }
    }
    println!(
        "\n### What was needed, and what was done, in the end\n\n\
         The blocker commits, then other creations wait for ten sessions that blocker_action ends, \
         then others are cancelled by creation_timeout, each creation at the same time as the \
         others. Signals are counted by the errors of those that got them.\n\n\
         | major | slots | records, needed / written | sessions, to end / ended | creations, to \
         cancel / cancelled |\n\
         | --- | --- | --- | --- | --- |"
    );
    for deed in deeds {
        println!("{deed}");
    }
}

fn work(major: Major, crowd: &Crowd, watch: Duration) -> String {
    let cluster = Setup::new(major)
        .conf(&format!("max_connections = {}", MANY.connections + 200))
        .conf(&format!("max_wal_senders = {}", MANY.slots))
        .conf(&format!("max_replication_slots = {}", MANY.slots))
        .conf("slot_self_heal.blocker_grace = 1s")
        .start();
    cluster.create_extension();
    cluster.run("CREATE ROLE alice LOGIN; CREATE TABLE public.crowd (i int); GRANT ALL ON public.crowd TO alice");
    let _crowd = connect(&cluster, crowd);
    let _frozen = cluster.freeze_bgwriter();

    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creations = create(&cluster, crowd, "waits");
    wait_until_blocked(&cluster, crowd);
    let worker = cluster.worker();
    let pid = worker.pid.expect("a worker");
    let (scans, cpu) = (worker.scans.unwrap_or(0), cpu_time(pid));
    sleep(watch);
    let ticks = (cluster.worker().scans.unwrap_or(0) - scans).max(1);
    let cpu = cpu_time(pid) - cpu;
    println!(
        "| {major} | {} | {} | {:.1} | {:.2} ms | {:.1} % |",
        crowd.connections,
        crowd.slots,
        ticks as f64 / watch.as_secs_f64(),
        cpu.as_secs_f64() * 1e3 / ticks as f64,
        cpu.as_secs_f64() * 1e2 / watch.as_secs_f64()
    );

    let before = cluster.worker().nudges.unwrap_or(0);
    blocking.commit();
    finish(&mut creations);
    let records = cluster.worker().nudges.unwrap_or(0) - before;

    let blockers = crowd.slots.min(10);
    let ended = end_blockers(&cluster, crowd, blockers);
    let cancelled = cancel(&cluster, crowd);
    format!(
        "| {major} | {} | 1 / {records} | {blockers} / {ended} | {} / {cancelled} |",
        crowd.slots, crowd.slots
    )
}

/// The sessions that are there besides.
fn connect(cluster: &Cluster, crowd: &Crowd) -> Vec<Session> {
    let others = crowd.connections - crowd.slots - 2;
    let login = cluster.login().application("crowd");
    (0..others).map(|_| login.connect()).collect()
}

fn create(cluster: &Cluster, crowd: &Crowd, name: &str) -> Vec<Creation> {
    (0..crowd.slots)
        .map(|number| {
            let creator = match number % 2 {
                0 => Creator::TemporaryWalsender,
                _ => Creator::TemporarySqlFunction,
            };
            creator.start(cluster, &format!("{name}_{number}"))
        })
        .collect()
}

fn wait_until_blocked(cluster: &Cluster, crowd: &Crowd) {
    let blocked = format!(
        "count(*) = {} FROM slot_self_heal_status WHERE state = 'waiting_for_transactions'",
        crowd.slots
    );
    cluster.wait_until_sql("all creations to wait", &blocked);
}

/// Lets each have its slot; it goes with its session.
fn finish(creations: &mut Vec<Creation>) {
    for creation in creations.iter_mut() {
        creation.finish().expect("a slot");
    }
    creations.clear();
}

/// How many sessions were told to end.
fn end_blockers(cluster: &Cluster, crowd: &Crowd, blockers: usize) -> usize {
    wait_for_no_slots(cluster);
    let login = cluster.login().role("alice").application("shop");
    let blocking: Vec<Blocking> = (0..blockers)
        .map(|_| Blocker::IdleInTransaction.start_as(cluster, &login))
        .collect();
    let mut creations = create(cluster, crowd, "blocked");
    wait_until_blocked(cluster, crowd);
    cluster.set("slot_self_heal.blocker_action", "terminate");
    finish(&mut creations);
    cluster.set("slot_self_heal.blocker_action", "report");
    drop(blocking);
    cluster.count_in_log("terminating connection due to administrator command")
}

/// How many creations were told to end.
fn cancel(cluster: &Cluster, crowd: &Crowd) -> usize {
    wait_for_no_slots(cluster);
    let cancelled = "canceling statement due to user request";
    let before = cluster.count_in_log(cancelled);
    let blocking = Blocker::IdleInTransaction.start(cluster);
    let mut creations = create(cluster, crowd, "late");
    wait_until_blocked(cluster, crowd);
    cluster.set("slot_self_heal.creation_timeout", "'1s'");
    for creation in &mut creations {
        creation.finish().expect_err("it is cancelled");
    }
    cluster.set("slot_self_heal.creation_timeout", "0");
    drop(blocking);
    cluster.count_in_log(cancelled) - before
}

fn wait_for_no_slots(cluster: &Cluster) {
    wait_until("all slots to be gone", PATIENCE, || {
        cluster.is_true("SELECT count(*) = 0 FROM pg_replication_slots")
    });
}

/// One descriptor a connection is more than many systems allow at first.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: plain calls with a struct of ours.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}
