//! The agent's interfaces to the outside besides hypervisor, storage and network: waifud, metadatad, the host, the clock.
//!
//! Each is a small trait with a real implementation and a fake one (in [`crate::fake`]).

mod control;
mod host;
mod http;
mod metadata;
mod peers;
mod tls_peers;

pub use control::{Arrived, ByteChunks, ControlLink, Destination, FrameStream, LinkError};
pub use host::HostPower;
pub use http::HttpLink;
pub(crate) use http::file_error;
pub use metadata::{MetadataError, MetadataService, MetadataTunnel, TunnelUp};
pub use peers::{IncomingPeer, NoPeers, PeerConnection, PeerListener, PeerNetwork};
pub use tls_peers::TlsPeers;

pub use waifud_kit::clock::{Clock, SystemClock};
