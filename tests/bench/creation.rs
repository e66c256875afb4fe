//! From the command to the slot, on the standby of a primary that rests.

use std::{
    collections::VecDeque,
    thread::sleep,
    time::{Duration, Instant},
};

use harness::PATIENCE;

use crate::{
    Effort,
    replica::{Help, Poller, Replica, Turn, on_all, wait_for_rest},
    request::{Command, Request},
    sample::{Sample, ms, spread},
};

pub fn measure(replicas: &mut [Replica], effort: &Effort) {
    println!(
        "\n### Slot created on a standby, its primary at rest\n\n\
         From the command, over a connection that is there already, to its answer; {} rounds, \
         default settings. No bgwriter is stopped, but each has written its last record: \
         nothing was written on the primaries for 26 s before. Postgres alone is watched for \
         {:?}. Beside the client that polls (SELECT pg_log_standby_snapshot() on the primary, as \
         Electric does), creations begin at times spread evenly over its 10 s. Records are running-xacts records, counted in the primary's WAL with \
         pg_waldump.\n\n\
         | major | | command | p50 | p95 | records |\n\
         | --- | --- | --- | --- | --- | --- |",
        effort.rounds, effort.watch
    );
    wait_for_rest(replicas);
    let turn = Turn::default();
    let lines = on_all(replicas, |replica| match replica.help {
        Help::Nobody => watch(replica, effort),
        Help::Poller => poll(replica, effort),
        Help::ExtensionOnBoth | Help::ExtensionOnStandby => heal(replica, effort, &turn),
    });
    for (replica, lines) in replicas.iter().zip(lines) {
        for line in lines {
            println!("| {} | {} | {line}", replica.major, replica.help);
        }
    }
}

/// One creation by each command, ended when it was watched long enough.
fn watch(replica: &Replica, effort: &Effort) -> Vec<String> {
    let start = replica.primary.insert_lsn();
    let plan = Command::ALL.map(|command| (Duration::ZERO, command));
    let taken = follow(replica, plan.into(), effort.watch);
    let records = replica.records_since(start).len();
    lines(&taken, effort, &format!("{records} for {}", taken.len()))
}

/// Some creations to each beat of the client's, each at another point of it.
fn poll(replica: &Replica, effort: &Effort) -> Vec<String> {
    const TO_A_BEAT: usize = 4;
    let mut plan: Vec<_> = (0..effort.rounds)
        .flat_map(|_| Command::ALL)
        .enumerate()
        .map(|(n, command)| {
            let beat = Poller::BEAT * (n / TO_A_BEAT) as u32;
            (beat + spread(n, Poller::BEAT), command)
        })
        .collect();
    plan.sort_by_key(|(at, _)| *at);

    let start = replica.primary.insert_lsn();
    let begun = Instant::now();
    let poller = replica.poller();
    let taken = follow(replica, plan.into(), Duration::MAX);
    drop(poller);
    let seconds = begun.elapsed().as_secs();
    let records = replica.records_since(start).len();
    lines(&taken, effort, &format!("{records} in {seconds} s"))
}

/// Begins creations at the planned times and waits for their ends. Gives up
/// at `end`, counted from now; those have taken None.
fn follow(
    replica: &Replica,
    mut plan: VecDeque<(Duration, Command)>,
    end: Duration,
) -> Vec<(Command, Option<Duration>)> {
    let begun = Instant::now();
    let mut waiting: Vec<Request> = Vec::new();
    let mut taken = Vec::new();
    while begun.elapsed() < end && !(plan.is_empty() && waiting.is_empty()) {
        if let Some((at, command)) = plan.front().copied()
            && begun.elapsed() >= at
        {
            plan.pop_front();
            let slot = format!("bench_{}", plan.len());
            waiting.push(Request::send(command, &replica.standby, &slot));
        }
        waiting.retain_mut(|request| {
            if !request.is_answered() {
                assert!(
                    end < Duration::MAX || request.age() < PATIENCE,
                    "{} is not ready",
                    request.slot
                );
                return true;
            }
            taken.push((request.command, Some(request.age())));
            replica.drop_slot(&request.slot);
            false
        });
        sleep(Duration::from_millis(2));
    }
    for request in waiting {
        taken.push((request.command, None));
        replica.abandon(&request.slot);
    }
    taken
}

/// One creation after the other.
fn heal(replica: &Replica, effort: &Effort, turn: &Turn) -> Vec<String> {
    let start = replica.primary.insert_lsn();
    let mut taken = Vec::new();
    for command in Command::ALL {
        for round in 0..effort.rounds {
            let _turn = turn.take();
            replica.catch_up();
            // not in step with the worker's tick
            sleep(spread(round, Duration::from_millis(100)));
            let mut request = Request::send(command, &replica.standby, "bench");
            taken.push((command, Some(request.wait())));
            replica.drop_slot("bench");
        }
    }
    let records = replica.records_since(start).len();
    lines(&taken, effort, &format!("{records} for {}", taken.len()))
}

/// The table's lines, but for what is the replica's.
fn lines(taken: &[(Command, Option<Duration>)], effort: &Effort, records: &str) -> Vec<String> {
    let line = |command: Command| {
        let of_command = taken.iter().filter(|(by, _)| *by == command);
        let ready: Option<Sample> = of_command.map(|(_, taken)| *taken).collect();
        let (p50, p95) = match ready {
            Some(sample) => (ms(sample.p50()), ms(sample.p95())),
            None => {
                let stuck = format!("stuck after {:?}", effort.watch);
                (stuck.clone(), stuck)
            }
        };
        format!("{command} | {p50} | {p95} | {records} |")
    };
    Command::ALL.map(line).into()
}
