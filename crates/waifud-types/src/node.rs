//! Nodes: states, capacity and reported facts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::status::{Condition, HypervisorKind};
use crate::{ByteSize, Digest, DnsFacts, MeshBackend, MeshFacts, Name, PoolKind};

/// State of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It has joined but has not reported yet.
    Joining,
    /// Accepts new instances.
    Ready,
    /// Keeps its instances but does not accept new ones.
    Cordoned,
    /// Its instances are being moved to other nodes.
    Draining,
    /// It has not reported lately; it may be off.
    Unreachable,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
        })
    }
}

/// CPUs and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Number of CPUs: hardware threads, or reserved virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: ByteSize,
}

/// The hypervisor of a node, and how it was detected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HypervisorFacts {
    /// Hardware virtualization or emulation.
    pub kind: HypervisorKind,
    /// Result of the detection, as a sentence.
    pub reason: String,
    /// Why the node cannot use hardware virtualization, for programs; null if it can, or if the cause is unknown.
    #[serde(default)]
    pub cause: Option<NoKvm>,
}

/// Why a node cannot use hardware virtualization.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NoKvm {
    /// `/dev/kvm` does not exist.
    NoDevice,
    /// The agent is not allowed to open `/dev/kvm`.
    DeviceDenied,
    /// The host is a PVM guest, which can run only kernels made for it.
    Pvm,
    /// The CPU does not announce VMX or SVM.
    NoCpuSupport,
    /// A test machine did not run.
    TestFailed,
    /// A cause that this version does not know.
    #[serde(other)]
    Other,
}

/// A storage pool of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolFacts {
    /// Name, unique on the node.
    pub name: Name,
    /// `qcow2` or `reflink`; newer nodes may report others.
    #[schema(value_type = String)]
    pub kind: PoolKind,
    /// Size in bytes.
    pub size_bytes: ByteSize,
    /// Bytes in use.
    pub used_bytes: ByteSize,
    /// Sum of the sizes of its volumes, computed by waifud. It can exceed the size of the pool, since volumes are
    /// thin.
    pub promised_bytes: ByteSize,
    /// `ok`, or a description of the problem.
    pub health: String,
    /// The images in the pool, sorted; null if the node does not report them.
    #[serde(default)]
    pub images: Option<Vec<Digest>>,
}

impl PoolFacts {
    /// Free space below which placement uses a pool of this size for no new disk: a twentieth, at most 1 GiB. Disks are
    /// thin, so this space is left to the disks that are there.
    const RESERVE_AT_MOST: ByteSize = ByteSize::gib(1);

    /// Bytes that are not in use.
    pub fn free_bytes(&self) -> ByteSize {
        let (size, used) = (self.size_bytes.bytes(), self.used_bytes.bytes());
        ByteSize(size.saturating_sub(used))
    }

    /// Whether the pool has too little free space for another disk.
    pub fn is_full(&self) -> bool {
        let twentieth = ByteSize(self.size_bytes.bytes() / 20);
        self.free_bytes() < twentieth.min(Self::RESERVE_AT_MOST)
    }
}

/// Facts that a node reports about itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeFacts {
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// CPU model, as reported by the kernel.
    pub cpu_model: String,
    /// The hypervisor.
    pub hypervisor: HypervisorFacts,
    /// Version of waifud-agentd.
    pub agent_version: String,
    /// Total CPUs and memory.
    pub capacity: Resources,
    /// CPUs and memory in use.
    pub used: Resources,
    /// Storage pools.
    pub pools: Vec<PoolFacts>,
    /// Bridges that networks can use.
    pub bridges: Vec<String>,
    /// Links that look like a bridge but that no network can use, by name, with the reason; for example one whose only
    /// uplink is wireless.
    #[serde(default)]
    pub unfit_bridges: BTreeMap<String, String>,
    /// Those of the bridges that are VLAN-aware, so that nics on them can be in a VLAN. Empty from agents of earlier versions.
    #[serde(default)]
    pub vlan_bridges: Vec<String>,
    /// Networks that the node has routes to. Subnets of guests must not overlap them.
    #[schema(value_type = Vec<String>)]
    pub routes: Vec<Ipv4Net>,
    /// Conditions that the node reports.
    pub conditions: Vec<Condition>,
    /// Labels that the node reports.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the agent can do beyond agents of earlier versions; see [`feature`]. Empty for those.
    #[serde(default)]
    pub features: Vec<String>,
    /// What other nodes need to reach this one over a fabric; null for agents that cannot be in one.
    #[serde(default)]
    pub mesh: Option<MeshFacts>,
    /// Which WireGuard carries the mesh of the node; null without a mesh, before the agent has applied it, and from agents of
    /// earlier versions, which use a process.
    #[serde(default)]
    pub mesh_backend: Option<MeshBackend>,
    /// The node's peer port; null from agents of earlier versions, and before the agent knows its address.
    #[serde(default)]
    pub peer_port: Option<PeerPortFacts>,
    /// The names that the node serves on its own addresses; null if it serves none.
    #[serde(default)]
    pub dns: Option<DnsFacts>,
}

/// The port at which other nodes of the cluster reach the agent of a node, to copy disks and images without waifud between
/// them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PeerPortFacts {
    /// The addresses and ports, in order of preference. Empty if the agent does not listen.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
}

impl NodeFacts {
    /// Whether the agent has a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|known| known == feature)
    }
}

/// Kinds of a node's conditions that waifud uses for placement.
pub mod condition_kind {
    /// The node's own guest subnet overlaps a route of the node.
    pub const SUBNET: &str = "subnet";
    /// Guest subnets of other nodes cannot be used on the node.
    pub const REMOTE_SUBNETS: &str = "remote-subnets";
}

/// What an agent can do beyond agents of earlier versions. waifud uses a feature only on nodes that report it.
pub mod feature {
    /// The node lets clients of the fabric reach its guests ([`crate::fabric_client`]); others ignore them.
    pub const FABRIC_CLIENTS: &str = "fabric-clients";
    /// The agent executes releases ([`crate::ownership`]); others ignore them.
    pub const RELEASE: &str = "release";
    /// The node sends and receives disks of instances that move ([`crate::moving`]).
    pub const MOVE: &str = "move";
    /// The node applies the firewalls of instances ([`crate::firewall`]); others ignore them.
    pub const FIREWALL: &str = "firewall";
    /// The node adds nics to running instances and removes them, and reports when a removed one is gone.
    pub const NICS: &str = "nics";
    /// The node accepts cloud-init's reports on [`REPORT_PORT`](crate::template::REPORT_PORT).
    pub const REPORT_PORT: &str = "report-port";

    /// Guests of the node may have an address of another node's subnet, which they had before they moved, and guests of its own
    /// subnet may be on other nodes.
    pub const KEEP_ADDRESS: &str = "keep-address";

    /// The node sends images to other nodes at its peer port.
    pub const PEER_IMAGES: &str = "peer-images";

    /// The node puts nics in the VLAN that their spec names; others ignore it.
    pub const VLANS: &str = "vlans";

    /// Every feature of this version.
    pub const ALL: [&str; 9] = [
        FABRIC_CLIENTS,
        FIREWALL,
        KEEP_ADDRESS,
        MOVE,
        NICS,
        PEER_IMAGES,
        RELEASE,
        REPORT_PORT,
        VLANS,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_full_when_less_than_a_twentieth_or_1g_is_free() {
        let full = |size_mib, free_mib| {
            let pool = PoolFacts {
                name: "main".parse().unwrap(),
                kind: PoolKind::Qcow2,
                size_bytes: ByteSize::mib(size_mib),
                used_bytes: ByteSize::mib(size_mib - free_mib),
                promised_bytes: ByteSize(0),
                health: "ok".to_owned(),
                images: None,
            };
            assert_eq!(pool.free_bytes(), ByteSize::mib(free_mib));
            pool.is_full()
        };
        assert!(full(20 * 1024, 1023));
        assert!(!full(20 * 1024, 1024));
        assert!(full(2000 * 1024, 1023));
        assert!(!full(2000 * 1024, 1024));
        assert!(full(2000, 99));
        assert!(!full(2000, 100));
        assert!(!full(0, 0), "a pool of unknown size");
    }

    #[test]
    fn an_agent_has_the_features_that_it_reports_and_no_others() {
        let mut facts: NodeFacts = serde_json::from_value(serde_json::json!({
            "arch": "x86_64", "cpu_model": "", "hypervisor": {"kind": "kvm", "reason": ""}, "agent_version": "0.1.0",
            "capacity": {"cpus": 1, "memory_bytes": 1}, "used": {"cpus": 0, "memory_bytes": 0},
            "pools": [], "bridges": [], "routes": [], "conditions": [],
        }))
        .unwrap();
        assert!(!facts.has(feature::RELEASE));
        facts.features = vec![feature::RELEASE.to_owned()];
        assert!(facts.has(feature::RELEASE));
        assert!(!facts.has(feature::REPORT_PORT));
    }
}
