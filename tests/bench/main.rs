//! The measurements behind the README's tables, as Markdown. Run it with
//! `make bench`.
//!
//! Each figure is taken with the extension and without it, on servers that are
//! otherwise the same, in one run: what counts is the ratio, not the machine.

mod healing;
mod idle;
mod sample;
mod seeing;

use std::{env, process::exit, time::Duration};

use harness::{Cluster, Major, Setup};

const USAGE: &str = "\
usage: bench [--quick] [--hold SECONDS] [--rounds N] [--idle SECONDS]
  --quick         little of everything: does it run?
  --hold SECONDS  how long a blocker holds its transaction (2)
  --rounds N      repetitions (20)
  --idle SECONDS  how long the servers idle (60)";

/// How much is measured.
struct Effort {
    hold: Duration,
    rounds: usize,
    idle: Duration,
}

impl Effort {
    fn of_arguments() -> Effort {
        let mut effort = Effort {
            hold: Duration::from_secs(2),
            rounds: 20,
            idle: Duration::from_secs(60),
        };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || -> u64 {
                arguments
                    .next()
                    .and_then(|value| value.parse().ok())
                    .unwrap_or_else(|| usage(&format!("{argument} needs a number")))
            };
            match argument.as_str() {
                "--quick" => {
                    effort = Effort {
                        hold: Duration::from_millis(500),
                        rounds: 3,
                        idle: Duration::from_secs(10),
                    }
                }
                "--hold" => effort.hold = Duration::from_secs(number()),
                "--rounds" => effort.rounds = number().max(1) as usize,
                "--idle" => effort.idle = Duration::from_secs(number().max(1)),
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
    let pairs = Major::ALL.map(Pair::start);
    for pair in &pairs {
        let version = pair.alone.value("SHOW server_version");
        println!("- PostgreSQL {version}");
    }
    healing::measure(&pairs, &effort);
    seeing::measure(&pairs, &effort);
    idle::measure(&pairs, &effort);
}
