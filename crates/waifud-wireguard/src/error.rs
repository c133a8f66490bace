//! What can go wrong when a tunnel is set up. A running tunnel reports by its statistics instead: it heals by itself.

use std::{io, net::SocketAddr};

/// Why an end of the tunnel could not be started or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireguardError {
    /// Sealed packets travel between two processes of one machine; any other address would open a port to strangers.
    #[error("the tunnel may only use loopback addresses, not {address}")]
    NotLoopback {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The UDP socket could not be opened: most often the port is taken.
    #[error("the tunnel's UDP socket could not be opened on {address}")]
    Bind {
        /// Where it should have listened.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A limit that would make the server useless, zero connections for example.
    #[error("the limit {name} is out of range: {why}")]
    Limit {
        /// Field of [`StackLimits`](crate::StackLimits).
        name: &'static str,
        /// What would be right.
        why: &'static str,
    },
    /// A peer that may use no address can never be heard.
    #[error("a peer needs at least one allowed subnet")]
    NothingAllowed,
    /// The node's link could not be made or configured.
    #[error("interface {interface}: {action} failed")]
    Link {
        /// Name of the link.
        interface: String,
        /// The step, in words.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A name that Linux does not take for an interface: 1 to 15 bytes, no slash, no space.
    #[error("{interface:?} cannot be the name of an interface")]
    InterfaceName {
        /// The name that was asked for.
        interface: String,
    },
}
