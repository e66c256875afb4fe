//! From the beginning of a creation to what the view says of it.

use std::time::{Duration, Instant};

use harness::{Blocker, PATIENCE, Status};

use crate::{
    Effort, Pair,
    sample::{Sample, ms},
};

pub fn measure(pairs: &[Pair], effort: &Effort) {
    println!(
        "\n### Creation begun, to what `slot_self_heal_status` says\n\n\
         Default `scan_interval`, {} rounds. Postgres alone never says it.\n\n\
         | major | a row p50 | p95 | the blocker's name p50 | p95 |\n\
         | --- | --- | --- | --- | --- |",
        effort.rounds
    );
    for pair in pairs {
        let (mut row, mut name) = (Sample::default(), Sample::default());
        for round in 0..effort.rounds {
            let slot = format!("bench_seen_{round}");
            let blocking = Blocker::IdleInTransaction.start(&pair.healed);
            // with its connection made beforehand
            let session = pair.healed.connect();
            let begun = Instant::now();
            let mut creation = session.start(&format!(
                "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
            ));
            row.add(seen(pair, &slot, begun, |_| true));
            name.add(seen(pair, &slot, begun, |status| {
                status.has_blocker(blocking.pid.expect("it is a session"))
            }));
            blocking.commit();
            creation.result().expect("the slot is created");
            pair.healed
                .run(&format!("SELECT pg_drop_replication_slot('{slot}')"));
        }
        println!(
            "| {} | {} | {} | {} | {} |",
            pair.major,
            ms(row.p50()),
            ms(row.p95()),
            ms(name.p50()),
            ms(name.p95())
        );
    }
}

fn seen(pair: &Pair, slot: &str, begun: Instant, wanted: impl Fn(&Status) -> bool) -> Duration {
    while !pair
        .healed
        .status(slot)
        .is_some_and(|status| wanted(&status))
    {
        assert!(begun.elapsed() < PATIENCE, "the view does not show it");
    }
    begun.elapsed()
}
