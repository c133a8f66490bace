//! Nodes: what they have, what is promised, what is used.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::status::{Condition, HypervisorKind};
use crate::{ByteSize, Name};

/// A node's state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Known, but not heard of yet.
    Joining,
    /// Takes instances.
    Ready,
    /// Keeps what it has and takes no more.
    Cordoned,
    /// Gives away what it has.
    Draining,
    /// Not heard of lately; perhaps switched off.
    Unreachable,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
        })
    }
}

/// CPUs and memory, as a capacity, a promise or a use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// CPUs (threads of the host, or virtual CPUs promised).
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: ByteSize,
}

/// What runs guests on a node, and how that was found out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HypervisorFacts {
    /// Hardware virtualisation or emulation.
    pub kind: HypervisorKind,
    /// Why, in a sentence: what the probe saw.
    pub reason: String,
}

/// One storage pool of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolFacts {
    /// Unique on the node.
    pub name: Name,
    /// `qcow2` or `reflink`, later `zfs`.
    pub kind: String,
    /// Size in bytes.
    pub size_bytes: ByteSize,
    /// Bytes in use.
    pub used_bytes: ByteSize,
    /// The sum of the sizes of its volumes; may exceed the size, as volumes are thin. Filled in by waifud.
    pub promised_bytes: ByteSize,
    /// `ok`, or what is wrong with it.
    pub health: String,
}

/// What a node tells of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeFacts {
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// As the kernel names it.
    pub cpu_model: String,
    /// What runs guests.
    pub hypervisor: HypervisorFacts,
    /// The version of waifud-agentd.
    pub agent_version: String,
    /// What it has.
    pub capacity: Resources,
    /// What is in use.
    pub used: Resources,
    /// Its pools.
    pub pools: Vec<PoolFacts>,
    /// Bridges that it has.
    pub bridges: Vec<String>,
    /// Links by name that no network of guests may be on though somebody may take them for a bridge, and why: one whose
    /// only way out is wireless, for example.
    #[serde(default)]
    pub unfit_bridges: BTreeMap<String, String>,
    /// Networks that it already has routes to: no guests' subnet may overlap them.
    #[schema(value_type = Vec<String>)]
    pub routes: Vec<Ipv4Net>,
    /// Conditions that it reports.
    pub conditions: Vec<Condition>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}
