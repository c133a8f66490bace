//! Networks and the fabric in the API.

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Coded, FabricKind, MeshBackend, Name, Timestamp};

/// A network for guests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Name of the network.
    pub name: Name,
    /// Name of the bridge on the nodes; null for `default`, which each node routes itself.
    pub bridge: Option<String>,
    /// Number of instances with a nic on the network, including those being destroyed.
    pub used_by: u64,
    /// Creation time; null for `default`.
    #[schema(value_type = Option<String>)]
    pub created_at: Option<Timestamp>,
    /// State of the network on each node.
    pub nodes: Vec<NetworkNode>,
}

/// State of a network on one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkNode {
    /// Name of the node.
    pub node: Name,
    /// Whether guests on the node can use the network, according to the node's last report.
    pub usable: bool,
    /// Why the network is not usable; null if it is.
    pub reason: Option<String>,
    /// The same as `reason` for programs: a code with fields, for example `no-bridge` with `bridge`.
    #[serde(default)]
    pub cause: Option<Coded>,
}

/// `POST /v1/networks`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Name of the network, a DNS label.
    pub name: String,
    /// A bridge that nodes already have, for example `br0`. waifud does not create or change it.
    pub bridge: String,
}

/// The fabric: what carries packets between guests of different nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Fabric {
    /// The fabric in use.
    pub kind: FabricKind,
    /// The fabric that an administrator has chosen; null for the default, which is `none` for one node and `wireguard` for
    /// more.
    pub configured: Option<FabricKind>,
    /// What the nodes have reported.
    pub nodes: Vec<FabricNode>,
    /// The routes that a router of the nodes' network needs, so that machines that are not nodes reach guests.
    pub routes: Vec<FabricRoute>,
}

/// A node of the fabric.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FabricNode {
    /// Name of the node.
    pub node: Name,
    /// The subnet of its guests.
    #[schema(value_type = String)]
    pub subnet: Ipv4Net,
    /// Its WireGuard public key in base64; null if it has not reported one.
    pub public_key: Option<String>,
    /// The addresses and ports at which other nodes may reach it, in order of preference.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// Which WireGuard carries its mesh: that of its kernel, or a process; null if it has no mesh or has not reported this.
    #[serde(default)]
    pub mesh_backend: Option<MeshBackend>,
}

/// A route to the guests of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FabricRoute {
    /// The subnet of the guests.
    #[schema(value_type = String)]
    pub destination: Ipv4Net,
    /// The node's address in its network.
    #[schema(value_type = String)]
    pub via: Ipv4Addr,
    /// Name of the node.
    pub node: Name,
}

/// `PUT /v1/fabric`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetFabric {
    /// `wireguard`, `static` or `none`.
    pub kind: String,
}
