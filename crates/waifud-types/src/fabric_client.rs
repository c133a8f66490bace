//! Clients of the fabric: machines that run no waifud and reach guests through WireGuard.
//!
//! A client has a tunnel to each node, so there is no central one, and an address of its own. Nodes accept packets from it only
//! with that address.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node, as a client needs to know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FabricClientPeer {
    /// Name of the node.
    pub node: crate::Name,
    /// The node's WireGuard public key in base64; null if it has not reported one.
    pub public_key: Option<String>,
    /// Where the node may be reached, in order of preference. Empty if unknown.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// The addresses of its guests.
    #[schema(value_type = Vec<String>)]
    pub allowed: Vec<Ipv4Net>,
    /// Whether the node's agent lets clients reach its guests. Agents of earlier versions do not.
    pub supports_clients: bool,
}

impl FabricClientPeer {
    /// Why a client cannot reach the node's guests; `None` if it can.
    pub fn trouble(&self) -> Option<&'static str> {
        if !self.supports_clients {
            Some("its waifud-agentd is of an earlier version and lets no clients in; update it")
        } else if !self.public_key.as_deref().is_some_and(is_key) {
            Some("it has not reported a valid WireGuard key yet")
        } else if self.endpoints.is_empty() {
            Some("its address is unknown; set `mesh_endpoints` in its agentd.toml")
        } else {
            None
        }
    }
}

/// Whether a text has the form of a key. The nodes' keys come from the nodes, and must not add lines to the configuration, which
/// `wg-quick` runs commands of.
fn is_key(text: &str) -> bool {
    let digits = text.strip_suffix('=').unwrap_or_default();
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    digits.len() == 43 && digits.bytes().all(is_digit)
}

/// The MTU of the client's interface, that of the mesh.
const MTU: u16 = 1420;

/// How often the client sends a packet to each node, so that nodes reach it through its router, in seconds.
const KEEPALIVE: u8 = 25;

/// The client's configuration file, as `wg-quick` and WireGuard's apps read it. Without a private key, the line has a
/// placeholder. Nodes that cannot be reached are left out.
pub fn configuration(
    address: Ipv4Addr,
    private_key: Option<&str>,
    peers: &[FabricClientPeer],
) -> String {
    let key = match private_key {
        Some(key) => format!("PrivateKey = {key}"),
        None => "# PrivateKey = the private key of this client".to_owned(),
    };
    let mut text = format!("[Interface]\n{key}\nAddress = {address}/32\nMTU = {MTU}\n");
    for peer in peers.iter().filter(|peer| peer.trouble().is_none()) {
        let allowed: Vec<_> = peer.allowed.iter().map(ToString::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(text, "\n[Peer]\n# {}\n", peer.node);
        if let (Some(key), Some(endpoint)) = (&peer.public_key, peer.endpoints.first()) {
            let _ = write!(text, "PublicKey = {key}\nEndpoint = {endpoint}\n");
        }
        let _ = write!(
            text,
            "AllowedIPs = {}\nPersistentKeepalive = {KEEPALIVE}\n",
            allowed.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str, key: Option<&str>, endpoint: Option<&str>) -> FabricClientPeer {
        FabricClientPeer {
            node: node.parse().unwrap(),
            public_key: key.map(str::to_owned),
            endpoints: endpoint.iter().map(|text| text.parse().unwrap()).collect(),
            allowed: vec!["10.144.1.0/24".parse().unwrap()],
            supports_clients: true,
        }
    }

    #[test]
    fn nodes_that_can_be_reached_are_peers_and_others_have_a_reason() {
        let key = |digit: &str| digit.repeat(43) + "=";
        let (one, two) = (key("1"), key("/"));
        let endpoint = Some("192.0.2.2:51820");
        let old = FabricClientPeer {
            supports_clients: false,
            ..peer("old", Some(&one), endpoint)
        };
        let hostile = format!("{}\nPostUp = rm", "1".repeat(31));
        let peers = [
            peer("alder", Some(&one), endpoint),
            peer("birch", None, endpoint),
            peer("cedar", Some(&one), None),
            old,
            peer("hostile", Some(&hostile), endpoint),
            peer("dogwood", Some(&two), Some("[2001:db8::1]:7")),
        ];
        let address = [10, 144, 3, 2].into();
        assert_eq!(
            configuration(address, Some("secret="), &peers),
            format!(
                "[Interface]\nPrivateKey = secret=\nAddress = 10.144.3.2/32\nMTU = 1420\n\n\
                 [Peer]\n# alder\nPublicKey = {one}\nEndpoint = 192.0.2.2:51820\n\
                 AllowedIPs = 10.144.1.0/24\nPersistentKeepalive = 25\n\n\
                 [Peer]\n# dogwood\nPublicKey = {two}\nEndpoint = [2001:db8::1]:7\n\
                 AllowedIPs = 10.144.1.0/24\nPersistentKeepalive = 25\n"
            )
        );
        let without = configuration(address, None, &peers);
        assert!(without.contains("\n# PrivateKey = the private key of this client\n"));
        let troubles: Vec<_> = peers.iter().filter_map(FabricClientPeer::trouble).collect();
        assert_eq!(troubles.len(), 4);
        assert!(troubles[0].contains("key") && troubles[1].contains("mesh_endpoints"));
        assert!(troubles[2].contains("update it") && troubles[3].contains("valid"));
    }
}
