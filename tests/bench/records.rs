//! What a creation that is blocked for long costs the primary's WAL.

use std::{thread::sleep, time::Instant};

use crate::{
    Effort,
    replica::{Help, Poller, Replica, on_all},
    request::{Command, Request},
    sample::ms,
};

const SLOT: &str = "bench";

pub fn measure(replicas: &mut [Replica], effort: &Effort) {
    println!(
        "\n### Running-xacts records for one creation, blocked for {:?}\n\n\
         `CREATE_REPLICATION_SLOT` on the standby and a transaction on the primary that began \
         before it, then commits. Counted in the primary's WAL with pg_waldump; the bgwriter of \
         the primary is stopped, so that none is its own. \
         The creation begins halfway between two beats of the client that polls.\n\n\
         | major | | while blocked | after | slot ready |\n\
         | --- | --- | --- | --- | --- |",
        effort.watch
    );
    let lines = on_all(replicas, |replica| blocked(replica, effort));
    for (replica, line) in replicas.iter().zip(lines) {
        println!("| {} | {} | {line}", replica.major, replica.help);
    }
}

fn blocked(replica: &Replica, effort: &Effort) -> String {
    let _frozen = replica.primary.freeze_bgwriter();
    let _poller = replica.poller();
    let blocking = replica.block();
    // between two beats of the client's
    sleep(Poller::BEAT / 2);
    let start = replica.primary.insert_lsn();
    let mut request = Request::send(Command::Walsender, &replica.standby, SLOT);
    sleep(effort.watch);
    assert!(!request.is_answered(), "the slot did not wait");
    let end = replica.primary.insert_lsn();
    let ended = Instant::now();
    blocking.commit();
    let ready = match replica.help {
        Help::Nobody => {
            sleep(Poller::BEAT);
            assert!(!request.is_answered(), "who wrote a record?");
            replica.abandon(SLOT);
            format!("not {:?} later", Poller::BEAT)
        }
        Help::Poller | Help::ExtensionOnBoth | Help::ExtensionOnStandby => {
            request.wait();
            let ready = ended.elapsed();
            replica.drop_slot(SLOT);
            format!("{} later", ms(ready))
        }
    };
    let records = replica.records_since(start);
    let before = records.iter().filter(|record| **record < end).count();
    format!("{before} | {} | {ready} |", records.len() - before)
}
