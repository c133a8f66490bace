//! Where a volume's data is, and in which format. Formats are never detected from contents that a guest writes.

use std::path::{Path, PathBuf};

/// The format of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The guest's data without a header.
    Raw,
}

names! {
    /// The name that QEMU and libvirt use.
    DiskFormat {
        Qcow2 => "qcow2",
        Raw => "raw",
    }
}

/// What the hypervisor opens for a volume.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum VolumeSource {
    /// A file.
    File(PathBuf),
    /// A block device.
    Block(PathBuf),
}

impl VolumeSource {
    /// The path of the file or device.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Block(path) => path,
        }
    }
}
