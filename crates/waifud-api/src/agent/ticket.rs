//! Tickets, with which one node gets a disk or an image from another one at its peer port ([`crate::node_to_node`]).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Digest, Epoch, InstanceId, Name, NodeId};

use crate::stream::StreamId;

/// The right to one transfer of one disk or image: 256 random bits, 64 hexadecimal digits on the wire. It is worth something only to
/// the node that it was issued to. `Debug` prints only its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Ticket(StreamId);

impl Ticket {
    /// How long a ticket is valid after it was issued, at most.
    pub const VALID: Duration = Duration::from_secs(30);

    /// From random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StreamId::from_bytes(bytes))
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The SHA-256 of its bytes, by which the other node recognizes it.
    pub fn digest(self) -> Digest {
        Digest::of(&self.to_bytes())
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Answer of `POST /v1/agent/moves/{instance}/disks/{index}/ticket`, for the node that receives the instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskTicket {
    /// The ticket.
    pub ticket: Ticket,
    /// Id of the node that has the disk.
    pub source: NodeId,
    /// SHA-256 of the public key of that node, which it must prove to have.
    pub source_key: Digest,
    /// Where that node listens, in order of preference.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
}

/// A ticket that waifud has issued, for the node that has the disk. It is valid once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TicketOrder {
    /// The digest of the ticket.
    pub ticket: Digest,
    /// The instance.
    pub instance: InstanceId,
    /// Epoch of the copy that the node has released.
    pub epoch: Epoch,
    /// Index of the disk in the spec.
    pub index: u32,
    /// Id of the node that may use the ticket.
    pub receiver: NodeId,
    /// SHA-256 of the public key of that node, which it must prove to have.
    pub receiver_key: Digest,
    /// For how many seconds after the order the ticket is valid; [`Ticket::VALID`] at most.
    pub valid_s: u64,
}

/// Answer of `POST /v1/agent/images/{digest}/tickets`, for a node that needs the image.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ImageTickets {
    /// Nodes that have the image, each with a ticket, in the order in which to ask them. May be empty.
    pub sources: Vec<ImageTicket>,
}

/// A node that has an image, and the ticket for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageTicket {
    /// The ticket.
    pub ticket: Ticket,
    /// Id of the node that has the image.
    pub source: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub source_name: Name,
    /// SHA-256 of the public key of that node, which it must prove to have.
    pub source_key: Digest,
    /// Where that node listens, in order of preference.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
}

/// A ticket for an image that waifud has issued, for a node that has it. It is valid once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageTicketOrder {
    /// The digest of the ticket.
    pub ticket: Digest,
    /// The image: SHA-256 of the published bytes.
    pub image: Digest,
    /// Id of the node that may use the ticket.
    pub receiver: NodeId,
    /// SHA-256 of the public key of that node, which it must prove to have.
    pub receiver_key: Digest,
    /// For how many seconds after the order the ticket is valid; [`Ticket::VALID`] at most.
    pub valid_s: u64,
}

/// Body of `POST /v1/agent/images/{digest}/copied`: the node has got the image from another node, and verified it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageCopied {
    /// Id of the node that has sent it.
    pub source: NodeId,
}
