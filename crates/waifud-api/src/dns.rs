//! Names of instances for machines that are not guests.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Name;

/// What a resolver needs to know to resolve the names of instances.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Dns {
    /// The domain of the names.
    pub domain: String,
    /// The reverse zones of all guest addresses.
    pub reverse_zones: Vec<String>,
    /// The addresses at which nodes serve names. Each node serves all names.
    pub servers: Vec<DnsServer>,
}

/// An address at which a node serves names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DnsServer {
    /// Name of the node.
    pub node: Name,
    /// The address and the port. A loopback address can only be used by programs on the node.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// The domain of the names there; it differs from that of the cluster if the node's configuration says so.
    pub domain: String,
    /// Whether names are served.
    pub state: DnsServerState,
    /// Why they are not, in a sentence; null if they are.
    pub message: Option<String>,
}

/// Whether a node serves names at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DnsServerState {
    /// It does.
    Serving,
    /// It is configured and does not.
    Failed,
    /// The node is unreachable; it may be off.
    Unreachable,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

impl DnsServerState {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
        }
    }
}
