//! Errors of starting or changing a tunnel. A running tunnel recovers automatically and reports through its statistics.

use std::{io, net::SocketAddr};

/// Why an end of the tunnel could not be started or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireguardError {
    /// The address is not loopback. Sealed packets are exchanged between two processes of one machine; any other address
    /// would be reachable by others.
    #[error("the tunnel requires a loopback address, not {address}")]
    NotLoopback {
        /// The configured address.
        address: SocketAddr,
    },
    /// The UDP socket could not be opened, usually because the port is in use.
    #[error("cannot open the tunnel's UDP socket on {address}")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A limit that would make the server useless, for example zero connections.
    #[error("the limit {name} is out of range: {why}")]
    Limit {
        /// The field of [`StackLimits`](crate::StackLimits).
        name: &'static str,
        /// The valid range.
        why: &'static str,
    },
    /// The peer has no allowed subnet, so all its packets would be dropped.
    #[error("a peer needs at least one allowed subnet")]
    NothingAllowed,
    /// The node's interface could not be created or configured.
    #[error("interface {interface}: {action} failed")]
    Link {
        /// The name of the interface.
        interface: String,
        /// The failed step.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An invalid interface name. Linux allows 1 to 15 bytes without slashes and spaces.
    #[error(
        "{interface:?} is not a valid interface name: 1 to 15 bytes without slashes and spaces"
    )]
    InterfaceName {
        /// The configured name.
        interface: String,
    },
}
