//! The image, firmware and datasource that an instance boots with now: its own, or those of a rescue.
//!
//! The rescue disk is a clone of the rescue image in addition to the instance's own disks. It is not part of the spec: a missing
//! rescue disk is created again, and it is deleted when the rescue ends.

use waifud_api::agent::AgentInstance;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Digest, Name};

use crate::instance::failure::Failure;

/// The name of the rescue disk. Disks of a spec cannot have this name.
const DISK: &str = "rescue";

/// Leaves space for logs and for files that are copied during a repair.
pub(super) const MIN_SIZE: ByteSize = ByteSize::gib(2);

/// The datasource of the system that boots next.
pub(crate) fn datasource(want: &AgentInstance) -> Datasource {
    let rescue = want.spec.rescue.as_ref();
    rescue.map_or(want.datasource, |rescue| rescue.datasource)
}

/// The firmware that boots next.
pub(crate) fn firmware(want: &AgentInstance) -> Firmware {
    let rescue = want.spec.rescue.as_ref();
    rescue.map_or(want.firmware, |rescue| rescue.firmware)
}

/// The images that it needs, each with its pool and its download size.
pub(crate) fn images(want: &AgentInstance) -> Vec<(&Name, Digest, ByteSize)> {
    let own = want.spec.disks.iter();
    let mut images: Vec<_> = own
        .map(|disk| (&disk.pool, want.spec.image, want.image_size_bytes))
        .collect();
    if let Some((pool, image)) = pool(want).zip(want.rescue_image.as_ref()) {
        images.push((pool, image.digest, image.size_bytes));
    }
    images.sort();
    images.dedup();
    images
}

/// The pool of the rescue disk: that of the instance's first disk.
pub(super) fn pool(want: &AgentInstance) -> Option<&Name> {
    want.spec.disks.first().map(|disk| &disk.pool)
}

pub(super) fn disk_name() -> Result<Name, Failure> {
    let parsed: Result<Name, _> = DISK.parse();
    parsed.map_err(|error| Failure::lasting(error.to_string()))
}
