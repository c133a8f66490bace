//! What a new instance has by default.

use waifud_api::InstanceSize;
use waifud_types::ByteSize;

/// The size. The disk is larger if the template needs more.
pub const SIZE: InstanceSize = InstanceSize {
    cpus: 1,
    memory_bytes: ByteSize::gib(1),
    disk_bytes: ByteSize::gib(10),
};

/// The pool of the root disk.
pub const POOL: &str = "main";
