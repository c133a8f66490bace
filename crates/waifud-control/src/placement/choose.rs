//! Chooses a node: a pure function from a request and the capacities of all nodes to a verdict for each node.
//!
//! Filters give the reason why a node cannot run the instance. Of the other nodes, the one with the fewest instances of
//! the same spread group wins, then the highest score, then the first name. Memory is never reserved twice; CPUs are
//! shared; disks are thin, so a pool may be overcommitted. The choice becomes a reservation in the same transaction, so
//! the same capacity cannot be reserved by another instance.

use std::collections::BTreeMap;

use waifud_api::PlacementVerdict;
use waifud_store::NodeCapacity;
use waifud_types::spec::InstanceSpec;
use waifud_types::{ByteSize, Name, NodeId};

use crate::network::networks::usable;

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
    /// What the instance waits for, in one sentence; `None` if a node was chosen.
    pub reason: Option<String>,
}

enum Verdict {
    /// The node can run the instance; a higher score is better.
    Fits(f64, MemoryOn),
    /// The node has other instances of a strict spread group.
    Shared(String),
    /// The node is unreachable, but suitable.
    Away(String),
    /// The node is suitable, but has not enough free memory now, or is cordoned.
    Full(String),
    /// The node can never run the instance.
    Never(String),
}

/// The memory of a node.
struct MemoryOn {
    /// Not reserved.
    free: ByteSize,
    /// In total.
    of: ByteSize,
    /// The number of instances of the same spread group.
    group_members: u32,
}

impl std::fmt::Display for MemoryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} free of {}", self.free, self.of)?;
        match self.group_members {
            0 => Ok(()),
            members => write!(f, ", {members} of the same spread group"),
        }
    }
}

/// Chooses a node, and returns the verdicts on the best `shown` nodes.
pub fn choose(request: &PlacementRequest<'_>, capacities: &[NodeCapacity], shown: usize) -> Choice {
    let mut judged: Vec<_> = capacities
        .iter()
        .map(|capacity| (capacity, judge(request, capacity)))
        .collect();
    judged.sort_by(|(a, x), (b, y)| {
        let ((rank_x, members_x, score_x), (rank_y, members_y, score_y)) = (rank(x), rank(y));
        (rank_x, members_x)
            .cmp(&(rank_y, members_y))
            .then_with(|| score_y.total_cmp(&score_x))
            .then_with(|| a.node.name.cmp(&b.node.name))
    });
    let node = judged
        .first()
        .and_then(|(capacity, verdict)| match verdict {
            Verdict::Fits(..) => Some(capacity.node.id),
            _ => None,
        });
    let reason = node.is_none().then(|| waiting_for(request, &judged));
    let nodes = judged.len();
    let verdicts = judged
        .into_iter()
        .take(shown)
        .map(|(capacity, verdict)| {
            let (score, reason) = match verdict {
                Verdict::Fits(score, memory) => (Some(score), memory.to_string()),
                Verdict::Away(why)
                | Verdict::Full(why)
                | Verdict::Shared(why)
                | Verdict::Never(why) => (None, why),
            };
            PlacementVerdict {
                node: capacity.node.name.clone(),
                score,
                reason,
            }
        })
        .collect();
    Choice {
        node,
        verdicts,
        nodes,
        reason,
    }
}

/// The sort key of a verdict: lower is better, except for the score.
fn rank(verdict: &Verdict) -> (u8, u32, f64) {
    match verdict {
        Verdict::Fits(score, memory) => (0, memory.group_members, *score),
        Verdict::Full(_) => (1, 0, 0.0),
        Verdict::Away(_) => (2, 0, 0.0),
        Verdict::Shared(_) => (3, 0, 0.0),
        Verdict::Never(_) => (4, 0, 0.0),
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

fn judge(request: &PlacementRequest<'_>, capacity: &NodeCapacity) -> Verdict {
    let node = &capacity.node;
    let spec = request.spec;
    if let Some(wanted) = &spec.placement.node
        && *wanted != node.name
    {
        return Verdict::Never("not the requested node".to_owned());
    }
    for (key, value) in &spec.placement.require {
        if node.label(key) != Some(value) {
            return Verdict::Never(format!("does not have the label {key}={value}"));
        }
    }
    if node.facts.arch != request.arch {
        return Verdict::Never(format!(
            "is {}, but the image is for {}",
            node.facts.arch, request.arch
        ));
    }
    let total = node.facts.capacity;
    if spec.cpus > total.cpus {
        return Verdict::Never(format!("has {} CPUs", total.cpus));
    }
    let free = ByteSize(
        total
            .memory_bytes
            .bytes()
            .saturating_sub(node.promised.memory_bytes.bytes()),
    );
    let group_members = group_members(request, node.id);
    let memory = MemoryOn {
        free,
        of: total.memory_bytes,
        group_members,
    };
    if spec.memory_bytes > total.memory_bytes {
        return Verdict::Never(memory.to_string());
    }
    if let Err(why) = disks_fit(spec, capacity) {
        return Verdict::Never(why);
    }
    for bridge in bridges(request) {
        if let Err(why) = usable(&node.facts, bridge) {
            return Verdict::Never(why);
        }
    }
    if let Some(spread) = &spec.placement.spread
        && spread.strict
        && group_members > 0
    {
        return Verdict::Shared(format!("has {group_members} of the group {}", spread.group));
    }
    if !node.reachable {
        let fits = spec.memory_bytes <= free;
        return Verdict::Away(
            if fits {
                "off, would fit"
            } else {
                "off, and full"
            }
            .to_owned(),
        );
    }
    if node.cordoned {
        return Verdict::Full("cordoned".to_owned());
    }
    if !node.swept {
        return Verdict::Full("has not reported its instances since the restore".to_owned());
    }
    if spec.memory_bytes > free {
        return Verdict::Full(memory.to_string());
    }
    Verdict::Fits(score(request, capacity), memory)
}

/// The bridges of the instance's nics.
fn bridges<'a>(request: &PlacementRequest<'a>) -> impl Iterator<Item = &'a String> {
    let bridges = request.bridges;
    let nics = request.spec.nics.iter();
    nics.filter_map(move |nic| bridges.get(&nic.network))
}

fn disks_fit(spec: &InstanceSpec, capacity: &NodeCapacity) -> Result<(), String> {
    for disk in &spec.disks {
        let Some(pool) = capacity
            .node
            .facts
            .pools
            .iter()
            .find(|p| p.name == disk.pool)
        else {
            return Err(format!("has no pool {}", disk.pool));
        };
        if disk.size_bytes > pool.size_bytes {
            return Err(format!("pool {} has only {}", pool.name, pool.size_bytes));
        }
    }
    Ok(())
}

/// The score, 0 to 1: 60 % free memory, 25 % free CPUs, 15 % free disk space, each after the placement.
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
    let total = 0.6 * memory + 0.25 * cpus + 0.15 * disk;
    (total * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "a share needs two digits")]
fn free_share(taken: u64, of: u64) -> f64 {
    (1.0 - taken as f64 / of.max(1) as f64).clamp(0.0, 1.0)
}

fn waiting_for(request: &PlacementRequest<'_>, judged: &[(&NodeCapacity, Verdict)]) -> String {
    let spec = request.spec;
    let Some((capacity, best)) = judged.first() else {
        return "waiting for: a node; none has joined yet".to_owned();
    };
    match best {
        Verdict::Full(_) if capacity.node.cordoned => {
            "waiting for: a node that is not cordoned".to_owned()
        }
        Verdict::Full(_) if !capacity.node.swept => format!(
            "waiting for: {} to report its instances after the restore",
            capacity.node.name
        ),
        Verdict::Full(_) => format!("waiting for: {} memory on one node", spec.memory_bytes),
        Verdict::Away(_) => format!("waiting for: {}, which is off", capacity.node.name),
        Verdict::Shared(_) => {
            let group = spec.placement.spread.as_ref().map(|spread| &spread.group);
            format!(
                "waiting for: a node without another instance of the group {}",
                group.map_or("", |name| name.as_str())
            )
        }
        Verdict::Never(_) | Verdict::Fits(..) => {
            if let Some(wanted) = &spec.placement.node {
                match judged
                    .iter()
                    .find(|(capacity, _)| capacity.node.name == *wanted)
                {
                    None => return format!("waiting for: node {wanted}, which does not exist"),
                    Some((_, Verdict::Never(why))) => {
                        return format!("node {wanted} cannot run it: {why}");
                    }
                    Some(_) => {}
                }
            }
            let nowhere = |bridge: &&String| {
                let mut nodes = judged.iter().map(|(capacity, _)| &capacity.node);
                nodes.all(|node| usable(&node.facts, bridge).is_err())
            };
            if let Some(bridge) = bridges(request).find(nowhere) {
                return format!("waiting for: a node with bridge {bridge}");
            }
            format!(
                "no node can run it: {} CPUs, {} memory, {} disk, {}",
                spec.cpus,
                spec.memory_bytes,
                ByteSize(
                    spec.disks
                        .iter()
                        .map(|d| d.size_bytes.bytes())
                        .fold(0, u64::saturating_add)
                ),
                request.arch
            )
        }
    }
}
