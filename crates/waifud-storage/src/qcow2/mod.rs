//! The `qcow2` pool: images as files, volumes as overlays on them, on any filesystem.
//!
//! A volume is a header of a few kilobytes that names its image; making one costs two small writes and their syncs,
//! whatever the image's size, and starts no process. The layout and its rules for crashes are in `layout`, the
//! treatment of hostile files in `import` and `tool`, which pools share.

mod overlay;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nix::unistd::geteuid;
use tokio::sync::Mutex;
use waifud_types::qcow2::{self, HEADER_BYTES};
use waifud_types::{ByteSize, Digest, Name, VolumeId};

use crate::layout::{Layout, blocking};
use crate::tool::Tool;
use crate::{FilePoolConfig, ObservedVolume, PoolUsage, StorageError, StoragePool, import};

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
    pub fn open(config: FilePoolConfig) -> Result<Self, StorageError> {
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
            layout: Layout::open(config.name, &config.path, ".qcow2")?,
            inspector,
            resizer,
            volume_owner: config.volume_owner.filter(|_| geteuid().is_root()),
            images: Arc::default(),
            volumes: Arc::default(),
        })
    }

    /// Verifies and inspects the staged file, then gives it its name.
    async fn import(&self, image: Digest) -> Result<(), StorageError> {
        let (file, _) = import::checked(&self.layout, &self.inspector, image).await?;
        let layout = self.layout.clone();
        blocking(move || {
            let staged = layout.staged(image);
            file.sync_all()
                .map_err(|error| layout.io("syncing", &staged, error))?;
            layout.rename(&staged, &layout.image(image))
        })
        .await
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
            if !layout.exists(&path)? {
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
            return Err(self.layout.no_room());
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

    async fn backing(&self, id: &VolumeId, image: Digest) -> Result<Option<PathBuf>, StorageError> {
        let (layout, id) = (self.layout.clone(), id.clone());
        blocking(move || {
            let path = layout.volume(&id);
            let head = layout.head(&path, overlay::HEAD)?;
            let seen = overlay::parse(&head).ok_or_else(|| not_a_volume(&path))?;
            if seen.alone {
                // Somebody flattened it.
                return Ok(None);
            }
            if seen.image == Some(image) {
                return Ok(Some(layout.image(image)));
            }
            Err(StorageError::OtherImage { volume: id, image })
        })
        .await
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
