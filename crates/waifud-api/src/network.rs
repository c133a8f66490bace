//! Networks in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Coded, Name, Timestamp};

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
