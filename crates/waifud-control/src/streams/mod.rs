//! Streams: connections between clients and instances, through the node's agent.
//!
//! waifud generates a one-time id, sends it over the node's watch, and waits until the agent connects with that id.
//! Everything is in memory: a stream ends with the process, and nothing of it is stored. See `waifud_api::stream`.

mod broker;
mod disk;
mod guard;
mod guest_command;
mod image;
mod log;
mod open;
pub(crate) mod problems;

pub use broker::{AgentEnd, StreamBroker, WatchRegistration};
pub use guard::{CloseReason, StreamGuard};
pub use log::read_only;
pub use open::OpenStream;

use std::time::Duration;

/// The limits of streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// How long the agent may take to connect; the id is valid for this time.
    pub agent_timeout: Duration,
    /// A stream without data in either direction for this long is closed.
    pub idle: Duration,
    /// The interval of pings to the client. A client without an answer for three intervals is disconnected.
    pub ping: Duration,
    /// The maximum number of open streams.
    pub total: usize,
    /// The maximum number of open streams per instance.
    pub per_instance: usize,
    /// The maximum size of a message from a client. Together with the buffers of both connections it bounds memory.
    pub message: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            agent_timeout: Duration::from_secs(30),
            idle: Duration::from_hours(1),
            ping: Duration::from_secs(30),
            total: 512,
            per_instance: 64,
            message: 256 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_idle_after_the_time_in_the_reference() {
        assert_eq!(StreamLimits::default().idle, Duration::from_hours(1));
        let page = include_str!("../../../../docs/reference/api.md");
        assert!(page.contains("the stream was idle for an hour"));
    }
}
