//! Waiting for what comes, not for how long it takes.

use std::time::{Duration, Instant};

use crate::server::process;

/// How long is waited for anything before it is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

const NAP: Duration = Duration::from_millis(2);

/// Waits until `look` finds what it looks for. `what` names it, should it never come.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        process::wait(NAP, process::wait_event());
    }
}

pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}
