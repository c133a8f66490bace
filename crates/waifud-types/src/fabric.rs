//! The fabric: what carries packets between the guests' subnets of nodes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How packets get from guests of one node to guests of another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FabricKind {
    /// A WireGuard mesh of the nodes.
    Wireguard,
    /// Routes over the network that the nodes are in.
    Static,
    /// None: guests of different nodes do not reach each other.
    #[default]
    None,
    /// A fabric that this version does not know.
    #[serde(other)]
    Other,
}

impl FabricKind {
    /// The fabrics that can be chosen.
    pub const ALL: [Self; 3] = [Self::Wireguard, Self::Static, Self::None];

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Static => "static",
            Self::None => "none",
            Self::Other => "other",
        }
    }

    /// Whether it leads to a single address of a guest wherever that is, so that an instance keeps its address when it moves.
    pub fn carries_addresses(self) -> bool {
        match self {
            Self::Wireguard | Self::Static => true,
            Self::None | Self::Other => false,
        }
    }

    /// The fabric of a cluster without a choice.
    pub fn default_for(nodes: u64) -> Self {
        if nodes < 2 {
            Self::None
        } else {
            Self::Wireguard
        }
    }
}

impl fmt::Display for FabricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is not one of [`FabricKind::ALL`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown fabric {0:?}: expected wireguard, static or none")]
pub struct ParseFabricError(String);

impl FromStr for FabricKind {
    type Err = ParseFabricError;

    fn from_str(text: &str) -> Result<Self, ParseFabricError> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.as_str() == text)
            .ok_or_else(|| ParseFabricError(text.to_owned()))
    }
}

/// Which WireGuard a node uses for the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MeshBackend {
    /// That of its kernel.
    Kernel,
    /// A process.
    Userspace,
    /// One that this version does not know.
    #[serde(other)]
    Other,
}

names! {
    /// The name in the API and in tables.
    MeshBackend {
        Kernel => "kernel",
        Userspace => "userspace",
        Other => "other",
    }
}

/// What other nodes need to reach a node over a fabric. The node reports it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MeshFacts {
    /// The node's WireGuard public key in base64. Its private key never leaves the node.
    pub public_key: String,
    /// Where other nodes may reach it: the address by which it reaches waifud, and the mesh port. Empty if it is unknown.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
}

/// The first IPv4 address of endpoints: the next hop of routes to the node's guests.
pub fn next_hop(endpoints: &[SocketAddr]) -> Option<Ipv4Addr> {
    endpoints.iter().find_map(|endpoint| match endpoint.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fabric_that_can_be_chosen_has_a_name() {
        for kind in FabricKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str());
        }
        let error = "tailscale".parse::<FabricKind>().unwrap_err();
        assert!(error.to_string().contains("wireguard, static or none"));
        assert!("other".parse::<FabricKind>().is_err());
        let newer: FabricKind = serde_json::from_str("\"tailscale\"").unwrap();
        assert_eq!(newer, FabricKind::Other);
    }

    #[test]
    fn the_default_is_a_mesh_from_the_second_node_on() {
        let (none, mesh) = (FabricKind::None, FabricKind::Wireguard);
        let kinds = [0, 1, 2, 3].map(FabricKind::default_for);
        assert_eq!(kinds, [none, none, mesh, mesh]);
    }

    #[test]
    fn the_next_hop_is_the_first_ipv4_address() {
        let endpoints = ["[2001:db8::1]:51820", "192.0.2.7:51820", "192.0.2.8:1"];
        let endpoints = endpoints.map(|text| text.parse().unwrap());
        assert_eq!(next_hop(&endpoints), Some([192, 0, 2, 7].into()));
        assert_eq!(next_hop(&endpoints[..1]), Option::None);
    }
}
