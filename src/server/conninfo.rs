//! How to reach the upstream: which addresses to try, as the settings say.
//!
//! libpq looks up host names where no signal ends its wait. So the names are looked up here, in
//! threads, and libpq is given addresses. (Not so for a host that a `service` file names.) And libpq
//! gives no host less time than another, so that a dead one would use up the time of those after
//! it: each address is tried by itself.

use std::ffi::{CStr, CString};
use std::net::{IpAddr, ToSocketAddrs};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::libpq::{self, Parameters};
use super::{process, secret};
use crate::core::upstream::{Hop, Login, Problem, Source};

/// For looking up names, which leaves time to connect.
const LOOKUP_LIMIT: Duration = Duration::from_millis(2500);
/// How much longer to wait for names once there is an address to try.
const LOOKUP_PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks whether a name's addresses are there.
const PAUSE: Duration = Duration::from_millis(5);
/// Look-ups of former tries that still hang. When there are so many, no more are begun.
const MOST_LOOKUPS: usize = 8;
static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// Which server to connect to, as the settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub source: Source,
    text: CString,
    /// `slot_self_heal.database`
    database: String,
}

/// What libpq is to be asked for, one address after the other.
pub struct Route {
    pub login: Login,
    pub addresses: Vec<Parameters>,
}

impl Target {
    /// `None` where neither setting names one.
    pub fn from_settings(database: String) -> Option<Self> {
        let ours = secret::value().map(|text| (Source::Ours, text));
        // SAFETY: a setting's value, which lives until the next reload.
        let servers = || unsafe {
            let text = pg_sys::PrimaryConnInfo;
            (!text.is_null() && *text != 0)
                .then(|| (Source::Server, CStr::from_ptr(text).to_owned()))
        };
        ours.or_else(servers).map(|(source, text)| Self {
            source,
            text,
            database,
        })
    }

    /// `hop`: shown to the upstream as the application's name.
    pub fn route(&self, hop: Hop) -> Result<Route, Problem> {
        let invalid = || Problem::invalid_conninfo(self.source);
        let mut parameters = libpq::parse(&self.text).ok_or_else(invalid)?;
        let database = match (self.source, get(&parameters, "dbname")) {
            (Source::Ours, Some(database)) => database,
            (Source::Ours, None) | (Source::Server, _) => self.database.clone(),
        };
        let mut set = |keyword: &str, value: String| {
            parameters.retain(|(name, _)| name != keyword);
            let value = CString::new(value).map_err(|_| invalid())?;
            parameters.push((keyword.to_owned(), value));
            Ok(())
        };
        set("dbname", database.clone())?;
        set("application_name", hop.to_string())?;
        parameters.retain(|(name, _)| name != "replication");
        let login = Login {
            role: get(&parameters, "user"),
            database,
        };
        let addresses = self.addresses(&parameters)?;
        Ok(Route { login, addresses })
    }

    /// The same parameters for each address, of a name or given as such.
    fn addresses(&self, parameters: &Parameters) -> Result<Vec<Parameters>, Problem> {
        let hosts = list(parameters, "host");
        let addresses = list(parameters, "hostaddr");
        let ports = list(parameters, "port");
        let count = hosts.len().max(addresses.len());
        if count == 0 {
            return Ok(vec![parameters.clone()]);
        }
        let at = |list: &[String], index: usize| list.get(index).cloned().unwrap_or_default();
        let port_of = |index| match ports.as_slice() {
            [all] => all.clone(),
            each => at(each, index),
        };
        let has_to_be_looked_up =
            |index| at(&addresses, index).is_empty() && is_name(&at(&hosts, index));
        let names: Vec<String> = (0..count)
            .filter(|&index| has_to_be_looked_up(index))
            .map(|index| at(&hosts, index))
            .collect();
        let has_others = names.len() < count;
        let found = look_up_all(names.clone(), has_others);

        let mut routes = Vec::new();
        for index in 0..count {
            let host = at(&hosts, index);
            let its_addresses: Vec<String> = if has_to_be_looked_up(index) {
                let its_own = found.iter().filter(|(name, _)| *name == host);
                its_own.map(|(_, address)| address.to_string()).collect()
            } else {
                vec![at(&addresses, index)]
            };
            for address in its_addresses {
                routes.push(one_address(parameters, &host, &address, &port_of(index)));
            }
        }
        if routes.is_empty() {
            return Err(Problem::unresolved(self.source, &names));
        }
        Ok(routes)
    }
}

fn one_address(parameters: &Parameters, host: &str, address: &str, port: &str) -> Parameters {
    let mut route = parameters.clone();
    for (keyword, value) in [("host", host), ("hostaddr", address), ("port", port)] {
        route.retain(|(name, _)| name != keyword);
        if let (false, Ok(value)) = (value.is_empty(), CString::new(value)) {
            route.push((keyword.to_owned(), value));
        }
    }
    route
}

fn get(parameters: &Parameters, keyword: &str) -> Option<String> {
    let found = parameters.iter().find(|(name, _)| name == keyword);
    found.map(|(_, value)| value.to_string_lossy().into_owned())
}

fn list(parameters: &Parameters, keyword: &str) -> Vec<String> {
    let list = get(parameters, keyword).filter(|list| !list.is_empty());
    list.map_or(Vec::new(), |list| {
        list.split(',').map(str::to_owned).collect()
    })
}

/// Neither a Unix-domain socket's directory nor an address.
fn is_name(host: &str) -> bool {
    let is_socket = host.starts_with('/') || host.starts_with('@');
    // An IPv6 address may have a scope, which `IpAddr` does not know.
    let is_address = host.contains(':') || host.parse::<IpAddr>().is_ok();
    !host.is_empty() && !is_socket && !is_address
}

/// The addresses of these names, as far as they are known in time. `has_others`: there are
/// addresses to try even without them.
fn look_up_all(mut names: Vec<String>, has_others: bool) -> Vec<(String, IpAddr)> {
    names.sort();
    names.dedup();
    let (sender, receiver) = channel();
    for name in names {
        if LOOKUPS.load(Ordering::Relaxed) >= MOST_LOOKUPS {
            break;
        }
        let sender = sender.clone();
        spawn_without_signals(move || {
            // The port is of no interest, but asked for.
            let found = (name.as_str(), 0).to_socket_addrs();
            for address in found.into_iter().flatten() {
                // Nobody listens any more once the limit is over.
                let _ = sender.send((name.clone(), address.ip()));
            }
        });
    }
    drop(sender);
    collect(&receiver, has_others)
}

fn collect(receiver: &Receiver<(String, IpAddr)>, has_others: bool) -> Vec<(String, IpAddr)> {
    let begun = Instant::now();
    let mut end = begun + LOOKUP_LIMIT;
    if has_others {
        end = begun + LOOKUP_PATIENCE;
    }
    let mut found = Vec::new();
    loop {
        match receiver.try_recv() {
            Ok(answer) => {
                if !found.contains(&answer) {
                    found.push(answer);
                    end = end.min(Instant::now() + LOOKUP_PATIENCE);
                }
            }
            Err(TryRecvError::Disconnected) => return found,
            Err(TryRecvError::Empty) if Instant::now() >= end => return found,
            Err(TryRecvError::Empty) => process::wait(PAUSE, pg_sys::PG_WAIT_EXTENSION),
        }
    }
}

/// Runs `body` in a thread in which no signal handler of the server's ever runs, and which never
/// calls the server.
fn spawn_without_signals(body: impl FnOnce() + Send + 'static) {
    // SAFETY: plain calls of POSIX on memory of our own. A thread inherits the mask.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        LOOKUPS.fetch_add(1, Ordering::Relaxed);
        let spawned = thread::Builder::new().spawn(move || {
            body();
            LOOKUPS.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            LOOKUPS.fetch_sub(1, Ordering::Relaxed);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
    }
}
