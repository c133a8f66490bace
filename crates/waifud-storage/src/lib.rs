//! The storage interface: pools of images and volumes, with qcow2 overlays, with reflinks, and a fake.
//!
//! An image is imported once per pool. A volume is a clone of an image, created in milliseconds whatever its size.
//! Every operation is idempotent: repeating it changes nothing and succeeds.

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

use std::fs::File;
use std::path::PathBuf;

use async_trait::async_trait;
use waifud_types::{ByteSize, Digest, DiskFormat, Name, PoolKind, VolumeId, VolumeSource};

/// A volume as observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedVolume {
    /// The volume's id.
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

/// Why an operation failed. The messages are written for users.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The pool has no free space.
    #[error("pool {pool} is full; free space on its filesystem")]
    NoSpace {
        /// The pool.
        pool: Name,
    },
    /// The image is not in the pool; it must be imported first.
    #[error("image {0} is not in the pool")]
    NoImage(Digest),
    /// The file does not have the expected digest.
    #[error(
        "the image has the digest {actual} instead of {expected}: it was damaged during the transfer, or was changed by its publisher"
    )]
    DigestMismatch {
        /// The expected digest.
        expected: Digest,
        /// The digest of the file.
        actual: Digest,
    },
    /// The file is not an acceptable image.
    #[error("the image cannot be used")]
    BadImage(#[source] waifud_types::qcow2::Qcow2Error),
    /// A tool refused the image.
    #[error("{tool} refused the image: {message}")]
    ImageRefused {
        /// The tool.
        tool: &'static str,
        /// Its error message, truncated.
        message: String,
    },
    /// A volume cannot be smaller than its image.
    #[error("a volume of {size} is smaller than its image ({minimum})")]
    TooSmall {
        /// The requested size.
        size: ByteSize,
        /// The minimum.
        minimum: ByteSize,
    },
    /// The header of a volume refers to another file than the image that the volume was created from.
    #[error(
        "the header of volume {volume} refers to a file other than image {image}, so waifud does not start a guest with it; restore the volume"
    )]
    OtherImage {
        /// The volume.
        volume: VolumeId,
        /// The image that it was created from.
        image: Digest,
    },
    /// The header of a received volume states a size that the instance has no disk of.
    #[error(
        "the header of received volume {volume} states a size of {size}, but its disk has at most {largest}"
    )]
    TooLarge {
        /// The volume.
        volume: VolumeId,
        /// The stated size.
        size: ByteSize,
        /// The maximum.
        largest: ByteSize,
    },
    /// A volume is to be received that exists.
    #[error("volume {0} exists already; a received volume does not replace it")]
    VolumeExists(VolumeId),
    /// The filesystem does not support reflinks.
    #[error(
        "the filesystem of {} does not support reflinks: use btrfs or XFS, or a pool of kind qcow2",
        path.display()
    )]
    NoReflinks {
        /// The pool's directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: std::io::Error,
    },
    /// A tool is missing, failed or took too long.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// Its error message, or that it timed out.
        message: String,
    },
    /// A filesystem operation failed.
    #[error("cannot {operation} {path:?}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A volume that has arrived from another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivedVolume {
    /// The image that it is a clone of, if it needs one.
    pub image: Digest,
    /// The format of the received file, which the sender has stated.
    pub format: DiskFormat,
    /// The largest acceptable size that a guest sees.
    pub largest: ByteSize,
}

/// Fails if a volume of this size is smaller than its image.
fn check_size(size: ByteSize, minimum: ByteSize) -> Result<(), StorageError> {
    if size < minimum {
        return Err(StorageError::TooSmall { size, minimum });
    }
    Ok(())
}

impl StorageError {
    /// Whether the image itself is invalid, so that the same file would be refused again.
    pub fn is_caused_by_image(&self) -> bool {
        match self {
            Self::BadImage(_) | Self::ImageRefused { .. } | Self::DigestMismatch { .. } => true,
            Self::NoSpace { .. }
            | Self::NoImage(_)
            | Self::TooSmall { .. }
            | Self::NoReflinks { .. }
            | Self::OtherImage { .. }
            | Self::TooLarge { .. }
            | Self::VolumeExists(_)
            | Self::Tool { .. }
            | Self::Io { .. } => false,
        }
    }
}

/// A pool on a node that stores images and volumes.
#[async_trait]
pub trait StoragePool: Send + Sync {
    /// The pool's name, for example `main`.
    fn name(&self) -> &Name;

    /// The kind of pool.
    fn kind(&self) -> PoolKind;

    /// The format of its volumes.
    fn format(&self) -> DiskFormat;

    /// How full it is.
    async fn usage(&self) -> Result<PoolUsage, StorageError>;

    /// Every image in the pool.
    async fn images(&self) -> Result<Vec<Digest>, StorageError>;

    /// Whether the image is in the pool, complete and verified.
    async fn has_image(&self, image: Digest) -> Result<bool, StorageError>;

    /// The path to write the image to before `import_image`, on the pool's own filesystem. It may contain the rest of
    /// an interrupted download, which may be resumed or overwritten.
    async fn staging_path(&self, image: Digest) -> Result<PathBuf, StorageError>;

    /// Verifies the staged file against its digest, inspects it as an untrusted file, and imports it into the pool. The
    /// staged file is removed, unless the failure had another cause than the image: then the next call uses it
    /// again.
    async fn import_image(&self, image: Digest) -> Result<(), StorageError>;

    /// Opens the image's bytes as they were published, to read them; `None` if the pool does not have them.
    async fn open_image(&self, _image: Digest) -> Result<Option<std::fs::File>, StorageError> {
        Ok(None)
    }

    /// Removes the image. Fails with `Tool` or `Io` while volumes need it, which standalone volumes do not.
    async fn ensure_image_absent(&self, image: Digest) -> Result<(), StorageError>;

    /// Creates the volume as a clone of the image, or grows it to `size` if it is smaller. It is never shrunk. Returns
    /// the path that the hypervisor opens. The change is durable on return.
    async fn ensure_volume(
        &self,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<VolumeSource, StorageError>;

    /// The qcow2 file below the volume, which was created from `image`; `None` for a standalone volume.
    async fn backing(
        &self,
        _id: &VolumeId,
        _image: Digest,
    ) -> Result<Option<PathBuf>, StorageError> {
        Ok(None)
    }

    /// Every volume in the pool.
    async fn volumes(&self) -> Result<Vec<ObservedVolume>, StorageError>;

    /// Deletes the volume, and what was received of it. Succeeds if both are absent.
    async fn ensure_volume_absent(&self, id: &VolumeId) -> Result<(), StorageError>;

    /// Opens a volume for reading, to send it to another node. Its guest must be off.
    async fn open_volume(&self, id: &VolumeId) -> Result<File, StorageError>;

    /// Opens the file to write a volume of another node to, in the format of that node's pool. It may contain the beginning
    /// of the volume from an interrupted transfer. It is no volume before [`StoragePool::complete_incoming`]. Refused if the volume
    /// exists.
    async fn open_incoming(&self, id: &VolumeId) -> Result<File, StorageError>;

    /// Makes the received file a volume, which must be a clone of the image, or need no image. A file in another format is
    /// converted, which the image has to be in the pool for. The change is durable on return. Succeeds if that was done before.
    /// After a failure, the received file is still there.
    async fn complete_incoming(
        &self,
        id: &VolumeId,
        received: ReceivedVolume,
    ) -> Result<(), StorageError>;

    /// Every volume of which a part was received.
    async fn incoming(&self) -> Result<Vec<VolumeId>, StorageError>;

    /// Deletes what was received of a volume. Succeeds if it is absent.
    async fn ensure_incoming_absent(&self, id: &VolumeId) -> Result<(), StorageError>;
}
