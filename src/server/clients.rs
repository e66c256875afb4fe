//! Whether those who create slots still have their clients.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::connection::Connections;
use crate::core::observation::{Connection, Creator, Pid, Slot};

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
    /// `None` while nobody creates a slot.
    next_look: Option<Instant>,
}

impl Clients {
    /// Tells each creator's connection, as of the last look.
    pub fn look_at(&mut self, slots: &mut [Slot]) {
        let mut creators: Vec<_> = slots.iter_mut().filter_map(Slot::creator).collect();
        if creators.is_empty() {
            *self = Self::default();
            return;
        }
        let now = Instant::now();
        if now >= *self.next_look.get_or_insert(now + INTERVAL) {
            self.look(&creators);
        }
        for creator in &mut creators {
            if let Some(connection) = self.seen.get(&creator.identity.pid) {
                creator.connection = *connection;
            }
        }
    }

    fn look(&mut self, creators: &[&mut Creator]) {
        let begun = Instant::now();
        let clients = creators
            .iter()
            .filter_map(|creator| Some((creator.identity.pid, creator.client?)))
            .collect();
        self.seen = self.connections.look(&clients);
        let rest = (begun.elapsed() * SHARE).clamp(INTERVAL, SELDOM);
        self.next_look = Some(Instant::now() + rest);
    }
}
