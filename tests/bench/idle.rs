//! What the extension costs while nothing happens.

use std::{thread::sleep, time::Duration};

use harness::{Cluster, Creator, Frozen, PATIENCE, Pid, Session, wait_until};
use procfs::process::Process;

use crate::{
    Effort, Pair,
    replica::{Help, Replica},
};

const SLOT: &str = "idle_slot";

pub fn measure(pairs: &[Pair], replicas: &[Replica], effort: &Effort) {
    let replicas: Vec<_> = replicas
        .iter()
        .filter(|replica| replica.help != Help::Poller)
        .collect();
    let mut primaries: Vec<Watched> = pairs
        .iter()
        .flat_map(|pair| [&pair.alone, &pair.healed])
        .map(Watched::primary)
        .collect();
    let mut standbys: Vec<Watched> = replicas
        .iter()
        .map(|replica| Watched::standby(replica))
        .collect();
    sleep(effort.idle);
    let of_primaries: Vec<Cost> = primaries.iter_mut().map(Watched::finish).collect();
    let of_standbys: Vec<Cost> = standbys.iter_mut().map(Watched::finish).collect();

    println!(
        "\n### Primary idle for {:?} with one ready slot, default settings\n\n\
         Autovacuum is off and the bgwriter stopped, so that what is counted is the \
         extension's.\n\n\
         | major | | transactions | WAL bytes | CPU of the worker |\n\
         | --- | --- | --- | --- | --- |",
        effort.idle
    );
    for (pair, costs) in pairs.iter().zip(of_primaries.chunks(2)) {
        for (server, cost) in ["Postgres alone", "with slot_self_heal"].iter().zip(costs) {
            println!(
                "| {} | {server} | {} | {} | {} |",
                pair.major,
                cost.transactions,
                cost.wal,
                cost.cpu(effort)
            );
        }
    }
    println!(
        "\n### Standby idle for {:?} with one ready slot, default settings\n\n\
         Transactions and CPU on the standby, WAL and connections on its primary: those of \
         application slot_self_heal, from the primary's log.\n\n\
         | major | | transactions | connections | WAL bytes | CPU of the worker |\n\
         | --- | --- | --- | --- | --- | --- |",
        effort.idle
    );
    for (replica, cost) in replicas.iter().zip(of_standbys) {
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            replica.major,
            replica.help,
            cost.transactions,
            cost.connections,
            cost.wal,
            cost.cpu(effort)
        );
    }
}

/// A server that is left alone, seen from a database that the worker is not
/// in.
struct Watched<'a> {
    server: &'a Cluster,
    /// Itself, or what it is a standby of.
    primary: &'a Cluster,
    watch: Session,
    watch_primary: Session,
    worker: Option<Pid>,
    cpu: Option<Duration>,
    wal: u64,
    transactions: i64,
    connections: usize,
    _frozen: Frozen,
}

struct Cost {
    transactions: i64,
    connections: usize,
    wal: u64,
    cpu: Option<Duration>,
}

impl Cost {
    fn cpu(&self, effort: &Effort) -> String {
        self.cpu.map_or("–".to_owned(), |cpu| {
            let part = cpu.as_secs_f64() / effort.idle.as_secs_f64();
            format!(
                "{:.0} ms, {:.3} % of a core",
                cpu.as_secs_f64() * 1e3,
                part * 1e2
            )
        })
    }
}

impl Watched<'_> {
    fn primary(primary: &Cluster) -> Watched<'_> {
        Creator::SqlFunction
            .start(primary, SLOT)
            .finish()
            .expect("the slot is created");
        Watched::start(primary, primary)
    }

    fn standby(replica: &Replica) -> Watched<'_> {
        let mut creation = Creator::SqlFunction.start(&replica.standby, SLOT);
        replica.wait_until_begun(SLOT);
        if replica.help == Help::Nobody {
            replica.primary.run("SELECT pg_log_standby_snapshot()");
        }
        creation.finish().expect("the slot is created");
        drop(creation);
        replica.primary.set("log_connections", "on");
        Watched::start(&replica.standby, &replica.primary)
    }

    fn start<'a>(server: &'a Cluster, primary: &'a Cluster) -> Watched<'a> {
        primary.run("CREATE DATABASE watch");
        server.wait_until_sql(
            "the database to watch from",
            "EXISTS (SELECT FROM pg_database WHERE datname = 'watch')",
        );
        let frozen = primary.freeze_bgwriter();
        server.forget_observer();
        primary.forget_observer();
        let mut watch = server.login().database("watch").connect();
        let mut watch_primary = primary.login().database("watch").connect();
        // A session's statistics are there once it is gone.
        wait_until("all other sessions to end", PATIENCE, || {
            watch.is_true(
                "SELECT count(*) = 0 FROM pg_stat_activity \
                 WHERE datname = 'postgres' AND backend_type = 'client backend'",
            )
        });
        let worker = renew_worker(&mut watch);
        Watched {
            server,
            primary,
            worker,
            cpu: worker.map(cpu_time),
            wal: insert_lsn(&mut watch_primary),
            transactions: transactions(&mut watch),
            connections: connections(primary),
            watch,
            watch_primary,
            _frozen: frozen,
        }
    }

    fn finish(&mut self) -> Cost {
        let wal = insert_lsn(&mut self.watch_primary) - self.wal;
        let cpu = self.worker.map(cpu_time);
        let opened = connections(self.primary) - self.connections;
        let open = self.watch_primary.number(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slot_self_heal'",
        );
        // A process flushes its statistics when it ends, at the latest. What
        // the start of a worker counts is known by starting another.
        renew_worker(&mut self.watch);
        let with_start = transactions(&mut self.watch);
        renew_worker(&mut self.watch);
        let start = transactions(&mut self.watch) - with_start;
        self.server.forget_observer();
        Cost {
            transactions: with_start - self.transactions - start,
            connections: opened.max(open as usize),
            wal,
            cpu: cpu.zip(self.cpu).map(|(after, before)| after - before),
        }
    }
}

/// Those the log has of the extension; the server must log connections.
fn connections(primary: &Cluster) -> usize {
    primary.count_in_log("application_name=slot_self_heal")
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
pub fn cpu_time(pid: Pid) -> Duration {
    Process::new(pid.0)
        .and_then(|process| process.schedstat())
        .map(|stat| Duration::from_nanos(stat.sum_exec_runtime))
        .unwrap_or_else(|e| panic!("could not read the CPU time of {pid}: {e}"))
}
