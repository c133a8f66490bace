//! Pools of kind `reflink`: images and volumes as raw files on a filesystem with reflinks, for example btrfs or XFS.
//!
//! An image is unpacked once, when it is imported; the file as it was published is kept, too, for nodes that need it. A volume is a clone of that file: it shares the image's blocks until
//! the guest overwrites them. It is created in milliseconds whatever its size, needs no other file, and stays intact
//! when the image is removed.

mod from_qcow2;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use waifud_types::{ByteSize, Digest, DiskFormat, PoolKind, VolumeId};

use crate::file_pool::{FilePool, VolumeFormat, VolumeSpec, Volumes};
use crate::import::Verified;
use crate::layout::{Layout, blocking, create_file};
use crate::tool::{STDIN, STDOUT, Tool};
use crate::{FilePoolConfig, ReceivedVolume, StorageError, check_size};

/// The time limit for unpacking, as a multiple of the limit for other runs of the tool. Unpacking handles at least
/// 100 MB/s.
const UNPACK_TIMEOUT_FACTOR: u32 = 10;

/// A pool whose volumes are clones of image files.
pub type ReflinkPool = FilePool<Clones>;

/// Volumes as clones of image files.
pub struct Clones {
    unpacker: Tool,
}

impl Clones {
    /// Unpacks the verified file to `unfinished`, which is in the directory of images.
    async fn unpack(
        &self,
        layout: &Layout,
        packed: File,
        size: ByteSize,
        unfinished: &Path,
    ) -> Result<(), StorageError> {
        let user = self.unpacker.user.filter(|_| geteuid().is_root());
        let (pool, path) = (layout.clone(), unfinished.to_owned());
        let target = blocking(move || {
            let create = || {
                let file = create_file(&path)?;
                if let Some((uid, gid)) = user {
                    // The tool reopens the file through its descriptor.
                    fchown(&file, Some(uid), Some(gid))?;
                }
                file.set_len(size.bytes())?;
                Ok(file)
            };
            create().map_err(|error| pool.io("create", &path, error))
        })
        .await?;
        let arguments: Vec<&OsStr> = [
            "convert",
            "-n",
            "--target-is-zero",
            "-f",
            "qcow2",
            "-O",
            "raw",
            STDIN,
            STDOUT,
        ]
        .map(OsStr::new)
        .to_vec();
        let handle = target
            .try_clone()
            .map_err(|error| layout.io("open", unfinished, error))?;
        let unpacker = Tool {
            write_limit: size.bytes(),
            ..self.unpacker.clone()
        };
        let result = unpacker.run_into(&arguments, packed, handle).await?;
        result.success(layout)?;
        let (layout, path) = (layout.clone(), unfinished.to_owned());
        blocking(move || {
            let finish = || {
                if user.is_some() {
                    fchown(&target, Some(0), Some(0))?;
                }
                target.set_permissions(Permissions::from_mode(0o444))?;
                target.sync_all()?;
                target.metadata()
            };
            let metadata = finish().map_err(|error| layout.io("sync", &path, error))?;
            if metadata.len() != size.bytes() {
                return Err(StorageError::ImageRefused {
                    tool: "qemu-img",
                    message: "the size of the unpacked file is not the virtual size of the image"
                        .to_owned(),
                });
            }
            Ok(())
        })
        .await
    }
}

mod ioctl {
    // `FICLONE` of linux/fs.h.
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

/// Makes `to` share all blocks of `from`.
pub(crate) fn clone_file(from: &File, to: &File) -> std::io::Result<()> {
    let source = u64::try_from(from.as_raw_fd()).map_err(std::io::Error::other)?;
    // SAFETY: both descriptors are open for as long as the borrowed files are, and the kernel reads no memory of this
    // process.
    unsafe { ioctl::ficlone(to.as_raw_fd(), source) }?;
    Ok(())
}

/// Checks that the filesystem supports reflinks by cloning a file.
fn probe(layout: &Layout) -> Result<(), StorageError> {
    let [a, b] = ["a", "b"].map(|name| layout.unfinished_file(&format!("probe-{name}")));
    let attempt = || {
        let (from, to) = (create_file(&a)?, create_file(&b)?);
        from.set_len(4096)?;
        clone_file(&from, &to)
    };
    let outcome = attempt();
    for path in [&a, &b] {
        layout.remove(path)?;
    }
    outcome.map_err(|source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => layout.no_space(),
        _ => StorageError::NoReflinks {
            path: layout.root().to_owned(),
            source,
        },
    })
}

#[async_trait]
impl VolumeFormat for Clones {
    const KIND: PoolKind = PoolKind::Reflink;
    const FORMAT: DiskFormat = DiskFormat::Raw;

    /// Fails on a filesystem without reflinks.
    fn open(config: &FilePoolConfig, layout: &Layout) -> Result<Self, StorageError> {
        probe(layout)?;
        let unpacker = Tool::new(
            config.qemu_img.clone(),
            config.image_user,
            config.tool_timeout * UNPACK_TIMEOUT_FACTOR,
        );
        Ok(Self { unpacker })
    }

    async fn store_image(&self, layout: &Layout, verified: Verified) -> Result<(), StorageError> {
        let image = verified.image;
        let unfinished = layout.unfinished_image(image);
        let size = verified.header.virtual_size;
        let unpacked = self.unpack(layout, verified.file, size, &unfinished).await;
        let layout = layout.clone();
        blocking(move || match unpacked {
            Ok(()) => {
                layout.rename(&unfinished, &layout.image(image))?;
                // After a crash in between, the image is there, and this node does not send it.
                layout.rename(&layout.staged(image), &layout.published(image))
            }
            Err(error) => {
                layout.remove(&unfinished)?;
                Err(error)
            }
        })
        .await
    }

    async fn ensure(&self, volumes: &Volumes, wanted: VolumeSpec) -> Result<PathBuf, StorageError> {
        let ensure = move |layout: &Layout| {
            let path = layout.volume(&wanted.id);
            if layout.exists(&path)? {
                grow(layout, &path, wanted.size)?;
            } else {
                clone_image(layout, &wanted)?;
            }
            Ok(path)
        };
        volumes.exclusively(ensure).await
    }

    fn check_unused(_: &Layout, _: Digest) -> Result<(), StorageError> {
        // A clone does not need its image.
        Ok(())
    }

    fn backing(_: &Layout, _: VolumeId, _: Digest) -> Result<Option<PathBuf>, StorageError> {
        Ok(None)
    }

    async fn convert(
        &self,
        volumes: &Volumes,
        id: &VolumeId,
        received: ReceivedVolume,
    ) -> Result<(), StorageError> {
        from_qcow2::convert(&self.unpacker, &volumes.layout, id, received).await
    }

    fn check_incoming(_: &Layout, _: &VolumeId, _: Digest) -> Result<(), StorageError> {
        // A raw file has no header.
        Ok(())
    }

    fn volume_size(_: &Layout, path: &Path) -> Option<ByteSize> {
        path.metadata()
            .ok()
            .map(|metadata| ByteSize(metadata.len()))
    }
}

/// Creates the volume. Afterwards it is complete and durable, or does not exist.
fn clone_image(layout: &Layout, wanted: &VolumeSpec) -> Result<(), StorageError> {
    let VolumeSpec { id, image, size } = wanted;
    let source = layout.existing_image(*image)?;
    let from = layout.open_regular(&source)?;
    let metadata = from.metadata();
    let metadata = metadata.map_err(|error| layout.io("read the size of", &source, error))?;
    check_size(*size, ByteSize(metadata.len()))?;
    let unfinished = layout.unfinished_volume(id);
    let create = || {
        let file = create_file(&unfinished)?;
        clone_file(&from, &file)?;
        file.set_len(size.bytes())?;
        if let Some((uid, gid)) = layout.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.sync_all()
    };
    if let Err(error) = create() {
        layout.remove(&unfinished)?;
        return Err(layout.io("write", &unfinished, error));
    }
    layout.rename(&unfinished, &layout.volume(id))
}

/// Grows the volume to `size`. A larger volume is left as it is.
fn grow(layout: &Layout, path: &Path, size: ByteSize) -> Result<(), StorageError> {
    let failed = |error| layout.io("grow", path, error);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(failed)?;
    if file.metadata().map_err(failed)?.len() < size.bytes() {
        file.set_len(size.bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}
