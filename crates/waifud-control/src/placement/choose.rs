//! Chooses a node: a pure function from a request and the capacities of all nodes to a verdict for each node.
//!
//! Filters give the reason why a node cannot run the instance. Of the other nodes, the one with the fewest instances of
//! the same spread group wins, then the one that has the instance which this one should be near, then the highest score,
//! then the first name. Spread comes before near, because near alone would place a whole group on one node.
//!
//! Memory is never reserved twice; CPUs are shared; disks are thin, so a pool may be overcommitted, but a full pool gets no
//! new disks. The choice becomes a reservation in the same transaction, so the same capacity cannot be reserved by another
//! instance.

use std::collections::BTreeMap;

use waifud_api::PlacementVerdict;
use waifud_store::NodeCapacity;
use waifud_types::node::{condition_kind, feature};
use waifud_types::spec::InstanceSpec;
use waifud_types::{ByteSize, Name, NodeId, Verdict, VlanId, WaitReason};

use crate::network::is_default;
use crate::network::networks::unusable;

/// What an instance requires of a node.
#[derive(Clone, Copy, Debug)]
pub struct PlacementRequest<'a> {
    /// The spec of the instance.
    pub spec: &'a InstanceSpec,
    /// The architecture of its image.
    pub arch: &'a str,
    /// The bridge of each named network.
    pub bridges: &'a BTreeMap<Name, String>,
    /// The number of instances of its spread group on each node; nodes without any may be missing.
    pub group_members: &'a [(NodeId, u32)],
    /// The node of the instance that it should be near, if there is one.
    pub near: Option<NodeId>,
}

/// The chosen node, and the verdicts.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// The node; `None` if no node can run the instance.
    pub node: Option<NodeId>,
    /// The verdicts on the best nodes, best first.
    pub verdicts: Vec<PlacementVerdict>,
    /// The number of nodes considered.
    pub nodes: usize,
    /// What the instance waits for; `None` if a node was chosen.
    pub reason: Option<WaitReason>,
}

/// How close a node is to running the instance, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    /// It can run the instance.
    Fits,
    /// It is suitable, but has not enough free memory or disk space now, or has not reported its instances.
    Full,
    /// It is suitable, but cordoned.
    Cordoned,
    /// It is unreachable, but suitable.
    Away,
    /// It has other instances of a strict spread group.
    Shared,
    /// It can never run the instance.
    Never,
}

struct Judged<'a> {
    capacity: &'a NodeCapacity,
    rank: Rank,
    verdict: Verdict,
    /// 0 unless the node can run the instance.
    score: f64,
}

impl Judged<'_> {
    /// The number of instances of the request's spread group, if it matters for the choice.
    fn members(&self) -> u32 {
        match self.verdict {
            Verdict::Fits { group_members, .. } => group_members,
            _ => 0,
        }
    }

    /// Whether it has the instance that the request should be near.
    fn is_near(&self) -> bool {
        matches!(self.verdict, Verdict::Fits { near: Some(_), .. })
    }
}

/// Chooses a node, and returns the verdicts on the best `shown` nodes.
pub fn choose(request: &PlacementRequest<'_>, capacities: &[NodeCapacity], shown: usize) -> Choice {
    let mut judged: Vec<_> = capacities
        .iter()
        .map(|capacity| {
            let (rank, verdict) = judge(request, capacity);
            let score = match rank {
                Rank::Fits => score(request, capacity),
                _ => 0.0,
            };
            Judged {
                capacity,
                rank,
                verdict,
                score,
            }
        })
        .collect();
    judged.sort_by(|a, b| {
        (a.rank, a.members(), !a.is_near())
            .cmp(&(b.rank, b.members(), !b.is_near()))
            .then_with(|| b.score.total_cmp(&a.score))
            .then_with(|| a.capacity.node.name.cmp(&b.capacity.node.name))
    });
    let node = judged
        .first()
        .filter(|best| best.rank == Rank::Fits)
        .map(|best| best.capacity.node.id);
    let reason = node.is_none().then(|| waiting_for(request, &judged));
    let nodes = judged.len();
    let verdicts = judged
        .into_iter()
        .take(shown)
        .map(|judged| {
            let score = (judged.rank == Rank::Fits).then_some(judged.score);
            PlacementVerdict::new(judged.capacity.node.name.clone(), score, &judged.verdict)
        })
        .collect();
    Choice {
        node,
        verdicts,
        nodes,
        reason,
    }
}

/// The number of instances of the request's spread group on a node.
fn group_members(request: &PlacementRequest<'_>, node: NodeId) -> u32 {
    if request.spec.placement.spread.is_none() {
        return 0;
    }
    let mut groups = request.group_members.iter();
    groups
        .find(|(other, _)| *other == node)
        .map_or(0, |(_, members)| *members)
}

/// Whether a node can run the instance, with the verdict on it.
pub(super) fn judge(request: &PlacementRequest<'_>, capacity: &NodeCapacity) -> (Rank, Verdict) {
    let node = &capacity.node;
    let spec = request.spec;
    let total = node.facts.capacity;
    let free_bytes = ByteSize(
        total
            .memory_bytes
            .bytes()
            .saturating_sub(node.promised.memory_bytes.bytes()),
    );
    let group_members = group_members(request, node.id);
    // Without the free memory, which changes with every placement: the verdict does not depend on it.
    let too_small = (spec.memory_bytes > total.memory_bytes).then_some(Verdict::TooLittleMemory {
        total_bytes: total.memory_bytes,
        needed_bytes: spec.memory_bytes,
    });
    let never = unsuitable(request, capacity)
        .or(too_small)
        .or_else(|| pools_unsuitable(spec, capacity))
        .or_else(|| {
            bridges(request).find_map(|(bridge, vlan)| unusable(&node.facts, bridge, vlan))
        });
    if let Some(verdict) = never {
        return (Rank::Never, verdict);
    }
    if let Some(spread) = &spec.placement.spread
        && spread.strict
        && group_members > 0
    {
        let verdict = Verdict::SpreadGroup {
            group: spread.group.clone(),
            members: group_members,
        };
        return (Rank::Shared, verdict);
    }
    if !node.reachable {
        let fits = spec.memory_bytes <= free_bytes;
        return (Rank::Away, Verdict::Unreachable { fits });
    }
    if node.cordoned {
        return (Rank::Cordoned, Verdict::Cordoned);
    }
    if !node.unmanaged.swept {
        return (Rank::Full, Verdict::NotReported);
    }
    if let Some(because) = subnet_conflict(spec, capacity) {
        return (Rank::Full, Verdict::SubnetConflict { because });
    }
    if spec.memory_bytes > free_bytes {
        let insufficient_memory = Verdict::InsufficientMemory {
            free_bytes,
            total_bytes: total.memory_bytes,
            needed_bytes: spec.memory_bytes,
        };
        return (Rank::Full, insufficient_memory);
    }
    if let Some(full) = full_pool(spec, capacity) {
        return (Rank::Full, full);
    }
    let is_near = request.near == Some(node.id);
    let fits = Verdict::Fits {
        free_bytes,
        total_bytes: total.memory_bytes,
        group_members,
        near: spec.placement.near.clone().filter(|_| is_near),
        image: has_image(spec, capacity),
    };
    (Rank::Fits, fits)
}

/// Why the node can never run the instance, apart from memory, pools and bridges.
fn unsuitable(request: &PlacementRequest<'_>, capacity: &NodeCapacity) -> Option<Verdict> {
    let node = &capacity.node;
    let spec = request.spec;
    let wanted = spec.placement.node.as_ref();
    if wanted.is_some_and(|wanted| *wanted != node.name) {
        return Some(Verdict::NotRequested);
    }
    for (key, value) in &spec.placement.require {
        if node.label(key) != Some(value) {
            return Some(Verdict::LabelMissing {
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    if node.facts.arch != request.arch {
        return Some(Verdict::OtherArchitecture {
            arch: node.facts.arch.clone(),
            image_arch: request.arch.to_owned(),
        });
    }
    if !spec.firewall.is_open() && !node.facts.has(feature::FIREWALL) {
        return Some(Verdict::NoFirewall);
    }
    let mut nics = spec.nics.iter();
    if nics.any(|nic| nic.vlan.is_some()) && !node.facts.has(feature::VLANS) {
        return Some(Verdict::NoVlans);
    }
    let cpus = node.facts.capacity.cpus;
    if spec.cpus > cpus {
        let needed = spec.cpus;
        return Some(Verdict::TooFewCpus { cpus, needed });
    }
    None
}

/// Why the addresses of new guests on the node may not be theirs alone, or not lead to guests of other nodes. It does not matter
/// to an instance without a nic on `default`.
fn subnet_conflict(spec: &InstanceSpec, capacity: &NodeCapacity) -> Option<String> {
    let mut nics = spec.nics.iter();
    if !nics.any(|nic| is_default(&nic.network)) {
        return None;
    }
    let kinds = [condition_kind::SUBNET, condition_kind::REMOTE_SUBNETS];
    let mut conditions = capacity.node.facts.conditions.iter();
    let conflict = conditions.find(|c| !c.ok && kinds.contains(&c.kind.as_str()))?;
    Some(conflict.message.clone())
}

fn pools_unsuitable(spec: &InstanceSpec, capacity: &NodeCapacity) -> Option<Verdict> {
    spec.disks.iter().find_map(|disk| {
        let mut pools = capacity.node.facts.pools.iter();
        match pools.find(|pool| pool.name == disk.pool) {
            None => Some(Verdict::NoPool {
                pool: disk.pool.clone(),
            }),
            Some(pool) => (disk.size_bytes > pool.size_bytes).then(|| Verdict::PoolTooSmall {
                pool: pool.name.clone(),
                size_bytes: pool.size_bytes,
                needed_bytes: disk.size_bytes,
            }),
        }
    })
}

/// The first pool of the instance that has too little free space for another disk.
fn full_pool(spec: &InstanceSpec, capacity: &NodeCapacity) -> Option<Verdict> {
    let pools = &capacity.node.facts.pools;
    let mut used = pools
        .iter()
        .filter(|pool| spec.disks.iter().any(|disk| disk.pool == pool.name));
    let full = used.find(|pool| pool.is_full())?;
    Some(Verdict::PoolFull {
        pool: full.name.clone(),
        free_bytes: full.free_bytes(),
        size_bytes: full.size_bytes,
    })
}

/// Whether the pool of the root disk has the image, as far as the node reports it.
fn has_image(spec: &InstanceSpec, capacity: &NodeCapacity) -> Option<bool> {
    let root = spec.disks.first()?;
    let mut pools = capacity.node.facts.pools.iter();
    let images = pools.find(|pool| pool.name == root.pool)?.images.as_ref()?;
    Some(images.contains(&spec.image))
}

/// The bridges of the instance's nics, and the VLANs there.
fn bridges<'a>(
    request: &PlacementRequest<'a>,
) -> impl Iterator<Item = (&'a String, Option<VlanId>)> {
    let bridges = request.bridges;
    let nics = request.spec.nics.iter();
    nics.filter_map(move |nic| Some((bridges.get(&nic.network)?, nic.vlan)))
}

/// The share of the score that an image in the pool of the root disk is worth. It saves one download of the image, so
/// it decides only between nodes with about the same free capacity.
const IMAGE_SHARE: f64 = 0.1;

/// The score, 0 to 1: 10 % for a pool that has the image, and 90 % for the free capacity after the placement. Of the latter,
/// 60 % is free memory, 25 % free CPUs, and 15 % free disk space.
fn score(request: &PlacementRequest<'_>, capacity: &NodeCapacity) -> f64 {
    let node = &capacity.node;
    let spec = request.spec;
    let memory = free_share(
        node.promised
            .memory_bytes
            .bytes()
            .saturating_add(spec.memory_bytes.bytes()),
        node.facts.capacity.memory_bytes.bytes(),
    );
    let cpus = free_share(
        u64::from(node.promised.cpus) + u64::from(spec.cpus),
        u64::from(node.facts.capacity.cpus),
    );
    let disk = spec
        .disks
        .iter()
        .filter_map(|disk| {
            let pool = node.facts.pools.iter().find(|p| p.name == disk.pool)?;
            let promised = capacity
                .pools
                .iter()
                .find(|(name, _)| *name == disk.pool)
                .map_or(0, |(_, size)| size.bytes());
            let taken = promised.max(pool.used_bytes.bytes());
            let taken = taken.saturating_add(disk.size_bytes.bytes());
            Some(free_share(taken, pool.size_bytes.bytes()))
        })
        .fold(1.0, f64::min);
    let free = 0.6 * memory + 0.25 * cpus + 0.15 * disk;
    let image = if has_image(spec, capacity) == Some(true) {
        1.0
    } else {
        0.0
    };
    let total = (1.0 - IMAGE_SHARE) * free + IMAGE_SHARE * image;
    (total * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "a share needs two digits")]
fn free_share(taken: u64, of: u64) -> f64 {
    (1.0 - taken as f64 / of.max(1) as f64).clamp(0.0, 1.0)
}

fn waiting_for(request: &PlacementRequest<'_>, judged: &[Judged<'_>]) -> WaitReason {
    let spec = request.spec;
    let Some(best) = judged.first() else {
        return WaitReason::NoNodes;
    };
    let node = || best.capacity.node.name.clone();
    match (&best.verdict, best.rank) {
        (Verdict::Cordoned, _) => WaitReason::AllCordoned,
        (Verdict::NotReported, _) => WaitReason::NodeNotReported { node: node() },
        (Verdict::Unreachable { .. }, _) => WaitReason::NodeUnreachable { node: node() },
        (Verdict::SpreadGroup { group, .. }, _) => WaitReason::SpreadGroup {
            group: group.clone(),
        },
        (Verdict::InsufficientMemory { needed_bytes, .. }, Rank::Full) => {
            WaitReason::InsufficientMemory {
                needed_bytes: *needed_bytes,
            }
        }
        (Verdict::SubnetConflict { .. }, _) => WaitReason::SubnetConflict { node: node() },
        (Verdict::PoolFull { pool, .. }, _) => WaitReason::PoolFull {
            pool: pool.clone(),
            node: node(),
        },
        _ => no_suitable_node(request, judged).unwrap_or_else(|| WaitReason::NoSuitableNode {
            cpus: spec.cpus,
            memory_bytes: spec.memory_bytes,
            disk_bytes: ByteSize(
                spec.disks
                    .iter()
                    .map(|d| d.size_bytes.bytes())
                    .fold(0, u64::saturating_add),
            ),
            arch: request.arch.to_owned(),
        }),
    }
}

/// Why no node can ever run the instance, if it is not the size. The rank of all nodes is [`Rank::Never`].
fn no_suitable_node(request: &PlacementRequest<'_>, judged: &[Judged<'_>]) -> Option<WaitReason> {
    if let Some(wanted) = &request.spec.placement.node {
        let node = wanted.clone();
        let mut all = judged.iter();
        return Some(
            match all.find(|judged| judged.capacity.node.name == *wanted) {
                None => WaitReason::NoSuchNode { node },
                Some(judged) => WaitReason::RequestedNodeUnsuitable {
                    node,
                    verdict: Box::new(judged.verdict.clone()),
                },
            },
        );
    }
    let nowhere = |bridge: &str, vlan| {
        let mut nodes = judged.iter().map(|judged| &judged.capacity.node);
        nodes.all(|node| unusable(&node.facts, bridge, vlan).is_some())
    };
    let (bridge, _) = bridges(request).find(|(bridge, vlan)| nowhere(bridge, *vlan))?;
    let (is_nowhere, bridge) = (nowhere(bridge, None), bridge.clone());
    Some(if is_nowhere {
        WaitReason::NoBridge { bridge }
    } else {
        WaitReason::BridgeWithoutVlans { bridge }
    })
}
