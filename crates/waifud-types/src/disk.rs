//! What a volume's bytes are, said to whoever opens it: formats are never guessed from contents that a guest writes.

/// The format of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The guest's bytes as they are.
    Raw,
}

impl DiskFormat {
    /// QEMU's and libvirt's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}
