//! How to reach the upstream: which addresses to try, as the settings say.
//!
//! libpq looks up host names where no signal ends its wait. So they are looked up here
//! ([`lookup`]), those of a `service` file and of `PGHOST` too, and libpq is given addresses. And
//! libpq gives no host less time than another, so that a dead one would use up the time of those
//! after it: each address is tried by itself.

use std::ffi::{CStr, CString};
use std::net::IpAddr;

use pgrx::pg_sys;

use super::libpq::{self, Parameters};
use super::{lookup, secret};
use crate::core::upstream::{Hop, Login, Problem, Source};

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
        let elsewhere: Parameters;
        let mut places = parameters;
        if get(parameters, "host").is_none() && get(parameters, "hostaddr").is_none() {
            elsewhere = libpq::with_defaults(parameters);
            places = &elsewhere;
        }
        let hosts = list(places, "host");
        let addresses = list(places, "hostaddr");
        let ports = list(places, "port");
        let count = hosts.len().max(addresses.len());
        if count == 0 {
            return Ok(vec![parameters.clone()]);
        }
        let at = |list: &[String], index: usize| list.get(index).cloned().unwrap_or_default();
        let port_of = |index| match ports.as_slice() {
            [all] => all.clone(),
            each => at(each, index),
        };
        let has_to_be_looked_up = |index| {
            lookup::SUPPORTED && at(&addresses, index).is_empty() && is_name(&at(&hosts, index))
        };
        let names: Vec<String> = (0..count)
            .filter(|&index| has_to_be_looked_up(index))
            .map(|index| at(&hosts, index))
            .collect();
        let has_others = names.len() < count;
        let found = lookup::addresses(names.clone(), has_others);
        let found = found.map_err(|error| Problem::cannot_look_up(self.source, &error))?;

        let mut routes = Vec::new();
        for index in 0..count {
            let host = at(&hosts, index);
            let its_addresses: Vec<String> = if has_to_be_looked_up(index) {
                let its_own = found.iter().filter(|(name, _)| *name == host);
                its_own.map(|(_, address)| address.clone()).collect()
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
