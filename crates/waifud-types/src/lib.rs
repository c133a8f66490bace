//! The core: ids, names, sizes, specs, states and their transitions. No I/O.
//!
//! All other crates use these types. They are serialized as in the HTTP API: unknown values are `null`, never absent;
//! sizes are integers in bytes; times are RFC 3339 in UTC.

#[macro_use]
mod names;

pub mod checksum;
pub mod coded;
pub mod digest;
pub mod disk;
pub mod disk_space;
pub mod dns;
pub mod event;
pub mod evidence;
pub mod fabric;
pub mod fabric_client;
pub mod firewall;
pub mod id;
pub mod mac;
pub mod moving;
pub mod name;
pub mod node;
pub mod ownership;
pub mod pool;
pub mod power;
pub mod qcow2;
pub mod rescue;
pub mod revision;
pub mod role;
mod schema;
pub mod secret;
pub mod size;
pub mod spec;
pub mod state;
pub mod status;
pub mod template;
pub mod tolerance;
pub mod verdict;
pub mod vlan;
pub mod wait_reason;
#[cfg(test)]
mod wire_forms;

pub use checksum::{Checksum, ChecksumAlgorithm};
pub use coded::Coded;
pub use digest::Digest;
pub use disk::{DiskFormat, VolumeSource};
pub use disk_space::{DiskSpace, DiskSpaceState};
pub use dns::{DnsFacts, DnsListener};
pub use fabric::{FabricKind, MeshBackend, MeshFacts};
pub use fabric_client::FabricClientPeer;
pub use firewall::FirewallSpec;
pub use id::{BootId, InstanceId, NodeId, ProcessId, TapName, VolumeId};
pub use mac::MacAddr;
pub use moving::{CopyPath, MoveState, ReceiveState};
pub use name::Name;
pub use ownership::OwnershipRole;
pub use pool::PoolKind;
pub use power::{PowerSpec, Reboot};
pub use rescue::{RescueBegin, RescueOrder, RescueSpec};
pub use revision::{Epoch, Generation, Incarnation, Revision};
pub use role::Role;
pub use secret::Secret;
pub use size::ByteSize;
pub use state::InstanceState;
pub use verdict::Verdict;
pub use vlan::{VlanId, VlanIdError};
pub use wait_reason::WaitReason;

/// A time in UTC; RFC 3339 in the API.
pub type Timestamp = jiff::Timestamp;
