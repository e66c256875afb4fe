//! The measurements behind the README's tables, as Markdown. Run it with
//! `make bench`.
//!
//! Each figure is taken with the extension and without it, on servers that are
//! otherwise the same, in one run: what counts is the ratio, not the machine.

mod creation;
mod crowd;
mod healing;
mod idle;
mod records;
mod replica;
mod request;
mod resting;
mod sample;
mod seeing;

use std::{env, process::exit, time::Duration};

use harness::{Cluster, Major, Setup};

use replica::{Help, Replica};

const USAGE: &str = "\
usage: bench [--quick] [--hold SECONDS] [--rounds N] [--watch SECONDS] [--idle SECONDS]
             [--only TABLE]
  --quick         little of everything: does it run?
  --hold SECONDS  how long a blocker holds its transaction (2)
  --rounds N      repetitions (20)
  --watch SECONDS how long a creation that is stuck is watched, or one is
                  blocked whose records are counted (60)
  --idle SECONDS  how long the servers idle (60)
  --only TABLE    healing, seeing, creation, resting, records, idle or crowd";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Healing,
    Seeing,
    Creation,
    Resting,
    Records,
    Idle,
    Crowd,
}

impl Table {
    const ALL: [Table; 7] = [
        Table::Healing,
        Table::Seeing,
        Table::Creation,
        Table::Resting,
        Table::Records,
        Table::Idle,
        Table::Crowd,
    ];

    fn name(self) -> &'static str {
        match self {
            Table::Healing => "healing",
            Table::Seeing => "seeing",
            Table::Creation => "creation",
            Table::Resting => "resting",
            Table::Records => "records",
            Table::Idle => "idle",
            Table::Crowd => "crowd",
        }
    }
}

/// How much is measured.
struct Effort {
    hold: Duration,
    rounds: usize,
    watch: Duration,
    idle: Duration,
    tables: Vec<Table>,
}

impl Effort {
    fn of_arguments() -> Effort {
        let mut effort = Effort {
            hold: Duration::from_secs(2),
            rounds: 20,
            watch: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            tables: Table::ALL.into(),
        };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .unwrap_or_else(|| usage(&format!("{argument} needs a value")))
            };
            let mut number = || -> u64 {
                value()
                    .parse()
                    .unwrap_or_else(|_| usage(&format!("{argument} needs a number")))
            };
            match argument.as_str() {
                "--quick" => {
                    effort = Effort {
                        hold: Duration::from_millis(500),
                        rounds: 3,
                        watch: Duration::from_secs(20),
                        idle: Duration::from_secs(10),
                        ..effort
                    }
                }
                "--hold" => effort.hold = Duration::from_secs(number()),
                "--rounds" => effort.rounds = number().max(1) as usize,
                "--watch" => effort.watch = Duration::from_secs(number().max(1)),
                "--idle" => effort.idle = Duration::from_secs(number().max(1)),
                "--only" => {
                    let name = value();
                    effort.tables.retain(|table| table.name() == name);
                    if effort.tables.is_empty() {
                        usage(&format!("there is no table {name}"));
                    }
                }
                _ => usage(&format!("unknown argument {argument}")),
            }
        }
        effort
    }
}

fn usage(complaint: &str) -> ! {
    eprintln!("{complaint}\n{USAGE}");
    exit(2)
}

/// The same server twice.
struct Pair {
    major: Major,
    alone: Cluster,
    healed: Cluster,
}

impl Pair {
    /// Postgres's own defaults where it is the disk or the WAL writer that is
    /// measured: the scenarios' servers do not sync.
    fn start(major: Major) -> Pair {
        let setup = || Setup::new(major).conf("fsync = on");
        let healed = setup().start();
        healed.create_extension();
        Pair {
            major,
            alone: setup().without_extension().start(),
            healed,
        }
    }
}

fn main() {
    let effort = Effort::of_arguments();
    let pairs: Vec<Pair> = Major::ASKED_FOR.iter().copied().map(Pair::start).collect();
    let mut replicas: Vec<Replica> = Replica::majors()
        .flat_map(|major| Help::ALL.map(|help| Replica::start(major, help)))
        .collect();
    for pair in &pairs {
        let version = pair.alone.value("SHOW server_version");
        println!("- PostgreSQL {version}");
    }
    for table in &effort.tables {
        match table {
            Table::Healing => healing::measure(&pairs, &effort),
            Table::Seeing => seeing::measure(&pairs, &effort),
            Table::Creation => creation::measure(&mut replicas, &effort),
            Table::Resting => resting::measure(&mut replicas, &effort),
            Table::Records => records::measure(&mut replicas, &effort),
            Table::Idle => idle::measure(&pairs, &replicas, &effort),
            Table::Crowd => crowd::measure(&effort),
        }
    }
}
