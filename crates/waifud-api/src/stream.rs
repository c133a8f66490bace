//! Streams: a person's bytes to and from a guest, joined in waifud.
//!
//! A person's request (`GET /v1/instances/{name}/console`, `/screen`, `/ssh`, `/forward?port=`) becomes a WebSocket
//! (RFC 6455). Binary messages carry bytes; an empty one says that the sender has no more to send, and bytes still come
//! the other way until that side has said so too. Close code 1000 is an orderly end, [`RESET_CODE`] a connection that
//! was reset. Before that, waifud asks the node's agent over its watch, and the agent comes back with `GET /v1/agent/streams/{id}` and
//! `Upgrade: waifud-stream` (RFC 9110, section 7.8); from then on that connection is bytes and nothing else.
//! Each direction ends with the sender's `close_notify` (RFC 8446, section 6.1); a connection that ends without one was
//! reset. An agent
//! that can't do it says so with `POST /v1/agent/streams/{id}/refuse`, and the person gets a problem instead.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Epoch, InstanceId};

/// The close code of a connection that was reset, by the guest or by the client (4000 to 4999 are for private use: RFC
/// 6455, section 7.4.2).
pub const RESET_CODE: u16 = 4001;
/// What an agent's request asks to become.
pub const STREAM_PROTOCOL: &str = "waifud-stream";
/// Lines of a console's log at most.
pub const LOG_LINES_MAX: u32 = 100_000;

/// Names one stream, once: 256 random bits, 64 hexadecimal digits on the wire. Whoever knows it may take the stream,
/// so `Debug` shows only its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct StreamId([u8; 32]);

impl StreamId {
    /// From random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, ..] = self.0;
        write!(f, "StreamId({first:02x}{second:02x}…)")
    }
}

impl From<StreamId> for String {
    fn from(id: StreamId) -> Self {
        id.to_string()
    }
}

/// The text is no stream's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a stream's id has 64 hexadecimal digits")]
pub struct StreamIdError;

impl FromStr for StreamId {
    type Err = StreamIdError;

    fn from_str(text: &str) -> Result<Self, StreamIdError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(StreamIdError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return Err(StreamIdError),
                };
                *byte = *byte << 4 | value;
            }
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for StreamId {
    type Error = StreamIdError;

    fn try_from(text: String) -> Result<Self, StreamIdError> {
        text.parse()
    }
}

/// What a stream leads to. Never a host that somebody names: always a part of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StreamKind {
    /// The serial console, both ways.
    Console,
    /// What the serial console said, one way.
    ConsoleLog {
        /// So many of the last lines.
        lines: u32,
        /// And then what is added.
        follow: bool,
    },
    /// What cloud-init's stages printed in the guest, one way; read by the guest agent.
    CloudInitLog {
        /// So many of the last lines.
        lines: u32,
    },
    /// One command for the guest agent, and its answer ([`crate::guest_command`]).
    GuestCommand,
    /// TCP to port 22 of the instance's own address.
    Ssh,
    /// TCP to a port of the instance's own address.
    Forward {
        /// The guest's port.
        port: u16,
    },
    /// The screen, speaking RFB (RFC 6143).
    Screen,
}

impl StreamKind {
    /// A word for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::ConsoleLog { .. } => "console-log",
            Self::CloudInitLog { .. } => "cloud-init-log",
            Self::GuestCommand => "guest-command",
            Self::Ssh => "ssh",
            Self::Forward { .. } => "forward",
            Self::Screen => "screen",
        }
    }

    /// Whether it is a TCP connection to the guest, whose directions end one by one.
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::Ssh | Self::Forward { .. })
    }

    /// Whether it is of what was, and needs no guest that runs.
    pub const fn is_history(self) -> bool {
        matches!(self, Self::ConsoleLog { .. })
    }
}

/// What a node is asked for over its watch: never written down, asked once, good for 30 seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StreamOrder {
    /// To be named by the agent that comes.
    pub id: StreamId,
    /// Of which instance.
    pub instance: InstanceId,
    /// Of which copy.
    pub epoch: Epoch,
    /// What of it.
    #[serde(flatten)]
    pub kind: StreamKind,
}

/// Why an agent does not open a stream: `POST /v1/agent/streams/{id}/refuse`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StreamRefusal {
    /// In one word.
    pub reason: RefusalReason,
    /// A sentence for people.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// The node has no such instance, or another copy of it.
    NotHere,
    /// The guest is off.
    NotRunning,
    /// It has no address of its own that may be connected to.
    NoAddress,
    /// The guest refuses connections at the port.
    NothingListens,
    /// Nothing answers at the address or the port.
    NoAnswer,
    /// The address can't be shown to be the guest's own.
    NotTheGuest,
    /// The guest agent does not answer.
    NoGuestAgent,
    /// The guest agent answers, and does not do it.
    GuestRefused,
    /// There is no such file (yet).
    NoLog,
    /// The node carries as many streams as it may.
    TooMany,
    /// Something else.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::WatchFrame;

    #[test]
    fn ids_survive_text_and_show_little_of_themselves() {
        let id = StreamId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(format!("{id:?}"), "StreamId(a5a5…)");
        for bad in ["", "a5", &"g".repeat(64), &"A5".repeat(32), &"é".repeat(32)] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_order_is_one_flat_frame() {
        let order = StreamOrder {
            id: StreamId::from_bytes([1; 32]),
            instance: "0198c0de-0000-7000-8000-00000000abcd".parse().unwrap(),
            epoch: Epoch(3),
            kind: StreamKind::Forward { port: 80 },
        };
        let frame = WatchFrame::Stream(order);
        let text = serde_json::to_value(&frame).unwrap();
        assert_eq!(text["type"], "stream");
        assert_eq!(text["kind"], "forward");
        assert_eq!(text["port"], 80);
        assert_eq!(serde_json::from_value::<WatchFrame>(text).unwrap(), frame);
    }
}
