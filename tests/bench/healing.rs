//! From the blocker's end to the slot, on an otherwise idle primary.

use std::{
    fmt,
    thread::sleep,
    time::{Duration, Instant},
};

use harness::{Blocker, Blocking, Cluster, Creation, Creator, PATIENCE};

use crate::{
    Effort, Pair,
    sample::{Sample, ms, ratio},
};

/// How a blocker ends.
#[derive(Clone, Copy)]
pub enum End {
    Rollback,
    Commit,
}

impl End {
    /// When it was told to.
    pub fn bring(self, blocking: Blocking) -> Instant {
        let ended = Instant::now();
        match self {
            End::Rollback => blocking.rollback(),
            End::Commit => blocking.commit(),
        }
        ended
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Rollback => "rollback",
            End::Commit => "commit",
        })
    }
}

pub fn measure(pairs: &[Pair], effort: &Effort) {
    println!(
        "\n### Blocker held {:?}, then ended, to the slot in its creator's hands\n\n\
         `pg_recvlogical --create-slot` on an idle primary, {} rounds.\n\n\
         | major | the blocker's end | Postgres alone p50 | p95 | with slot_self_heal p50 | p95 \
         | ratio of p50 |\n\
         | --- | --- | --- | --- | --- | --- | --- |",
        effort.hold, effort.rounds
    );
    for end in [End::Rollback, End::Commit] {
        let mut samples: Vec<(Sample, Sample)> = pairs.iter().map(|_| Default::default()).collect();
        for round in 0..effort.rounds {
            let slot = format!("bench_{end}_{round}");
            // All hold at once, to save time; each ends alone.
            let waiting: Vec<_> = pairs
                .iter()
                .map(|pair| [hold(&pair.alone, &slot), hold(&pair.healed, &slot)])
                .collect();
            sleep(effort.hold);
            for ((pair, waiting), (alone, healed)) in pairs.iter().zip(waiting).zip(&mut samples) {
                let [first, second] = waiting;
                sleep(lag(round));
                alone.add(release(&pair.alone, first, end, &slot));
                sleep(lag(round));
                healed.add(release(&pair.healed, second, end, &slot));
            }
        }
        for (pair, (alone, healed)) in pairs.iter().zip(&samples) {
            println!(
                "| {} | {end} | {} | {} | {} | {} | {} |",
                pair.major,
                ms(alone.p50()),
                ms(alone.p95()),
                ms(healed.p50()),
                ms(healed.p95()),
                ratio(healed.p50(), alone.p50())
            );
        }
    }
}

/// Spreads the ends evenly over the WAL writer's beat of 200 ms, with which a
/// fixed hold would be in step.
fn lag(round: usize) -> Duration {
    Duration::from_millis(round as u64 * 73 % 200)
}

fn hold(cluster: &Cluster, slot: &str) -> (Blocking, Creation) {
    let blocking = Blocker::IdleInTransaction.start(cluster);
    let creation = Creator::PgRecvlogical.start(cluster, slot);
    cluster.wait_until_sql(
        "the creator to wait",
        "EXISTS (SELECT FROM pg_stat_activity \
         WHERE backend_type = 'walsender' AND wait_event = 'transactionid')",
    );
    (blocking, creation)
}

fn release(
    cluster: &Cluster,
    (blocking, mut creation): (Blocking, Creation),
    end: End,
    slot: &str,
) -> Duration {
    let program = creation.program().expect("it is pg_recvlogical");
    let ended = end.bring(blocking);
    while !program.is_finished() {
        assert!(ended.elapsed() < PATIENCE, "the slot is not ready");
        sleep(Duration::from_micros(200));
    }
    let taken = ended.elapsed();
    cluster.run(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    taken
}
