use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a scenario waits for what should happen soon. Generous, because
/// nothing is measured here and the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(10);

/// Waits until `look` gives a value. On failure says what was waited for and
/// what was seen last; the servers of the scenario then show their logs.
#[track_caller]
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > deadline => {
                panic!("waited {deadline:?} in vain for {what}; seen last: {seen}")
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || {
        if condition() {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
}

/// Lets some idle ticks pass. Only for the claim that nothing happens
/// meanwhile: no condition can be waited for then.
pub fn for_a_while() {
    thread::sleep(Duration::from_secs(2));
}
