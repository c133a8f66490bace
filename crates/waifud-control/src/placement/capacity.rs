//! How many more instances fit, and whether the instances of some nodes fit on the others. Pure functions with the filters
//! of placement.
//!
//! Instances of nodes that are assumed to be off are placed largest first, each on the first node by name that can run it
//! (first-fit decreasing). They may get other addresses, so addresses do not matter; published ports do.

use std::collections::{BTreeMap, HashMap};

use waifud_api::PlacementVerdict;
use waifud_store::NodeCapacity;
use waifud_types::spec::{InstanceSpec, Protocol};
use waifud_types::{Name, NodeId, Verdict};

use super::choose::{PlacementRequest, judge};

/// The maximum number of instances that are named because they do not fit.
const UNPLACED_SHOWN: usize = 100;
/// The maximum number of verdicts on each of them, best first.
const VERDICTS_SHOWN: usize = 16;

/// How many more instances fit on a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fit {
    /// The number.
    pub more: u64,
    /// The free capacity, or why none fits.
    pub verdict: Verdict,
}

/// How many more instances of this spec fit on a node with so many free addresses, whatever the architecture of their
/// image.
pub fn fit(spec: &InstanceSpec, capacity: &NodeCapacity, free_addresses: u64) -> Fit {
    let request = PlacementRequest {
        spec,
        arch: &capacity.node.facts.arch,
        bridges: &BTreeMap::new(),
        group_members: &[],
        near: None,
    };
    match judge(&request, capacity).1 {
        Verdict::Fits { .. } if free_addresses == 0 => Fit {
            more: 0,
            verdict: Verdict::NoFreeAddress {
                subnet: capacity.node.subnet,
            },
        },
        Verdict::Fits {
            free_bytes,
            total_bytes,
            group_members,
            near,
            ..
        } => Fit {
            more: (free_bytes.bytes() / spec.memory_bytes.bytes().max(1)).min(free_addresses),
            // The spec has no image.
            verdict: Verdict::Fits {
                free_bytes,
                total_bytes,
                group_members,
                near,
                image: None,
            },
        },
        verdict => Fit { more: 0, verdict },
    }
}

/// An instance that has a node.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its name.
    pub name: Name,
    /// Its node.
    pub node: NodeId,
    /// The architecture of its image.
    pub arch: String,
    /// Its spec.
    pub spec: InstanceSpec,
    /// Whether it should run and is not being deleted.
    pub runs: bool,
}

/// Some nodes that are assumed to be off, and the instances of all nodes.
#[derive(Debug)]
pub struct Outage {
    /// The nodes that are assumed to be off, largest first.
    off: Vec<(NodeId, Name)>,
    remaining: Vec<NodeCapacity>,
    bridges: BTreeMap<Name, String>,
    /// The instances that run on nodes that are off, with the name of that node.
    displaced: Vec<(Name, Placed)>,
    /// Members of spread groups on the remaining nodes.
    members: HashMap<Name, BTreeMap<NodeId, u32>>,
    /// Published ports of the remaining nodes.
    ports: HashMap<(NodeId, Protocol, u16), Name>,
}

/// What becomes of the instances that run on nodes that are assumed to be off.
#[derive(Clone, PartialEq, Debug)]
pub struct Survival {
    /// The names of the nodes.
    pub off: Vec<Name>,
    /// The instances that fit on another node, with that node.
    pub moved: Vec<(Name, NodeId)>,
    /// The number of instances that do not fit.
    pub unplaced_count: usize,
    /// The largest of them.
    pub unplaced: Vec<Unplaced>,
}

/// An instance that does not fit on another node.
#[derive(Clone, PartialEq, Debug)]
pub struct Unplaced {
    /// The instance.
    pub name: Name,
    /// Its node.
    pub node: Name,
    /// Its memory.
    pub memory: waifud_types::ByteSize,
    /// The verdicts on the remaining nodes, best first.
    pub verdicts: Vec<PlacementVerdict>,
}

impl Outage {
    /// Assumes that the `count` reachable nodes with the most memory are off.
    pub fn of_largest(
        count: usize,
        capacities: &[NodeCapacity],
        bridges: BTreeMap<Name, String>,
    ) -> Self {
        let mut reachable: Vec<_> = capacities
            .iter()
            .map(|capacity| &capacity.node)
            .filter(|node| node.reachable)
            .collect();
        reachable.sort_by(|a, b| {
            let size = |node: &waifud_store::NodeRow| {
                let total = node.facts.capacity;
                (total.memory_bytes, total.cpus)
            };
            size(b).cmp(&size(a)).then_with(|| a.name.cmp(&b.name))
        });
        let off: Vec<_> = reachable
            .into_iter()
            .take(count)
            .map(|node| (node.id, node.name.clone()))
            .collect();
        let mut remaining: Vec<_> = capacities
            .iter()
            .filter(|capacity| !off.iter().any(|(id, _)| *id == capacity.node.id))
            .cloned()
            .collect();
        remaining.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        Self {
            off,
            remaining,
            bridges,
            displaced: Vec::new(),
            members: HashMap::new(),
            ports: HashMap::new(),
        }
    }

    /// Adds an instance of any node.
    pub fn add(&mut self, placed: Placed) {
        match self.off.iter().find(|(id, _)| *id == placed.node) {
            None => self.occupy(placed.node, &placed.name, &placed.spec),
            Some((_, node)) if placed.runs => self.displaced.push((node.clone(), placed)),
            Some(_) => {}
        }
    }

    /// Records what an instance has on a remaining node besides its reservation.
    fn occupy(&mut self, node: NodeId, name: &Name, spec: &InstanceSpec) {
        if let Some(spread) = &spec.placement.spread {
            let members = self.members.entry(spread.group.clone()).or_default();
            *members.entry(node).or_default() += 1;
        }
        for port in &spec.publish {
            let port = (node, port.protocol, port.port);
            self.ports.insert(port, name.clone());
        }
    }

    /// Places the instances of the nodes that are assumed to be off on the others.
    pub fn place(mut self) -> Survival {
        let mut displaced = std::mem::take(&mut self.displaced);
        displaced.sort_by(|(_, a), (_, b)| {
            let size = |placed: &Placed| (placed.spec.memory_bytes, placed.spec.cpus);
            size(b).cmp(&size(a)).then_with(|| a.name.cmp(&b.name))
        });
        let mut survival = Survival {
            off: self.off.iter().map(|(_, name)| name.clone()).collect(),
            moved: Vec::new(),
            unplaced_count: 0,
            unplaced: Vec::new(),
        };
        for (node, placed) in displaced {
            let group = placed.spec.placement.spread.as_ref();
            let members = group.and_then(|spread| self.members.get(&spread.group));
            let members: Vec<_> = members
                .into_iter()
                .flatten()
                .map(|(node, count)| (*node, *count))
                .collect();
            let request = PlacementRequest {
                spec: &placed.spec,
                arch: &placed.arch,
                bridges: &self.bridges,
                group_members: &members,
                near: None,
            };
            let first = self.remaining.iter().position(|capacity| {
                let verdict = judge(&request, capacity).1;
                let taken = || self.port_taken(&placed.spec, capacity.node.id);
                matches!(verdict, Verdict::Fits { .. }) && taken().is_none()
            });
            if let Some(capacity) = first.and_then(|index| self.remaining.get_mut(index)) {
                capacity.promise(&placed.spec);
                let to = capacity.node.id;
                self.occupy(to, &placed.name, &placed.spec);
                survival.moved.push((placed.name, to));
                continue;
            }
            survival.unplaced_count += 1;
            if survival.unplaced.len() < UNPLACED_SHOWN {
                let unplaced = Unplaced {
                    node,
                    memory: placed.spec.memory_bytes,
                    verdicts: self.verdicts(&request),
                    name: placed.name,
                };
                survival.unplaced.push(unplaced);
            }
        }
        survival
    }

    fn port_taken(&self, spec: &InstanceSpec, node: NodeId) -> Option<Verdict> {
        spec.publish.iter().find_map(|port| {
            let owner = self.ports.get(&(node, port.protocol, port.port))?;
            Some(Verdict::PortTaken {
                port: port.port,
                protocol: port.protocol,
                instance: owner.clone(),
            })
        })
    }

    /// Why none of the remaining nodes can run the instance, best first.
    fn verdicts(&self, request: &PlacementRequest<'_>) -> Vec<PlacementVerdict> {
        let mut verdicts: Vec<_> = self
            .remaining
            .iter()
            .map(|capacity| {
                let node = &capacity.node;
                let (rank, verdict) = judge(request, capacity);
                let taken = self.port_taken(request.spec, node.id);
                let taken = taken.filter(|_| matches!(verdict, Verdict::Fits { .. }));
                (rank, &node.name, taken.unwrap_or(verdict))
            })
            .collect();
        verdicts.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        verdicts
            .into_iter()
            .take(VERDICTS_SHOWN)
            .map(|(_, name, verdict)| PlacementVerdict::new(name.clone(), None, &verdict))
            .collect()
    }
}
