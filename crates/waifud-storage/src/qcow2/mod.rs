//! The `qcow2` pool: images as files, volumes as overlays on them, on any filesystem.
//!
//! A volume is a header of a few kilobytes that names its image; making one costs two small writes and their syncs,
//! whatever the image's size, and starts no process. The layout and its rules for crashes are in `layout`, the
//! treatment of hostile files in `import` and `tool`.

mod import;
pub(crate) mod layout;
mod overlay;
mod tool;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;
use tokio::sync::Mutex;
use waifud_types::qcow2::{self, HEADER_BYTES};
use waifud_types::{ByteSize, Digest, Name, VolumeId};

use self::layout::Layout;
use self::tool::Tool;
use crate::{ObservedVolume, PoolUsage, StorageError, StoragePool};

/// How a pool is set up.
#[derive(Clone, Debug)]
pub struct Qcow2PoolConfig {
    /// The pool's name.
    pub name: Name,
    /// Its directory; made when missing. QEMU's user must be able to pass through its parents.
    pub path: PathBuf,
    /// User and group (numbers) that image tools run as when we are root: `waifud-image`.
    pub image_user: Option<(u32, u32)>,
    /// `qemu-img`, by path or to be found in `PATH`.
    pub qemu_img: PathBuf,
    /// User and group (numbers) that volumes belong to when we are root: QEMU's. Without it libvirt has to change the
    /// owner at each start.
    pub volume_owner: Option<(u32, u32)>,
    /// How long one run of a tool may take.
    pub tool_timeout: Duration,
}

impl Qcow2PoolConfig {
    /// A pool in a directory, all else by default: tools and volumes belong to ourselves, two minutes for a tool.
    pub fn new(name: Name, path: impl Into<PathBuf>) -> Self {
        Self {
            name,
            path: path.into(),
            image_user: None,
            qemu_img: PathBuf::from("qemu-img"),
            volume_owner: None,
            tool_timeout: Duration::from_mins(2),
        }
    }
}

/// The pool. Cheap to share behind an `Arc`; one process per directory.
pub struct Qcow2Pool {
    layout: Layout,
    inspector: Tool,
    resizer: Tool,
    volume_owner: Option<(u32, u32)>,
    /// Held while images come and go: one import at a time bounds the load.
    images: Arc<Mutex<()>>,
    /// Held while volumes come and go, so that no image goes while a volume on it comes.
    volumes: Arc<Mutex<()>>,
}

impl Qcow2Pool {
    /// Opens the pool, making its directories and clearing away what a crash left half-made.
    pub fn open(config: Qcow2PoolConfig) -> Result<Self, StorageError> {
        let inspector = Tool {
            program: config.qemu_img.clone(),
            user: config.image_user,
            timeout: config.tool_timeout,
            write_limit: 0,
        };
        // A volume's bytes are the guest's QEMU's to write: the tool that grows it gets that user's rights, no more.
        let resizer = Tool {
            program: config.qemu_img,
            user: config.volume_owner,
            timeout: config.tool_timeout,
            write_limit: u64::MAX,
        };
        Ok(Self {
            layout: Layout::open(config.name, &config.path)?,
            inspector,
            resizer,
            volume_owner: config.volume_owner.filter(|_| geteuid().is_root()),
            images: Arc::default(),
            volumes: Arc::default(),
        })
    }

    /// Makes the volume, or answers with what is there.
    async fn clone_image(
        &self,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<Grown, StorageError> {
        let guard = Arc::clone(&self.volumes).lock_owned().await;
        let (layout, owner, id) = (self.layout.clone(), self.volume_owner, id.clone());
        blocking(move || {
            let _guard = guard;
            let path = layout.volume(&id);
            let made = |size| {
                let bytes = overlay::fresh(size, image).map_err(|error| StorageError::Tool {
                    tool: "the qcow2 writer",
                    message: error.to_string(),
                })?;
                layout.put_volume(&id, &bytes, owner)
            };
            // A volume that can't be looked at is there: what is made instead would take its place.
            let there = path.try_exists();
            if !there.map_err(|error| layout.io("looking for", &path, error))? {
                let minimum = image_size(&layout, image)?;
                if size < minimum {
                    return Err(StorageError::TooSmall { size, minimum });
                }
                made(size)?;
                return Ok(Grown::Enough(path));
            }
            let head = layout.head(&path, overlay::HEAD)?;
            let seen = overlay::parse(&head).ok_or_else(|| not_a_volume(&path))?;
            if seen.size >= size {
                return Ok(Grown::Enough(path));
            }
            if untouched(&layout, &path, &seen)? && seen.image == Some(image) {
                made(size)?;
                return Ok(Grown::Enough(path));
            }
            Ok(Grown::NeedsTool(path))
        })
        .await
    }

    /// Grows a volume that a guest has written to. QEMU's lock on the file refuses this while the guest runs.
    async fn grow(&self, path: &Path, size: ByteSize) -> Result<(), StorageError> {
        let _guard = self.volumes.lock().await;
        let size = size.bytes().to_string();
        let arguments = ["resize".as_ref(), "-f".as_ref(), "qcow2".as_ref()];
        let arguments = [&arguments[..], &[path.as_os_str(), size.as_ref()]].concat();
        let answer = self.resizer.run(&arguments, None).await?;
        if answer.code == Some(0) {
            let (layout, path) = (self.layout.clone(), path.to_owned());
            return blocking(move || {
                let file = layout.open_plain(&path)?;
                file.sync_all()
                    .map_err(|error| layout.io("syncing", &path, error))
            })
            .await;
        }
        let message = answer.complaint();
        if message.contains("No space left on device") {
            return Err(StorageError::NoRoom {
                pool: self.layout.pool.clone(),
            });
        }
        Err(StorageError::Tool {
            tool: "qemu-img",
            message,
        })
    }
}

/// What `clone_image` found or made.
enum Grown {
    Enough(PathBuf),
    NeedsTool(PathBuf),
}

fn image_size(layout: &Layout, image: Digest) -> Result<ByteSize, StorageError> {
    let path = layout.image(image);
    if !path.exists() {
        return Err(StorageError::NoImage(image));
    }
    let head = layout.head(&path, u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX))?;
    let header = qcow2::parse(&head).map_err(StorageError::BadImage)?;
    Ok(header.virtual_size)
}

/// Whether nobody wrote to the volume since we made it: then a new one is as good, and made in no time.
fn untouched(layout: &Layout, path: &Path, seen: &overlay::Overlay) -> Result<bool, StorageError> {
    let Some(Ok(fresh)) = seen.image.map(|image| overlay::fresh(seen.size, image)) else {
        return Ok(false);
    };
    let length = u64::try_from(fresh.len()).unwrap_or(u64::MAX);
    // One byte more than a fresh volume has, so that a longer file differs.
    Ok(layout.head(path, length.saturating_add(1))? == fresh)
}

fn not_a_volume(path: &Path) -> StorageError {
    StorageError::Io {
        what: "reading the header of",
        path: path.to_owned(),
        source: std::io::Error::other("it is not a qcow2 file any more"),
    }
}

/// Runs file work where blocking is allowed; it goes on to its end when the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(StorageError::Tool {
            tool: "a thread for files",
            message: error.to_string(),
        }),
    }
}

#[async_trait]
impl StoragePool for Qcow2Pool {
    fn name(&self) -> &Name {
        &self.layout.pool
    }

    fn kind(&self) -> &'static str {
        "qcow2"
    }

    async fn usage(&self) -> Result<PoolUsage, StorageError> {
        let layout = self.layout.clone();
        blocking(move || {
            let root = layout.root();
            let facts =
                statvfs(root).map_err(|error| layout.io("asking about", root, error.into()))?;
            let bytes = |blocks: u64| ByteSize(blocks.saturating_mul(facts.fragment_size()));
            let used = facts.blocks().saturating_sub(facts.blocks_free());
            // What is reserved for root counts as neither used nor there: volumes may belong to another user.
            let size = used.saturating_add(facts.blocks_available());
            let read_only = facts.flags().contains(FsFlags::ST_RDONLY);
            Ok(PoolUsage {
                size: bytes(size),
                used: bytes(used),
                health: if read_only {
                    "its filesystem is mounted read-only".to_owned()
                } else {
                    "ok".to_owned()
                },
            })
        })
        .await
    }

    async fn has_image(&self, image: Digest) -> Result<bool, StorageError> {
        let layout = self.layout.clone();
        blocking(move || {
            let path = layout.image(image);
            path.try_exists()
                .map_err(|error| layout.io("looking for", &path, error))
        })
        .await
    }

    async fn staging_path(&self, image: Digest) -> Result<PathBuf, StorageError> {
        let layout = self.layout.clone();
        blocking(move || {
            use std::os::unix::fs::PermissionsExt;
            let path = layout.staged(image);
            // A leftover of an import that was cut short may be read-only.
            match std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(layout.io("making writable", &path, error))
                }
                _ => Ok(path),
            }
        })
        .await
    }

    async fn import_image(&self, image: Digest) -> Result<(), StorageError> {
        let _guard = self.images.lock().await;
        let outcome = if self.has_image(image).await? {
            Ok(())
        } else {
            import::import(&self.layout, &self.inspector, image).await
        };
        let layout = self.layout.clone();
        let removed = blocking(move || layout.remove(&layout.staged(image))).await;
        outcome.and(removed)
    }

    async fn ensure_image_absent(&self, image: Digest) -> Result<(), StorageError> {
        let images = Arc::clone(&self.images).lock_owned().await;
        let volumes = Arc::clone(&self.volumes).lock_owned().await;
        let layout = self.layout.clone();
        blocking(move || {
            let _guards = (images, volumes);
            for (id, path) in layout.volume_files()? {
                let head = layout.head(&path, overlay::HEAD)?;
                // A volume that can't be read might need it.
                if overlay::parse(&head)
                    .and_then(|o| o.image)
                    .is_none_or(|of| of == image)
                {
                    return Err(StorageError::Tool {
                        tool: "the pool",
                        message: format!("volume {id} needs image {}", image.short()),
                    });
                }
            }
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
        match self.clone_image(id, image, size).await? {
            Grown::Enough(path) => Ok(path),
            Grown::NeedsTool(path) => {
                self.grow(&path, size).await?;
                Ok(path)
            }
        }
    }

    async fn volumes(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        let layout = self.layout.clone();
        blocking(move || {
            let observed = |(id, path): (VolumeId, PathBuf)| ObservedVolume {
                id,
                size: layout
                    .head(&path, overlay::HEAD)
                    .ok()
                    .and_then(|head| overlay::parse(&head))
                    .map(|overlay| overlay.size),
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
