//! As `connection.rs`, where the kernel is not Linux: nothing is known of any connection.

use std::collections::HashMap;

use crate::core::observation::{Client, ClientProcess, Connection, Pid};

pub const SUPPORTED: bool = false;

#[derive(Default)]
pub struct Connections;

impl Connections {
    pub fn look(&mut self, clients: &HashMap<Pid, Client>) -> HashMap<Pid, Connection> {
        let unknown = |pid: &Pid| (*pid, Connection::Unknown);
        clients.keys().map(unknown).collect()
    }

    pub fn client_processes(
        &mut self,
        clients: &HashMap<Pid, Client>,
    ) -> HashMap<Pid, ClientProcess> {
        let unknown = |pid: &Pid| (*pid, ClientProcess::Unknown);
        clients.keys().map(unknown).collect()
    }
}
