//! The node's end: a link that guests' packets are routed into, sealed and sent to the server on loopback.

mod kernel;
pub(crate) mod link;
mod offload;
pub(crate) mod tun;
pub(crate) mod userspace;

use std::{fmt, time::Duration};

use self::{link::Links, userspace::Userspace};
use crate::{NodeTunnelConfig, WireguardError};

/// How the link is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelBackend {
    /// The kernel's own WireGuard.
    Kernel,
    /// A TUN device whose packets this process seals.
    Userspace,
}

/// A running node's end. The link exists until [`stop`](Self::stop) or a drop. A TUN device ends with the process; a
/// WireGuard link of the kernel remains, and the next start replaces it.
///
/// This creates the link, sets its MTU and brings it up. Addresses, routes and rules belong to the network and must be
/// ensured again after every start, because the kernel removes the routes of a deleted link.
pub struct NodeTunnel {
    interface: String,
    links: Links,
    /// `None` with the kernel's WireGuard, and after a stop.
    userspace: Option<Userspace>,
    backend: TunnelBackend,
    /// The index of the kernel's link, which a later link of that name does not have.
    index: Option<u32>,
}

impl NodeTunnel {
    /// Creates the link and starts a handshake with the server. Uses the kernel's WireGuard if available, otherwise a TUN
    /// device. Needs `CAP_NET_ADMIN`; must be called inside a tokio runtime, in the network namespace of the link. A link
    /// of that name from a former run is replaced.
    pub async fn start(config: NodeTunnelConfig) -> Result<Self, WireguardError> {
        let links = Self::prepare(&config).await?;
        if !kernel::probe(&config.interface, &links).await {
            return Self::start_userspace(config, links).await;
        }
        match kernel::configure(&config, &links).await {
            Ok(()) => Ok(Self {
                index: link::index_of(&config.interface),
                interface: config.interface,
                links,
                userspace: None,
                backend: TunnelBackend::Kernel,
            }),
            Err(error) => {
                let interface = &config.interface;
                tracing::warn!(interface, %error, "the kernel's WireGuard failed; using a TUN device");
                links
                    .remove(interface)
                    .await
                    .map_err(userspace::failed(interface, "removing the kernel's link"))?;
                Self::start_userspace(config, links).await
            }
        }
    }

    /// Like [`start`](Self::start), but always with a TUN device.
    pub async fn start_in_userspace(config: NodeTunnelConfig) -> Result<Self, WireguardError> {
        let links = Self::prepare(&config).await?;
        Self::start_userspace(config, links).await
    }

    async fn prepare(config: &NodeTunnelConfig) -> Result<Links, WireguardError> {
        config.check()?;
        let interface = &config.interface;
        let links =
            Links::new().map_err(userspace::failed(interface, "opening a netlink socket"))?;
        links
            .remove(interface)
            .await
            .map_err(userspace::failed(interface, "removing the former link"))?;
        Ok(links)
    }

    async fn start_userspace(
        config: NodeTunnelConfig,
        links: Links,
    ) -> Result<Self, WireguardError> {
        let userspace = Some(Userspace::start(&config, &links).await?);
        Ok(Self {
            interface: config.interface,
            links,
            userspace,
            backend: TunnelBackend::Userspace,
            index: None,
        })
    }

    /// Name of the link.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// How the link is provided.
    pub fn backend(&self) -> TunnelBackend {
        self.backend
    }

    /// Whether packets are transferred. False after another program has removed the link; then start again.
    pub fn is_running(&self) -> bool {
        match &self.userspace {
            Some(userspace) => userspace.is_running(),
            None => self.index.is_some() && link::index_of(&self.interface) == self.index,
        }
    }

    /// The current counters; `None` with the kernel's WireGuard, which has its own.
    pub fn stats(&self) -> Option<NodeTunnelStats> {
        self.userspace.as_ref().map(Userspace::stats)
    }

    /// Removes the link and waits until it is gone.
    pub async fn stop(mut self) -> Result<(), WireguardError> {
        if let Some(userspace) = self.userspace.take() {
            userspace.stop().await;
        }
        let removed = self.links.remove(&self.interface).await;
        // Nothing is left for the drop to do.
        self.backend = TunnelBackend::Userspace;
        removed.map_err(userspace::failed(&self.interface, "removing it"))
    }
}

impl Drop for NodeTunnel {
    fn drop(&mut self) {
        if self.backend != TunnelBackend::Kernel {
            return;
        }
        let interface = std::mem::take(&mut self.interface);
        if let (Ok(runtime), Ok(links)) = (tokio::runtime::Handle::try_current(), Links::new()) {
            runtime.spawn(async move {
                if let Err(error) = links.remove(&interface).await {
                    tracing::warn!(interface, %error, "cannot remove the link to the metadata service");
                }
            });
        }
    }
}

impl fmt::Debug for NodeTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTunnel")
            .field("interface", &self.interface)
            .field("way", &self.backend)
            .finish_non_exhaustive()
    }
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
