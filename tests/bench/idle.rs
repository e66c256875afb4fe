//! What the extension costs while nothing happens.

use std::{thread::sleep, time::Duration};

use harness::{Cluster, Creator, Frozen, PATIENCE, Pid, Session, wait_until};
use procfs::process::Process;

use crate::{Effort, Pair};

pub fn measure(pairs: &[Pair], effort: &Effort) {
    println!(
        "\n### Idle for {:?} with one ready slot, default settings\n\n\
         Autovacuum is off and the bgwriter stopped, so that what is counted is the \
         extension's.\n\n\
         | major | | transactions | WAL bytes | CPU of the worker |\n\
         | --- | --- | --- | --- | --- |",
        effort.idle
    );
    let mut watched: Vec<Watched> = pairs
        .iter()
        .flat_map(|pair| [&pair.alone, &pair.healed])
        .map(Watched::start)
        .collect();
    sleep(effort.idle);
    let costs: Vec<Cost> = watched.iter_mut().map(Watched::finish).collect();
    for (pair, costs) in pairs.iter().zip(costs.chunks(2)) {
        for (server, cost) in ["Postgres alone", "with slot_self_heal"].iter().zip(costs) {
            let cpu = cost.cpu.map_or("–".to_owned(), |cpu| {
                let part = cpu.as_secs_f64() / effort.idle.as_secs_f64();
                format!(
                    "{:.0} ms, {:.3} % of a core",
                    cpu.as_secs_f64() * 1e3,
                    part * 1e2
                )
            });
            println!(
                "| {} | {server} | {} | {} | {cpu} |",
                pair.major, cost.transactions, cost.wal
            );
        }
    }
}

/// A server that is left alone, seen from a database that the worker is not
/// in.
struct Watched<'a> {
    cluster: &'a Cluster,
    watch: Session,
    worker: Option<Pid>,
    cpu: Option<Duration>,
    wal: u64,
    transactions: i64,
    _frozen: Frozen,
}

struct Cost {
    transactions: i64,
    wal: u64,
    cpu: Option<Duration>,
}

impl Watched<'_> {
    fn start(cluster: &Cluster) -> Watched<'_> {
        Creator::SqlFunction
            .start(cluster, "idle_slot")
            .finish()
            .expect("the slot is created");
        cluster.run("CREATE DATABASE watch");
        let frozen = cluster.freeze_bgwriter();
        cluster.forget_observer();
        let mut watch = cluster.login().database("watch").connect();
        let worker = renew_worker(&mut watch);
        Watched {
            cluster,
            worker,
            cpu: worker.map(cpu_time),
            wal: insert_lsn(&mut watch),
            transactions: transactions(&mut watch),
            watch,
            _frozen: frozen,
        }
    }

    fn finish(&mut self) -> Cost {
        let wal = insert_lsn(&mut self.watch) - self.wal;
        let cpu = self.worker.map(cpu_time);
        // A process flushes its statistics when it ends, at the latest. What
        // the start of a worker counts is known by starting another.
        renew_worker(&mut self.watch);
        let with_start = transactions(&mut self.watch);
        renew_worker(&mut self.watch);
        let start = transactions(&mut self.watch) - with_start;
        self.cluster.forget_observer();
        Cost {
            transactions: with_start - self.transactions - start,
            wal,
            cpu: cpu.zip(self.cpu).map(|(after, before)| after - before),
        }
    }
}

fn insert_lsn(watch: &mut Session) -> u64 {
    watch.number("SELECT pg_current_wal_insert_lsn() - '0/0'") as u64
}

fn transactions(watch: &mut Session) -> i64 {
    watch.number(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'",
    )
}

/// Ends the worker, if this server has one, and waits for the next.
fn renew_worker(watch: &mut Session) -> Option<Pid> {
    let worker = "FROM pg_stat_activity WHERE backend_type = 'slot_self_heal'";
    let old = watch.maybe(&format!("SELECT pid {worker}"))?;
    watch.run(&format!("SELECT pg_terminate_backend({old}, 10000)"));
    let mut new = None;
    wait_until("a new worker", PATIENCE, || {
        new = watch.maybe(&format!("SELECT pid {worker} AND wait_event IS NOT NULL"));
        new.as_ref().is_some_and(|new| *new != old)
    });
    new.and_then(|pid| pid.parse().ok()).map(Pid)
}

/// Nanoseconds, from schedstat: clock ticks are too coarse for so little.
fn cpu_time(pid: Pid) -> Duration {
    Process::new(pid.0)
        .and_then(|process| process.schedstat())
        .map(|stat| Duration::from_nanos(stat.sum_exec_runtime))
        .unwrap_or_else(|e| panic!("could not read the CPU time of {pid}: {e}"))
}
