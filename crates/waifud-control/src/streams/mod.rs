//! Streams: a person's request and an agent's request, joined into one flow of bytes.
//!
//! waifud makes a one-time id, tells the node's watch, and waits until the agent comes with that id. Everything is in
//! memory: a stream dies with the process, and nothing of it is ever written down. See `waifud_api::stream`.

mod broker;
mod guard;
mod guest_command;
mod open;
pub(crate) mod problems;
mod pump;

pub use broker::{AgentEnd, Broker, WatchRegistration};
pub use guard::{CloseReason, StreamGuard};
pub use open::OpenStream;
pub use pump::{join, read_only};

use std::time::Duration;

/// What streams may use.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// How long the agent may take to come; its id is good for as long.
    pub come_within: Duration,
    /// A stream without a byte in either direction for so long is closed.
    pub idle: Duration,
    /// Between two looks whether the person's end lives; silent for three times as long, it does not.
    pub ping: Duration,
    /// Streams at once.
    pub total: usize,
    /// Streams at once to one instance.
    pub per_instance: usize,
    /// Bytes of one message from a person at most. With the buffers of both connections it bounds what is in flight.
    pub message: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            come_within: Duration::from_secs(30),
            idle: Duration::from_hours(1),
            ping: Duration::from_secs(30),
            total: 512,
            per_instance: 64,
            message: 256 << 10,
        }
    }
}
