//! Volume formats. They are always given explicitly and never detected from contents, which guests can write.

/// The format of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Raw bytes.
    Raw,
}

impl DiskFormat {
    /// The name in QEMU and libvirt.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}
