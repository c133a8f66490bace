//! What the agent needs of the outside beyond hypervisor, storage and network: waifud, metadatad, the clock.
//!
//! Each is a small trait; the real one and the fake (in [`crate::fake`]) stand behind an `Arc`.

mod control;
mod host;
mod http;
mod metadata;

pub use control::{ControlLink, FrameStream, LinkError};
pub use host::HostPower;
pub use http::HttpLink;
pub use metadata::{MetadataError, MetadataService, MetadataTunnel, TunnelUp};

use waifud_types::Timestamp;

/// What time it is.
pub trait Clock: Send + Sync {
    /// Now, in UTC.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
