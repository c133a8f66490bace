//! Draining a node: moving all of its instances to others.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{ByteSize, InstanceId, Name, Timestamp};

use crate::{InstanceMove, Problem};

/// `POST /v1/nodes/{name}/drain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainNode {
    /// Whether the instances get addresses of their new nodes' subnets on the network `default`. Otherwise they keep their
    /// addresses, and the drain is refused if the fabric does not carry those.
    #[serde(default)]
    pub new_address: bool,
}

/// What is left on a node, and where it can go.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// Name of the node.
    pub node: Name,
    /// Whether the node is being drained. Otherwise the rest says what draining it would do now.
    pub draining: bool,
    /// When that began; null if it is not being drained.
    #[schema(value_type = Option<String>)]
    pub began_at: Option<Timestamp>,
    /// Whether the instances get other addresses.
    pub new_address: bool,
    /// The instances on the node: those being moved, then those that wait, largest first.
    pub instances: Vec<DrainedInstance>,
    /// Names of instances that are being moved to the node. They are moved away when they have arrived.
    pub arriving: Vec<Name>,
}

/// An instance on a node that is drained.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainedInstance {
    /// Id of the instance.
    pub id: InstanceId,
    /// Name of the instance.
    pub name: Name,
    /// Its memory in bytes.
    pub memory_bytes: ByteSize,
    /// Whether it is being deleted, and so is not moved.
    pub deleting: bool,
    /// Its move; null if it is not being moved.
    pub moving: Option<InstanceMove>,
    /// Name of the node that it moves to, or would move to now; null if there is none.
    pub to: Option<Name>,
    /// Why it cannot be moved now; null if it can.
    pub obstacle: Option<Problem>,
}
