//! What is true of each slot being built, and what to do about it.
//!
//! Pure functions and plain values: no server, no clock, no input or output. A scan of the server
//! becomes an [`Observation`]; [`Watch`] holds it against what it remembers of each [`Episode`];
//! [`decide`] names the next [`Action`].
//!
//! [`Observation`]: observation::Observation
//! [`Watch`]: watch::Watch
//! [`Episode`]: episode::Episode
//! [`decide`]: decision::decide
//! [`Action`]: decision::Action
#![forbid(unsafe_code)]

pub mod advice;
pub mod blocker;
pub mod copy;
pub mod decision;
pub mod diagnosis;
pub mod episode;
#[cfg(test)]
mod fixtures;
pub mod guard;
pub mod hint;
pub mod history;
pub mod limit;
pub mod locks;
pub mod observation;
pub mod pause;
pub mod policy;
pub mod remedy;
pub mod replay;
pub mod risk;
pub mod schedule;
pub mod status;
pub mod story;
pub mod time;
pub mod upstream;
pub mod watch;
pub mod xid;
