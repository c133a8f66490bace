//! The mesh of nodes: one WireGuard link with many peers, which carries packets between guests' subnets.
//!
//! [`KernelMesh`] is a link of the kernel's WireGuard, which outlives the agent. Where the kernel has none, [`Mesh`] is the link:
//! a TUN device whose packets this process encrypts. A node runs it in a process of its own, which outlives the agent, so the
//! agent's restart loses no packet. The agent configures it with a [`MeshClient`] over a unix socket that only root can open
//! ([`serve`]). Addresses, routes and rules belong to the network.

mod client;
mod control;
mod endpoints;
mod kernel;
mod kernel_peers;
mod wire;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use waifud_kit::sync::lock;

pub use self::client::MeshClient;
pub use self::control::{MeshError, MeshStatus, serve};
pub use self::kernel::KernelMesh;
use self::wire::MeshWire;
use crate::{
    PrivateKey, PublicKey, WireguardError,
    node::{
        link::Links,
        tun::Tun,
        userspace::{carry, failed},
    },
    udp::DatagramSocket,
    wire::MAX_MTU,
};

/// Seconds between keepalives while nothing else is sent; it keeps the mappings of NAT (WireGuard's usual value).
const KEEPALIVE: u16 = 25;

/// The configuration of the link that stays the same while it exists.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// Name of the link.
    pub interface: String,
    /// The node's private key.
    pub private_key: PrivateKey,
    /// The UDP port, on every address of the host.
    pub port: u16,
    /// The initial MTU of the link.
    pub mtu: u16,
}

/// A peer: another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeer {
    /// Its public key.
    pub public_key: PublicKey,
    /// Where it may be reached, in order of preference. Empty for a node that only others can reach.
    pub endpoints: Vec<SocketAddr>,
    /// Inner addresses that it may send from, and that are sent to it. The longest prefix decides.
    pub allowed: Vec<Ipv4Net>,
}

/// The state of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeerStatus {
    /// Its public key.
    pub public_key: PublicKey,
    /// Where packets are sent to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake; null if there was none.
    pub handshake_age_s: Option<u64>,
    /// Encrypted bytes received from it.
    pub received_bytes: u64,
    /// Encrypted bytes sent to it.
    pub sent_bytes: u64,
}

/// A running link. It ends with this value.
pub struct Mesh {
    config: MeshConfig,
    mtu: u16,
    links: Links,
    wire: Arc<Mutex<MeshWire>>,
    carrier: JoinHandle<()>,
}

impl Mesh {
    /// Creates the link and opens its UDP port. Needs `CAP_NET_ADMIN`; must be called inside a tokio runtime, in the network
    /// namespace of the link. A link of that name from a former run is replaced.
    pub async fn start(config: MeshConfig) -> Result<Self, WireguardError> {
        check_mtu(config.mtu)?;
        let interface = &config.interface;
        let socket = DatagramSocket::bind_all(config.port)?;
        let links = Links::new().map_err(failed(interface, "opening a netlink socket"))?;
        links
            .remove(interface)
            .await
            .map_err(failed(interface, "removing the former link"))?;
        let tun = Tun::create(interface).map_err(failed(interface, "creating the TUN device"))?;
        links
            .bring_up(interface, config.mtu)
            .await
            .map_err(failed(interface, "bringing it up"))?;
        let wire = Arc::new(Mutex::new(MeshWire::new(&config.private_key, config.mtu)));
        let carrier = tokio::spawn(carry(Arc::clone(&wire), tun, socket, interface.clone()));
        Ok(Self {
            mtu: config.mtu,
            config,
            links,
            wire,
            carrier,
        })
    }

    /// Sets the peers and the MTU. Packets of peers that stay are not lost.
    pub async fn set(&mut self, peers: &[MeshPeer], mtu: u16) -> Result<(), WireguardError> {
        check_mtu(mtu)?;
        if mtu != self.mtu {
            let interface = &self.config.interface;
            self.links
                .bring_up(interface, mtu)
                .await
                .map_err(failed(interface, "setting its MTU"))?;
            lock(&self.wire).set_mtu(mtu);
            self.mtu = mtu;
        }
        // The carrier sends the first handshakes at its next tick.
        lock(&self.wire).set_peers(peers, Instant::now());
        Ok(())
    }

    /// The state of every peer, sorted by key.
    pub fn peers(&self) -> Vec<MeshPeerStatus> {
        lock(&self.wire).status(Instant::now())
    }

    /// The configuration.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// Whether packets are transferred. False after another program has removed the link.
    pub fn is_running(&self) -> bool {
        !self.carrier.is_finished()
    }

    /// Removes the link and waits until it is gone.
    pub async fn stop(mut self) {
        self.carrier.abort();
        // An aborted task returns an error; it has then dropped the device.
        let _ended = (&mut self.carrier).await;
    }

    /// Waits until another program has removed the link.
    pub async fn ended(&mut self) {
        // An error is a panic of the task, which also ended.
        let _ended = (&mut self.carrier).await;
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

fn check_mtu(mtu: u16) -> Result<(), WireguardError> {
    if (576..=MAX_MTU).contains(&mtu) {
        Ok(())
    } else {
        Err(WireguardError::Limit {
            name: "mtu",
            why: "576 to 1920",
        })
    }
}
