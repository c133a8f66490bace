//! Nodes on the wire.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::node::{HypervisorFacts, NodeState, PoolFacts, Resources};
use waifud_types::status::Condition;
use waifud_types::{InstanceId, Name, NodeId, Timestamp, VolumeId};

/// A node, as `node list` and `node show` print it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: NodeState,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `x86_64` or `aarch64`; null before its agent has said so.
    pub arch: Option<String>,
    /// As the kernel names it.
    pub cpu_model: Option<String>,
    /// What runs guests there, and how that was found out.
    pub hypervisor: Option<HypervisorFacts>,
    /// The version of its agent.
    pub agent_version: Option<String>,
    /// What it has.
    pub capacity: Resources,
    /// What is promised to instances.
    pub promised: Resources,
    /// What is in use.
    pub used: Resources,
    /// The guests' subnets on it.
    #[schema(value_type = Vec<String>)]
    pub subnets: Vec<Ipv4Net>,
    /// Bridges that it has.
    pub bridges: Vec<String>,
    /// Links that may be taken for a bridge and that no network can be on, by name, with the reason.
    #[serde(default)]
    pub unfit_bridges: BTreeMap<String, String>,
    /// Its pools.
    pub pools: Vec<PoolFacts>,
    /// When it last reported; null before it ever did.
    #[schema(value_type = Option<String>)]
    pub last_contact: Option<Timestamp>,
    /// How far its clock is ahead of waifud's, in seconds.
    pub clock_skew_s: Option<f64>,
    /// Conditions that it reported.
    pub conditions: Vec<Condition>,
    /// What is on it and in nobody's list.
    pub unmanaged: Vec<Unmanaged>,
    /// False after a restore, until an operator has confirmed that the restored database is the right one: until then
    /// the node destroys nothing, and makes nothing anew that was in the backup.
    pub confirmed: bool,
}

/// Something on a node that is in nobody's list: it stays as it is until somebody adopts or deletes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unmanaged {
    /// `domain` or `volume`.
    pub kind: String,
    /// The instance that it belonged to.
    pub instance: InstanceId,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// The volume, when it is one.
    pub volume: Option<VolumeId>,
    /// Whether it runs.
    pub running: bool,
    /// Addresses that it has, as far as known.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<std::net::Ipv4Addr>,
    /// Whether the node knows enough of it for `waifuctl adopt`.
    pub adoptable: bool,
}

/// `PATCH /v1/nodes/{name}`: what is absent stays as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateNode {
    /// Another name. What is pinned to the old one has to be pinned anew.
    #[serde(default)]
    pub name: Option<Name>,
    /// Labels to set; null removes one that was set so. What a node tells of itself can be set otherwise, not removed.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
}

/// `POST /v1/nodes/{name}/unmanaged/{instance}/adopt`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptInstance {
    /// Another name than it had, when that is taken.
    #[serde(default)]
    pub name: Option<String>,
}
