//! The core: ids, names, sizes, specs, states and their transitions. No I/O.
//!
//! Everything else in the workspace speaks in these types. They serialise to the shapes of the HTTP API as they
//! stand: unknown is `null`, never absent; sizes are whole bytes; times are RFC 3339 in UTC.

pub mod checksum;
pub mod digest;
pub mod disk;
pub mod disk_space;
pub mod event;
pub mod evidence;
pub mod id;
pub mod mac;
pub mod name;
pub mod node;
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

pub use checksum::{Checksum, ChecksumAlgorithm};
pub use digest::Digest;
pub use disk::DiskFormat;
pub use disk_space::{DiskSpace, DiskSpaceState};
pub use id::{BootId, InstanceId, NodeId, TapName, VolumeId};
pub use mac::MacAddr;
pub use name::Name;
pub use power::{PowerSpec, Reboot};
pub use rescue::{RescueBegin, RescueOrder, RescueSpec};
pub use revision::{Epoch, Generation, Incarnation, Revision};
pub use role::Role;
pub use secret::Secret;
pub use size::ByteSize;
pub use state::InstanceState;

/// A moment, in UTC; RFC 3339 on the wire.
pub type Timestamp = jiff::Timestamp;
