//! Nodes in the API.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::node::{HypervisorFacts, NodeState, PoolFacts, Resources};
use waifud_types::status::Condition;
use waifud_types::{InstanceId, MeshBackend, Name, NodeId, Timestamp, VolumeId};

/// A node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Id of the node.
    pub id: NodeId,
    /// Name of the node.
    pub name: Name,
    /// State of the node.
    pub state: NodeState,
    /// Whether the node is cordoned: it accepts no new instances. An unreachable node can be cordoned, too.
    #[serde(default)]
    pub cordoned: bool,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// `x86_64` or `aarch64`; null before the first report of its agent.
    pub arch: Option<String>,
    /// CPU model, as reported by the kernel.
    pub cpu_model: Option<String>,
    /// The hypervisor, and how it was detected.
    pub hypervisor: Option<HypervisorFacts>,
    /// Version of waifud-agentd on the node.
    pub agent_version: Option<String>,
    /// Total CPUs and memory.
    pub capacity: Resources,
    /// CPUs and memory reserved for instances.
    pub promised: Resources,
    /// CPUs and memory in use.
    pub used: Resources,
    /// Subnets of guests on the node.
    #[schema(value_type = Vec<String>)]
    pub subnets: Vec<Ipv4Net>,
    /// Bridges on the node that networks can use.
    pub bridges: Vec<String>,
    /// Links that look like a bridge but that no network can use, by name, with the reason.
    #[serde(default)]
    pub unfit_bridges: BTreeMap<String, String>,
    /// Which WireGuard carries the mesh of the node: that of its kernel, or a process; null without a mesh, and from agents of
    /// earlier versions, which use a process.
    #[serde(default)]
    pub mesh_backend: Option<MeshBackend>,
    /// Storage pools of the node.
    pub pools: Vec<PoolFacts>,
    /// Time of the last report; null before the first one.
    #[schema(value_type = Option<String>)]
    pub last_contact: Option<Timestamp>,
    /// How far the node's clock is ahead of waifud's, in seconds.
    pub clock_skew_s: Option<f64>,
    /// Conditions that the node reported.
    pub conditions: Vec<Condition>,
    /// Unmanaged objects on the node: domains and volumes that are not in waifud's database.
    pub unmanaged: Vec<Unmanaged>,
    /// False after a restore until an administrator has confirmed the node. Until then, the node does not destroy anything
    /// and does not recreate instances from the backup that it does not have.
    pub confirmed: bool,
}

/// An unmanaged domain or volume on a node. It is left unchanged until a user adopts or deletes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unmanaged {
    /// `domain` or `volume`.
    pub kind: String,
    /// Id of the instance that it belongs to.
    pub instance: InstanceId,
    /// Name; null if it has none.
    pub name: Option<String>,
    /// Id of the volume; null for a domain.
    pub volume: Option<VolumeId>,
    /// Whether it is running.
    pub running: bool,
    /// Its known addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<std::net::Ipv4Addr>,
    /// Whether it can be adopted: the node has its spec and its user-data, and waifud does not manage another copy of it.
    pub adoptable: bool,
}

/// `PATCH /v1/nodes/{name}`: absent fields are not changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateNode {
    /// A new name. Instances pinned to the old name must be pinned again.
    pub name: Option<Name>,
    /// Whether the node accepts no new instances. Instances on it are not affected.
    pub cordoned: Option<bool>,
    /// Labels to set; null removes a label that was set this way. Labels that the node reports can be overridden but
    /// not removed.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
}

/// The parameters of `DELETE /v1/nodes/{name}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RemoveNode {
    /// Also release the node's subnet.
    pub purge: bool,
    /// Also remove a node that has instances. They are lost with it.
    pub force: bool,
    /// The administrator's word that the machine is off.
    pub confirm_off: bool,
}

/// `POST /v1/nodes/{name}/unmanaged/{instance}/adopt`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptInstance {
    /// A new name, for example if the old one is taken.
    pub name: Option<String>,
}
