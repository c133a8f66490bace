//! The guests' way to the metadata service: WireGuard in userspace, with no listening socket that a guest can reach.
//!
//! ```text
//!  guest ── bridge ── TUN wfmeta0 ── NodeTunnel ══ UDP on 127.0.0.1 ══ TunnelServer ── TCP stack ── Listener::accept
//!                     (agentd, root)               (sealed)            (metadatad, no privileges)
//! ```
//!
//! [`NodeTunnel`] is the node's end. It owns a link that guests' packets for 169.254.169.254 are routed into.
//! [`TunnelServer`] is the other end. It never touches the kernel's network beyond one UDP socket on loopback: what comes
//! out of the tunnel goes into a small TCP stack in this process, and [`Listener::accept`] hands out [`Connection`]s that
//! say which inner address they came from. That address is the guest's identity, and it can be believed because three
//! guards agree: the firewall lets a guest send with its own address only, only the node's key can seal a packet, and the
//! server drops inner sources outside [`PeerConfig::allowed`].
//!
//! Services see [`GuestListener`] and [`GuestStream`], never these types, so that tests hand them [`fake`] connections.

mod config;
mod error;
pub mod fake;
mod guest;
mod key;
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
