//! Clients of the fabric: machines that run no waifud and reach guests through WireGuard.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{FabricClientPeer, Name, Timestamp};

/// `POST /v1/fabric/clients`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFabricClient {
    /// Name of the client, a DNS label.
    pub name: String,
    /// Its WireGuard public key: 32 bytes in base64. The private key stays with the client.
    pub public_key: String,
}

/// A client of the fabric.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FabricClient {
    /// Name of the client.
    pub name: Name,
    /// Its address, the only one that it may send from.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// Its WireGuard public key in base64.
    pub public_key: String,
    /// When it was added.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Nodes that joined later, so the configuration printed then lacks them.
    pub newer_nodes: Vec<Name>,
}

/// What a client needs for its configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FabricClientConfig {
    /// The client.
    pub client: FabricClient,
    /// All nodes.
    pub peers: Vec<FabricClientPeer>,
}
