//! The agent's interfaces to the outside besides hypervisor, storage and network: waifud, metadatad, the host, the clock.
//!
//! Each is a small trait with a real implementation and a fake one (in [`crate::fake`]).

mod control;
mod host;
mod http;
mod metadata;

pub use control::{ControlLink, FrameStream, LinkError};
pub use host::HostPower;
pub use http::HttpLink;
pub use metadata::{MetadataError, MetadataService, MetadataTunnel, TunnelUp};

use waifud_types::Timestamp;

/// Provides the time.
pub trait Clock: Send + Sync {
    /// Now, in UTC.
    fn now(&self) -> Timestamp;
}

/// The system clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
