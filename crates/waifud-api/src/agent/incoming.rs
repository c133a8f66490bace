//! Instances that a node receives from another one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::spec::DiskSpec;
use waifud_types::status::StoppedBy;
use waifud_types::tolerance::known_or_none;
use waifud_types::{ByteSize, CopyPath, Digest, Epoch, InstanceId, Name, ReceiveState};

/// The order to receive an instance, which another node owns or has released.
///
/// The node imports the image, reports [`ReceiveState::Prepared`], and copies the disks once `copy` is set. When it has
/// reported [`ReceiveState::Received`], waifud makes it the owner by a `put` of the instance in a newer epoch. A tombstone
/// of this epoch means that the move was canceled: the node deletes what it has received.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Incoming {
    /// The instance.
    pub id: InstanceId,
    /// Its name, for messages.
    pub name: Name,
    /// The epoch of the copy that is received.
    pub epoch: Epoch,
    /// Name of the node that has the disks, for messages.
    pub source: Name,
    /// The image below the disks.
    pub image: Digest,
    /// Size of the image file in bytes, for progress.
    pub image_size_bytes: ByteSize,
    /// The disks.
    pub disks: Vec<DiskSpec>,
    /// Whether to copy the disks now.
    pub copy: bool,
    /// Whether the guest was on when the move began. If not, it is not started because of the move.
    pub was_on: bool,
    /// What stopped a guest that was off; null if it was on or never started.
    #[serde(default, deserialize_with = "known_or_none")]
    pub stopped_by: Option<StoppedBy>,
}

/// How far a node is with an instance that it receives.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Receiving {
    /// The instance.
    pub instance: InstanceId,
    /// The epoch of the order.
    pub epoch: Epoch,
    /// How far it is.
    pub state: ReceiveState,
    /// Bytes of the disks that were copied so far.
    pub done_bytes: ByteSize,
    /// Bytes of the disks in total; 0 if unknown.
    pub total_bytes: ByteSize,
    /// Why it does not go on; null if it does.
    pub reason: Option<String>,
    /// The path of the disk that is being copied; null while none is, and from agents of earlier versions.
    #[serde(default, deserialize_with = "known_or_none")]
    pub path: Option<CopyPath>,
}
