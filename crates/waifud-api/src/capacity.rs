//! How many more instances fit, and whether the running ones would still fit with nodes off.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{ByteSize, Coded, Name, Verdict};

use crate::PlacementVerdict;

/// How many more instances of a size fit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// The size.
    pub size: InstanceSize,
    /// How many more instances of this size fit on all nodes together.
    pub more: u64,
    /// How many fit on each node, by name.
    pub nodes: Vec<NodeFit>,
    /// Whether the running instances would still fit with nodes off; null unless `survive` was given.
    pub survival: Option<Survival>,
}

/// The size of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceSize {
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: ByteSize,
    /// Size of the disk in bytes.
    pub disk_bytes: ByteSize,
}

/// How many more instances fit on one node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeFit {
    /// Name of the node.
    pub node: Name,
    /// How many more instances fit.
    pub more: u64,
    /// Explanation in English: the free capacity, or why none fits.
    pub reason: String,
    /// The same for programs.
    #[serde(flatten)]
    pub coded: Coded,
}

impl NodeFit {
    /// The verdict on the node in English: the text of the server if this version does not know the verdict.
    pub fn english(&self) -> String {
        let known: Option<Verdict> = self.coded.decode();
        known.map_or_else(|| self.reason.clone(), |verdict| verdict.to_string())
    }
}

/// Whether the instances that run on some nodes would fit on the others.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Survival {
    /// Names of the nodes that are assumed to be off, largest first.
    pub off: Vec<Name>,
    /// Whether all instances that run there fit on the other nodes.
    pub fits: bool,
    /// Number of instances that run on the nodes that are assumed to be off.
    pub displaced: u64,
    /// Number of those that do not fit on the other nodes.
    pub unplaced_count: u64,
    /// Those that do not fit, largest first, at most 100.
    pub unplaced: Vec<UnplacedInstance>,
}

/// An instance that would not fit on another node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct UnplacedInstance {
    /// Name of the instance.
    pub name: Name,
    /// Name of its node.
    pub node: Name,
    /// Its memory in bytes.
    pub memory_bytes: ByteSize,
    /// The verdicts on the other nodes, best first, at most 16.
    pub placement: Vec<PlacementVerdict>,
}
