//! What earlier checks observed, for invariants about changes.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The copies with a disk that were given up with a node.
    pub given_up: BTreeSet<(String, InstanceId)>,
    /// The address that waifud gave each instance.
    pub addresses: BTreeMap<InstanceId, Ipv4Addr>,
    /// The documents that were opened, by the digest of the bundle.
    pub opened: BTreeMap<Digest, Opened>,
    /// How many checks there were.
    pub checks: u64,
    /// How many objects each invariant has looked at.
    looked: Vec<(&'static str, u64)>,
}

impl Observed {
    /// An invariant has looked at one more object.
    pub fn look(&mut self, invariant: &'static str) {
        // Most often by far, it is the same name in memory, too: then nothing is compared.
        let mut looked = self.looked.iter_mut();
        match looked.find(|(name, _)| std::ptr::eq(*name, invariant)) {
            Some((_, count)) => *count += 1,
            None => self.looked.push((invariant, 1)),
        }
    }

    /// How many objects each invariant has looked at.
    pub fn looked(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for (invariant, count) in &self.looked {
            *sums.entry(*invariant).or_default() += count;
        }
        sums
    }

    /// Remembers whether a copy that was given up has a disk. Returns whether it had one before.
    pub fn had_disk(&mut self, node: &str, id: InstanceId, has_disk: bool) -> bool {
        let key = (node.to_owned(), id);
        if has_disk {
            !self.given_up.insert(key)
        } else {
            self.given_up.remove(&key)
        }
    }

    /// What is on a node of these instances is not observed any more.
    pub fn forget(&mut self, node: &str, ids: &BTreeSet<InstanceId>) {
        if let Some(volumes) = self.volumes.get_mut(node) {
            volumes.retain(|volume, _| !ids.contains(&volume.instance));
        }
        if let Some(domains) = self.domains.get_mut(node) {
            domains.retain(|id, _| !ids.contains(id));
        }
        if let Some(running) = self.running.get_mut(node) {
            running.retain(|id, _| !ids.contains(id));
        }
    }

    /// The power of a node was cut: its guests are off without a request.
    pub fn lost_power(&mut self, node: &str) {
        self.running.remove(node);
    }
}
