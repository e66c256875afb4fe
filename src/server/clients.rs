//! What the kernel knows of the clients of those who create slots, and of those who hold them up.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use super::connection::Connections;
use crate::core::observation::{
    Client, ClientProcess, Connection, Creator, Pid, Slot, Transaction,
};
use crate::core::xid::Xid;

/// Before the first look, as most creations are over by then, and between two. To look costs more
/// than a scan: 10 ms where the server has a thousand connections.
const INTERVAL: Duration = Duration::from_secs(1);
/// The looks may take this part of the worker's time; else they come less often, down to this.
const SHARE: u32 = 100;
const SELDOM: Duration = Duration::from_secs(3);

/// What is known, from one scan to the next.
#[derive(Default)]
pub struct Clients {
    connections: Connections,
    seen: HashMap<Pid, Connection>,
    processes: HashMap<Pid, ClientProcess>,
    /// `None` while nobody creates a slot.
    next_look: Option<Instant>,
    /// Whether the last scan looked.
    looked: bool,
}

impl Clients {
    /// Tells each creator's connection and client, and those of the transactions in `blockers`, as
    /// of the last look.
    pub fn look_at(
        &mut self,
        slots: &mut [Slot],
        transactions: &mut [Transaction],
        blockers: &HashSet<Xid>,
    ) {
        let mut creators: Vec<_> = slots.iter_mut().filter_map(Slot::creator_mut).collect();
        if creators.is_empty() {
            *self = Self::default();
            return;
        }
        let mut blockers: Vec<_> = transactions
            .iter_mut()
            .filter(|transaction| blockers.contains(&transaction.xid))
            .collect();
        let now = Instant::now();
        self.looked = false;
        if now >= *self.next_look.get_or_insert(now + INTERVAL) {
            self.look(clients_of(&creators, &blockers));
        }
        for creator in &mut creators {
            let pid = creator.identity.pid;
            creator.connection = self.connection(pid);
            creator.identity.client_process = self.process(pid, creator.client);
        }
        for blocker in &mut blockers {
            if let Some(pid) = blocker.pid() {
                blocker.client_gone = self.connection(pid) == Connection::Closed;
                blocker.client_process = self.process(pid, blocker.client);
                blocker.wakes = wakes(pid);
            }
        }
    }

    /// Whether what is known is of the last scan.
    pub fn are_fresh(&self) -> bool {
        self.looked
    }

    /// Looks with the next scan.
    pub fn look_soon(&mut self) {
        if let Some(next_look) = &mut self.next_look {
            *next_look = Instant::now();
        }
    }

    fn look(&mut self, clients: HashMap<Pid, Client>) {
        let begun = Instant::now();
        self.seen = self.connections.look(&clients);
        self.processes = self.connections.client_processes(&clients);
        let rest = (begun.elapsed() * SHARE).clamp(INTERVAL, SELDOM);
        self.next_look = Some(Instant::now() + rest);
        self.looked = true;
    }

    fn connection(&self, pid: Pid) -> Connection {
        self.seen.get(&pid).copied().unwrap_or(Connection::Unknown)
    }

    fn process(&self, pid: Pid, client: Option<Client>) -> ClientProcess {
        match client {
            // There is none to be looked up.
            None => ClientProcess::Unknown,
            Some(_) => self.processes.get(&pid).copied().unwrap_or_default(),
        }
    }
}

/// How often a process has gone to sleep (`proc(5)`, `/proc/pid/status`). While a long message comes
/// piece by piece, a backend is woken for each, and shows nothing of that.
pub fn wakes(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

fn clients_of(creators: &[&mut Creator], blockers: &[&mut Transaction]) -> HashMap<Pid, Client> {
    let creators = creators
        .iter()
        .filter_map(|creator| Some((creator.identity.pid, creator.client?)));
    let blockers = blockers
        .iter()
        .filter_map(|blocker| Some((blocker.pid()?, blocker.client?)));
    creators.chain(blockers).collect()
}
