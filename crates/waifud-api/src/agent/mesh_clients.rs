//! Clients of the fabric, as every node knows them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Name;

/// The clients of the fabric.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MeshClients {
    /// The network that their addresses are from. No node has guests there.
    #[schema(value_type = String)]
    pub subnet: Ipv4Net,
    /// The clients, sorted by name.
    pub clients: Vec<MeshClient>,
}

/// A machine that is not a node and reaches guests through the mesh.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MeshClient {
    /// The name.
    pub name: Name,
    /// Its only address.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// Its WireGuard public key in base64.
    pub public_key: String,
}
