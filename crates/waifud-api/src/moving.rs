//! Moves of instances between nodes in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{ByteSize, CopyPath, MoveState, Name, Timestamp};

/// `POST /v1/instances/{name}/move`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveInstance {
    /// Name of the node to move to; chosen by waifud if null.
    #[serde(default)]
    pub to: Option<Name>,
    /// Whether the instance gets an address of the new node's subnet on the network `default`. Otherwise it keeps its address,
    /// and the move is refused if the fabric does not carry that.
    #[serde(default)]
    pub new_address: bool,
}

/// The move of an instance, while it lasts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceMove {
    /// Name of the node that it leaves.
    pub from: Name,
    /// Name of the node that receives it.
    pub to: Name,
    /// The state.
    pub state: MoveState,
    /// When it began.
    #[schema(value_type = String)]
    pub began_at: Timestamp,
    /// Bytes of the disks that were copied so far; null unless they are being copied.
    pub done_bytes: Option<ByteSize>,
    /// Bytes of the disks in total; null unless they are being copied.
    pub total_bytes: Option<ByteSize>,
    /// Why it does not go on, in the words of the node; null if it does.
    pub reason: Option<String>,
    /// The path of the disk that is being copied; null while none is, and if the node does not tell.
    #[serde(default)]
    pub path: Option<CopyPath>,
}
