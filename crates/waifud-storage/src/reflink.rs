//! The `reflink` pool: images and volumes as raw files on a filesystem that clones files, such as btrfs or XFS.
//!
//! An image is unpacked once, when it is imported. A volume is a clone of that file: it shares the image's blocks until a
//! guest writes its own, is made in milliseconds whatever its size, has no other file below it and stays whole when
//! the image goes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tokio::sync::Mutex;
use waifud_types::{ByteSize, Digest, DiskFormat, Name, VolumeId};

use crate::layout::{Layout, blocking};
use crate::tool::{STDIN, STDOUT, Tool};
use crate::{FilePoolConfig, ObservedVolume, PoolUsage, StorageError, StoragePool, import};

/// An image is unpacked at some 100 MB/s at least; runs of the tool that only look are much shorter.
const UNPACKING: u32 = 10;

/// The pool. Cheap to share behind an `Arc`; one process per directory.
pub struct ReflinkPool {
    layout: Layout,
    inspector: Tool,
    unpacker: Tool,
    volume_owner: Option<(u32, u32)>,
    /// Held while images come and go: one import at a time bounds the load.
    images: Arc<Mutex<()>>,
    /// Held while volumes come and go.
    volumes: Arc<Mutex<()>>,
}

impl ReflinkPool {
    /// Opens the pool, making its directories and clearing away what a crash left half-made. Fails on a filesystem that
    /// does not clone files.
    pub fn open(config: FilePoolConfig) -> Result<Self, StorageError> {
        let tool = |timeout, write_limit| Tool {
            program: config.qemu_img.clone(),
            user: config.image_user,
            timeout,
            write_limit,
        };
        let inspector = tool(config.tool_timeout, 0);
        let unpacker = tool(config.tool_timeout * UNPACKING, u64::MAX);
        let layout = Layout::open(config.name, &config.path, ".raw")?;
        probe(&layout)?;
        Ok(Self {
            layout,
            inspector,
            unpacker,
            volume_owner: config.volume_owner.filter(|_| geteuid().is_root()),
            images: Arc::default(),
            volumes: Arc::default(),
        })
    }

    /// Unpacks the verified file beside its final place.
    async fn unpack(&self, packed: File, size: ByteSize, half: &Path) -> Result<(), StorageError> {
        let user = self.unpacker.user.filter(|_| geteuid().is_root());
        let (layout, path) = (self.layout.clone(), half.to_owned());
        let target = blocking(move || {
            let make = || {
                let file = create(&path)?;
                if let Some((uid, gid)) = user {
                    // The tool opens it anew, through the descriptor that it is given.
                    fchown(&file, Some(uid), Some(gid))?;
                }
                file.set_len(size.bytes())?;
                Ok(file)
            };
            make().map_err(|error| layout.io("making", &path, error))
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
            .map_err(|error| self.layout.io("opening", half, error))?;
        let unpacker = Tool {
            write_limit: size.bytes(),
            ..self.unpacker.clone()
        };
        let answer = unpacker.run_into(&arguments, packed, handle).await?;
        if answer.code != Some(0) {
            let message = answer.complaint();
            return Err(if message.contains("No space left on device") {
                self.layout.no_room()
            } else {
                StorageError::Tool {
                    tool: "qemu-img",
                    message,
                }
            });
        }
        let (layout, path) = (self.layout.clone(), half.to_owned());
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
                    message: "what it unpacked has another size than the image".to_owned(),
                });
            }
            Ok(())
        })
        .await
    }

    async fn import(&self, image: Digest) -> Result<(), StorageError> {
        let (packed, header) = import::checked(&self.layout, &self.inspector, image).await?;
        let half = self.layout.half_made_image(image);
        let unpacked = self.unpack(packed, header.virtual_size, &half).await;
        let layout = self.layout.clone();
        blocking(move || match unpacked {
            Ok(()) => layout.rename(&half, &layout.image(image)),
            Err(error) => {
                layout.remove(&half)?;
                Err(error)
            }
        })
        .await
    }
}

/// A new, empty file of ours, in place of what a crash may have left there.
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
    // SAFETY: both descriptors are open for as long as the borrowed files are, and the kernel reads nothing of ours.
    unsafe { ioctl::ficlone(to.as_raw_fd(), source) }?;
    Ok(())
}

/// Whether files can be cloned here, found out by doing it.
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
impl StoragePool for ReflinkPool {
    fn name(&self) -> &Name {
        &self.layout.pool
    }

    fn kind(&self) -> &'static str {
        "reflink"
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Raw
    }

    async fn usage(&self) -> Result<PoolUsage, StorageError> {
        let layout = self.layout.clone();
        blocking(move || layout.usage()).await
    }

    async fn images(&self) -> Result<Vec<Digest>, StorageError> {
        let layout = self.layout.clone();
        blocking(move || layout.image_files()).await
    }

    async fn has_image(&self, image: Digest) -> Result<bool, StorageError> {
        let layout = self.layout.clone();
        blocking(move || layout.exists(&layout.image(image))).await
    }

    async fn staging_path(&self, image: Digest) -> Result<PathBuf, StorageError> {
        let layout = self.layout.clone();
        blocking(move || layout.writable_staged(image)).await
    }

    async fn import_image(&self, image: Digest) -> Result<(), StorageError> {
        let _guard = self.images.lock().await;
        let outcome = if self.has_image(image).await? {
            Ok(())
        } else {
            self.import(image).await
        };
        let layout = self.layout.clone();
        if outcome
            .as_ref()
            .is_err_and(|error| layout.may_try_again(image, error))
        {
            return outcome;
        }
        let removed = blocking(move || layout.remove(&layout.staged(image))).await;
        outcome.and(removed)
    }

    async fn ensure_image_absent(&self, image: Digest) -> Result<(), StorageError> {
        let guard = Arc::clone(&self.images).lock_owned().await;
        let layout = self.layout.clone();
        blocking(move || {
            let _guard = guard;
            layout.remove(&layout.image(image))
        })
        .await
    }

    async fn ensure_volume(
        &self,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<PathBuf, StorageError> {
        let guard = Arc::clone(&self.volumes).lock_owned().await;
        let (layout, owner, id) = (self.layout.clone(), self.volume_owner, id.clone());
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

    async fn volumes(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        let layout = self.layout.clone();
        blocking(move || {
            let observed = |(id, path): (VolumeId, PathBuf)| ObservedVolume {
                id,
                size: path.metadata().ok().map(|facts| ByteSize(facts.len())),
            };
            Ok(layout.volume_files()?.into_iter().map(observed).collect())
        })
        .await
    }

    async fn ensure_volume_absent(&self, id: &VolumeId) -> Result<(), StorageError> {
        let guard = Arc::clone(&self.volumes).lock_owned().await;
        let (layout, id) = (self.layout.clone(), id.clone());
        blocking(move || {
            let _guard = guard;
            layout.remove(&layout.volume(&id))
        })
        .await
    }
}

/// Makes the volume: afterwards it is there, whole and durable, or not at all.
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
            .map_err(|error| layout.io("looking at", &source, error))?
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

/// Makes the volume as large as it should be; what is larger stays.
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
