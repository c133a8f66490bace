//! Connects guests to the metadata service: WireGuard in userspace, without a listening socket that a guest can reach.
//!
//! ```text
//!  guest ── bridge ── TUN wfmeta0 ── NodeTunnel ══ UDP on 127.0.0.1 ══ TunnelServer ── TCP stack ── Listener::accept
//!                     (agentd, root)               (sealed)            (metadatad, no privileges)
//! ```
//!
//! [`NodeTunnel`] is the node's end. It owns a link that guests' packets to 169.254.169.254 are routed to. [`TunnelServer`]
//! is the other end. It uses only one UDP socket on loopback of the kernel's network: packets from the tunnel are processed
//! by a small TCP stack in this process, and [`Listener::accept`] returns [`Connection`]s with their address inside the
//! tunnel. That address is the guest's identity. It is reliable for three reasons: the firewall allows each guest its own
//! address only, only the node's key can encrypt a packet, and the server drops inner sources outside
//! [`PeerConfig::allowed`].
//!
//! [`mesh`] connects the guests' subnets of nodes: a link with many peers, in a process of its own.
//!
//! Services use [`GuestListener`] and [`GuestStream`] instead of these types, so tests can pass [`fake`] connections.

mod config;
mod error;
pub mod fake;
mod guest;
mod kernel;
mod key;
pub mod mesh;
mod node;
mod server;
mod stack;
mod udp;
mod wire;

pub use config::{NodeTunnelConfig, PeerConfig, ServerConfig, StackLimits};
pub use error::WireguardError;
pub use guest::{GuestListener, GuestStream};
pub use key::{KeyError, PrivateKey, PublicKey};
pub use node::{NodeTunnel, NodeTunnelStats, TunnelBackend};
pub use server::{Connection, Listener, Refusals, ServerStats, TunnelServer};
