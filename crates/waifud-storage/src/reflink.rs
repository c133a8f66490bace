//! Pools of kind `reflink`: images and volumes as raw files on a filesystem that clones files, for example btrfs or XFS.
//!
//! An image is unpacked once, when it is imported. A volume is a clone of that file: it shares the image's blocks until
//! the guest writes its own. It is created in milliseconds whatever its size, needs no other file, and stays intact when
//! the image is removed.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use waifud_types::qcow2::Qcow2Header;
use waifud_types::{ByteSize, Digest, DiskFormat, PoolKind, VolumeId};

use crate::file_pool::{FilePool, VolumeFormat, Volumes};
use crate::layout::{Layout, blocking};
use crate::tool::{STDIN, STDOUT, Tool};
use crate::{FilePoolConfig, StorageError};

/// Unpacking may take ten times as long as other runs of the tool: it handles at least 100 MB/s.
const UNPACKING: u32 = 10;

/// A pool whose volumes are clones of image files.
pub type ReflinkPool = FilePool<Clones>;

/// Volumes as clones of image files.
pub struct Clones {
    unpacker: Tool,
}

impl FilePool<Clones> {
    /// Opens the pool: creates its directories and removes the unfinished files of a crash. Fails on a filesystem that
    /// does not clone files.
    pub fn open(config: FilePoolConfig) -> Result<Self, StorageError> {
        let layout = Layout::open(config.name.clone(), &config.path, ".raw")?;
        probe(&layout)?;
        let unpacker = Tool {
            program: config.qemu_img.clone(),
            user: config.image_user,
            timeout: config.tool_timeout * UNPACKING,
            write_limit: u64::MAX,
        };
        Ok(Self::with(layout, &config, Clones { unpacker }))
    }
}

impl Clones {
    /// Unpacks the verified file into `half`, in the same directory as its final place.
    async fn unpack(
        &self,
        layout: &Layout,
        packed: File,
        size: ByteSize,
        half: &Path,
    ) -> Result<(), StorageError> {
        let user = self.unpacker.user.filter(|_| geteuid().is_root());
        let (pool, path) = (layout.clone(), half.to_owned());
        let target = blocking(move || {
            let make = || {
                let file = create(&path)?;
                if let Some((uid, gid)) = user {
                    // The tool opens the file again, through the descriptor that it is given.
                    fchown(&file, Some(uid), Some(gid))?;
                }
                file.set_len(size.bytes())?;
                Ok(file)
            };
            make().map_err(|error| pool.io("creating", &path, error))
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
            .map_err(|error| layout.io("opening", half, error))?;
        let unpacker = Tool {
            write_limit: size.bytes(),
            ..self.unpacker.clone()
        };
        let result = unpacker.run_into(&arguments, packed, handle).await?;
        result.success(layout)?;
        let (layout, path) = (layout.clone(), half.to_owned());
        blocking(move || {
            let seal = || {
                if user.is_some() {
                    fchown(&target, Some(0), Some(0))?;
                }
                target.set_permissions(Permissions::from_mode(0o444))?;
                target.sync_all()?;
                target.metadata()
            };
            let facts = seal().map_err(|error| layout.io("syncing", &path, error))?;
            if facts.len() != size.bytes() {
                return Err(StorageError::ImageRefused {
                    tool: "qemu-img",
                    message: "the unpacked file has another size than the image".to_owned(),
                });
            }
            Ok(())
        })
        .await
    }
}

/// Creates an empty file of ours. Replaces the contents of a file that a crash left.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

mod ioctl {
    // `FICLONE` of linux/fs.h.
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

/// Makes `to` share all of `from`'s blocks.
fn clone_file(from: &File, to: &File) -> std::io::Result<()> {
    let source = u64::try_from(from.as_raw_fd()).map_err(std::io::Error::other)?;
    // SAFETY: both descriptors are open for as long as the borrowed files are, and the kernel reads no memory of this process.
    unsafe { ioctl::ficlone(to.as_raw_fd(), source) }?;
    Ok(())
}

/// Checks that the filesystem clones files, by cloning one.
fn probe(layout: &Layout) -> Result<(), StorageError> {
    let [a, b] = ["a", "b"].map(|name| layout.half_made_named(&format!("probe-{name}")));
    let attempt = || {
        let (from, to) = (create(&a)?, create(&b)?);
        from.set_len(4096)?;
        clone_file(&from, &to)
    };
    let outcome = attempt();
    for path in [&a, &b] {
        layout.remove(path)?;
    }
    outcome.map_err(|source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => layout.no_room(),
        _ => StorageError::NoClones {
            path: layout.root().to_owned(),
            source,
        },
    })
}

#[async_trait]
impl VolumeFormat for Clones {
    const KIND: PoolKind = PoolKind::Reflink;
    const FORMAT: DiskFormat = DiskFormat::Raw;

    async fn keep_image(
        &self,
        layout: &Layout,
        verified: File,
        header: &Qcow2Header,
        image: Digest,
    ) -> Result<(), StorageError> {
        let half = layout.half_made_image(image);
        let unpacked = self
            .unpack(layout, verified, header.virtual_size, &half)
            .await;
        let layout = layout.clone();
        blocking(move || match unpacked {
            Ok(()) => layout.rename(&half, &layout.image(image)),
            Err(error) => {
                layout.remove(&half)?;
                Err(error)
            }
        })
        .await
    }

    async fn ensure_volume(
        &self,
        volumes: &Volumes,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<PathBuf, StorageError> {
        let guard = volumes.lock().await;
        let (layout, owner, id) = (volumes.layout.clone(), volumes.owner, id.clone());
        blocking(move || {
            let _guard = guard;
            let path = layout.volume(&id);
            if layout.exists(&path)? {
                grow(&layout, &path, size)?;
            } else {
                clone_image(&layout, &id, image, size, owner)?;
            }
            Ok(path)
        })
        .await
    }

    fn check_unused(_: &Layout, _: Digest) -> Result<(), StorageError> {
        // A clone does not need its image.
        Ok(())
    }

    fn backing(_: &Layout, _: VolumeId, _: Digest) -> Result<Option<PathBuf>, StorageError> {
        Ok(None)
    }

    fn volume_size(_: &Layout, path: &Path) -> Option<ByteSize> {
        path.metadata().ok().map(|facts| ByteSize(facts.len()))
    }
}

/// Creates the volume. Afterwards it is complete and durable, or does not exist.
fn clone_image(
    layout: &Layout,
    id: &VolumeId,
    image: Digest,
    size: ByteSize,
    owner: Option<(u32, u32)>,
) -> Result<(), StorageError> {
    let source = layout.image(image);
    if !layout.exists(&source)? {
        return Err(StorageError::NoImage(image));
    }
    let from = layout.open_plain(&source)?;
    let facts = from.metadata();
    let minimum = ByteSize(
        facts
            .map_err(|error| layout.io("reading the size of", &source, error))?
            .len(),
    );
    if size < minimum {
        return Err(StorageError::TooSmall { size, minimum });
    }
    let half = layout.half_made_volume(id);
    let make = || {
        let file = create(&half)?;
        clone_file(&from, &file)?;
        file.set_len(size.bytes())?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.sync_all()
    };
    if let Err(error) = make() {
        layout.remove(&half)?;
        return Err(layout.io("writing", &half, error));
    }
    layout.rename(&half, &layout.volume(id))
}

/// Grows the volume to `size`. A larger volume is left as it is.
fn grow(layout: &Layout, path: &Path, size: ByteSize) -> Result<(), StorageError> {
    let failed = |error| layout.io("growing", path, error);
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
