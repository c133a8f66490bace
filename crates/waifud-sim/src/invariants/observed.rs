//! What earlier checks observed, for invariants about changes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use waifud_types::{Digest, InstanceId, VolumeId};

/// Documents that were opened with their key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The instance that they belong to, or why they cannot be read.
    pub instance: Result<InstanceId, String>,
    /// The digest of the user-data.
    pub user_data: Option<Digest>,
}

/// Observations of all nodes.
#[derive(Debug, Default)]
pub struct Observed {
    /// The volumes on each node at the last check, each with the number of its creation.
    pub volumes: BTreeMap<String, BTreeMap<VolumeId, u64>>,
    /// The domains on each node at the last check, each with the number of its creation.
    pub domains: BTreeMap<String, BTreeMap<InstanceId, u64>>,
    /// The running guests on each node at the last check, each with the numbers of its domain and of its start.
    pub running: BTreeMap<String, BTreeMap<InstanceId, (u64, u64)>>,
    /// The address that waifud gave each instance.
    pub addresses: BTreeMap<InstanceId, Ipv4Addr>,
    /// The documents that were opened, by the digest of the bundle.
    pub opened: BTreeMap<Digest, Opened>,
    /// How many checks there were.
    pub checks: u64,
    /// How many objects each invariant has looked at.
    pub looked: BTreeMap<&'static str, u64>,
}

impl Observed {
    /// The power of a node was cut: its guests are off without a request.
    pub fn lost_power(&mut self, node: &str) {
        self.running.remove(node);
    }
}
