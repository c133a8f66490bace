//! Streams between a client and a guest, connected by waifud.
//!
//! A client's request (`GET /v1/instances/{name}/console`, `/screen`, `/ssh`, `/forward?port=`) is upgraded to a
//! WebSocket (RFC 6455). Binary messages carry bytes. An empty message ends the sender's direction; the other
//! direction stays open until its sender ends it too. Close code 1000 is an orderly end, [`RESET_CODE`] a reset
//! connection.
//!
//! Before the upgrade, waifud sends an order over the agent's watch. The agent connects with `GET
//! /v1/agent/streams/{id}` and `Upgrade: waifud-stream` (RFC 9110, section 7.8); after that, the connection carries
//! raw bytes. Each direction ends with the sender's `close_notify` (RFC 8446, section 6.1); a connection that ends
//! without one was reset. An agent that cannot open the stream sends `POST /v1/agent/streams/{id}/refuse`, and the
//! client gets a problem.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Epoch, InstanceId};

/// The close code of a connection that the guest or the client reset (4000 to 4999 are for private use: RFC 6455,
/// section 7.4.2).
pub const RESET_CODE: u16 = 4001;
/// The protocol that an agent upgrades to.
pub const STREAM_PROTOCOL: &str = "waifud-stream";
/// Maximum number of lines of a console log.
pub const LOG_LINES_MAX: u32 = 100_000;

/// Identifies one stream: 256 random bits, 64 hexadecimal digits on the wire. It grants access to the stream, so
/// `Debug` prints only its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct StreamId([u8; 32]);

impl StreamId {
    /// From random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
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

/// The text is not a stream id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid stream id: expected 64 hexadecimal digits")]
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

/// The endpoint of a stream: always a part of one instance, never a host chosen by the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StreamKind {
    /// The serial console, in both directions.
    Console,
    /// The log of the serial console, from the guest only.
    ConsoleLog {
        /// Number of past lines.
        lines: u32,
        /// Whether new lines follow.
        follow: bool,
    },
    /// The output of cloud-init, read through the guest agent; from the guest only.
    CloudInitLog {
        /// Number of past lines.
        lines: u32,
    },
    /// One command for the guest agent and its answer ([`crate::guest_command`]).
    GuestCommand,
    /// TCP to port 22 of the instance's own address.
    Ssh,
    /// TCP to a port of the instance's own address.
    Forward {
        /// The guest's port.
        port: u16,
    },
    /// The screen, over RFB (RFC 6143).
    Screen,
    /// A disk of an instance that the node has released, for the node that receives it ([`crate::disk_transfer`]).
    Disk {
        /// Index of the disk in the spec.
        index: u32,
        /// The receiver has everything before this offset of the file in bytes.
        from: u64,
    },
}

impl StreamKind {
    /// Name for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::ConsoleLog { .. } => "console-log",
            Self::CloudInitLog { .. } => "cloud-init-log",
            Self::GuestCommand => "guest-command",
            Self::Ssh => "ssh",
            Self::Forward { .. } => "forward",
            Self::Screen => "screen",
            Self::Disk { .. } => "disk",
        }
    }

    /// Whether the stream is a TCP connection to the guest, whose directions end separately.
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::Ssh | Self::Forward { .. })
    }

    /// Whether the stream also works for a guest that is off.
    pub const fn is_history(self) -> bool {
        matches!(self, Self::ConsoleLog { .. })
    }
}

/// The order to open a stream. It is not stored, is sent once, and is valid for 30 seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StreamOrder {
    /// The id that the agent connects with.
    pub id: StreamId,
    /// The instance.
    pub instance: InstanceId,
    /// Epoch of the copy.
    pub epoch: Epoch,
    /// The part of the instance.
    #[serde(flatten)]
    pub kind: StreamKind,
}

/// Why an agent does not open a stream: `POST /v1/agent/streams/{id}/refuse`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StreamRefusal {
    /// A reason for programs.
    pub reason: RefusalReason,
    /// A message for users.
    pub message: String,
}

/// Reasons for refusing a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// The node does not have this instance or has another copy of it.
    NotHere,
    /// The guest is off.
    NotRunning,
    /// The instance does not have an address to connect to.
    NoAddress,
    /// The guest refuses connections at the port.
    NothingListens,
    /// No answer from the address or port.
    NoAnswer,
    /// It cannot be verified that the address belongs to the guest.
    NotTheGuest,
    /// The guest agent does not answer.
    NoGuestAgent,
    /// The guest agent refused the command.
    GuestRefused,
    /// The log does not exist (yet).
    NoLog,
    /// The node has reached its limit of streams.
    TooMany,
    /// Any other reason.
    #[serde(other)]
    Other,
}

impl RefusalReason {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::NotHere,
        Self::NotRunning,
        Self::NoAddress,
        Self::NothingListens,
        Self::NoAnswer,
        Self::NotTheGuest,
        Self::NoGuestAgent,
        Self::GuestRefused,
        Self::NoLog,
        Self::TooMany,
        Self::Other,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::WatchFrame;

    #[test]
    fn an_id_round_trips_as_text_and_debug_output_is_shortened() {
        let id = StreamId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(format!("{id:?}"), "StreamId(a5a5…)");
        for bad in ["", "a5", &"g".repeat(64), &"A5".repeat(32), &"é".repeat(32)] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_reasons_are_different_and_keep_their_words() {
        let words: std::collections::BTreeSet<_> = RefusalReason::ALL
            .iter()
            .map(|reason| serde_json::to_string(reason).unwrap())
            .collect();
        assert_eq!(words.len(), RefusalReason::ALL.len());
        let newer: RefusalReason = serde_json::from_str("\"newer\"").unwrap();
        assert_eq!(newer, RefusalReason::Other);
    }

    #[test]
    fn an_order_is_serialized_as_one_flat_frame() {
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
