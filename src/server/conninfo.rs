//! How to reach the upstream: a connection string, taken apart by libpq and put together again.
//!
//! libpq looks up host names in `PQconnectStart`, where no signal ends its wait. So the names are
//! looked up here, in threads, and libpq is given addresses.

use std::ffi::{CStr, CString, c_char, c_int};
use std::net::{IpAddr, ToSocketAddrs};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::{process, secret};
use crate::core::upstream::{Login, Problem, Source};

/// Look-ups of former tries that still hang. When there are so many, no more are begun.
const MOST_LOOKUPS: usize = 8;
/// Between two looks whether a name's addresses are there.
const PAUSE: Duration = Duration::from_millis(5);
static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// Which server to connect to, as the settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub source: Source,
    text: CString,
    /// `slot_self_heal.database`
    database: String,
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

    /// A connection string for `walrcv_connect`, with host names looked up.
    pub fn conninfo(&self, limit: Duration) -> Result<(CString, Login), Problem> {
        let invalid = || Problem::invalid_conninfo(self.source);
        let mut parameters = parse(&self.text).ok_or_else(invalid)?;
        match self.source {
            Source::Server => parameters.set("dbname", self.database.clone()),
            Source::Ours if parameters.get("dbname").is_none() => {
                parameters.set("dbname", self.database.clone());
            }
            Source::Ours => {}
        }
        // Whatever else is connected under that name is somebody else.
        parameters.set("application_name", "slot_self_heal".into());
        parameters.remove("fallback_application_name");
        parameters.remove("replication");
        parameters.look_up(limit)?;
        let login = Login {
            role: parameters.get("user").map(str::to_owned),
            database: parameters.get("dbname").unwrap_or_default().to_owned(),
        };
        let conninfo = CString::new(parameters.to_string()).map_err(|_| invalid())?;
        Ok((conninfo, login))
    }
}

/// Keywords and values, in libpq's order.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn get(&self, keyword: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == keyword);
        found.map(|(_, value)| value.as_str())
    }

    fn remove(&mut self, keyword: &str) {
        self.0.retain(|(name, _)| name != keyword);
    }

    fn set(&mut self, keyword: &str, value: String) {
        self.remove(keyword);
        self.0.push((keyword.to_owned(), value));
    }

    fn list(&self, keyword: &str) -> Vec<String> {
        let list = self.get(keyword).filter(|list| !list.is_empty());
        list.map_or(Vec::new(), |list| {
            list.split(',').map(str::to_owned).collect()
        })
    }

    /// Gives each host name its addresses, one entry of `host`, `hostaddr` and `port` for each.
    fn look_up(&mut self, limit: Duration) -> Result<(), Problem> {
        let hosts = self.list("host");
        let addresses = self.list("hostaddr");
        let ports = self.list("port");
        let port_of = |index: usize| match ports.as_slice() {
            [] => String::new(),
            [all] => all.clone(),
            each => each.get(index).cloned().unwrap_or_default(),
        };
        let has_address = |index: usize| addresses.get(index).is_some_and(|a| !a.is_empty());
        let names: Vec<(usize, &String)> = hosts
            .iter()
            .enumerate()
            .filter(|(index, host)| !has_address(*index) && is_name(host))
            .collect();
        if names.is_empty() {
            return Ok(());
        }

        let found = look_up_all(
            names.iter().map(|(_, host)| (*host).clone()).collect(),
            limit,
        );
        let mut entries: Vec<[String; 3]> = Vec::new();
        for (index, host) in hosts.iter().enumerate() {
            let entry = |address: String| [host.clone(), address, port_of(index)];
            if !names.iter().any(|(name, _)| *name == index) {
                entries.push(entry(addresses.get(index).cloned().unwrap_or_default()));
            }
            let its_own = found.iter().filter(|(name, _)| name == host);
            entries.extend(its_own.map(|(_, address)| entry(address.to_string())));
        }
        if entries.is_empty() {
            return Err(Problem::unresolved(&hosts.join(", "), limit));
        }
        for (part, keyword) in ["host", "hostaddr", "port"].into_iter().enumerate() {
            let column: Vec<_> = entries
                .iter()
                .filter_map(|entry| entry.get(part).cloned())
                .collect();
            self.set(keyword, column.join(","));
        }
        Ok(())
    }
}

impl std::fmt::Display for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (keyword, value) in &self.0 {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            write!(f, "{keyword}='{value}' ")?;
        }
        Ok(())
    }
}

/// Neither a Unix-domain socket's directory nor an address.
fn is_name(host: &str) -> bool {
    !host.is_empty()
        && !host.starts_with('/')
        && !host.starts_with('@')
        && host.parse::<IpAddr>().is_err()
}

/// The addresses of these names, as far as they are known before `limit` is over.
fn look_up_all(mut names: Vec<String>, limit: Duration) -> Vec<(String, IpAddr)> {
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
    collect(&receiver, limit)
}

fn collect(receiver: &Receiver<(String, IpAddr)>, limit: Duration) -> Vec<(String, IpAddr)> {
    let begun = Instant::now();
    let mut found = Vec::new();
    loop {
        match receiver.try_recv() {
            Ok(answer) => {
                if !found.contains(&answer) {
                    found.push(answer);
                }
            }
            Err(TryRecvError::Disconnected) => return found,
            Err(TryRecvError::Empty) if begun.elapsed() >= limit => return found,
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

/// `PQconninfoOption` (`libpq-fe.h`).
#[repr(C)]
struct ConninfoOption {
    keyword: *const c_char,
    envvar: *const c_char,
    compiled: *const c_char,
    val: *const c_char,
    label: *const c_char,
    dispchar: *const c_char,
    dispsize: c_int,
}

type Parse = unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> *mut ConninfoOption;
type Free = unsafe extern "C" fn(*mut ConninfoOption);
type FreeMemory = unsafe extern "C" fn(*mut std::ffi::c_void);

/// Takes a connection string apart, be it `key=value` or a URI. `None` if it is not valid; libpq's
/// words for why are not passed on, since they may quote a password.
fn parse(text: &CStr) -> Option<Parameters> {
    super::walreceiver::load();
    // SAFETY: libpq came with libpqwalreceiver, whose symbols the server makes public
    // (`internal_load_library`, `dfmgr.c`); these are the functions' types in its header.
    let (parse, free, free_memory) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, Option<Parse>>(symbol(c"PQconninfoParse"))?,
            std::mem::transmute::<*mut libc::c_void, Option<Free>>(symbol(c"PQconninfoFree"))?,
            std::mem::transmute::<*mut libc::c_void, Option<FreeMemory>>(symbol(c"PQfreemem"))?,
        )
    };
    let mut message = ptr::null_mut();
    // SAFETY: the options end with one that has no keyword; texts are copied before they are freed.
    unsafe {
        let options = parse(text.as_ptr(), &raw mut message);
        if !message.is_null() {
            free_memory(message.cast());
        }
        if options.is_null() {
            return None;
        }
        let copy = |text: *const c_char| CStr::from_ptr(text).to_string_lossy().into_owned();
        let mut parameters = Vec::new();
        let mut option = options;
        while !(*option).keyword.is_null() {
            if !(*option).val.is_null() {
                parameters.push((copy((*option).keyword), copy((*option).val)));
            }
            option = option.add(1);
        }
        free(options);
        Some(Parameters(parameters))
    }
}

fn symbol(name: &CStr) -> *mut libc::c_void {
    // SAFETY: looks a name up.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}
