//! Throw-away Postgres servers, and what a scenario does to them.
//!
//! The harness knows nothing of the extension's code: it sees what a user
//! sees, the views, the log and the write-ahead log. A scenario starts a
//! [`Cluster`], lets a [`Blocker`] hold a transaction and a [`Creator`] make a
//! slot, and waits with [`wait_until`] for what should be seen.
//!
//! Everything a scenario starts ends with it, also when it panics, and when
//! the whole test process is killed.

mod blocker;
mod cluster;
mod creator;
mod fake_upstream;
mod major;
mod network;
mod process;
mod scratch;
mod session;
mod status;
mod tablesync;
mod wait;
mod wal;

pub use blocker::{Blocker, Blocking};
pub use cluster::{Cluster, Frozen, Setup, free_port};
pub use creator::{Creation, Creator, Leaving, prepare_background_creator, psql};
pub use fake_upstream::{Asked, Done, FakeUpstream, Wire};
pub use major::Major;
pub use network::{DeadEnd, Proxy};
pub use process::{Pid, Process, Signal, output_of, without_rights_of_root};
pub use session::{Login, Running, Session, SqlError};
pub use status::{BlockerRow, Finished, Status, Worker, runs, statements};
pub use tablesync::Tablesync;
pub use wait::{PATIENCE, for_a_while, wait_for, wait_until};
pub use wal::Lsn;
