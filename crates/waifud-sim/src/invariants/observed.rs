//! What earlier checks observed, for invariants about changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use waifud_types::{Digest, InstanceId, VolumeId};

/// Observations of all nodes.
#[derive(Debug, Default)]
pub struct Observed {
    /// The volumes on each node at the last check.
    pub volumes: BTreeMap<String, BTreeSet<VolumeId>>,
    /// The domains on each node at the last check.
    pub domains: BTreeMap<String, BTreeSet<InstanceId>>,
    /// The running guests on each node at the last check.
    pub running: BTreeMap<String, BTreeSet<InstanceId>>,
    /// The address that waifud gave each instance.
    pub addresses: BTreeMap<InstanceId, Ipv4Addr>,
    /// The bundles that waifud sent for each instance.
    pub documents: BTreeSet<(InstanceId, Digest)>,
    /// How many checks there were.
    pub checks: u64,
}

impl Observed {
    /// waifud sent an instance with these documents to a node.
    pub fn sent_documents(&mut self, id: InstanceId, bundle: Digest) {
        self.documents.insert((id, bundle));
    }

    /// The power of a node was cut: its guests are off without a request.
    pub fn lost_power(&mut self, node: &str) {
        self.running.remove(node);
    }
}
