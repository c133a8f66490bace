//! Networks on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Name, Timestamp};

/// A network of guests, as `network list` and `network show` print it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: Name,
    /// The bridge that it means on every node; null for `default`, which each node routes by itself.
    pub bridge: Option<String>,
    /// How many instances have a nic on it, those that are being destroyed included.
    pub used_by: u64,
    /// When it was added; null for `default`.
    #[schema(value_type = Option<String>)]
    pub created_at: Option<Timestamp>,
    /// What each node says of it, by name.
    pub nodes: Vec<NetworkNode>,
}

/// Whether guests of one node can be on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkNode {
    /// The node.
    pub node: Name,
    /// Whether it has what the network needs, as it said last.
    pub usable: bool,
    /// Why not; null when it is usable.
    pub reason: Option<String>,
}

/// `POST /v1/networks`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name, a DNS label.
    pub name: String,
    /// A bridge that nodes already have, such as `br0`. waifud never makes or changes it.
    pub bridge: String,
}
