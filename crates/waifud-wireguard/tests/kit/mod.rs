//! A node and its guests in separate network namespaces, without names and without a connection to a real network.
//!
//! ```text
//!  guest namespace                     node namespace
//!  10.77.1.10..  eth0 ════ waifu0  10.77.1.1 ── rule "iif waifu0" ── wfmeta0 ══ 127.0.0.1 ══ TunnelServer
//! ```
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests and benches use different parts, and may panic"
)]

pub mod client;
pub mod namespace;
pub mod service;

use std::net::{Ipv4Addr, SocketAddr};

pub use waifud_kit::testing::skip;
use waifud_wireguard::{
    NodeTunnel, NodeTunnelConfig, PeerConfig, PrivateKey, ServerConfig, StackLimits, TunnelServer,
};

use self::namespace::Namespace;

/// The address of the guest with this number, 0 to 99.
pub fn guest_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 1, 10 + number)
}

/// Both namespaces, connected; the test starts the tunnel.
pub struct World {
    pub node: Namespace,
    pub guests: Namespace,
    pub server_key: PrivateKey,
    pub node_key: PrivateKey,
}

impl World {
    /// `None` if the machine does not allow namespaces; the skip is reported, and fails the test where skips are not
    /// allowed.
    pub fn new(addresses: u8) -> Option<Self> {
        if let Err(why) = namespace::available() {
            skip(&why);
            return None;
        }
        let (node, guests) = (Namespace::new(), Namespace::new());
        node.ip(&format!(
            "link add waifu0 type veth peer name eth0 netns {}",
            guests.thread_id()
        ));
        node.ip("address add 10.77.1.1/24 dev waifu0");
        node.ip("link set waifu0 up");
        node.ip("rule add iif waifu0 to 169.254.169.254 lookup 1690");
        node.sysctl("ipv4/ip_forward", "1");
        for which in ["all", "default"] {
            node.sysctl(&format!("ipv4/conf/{which}/rp_filter"), "0");
        }
        for number in 0..addresses {
            guests.ip(&format!(
                "address add {}/24 dev eth0",
                guest_address(number)
            ));
        }
        guests.ip("link set eth0 up");
        guests.ip("route add default via 10.77.1.1");
        // Fast tests use more connections per minute than there are ports.
        guests.sysctl("ipv4/tcp_tw_reuse", "1");
        guests.sysctl("ipv4/ip_local_port_range", "1024 65000");
        Some(Self {
            node,
            guests,
            server_key: PrivateKey::generate(),
            node_key: PrivateKey::generate(),
        })
    }

    /// Starts a server that serves [`service`], with the node as its peer.
    pub fn start_server(&self, limits: StackLimits) -> TunnelServer {
        let config = ServerConfig {
            limits,
            ..ServerConfig::new(self.server_key.clone())
        };
        let peer = self.peer();
        self.node.run(move || async move {
            let (server, listener) = TunnelServer::start(config).unwrap();
            server.set_peer(peer).unwrap();
            tokio::spawn(service::serve(listener));
            server
        })
    }

    /// The node as a peer of the server.
    pub fn peer(&self) -> PeerConfig {
        PeerConfig {
            public_key: self.node_key.public_key(),
            endpoint: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 51822))),
            allowed: vec!["10.77.1.0/24".parse().unwrap()],
        }
    }

    /// Starts the node's end and routes the guests' packets into it.
    pub fn start_node(&self) -> NodeTunnel {
        let config = NodeTunnelConfig::new(self.node_key.clone(), self.server_key.public_key());
        let tunnel = self
            .node
            .run(move || async move { NodeTunnel::start_in_userspace(config).await.unwrap() });
        self.node
            .ip("route add 169.254.169.254/32 dev wfmeta0 table 1690");
        tunnel
    }
}
