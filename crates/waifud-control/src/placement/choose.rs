//! Choosing a node: a pure function from a wish and the nodes' rooms to a verdict for each node.
//!
//! Filters say in words why a node can't take the instance; of the rest the one with the fewest instances of the same
//! spread group wins, then the highest score, ties by name. Memory is never promised twice; CPUs are shared; disks are thin, so a pool may promise more than it has. What is chosen
//! becomes a reservation in the same transaction, so nobody else can be promised the same room.

use std::collections::BTreeMap;

use waifud_api::PlacementVerdict;
use waifud_store::NodeCapacity;
use waifud_types::spec::InstanceSpec;
use waifud_types::{ByteSize, Name, NodeId};

use crate::network::networks::usable;

/// What an instance needs of a node.
#[derive(Clone, Copy, Debug)]
pub struct PlacementRequest<'a> {
    /// Its spec.
    pub spec: &'a InstanceSpec,
    /// The architecture of its image.
    pub arch: &'a str,
    /// The bridge of each named network.
    pub bridges: &'a BTreeMap<Name, String>,
    /// How many instances of its spread group each node has; nodes that have none may be left out.
    pub beside: &'a [(NodeId, u32)],
}

/// The outcome.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// The node, when one can take it.
    pub node: Option<NodeId>,
    /// The best nodes' part in it, best first.
    pub verdicts: Vec<PlacementVerdict>,
    /// How many nodes were judged.
    pub nodes: usize,
    /// Why none could: one sentence; null when one did.
    pub reason: Option<String>,
}

enum Verdict {
    /// It can take it; higher is better. Put in words only where somebody reads them.
    Fits(f64, MemoryOn),
    /// It would, without the instances of the same group on it.
    Shared(String),
    /// It would, if it were there.
    Away(String),
    /// It lacks memory now, but has as much in all.
    Full(String),
    /// It never can.
    Never(String),
}

/// Memory of a node.
struct MemoryOn {
    /// Not promised.
    free: ByteSize,
    /// In all.
    of: ByteSize,
    /// Instances of the same spread group.
    beside: u32,
}

impl std::fmt::Display for MemoryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} free of {}", self.free, self.of)?;
        match self.beside {
            0 => Ok(()),
            beside => write!(f, ", and {beside} of its spread group"),
        }
    }
}

/// Chooses, with a verdict on the best `told` nodes.
pub fn choose(wish: &PlacementRequest<'_>, capacities: &[NodeCapacity], told: usize) -> Choice {
    let mut judged: Vec<_> = capacities
        .iter()
        .map(|capacity| (capacity, judge(wish, capacity)))
        .collect();
    judged.sort_by(|(a, x), (b, y)| {
        let ((rank_x, beside_x, score_x), (rank_y, beside_y, score_y)) = (rank(x), rank(y));
        (rank_x, beside_x)
            .cmp(&(rank_y, beside_y))
            .then_with(|| score_y.total_cmp(&score_x))
            .then_with(|| a.node.name.cmp(&b.node.name))
    });
    let node = judged
        .first()
        .and_then(|(capacity, verdict)| match verdict {
            Verdict::Fits(..) => Some(capacity.node.id),
            _ => None,
        });
    let reason = node.is_none().then(|| waiting_for(wish, &judged));
    let nodes = judged.len();
    let verdicts = judged
        .into_iter()
        .take(told)
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

/// What a verdict is sorted by: lower is better, but for the score at its end.
fn rank(verdict: &Verdict) -> (u8, u32, f64) {
    match verdict {
        Verdict::Fits(score, memory) => (0, memory.beside, *score),
        Verdict::Full(_) => (1, 0, 0.0),
        Verdict::Away(_) => (2, 0, 0.0),
        Verdict::Shared(_) => (3, 0, 0.0),
        Verdict::Never(_) => (4, 0, 0.0),
    }
}

/// How many instances of its spread group a node has.
fn beside(wish: &PlacementRequest<'_>, node: NodeId) -> u32 {
    if wish.spec.placement.spread.is_none() {
        return 0;
    }
    let mut groups = wish.beside.iter();
    groups
        .find(|(other, _)| *other == node)
        .map_or(0, |(_, members)| *members)
}

fn judge(wish: &PlacementRequest<'_>, capacity: &NodeCapacity) -> Verdict {
    let node = &capacity.node;
    let spec = wish.spec;
    if let Some(wanted) = &spec.placement.node
        && *wanted != node.name
    {
        return Verdict::Never("not the node that was asked for".to_owned());
    }
    for (key, value) in &spec.placement.require {
        if node.label(key) != Some(value) {
            return Verdict::Never(format!("lacks the label {key}={value}"));
        }
    }
    if node.facts.arch != wish.arch {
        return Verdict::Never(format!(
            "is {}, and the image is for {}",
            node.facts.arch, wish.arch
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
    let beside = beside(wish, node.id);
    let memory = MemoryOn {
        free,
        of: total.memory_bytes,
        beside,
    };
    if spec.memory_bytes > total.memory_bytes {
        return Verdict::Never(memory.to_string());
    }
    if let Err(why) = disks_fit(spec, capacity) {
        return Verdict::Never(why);
    }
    for bridge in bridges(wish) {
        if let Err(why) = usable(&node.facts, bridge) {
            return Verdict::Never(why);
        }
    }
    if let Some(spread) = &spec.placement.spread
        && spread.strict
        && beside > 0
    {
        return Verdict::Shared(format!("has {beside} of the group {}", spread.group));
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
        return Verdict::Full("has not said yet what runs on it since the restore".to_owned());
    }
    if spec.memory_bytes > free {
        return Verdict::Full(memory.to_string());
    }
    Verdict::Fits(score(wish, capacity), memory)
}

/// The bridges that its nics are on.
fn bridges<'a>(wish: &PlacementRequest<'a>) -> impl Iterator<Item = &'a String> {
    let bridges = wish.bridges;
    let nics = wish.spec.nics.iter();
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
            return Err(format!("pool {} has {} in all", pool.name, pool.size_bytes));
        }
    }
    Ok(())
}

/// 0 to 1: mostly the share of memory that stays free, then of CPUs, then of disk.
fn score(wish: &PlacementRequest<'_>, capacity: &NodeCapacity) -> f64 {
    let node = &capacity.node;
    let spec = wish.spec;
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

fn waiting_for(wish: &PlacementRequest<'_>, judged: &[(&NodeCapacity, Verdict)]) -> String {
    let spec = wish.spec;
    let Some((capacity, best)) = judged.first() else {
        return "waiting for: a node; none has joined yet".to_owned();
    };
    match best {
        Verdict::Full(_) if capacity.node.cordoned => {
            "waiting for: a node that is not cordoned".to_owned()
        }
        Verdict::Full(_) if !capacity.node.swept => format!(
            "waiting for: {}, to say what runs on it since the restore",
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
                    None => return format!("waiting for: node {wanted}, which is not known"),
                    Some((_, Verdict::Never(why))) => {
                        return format!("node {wanted} can't take it: {why}");
                    }
                    Some(_) => {}
                }
            }
            let nowhere = |bridge: &&String| {
                let mut nodes = judged.iter().map(|(capacity, _)| &capacity.node);
                nodes.all(|node| usable(&node.facts, bridge).is_err())
            };
            if let Some(bridge) = bridges(wish).find(nowhere) {
                return format!("waiting for: a node with bridge {bridge}");
            }
            format!(
                "no node can take it: {} CPUs, {} memory, {} disk, {}",
                spec.cpus,
                spec.memory_bytes,
                ByteSize(
                    spec.disks
                        .iter()
                        .map(|d| d.size_bytes.bytes())
                        .fold(0, u64::saturating_add)
                ),
                wish.arch
            )
        }
    }
}
