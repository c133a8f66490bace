//! What is on a node, and what is in waifud's database, at one moment.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use waifud_api::Instance;
use waifud_api::metadatad::Assignment;
use waifud_hypervisor::fake::DomainFacts;
use waifud_kit::sync::lock;
use waifud_network::Port;
use waifud_storage::fake::VolumeFacts;
use waifud_store::{InstanceFilter, InstanceRow, StoreError};
use waifud_types::ownership::Part;
use waifud_types::{InstanceId, NodeId, VolumeId};

use super::Violation;
use crate::world::{Node, World};

/// The answers of waifud about all instances.
pub type Shown = BTreeMap<InstanceId, Instance>;

/// What is on one node.
pub struct Snapshot<'a> {
    /// The node.
    pub node: &'a Node,
    /// The volumes of its pool.
    pub volumes: BTreeMap<VolumeId, VolumeFacts>,
    /// Its domains.
    pub domains: BTreeMap<InstanceId, DomainFacts>,
    /// The ports of guests in its rules.
    pub ports: Vec<Port>,
    /// What its metadatad serves.
    pub held: BTreeMap<InstanceId, Assignment>,
}

impl<'a> Snapshot<'a> {
    /// Of every node, without the copies that waifud has given up with a node.
    pub fn of_all(world: &'a World) -> Vec<Self> {
        world
            .nodes
            .iter()
            .map(|node| {
                let counts = |id: &InstanceId| !world.has_given_up(node, *id);
                let mut at = Self {
                    node,
                    volumes: node.volumes(),
                    domains: node
                        .domains()
                        .into_iter()
                        .map(|one| (one.id, one))
                        .collect(),
                    ports: node.ports(),
                    held: node.metadata.held(),
                };
                at.volumes.retain(|volume, _| counts(&volume.instance));
                at.domains.retain(|id, _| counts(id));
                at.ports.retain(|port| counts(&port.instance));
                at.held.retain(|id, _| counts(id));
                at
            })
            .collect()
    }

    /// The domains with a QEMU process.
    pub fn running(&self) -> impl Iterator<Item = &DomainFacts> {
        self.domains.values().filter(|domain| domain.is_active)
    }

    /// Whether the instance has a QEMU process.
    pub fn runs(&self, id: InstanceId) -> bool {
        self.domains.get(&id).is_some_and(|domain| domain.is_active)
    }

    /// What the instance's disk contains; `None` if the node has no disk of it.
    pub fn mark(&self, id: InstanceId) -> Option<u64> {
        let mut volumes = self.volumes.iter();
        let found = volumes.find(|(volume, _)| volume.instance == id);
        found.map(|(_, facts)| facts.mark)
    }

    /// Whether anything of the instance is served or applied: a process, a port, documents.
    pub fn serves(&self, id: InstanceId) -> Option<&'static str> {
        if self.runs(id) {
            Some("its guest runs")
        } else if self.ports.iter().any(|port| port.instance == id) {
            Some("it has a port")
        } else if self.held.contains_key(&id) {
            Some("its documents are served")
        } else {
            None
        }
    }
}

/// The rows of waifud's database that the invariants are about.
pub struct Database {
    /// Every instance.
    pub instances: BTreeMap<InstanceId, InstanceRow>,
    /// The parts of nodes in instances.
    pub parts: Vec<(InstanceId, Part)>,
    /// The subnet of each node that has an instance.
    pub subnets: BTreeMap<NodeId, Ipv4Net>,
    /// The owner of each address of an instance of which anything is left.
    pub owners: BTreeMap<Ipv4Addr, InstanceId>,
}

impl Database {
    /// Reads it, if it has changed since the last time; `None` if waifud does not run.
    pub async fn read(world: &World) -> Result<Option<Arc<Self>>, Violation> {
        let Some(at) = world.waifud.commits() else {
            return Ok(None);
        };
        if let Some((known, database)) = lock(&world.database).as_ref()
            && *known == at
        {
            return Ok(Some(Arc::clone(database)));
        }
        let read = Self::read_now(world).await?;
        Ok(read.map(|read| {
            let read = Arc::new(read);
            *lock(&world.database) = Some((at, Arc::clone(&read)));
            read
        }))
    }

    async fn read_now(world: &World) -> Result<Option<Self>, Violation> {
        let known: BTreeSet<Ipv4Addr> = {
            let observed = lock(&world.observed);
            observed.addresses.values().copied().collect()
        };
        let read = world.waifud.read(move |tx| {
            let all = tx.instances(&InstanceFilter::default(), "", 10_000)?;
            let mut parts = Vec::new();
            let mut addresses = known;
            for row in &all {
                let of_row = tx.ownership(row.id)?.into_iter();
                parts.extend(of_row.map(|part| (row.id, part)));
                addresses.extend(row.spec.nics.iter().filter_map(|nic| nic.address));
            }
            let mut owners = BTreeMap::new();
            for address in addresses {
                if let Some(owner) = tx.address_owner(address)? {
                    owners.insert(address, owner);
                }
            }
            let mut subnets = BTreeMap::new();
            for node in all.iter().filter_map(|row| row.node) {
                if let Entry::Vacant(entry) = subnets.entry(node)
                    && let Some(subnet) = tx.subnet_of(node)?
                {
                    entry.insert(subnet);
                }
            }
            Ok::<_, StoreError>(Self {
                subnets,
                instances: all.into_iter().map(|row| (row.id, row)).collect(),
                parts,
                owners,
            })
        });
        let database = match read.await {
            None => return Ok(None),
            Some(Ok(database)) => database,
            Some(Err(error)) => {
                return Err(Violation {
                    invariant: "no_error_is_hidden",
                    what: format!("the database cannot be read: {error}"),
                });
            }
        };
        let is_somewhere = |id: &InstanceId| {
            let mut nodes = world.nodes.iter();
            database.instances.contains_key(id)
                || nodes.any(|node| node.mark(*id).is_some() || node.serves(*id))
        };
        let mut observed = lock(&world.observed);
        // Those of which nothing is left have no address.
        observed.addresses.retain(|id, _| is_somewhere(id));
        for row in database.instances.values() {
            for address in row.spec.nics.iter().filter_map(|nic| nic.address) {
                observed.addresses.insert(row.id, address);
            }
        }
        drop(observed);
        Ok(Some(database))
    }

    /// The part of an instance's node.
    pub fn part(&self, id: InstanceId) -> Option<Part> {
        let node = self.instances.get(&id)?.node?;
        let mut parts = self.parts.iter();
        let found = parts.find(|(of, part)| *of == id && part.node == node);
        found.map(|(_, part)| *part)
    }
}
