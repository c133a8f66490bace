//! The storage interface: pools of images and volumes; qcow2 overlays, clones of files, and a fake.
//!
//! An image is imported once per pool. A volume is a clone of an image, made in milliseconds whatever its size. Every
//! operation is an *ensure*: repeating it changes nothing and succeeds.

mod config;
pub mod conformance;
pub mod fake;
mod file_pool;
mod format;
mod import;
mod layout;
pub mod qcow2;
pub mod reflink;
mod tool;

pub use config::FilePoolConfig;

use std::path::PathBuf;

use async_trait::async_trait;
use waifud_types::{ByteSize, Digest, DiskFormat, Name, PoolKind, VolumeId, VolumeSource};

/// A volume as observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedVolume {
    /// Which volume.
    pub id: VolumeId,
    /// The size that a guest sees; `None` if it cannot be read.
    pub size: Option<ByteSize>,
}

/// How full a pool is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolUsage {
    /// The size in bytes.
    pub size: ByteSize,
    /// Bytes in use.
    pub used: ByteSize,
    /// `ok`, or a description of the problem.
    pub health: String,
}

/// Why an operation failed. Messages are written for users; causes are in `source`.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The pool has no room.
    #[error("pool {pool} is full; free space on its filesystem")]
    NoRoom {
        /// The pool.
        pool: Name,
    },
    /// The image is not in the pool: import it first.
    #[error("image {0} is not in the pool")]
    NoImage(Digest),
    /// The file does not have the digest that it was said to have.
    #[error(
        "the image's bytes have the digest {actual}, not {expected}; it was damaged on its way or changed"
    )]
    DigestMismatch {
        /// What was wanted.
        expected: Digest,
        /// What was read.
        actual: Digest,
    },
    /// The file is no image that may be used.
    #[error("the image cannot be used")]
    BadImage(#[source] waifud_types::qcow2::Qcow2Error),
    /// A tool refused the image.
    #[error("{tool} refused the image: {message}")]
    ImageRefused {
        /// The tool.
        tool: &'static str,
        /// Its words, shortened.
        message: String,
    },
    /// A volume can't be made smaller than its image.
    #[error("a volume of {size} is smaller than its image ({minimum})")]
    TooSmall {
        /// What was wanted.
        size: ByteSize,
        /// The least.
        minimum: ByteSize,
    },
    /// A volume is an overlay on another file than the image that it was made from.
    #[error(
        "the header of volume {volume} names another file than image {image}; waifud starts no guest with it: restore the volume"
    )]
    OtherImage {
        /// The volume.
        volume: VolumeId,
        /// What it was made from.
        image: Digest,
    },
    /// The filesystem can't clone files.
    #[error(
        "the filesystem of {} does not clone files (reflinks): use btrfs or XFS, or a pool of kind qcow2",
        path.display()
    )]
    NoClones {
        /// The pool's directory.
        path: PathBuf,
        /// What it answered.
        #[source]
        source: std::io::Error,
    },
    /// A tool is missing, failed or took too long.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What it said, or that it took too long.
        message: String,
    },
    /// The filesystem said no.
    #[error("{what} {path:?} failed")]
    Io {
        /// The call.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl StorageError {
    /// Whether it is the image's bytes that are at fault, so that the same file will be refused again.
    pub fn blames_the_image(&self) -> bool {
        match self {
            Self::BadImage(_) | Self::ImageRefused { .. } | Self::DigestMismatch { .. } => true,
            Self::NoRoom { .. }
            | Self::NoImage(_)
            | Self::TooSmall { .. }
            | Self::NoClones { .. }
            | Self::OtherImage { .. }
            | Self::Tool { .. }
            | Self::Io { .. } => false,
        }
    }
}

/// Where disks live on a node.
#[async_trait]
pub trait StoragePool: Send + Sync {
    /// The pool's name, such as `main`.
    fn name(&self) -> &Name;

    /// The kind of pool.
    fn kind(&self) -> PoolKind;

    /// What its volumes' bytes are.
    fn format(&self) -> DiskFormat {
        DiskFormat::Qcow2
    }

    /// How full it is.
    async fn usage(&self) -> Result<PoolUsage, StorageError>;

    /// Every image in the pool.
    async fn images(&self) -> Result<Vec<Digest>, StorageError>;

    /// Whether the image is there, whole and verified.
    async fn has_image(&self, image: Digest) -> Result<bool, StorageError>;

    /// Where to write the image's bytes to before `import_image`. On the pool's own filesystem; a leftover of a broken
    /// download may be there, and may be resumed or overwritten.
    async fn staging_path(&self, image: Digest) -> Result<PathBuf, StorageError>;

    /// Verifies the staged file against its digest, inspects it as a hostile file, and makes it an image of the pool.
    /// The staged file is gone afterwards, unless it could not be judged or taken for a passing reason: then the next
    /// call begins with it again.
    async fn import_image(&self, image: Digest) -> Result<(), StorageError>;

    /// Forgets the image. Refused with `Tool`/`Io` while volumes need it; a pool whose volumes stand for themselves never
    /// refuses.
    async fn ensure_image_absent(&self, image: Digest) -> Result<(), StorageError>;

    /// The volume, cloned from the image and at least `size` large; grown when it is smaller, never shrunk.
    /// Returns the path that the hypervisor opens. Durable when it returns.
    async fn ensure_volume(
        &self,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<VolumeSource, StorageError>;

    /// The qcow2 file that the volume, made from `image`, is an overlay on; null where it stands for itself.
    async fn backing(
        &self,
        _id: &VolumeId,
        _image: Digest,
    ) -> Result<Option<PathBuf>, StorageError> {
        Ok(None)
    }

    /// Every volume in the pool.
    async fn volumes(&self) -> Result<Vec<ObservedVolume>, StorageError>;

    /// Destroys the volume. Succeeds when it is absent.
    async fn ensure_volume_absent(&self, id: &VolumeId) -> Result<(), StorageError>;
}
