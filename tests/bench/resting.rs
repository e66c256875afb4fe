//! From the blocker's end on a primary, which then rests, to the slot on its
//! standby.

use std::{thread::sleep, time::Duration};

use crate::{
    Effort,
    healing::End,
    replica::{Help, Poller, Replica, Turn, on_all},
    request::{Command, Request},
    sample::{Sample, ms, spread},
};

/// How old the bgwriter's last record is before it writes another
/// (`LOG_SNAPSHOT_INTERVAL_MS`).
const BGWRITER_BEAT: Duration = Duration::from_secs(15);

pub fn measure(replicas: &mut [Replica], effort: &Effort) {
    println!(
        "\n### Blocker on the primary ended, to the slot on its standby\n\n\
         `CREATE_REPLICATION_SLOT` on the standby waits for a transaction that wrote a row on \
         the primary; held for {:?}, then ended, and nothing runs on the primary after it. That \
         end is work after which the bgwriter writes a record, once its last one is 15 s old: \
         this is what helps where nobody else does. The bgwriter helps the client that polls as \
         well; beside slot_self_heal it is stopped. The blocker begins at times spread evenly \
         over those 15 s, or over the client's 10 s.\n\n\
         | major | | the blocker's end | p50 | p95 | rounds |\n\
         | --- | --- | --- | --- | --- | --- |",
        effort.hold
    );
    let turn = Turn::default();
    let lines = on_all(replicas, |replica| {
        let _poller = replica.poller();
        let _frozen = replica
            .help
            .is_extension()
            .then(|| replica.primary.freeze_bgwriter());
        let (ends, rounds): (&[End], _) = match replica.help {
            // Where it takes seconds, the WAL writer's beat is lost in them.
            Help::Nobody | Help::Poller => (&[End::Commit], effort.rounds.div_ceil(2)),
            Help::ExtensionOnBoth | Help::ExtensionOnStandby => {
                (&[End::Commit, End::Rollback], effort.rounds)
            }
        };
        let of_end = |end: &End| {
            let taken: Sample = (0..rounds)
                .map(|round| release(replica, *end, round, effort, &turn))
                .collect();
            let (p50, p95) = (ms(taken.p50()), ms(taken.p95()));
            format!("{end} | {p50} | {p95} | {rounds} |")
        };
        ends.iter().map(of_end).collect::<Vec<_>>()
    });
    for (replica, lines) in replicas.iter().zip(lines) {
        for line in lines {
            println!("| {} | {} | {line}", replica.major, replica.help);
        }
    }
}

fn release(replica: &Replica, end: End, round: usize, effort: &Effort, turn: &Turn) -> Duration {
    const SLOT: &str = "bench";
    let beat = match replica.help {
        Help::Nobody => BGWRITER_BEAT,
        Help::Poller => Poller::BEAT,
        // the WAL writer's
        Help::ExtensionOnBoth | Help::ExtensionOnStandby => Duration::from_millis(200),
    };
    sleep(spread(round, beat));
    let (blocking, mut request) = {
        let _turn = turn.take();
        let blocking = replica.block();
        let request = Request::send(Command::Walsender, &replica.standby, SLOT);
        replica.wait_until_begun(SLOT);
        (blocking, request)
    };
    sleep(effort.hold);
    let _turn = replica.help.is_extension().then(|| turn.take());
    assert!(!request.is_answered(), "the slot did not wait");
    let ended = end.bring(blocking);
    request.wait();
    let taken = ended.elapsed();
    replica.drop_slot(SLOT);
    taken
}
