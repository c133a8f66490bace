//! The common part of all pools of files: the import of images, the list of volumes, and the locks. A [`VolumeFormat`]
//! creates and grows volumes.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedMutexGuard};
use waifud_types::{ByteSize, Digest, DiskFormat, Name, PoolKind, VolumeId, VolumeSource};

use crate::import::Verified;
use crate::layout::{Layout, blocking};
use crate::tool::Tool;
use crate::{
    FilePoolConfig, ObservedVolume, PoolUsage, ReceivedVolume, StorageError, StoragePool, import,
};

/// The part that depends on the kind of pool: how images and volumes are stored.
#[async_trait]
pub trait VolumeFormat: Sized + Send + Sync + 'static {
    /// The kind of pool.
    const KIND: PoolKind;
    /// The format of volumes, as the hypervisor opens them.
    const FORMAT: DiskFormat;

    /// Checks that the filesystem is suitable. Blocking.
    fn open(config: &FilePoolConfig, layout: &Layout) -> Result<Self, StorageError>;

    /// Stores the verified file as an image of the pool.
    async fn store_image(&self, layout: &Layout, verified: Verified) -> Result<(), StorageError>;

    /// Creates the volume, or grows it if it is smaller.
    async fn ensure(&self, volumes: &Volumes, wanted: VolumeSpec) -> Result<PathBuf, StorageError>;

    /// Fails if a volume needs the image. Blocking.
    fn check_unused(layout: &Layout, image: Digest) -> Result<(), StorageError>;

    /// The image file below the volume; `None` for a standalone volume. Blocking.
    fn backing(
        layout: &Layout,
        id: VolumeId,
        image: Digest,
    ) -> Result<Option<PathBuf>, StorageError>;

    /// Converts a received volume in another format to the unfinished volume, which is durable on return. The received file may
    /// contain anything that the guest of another node could write to it.
    async fn convert(
        &self,
        volumes: &Volumes,
        id: &VolumeId,
        received: ReceivedVolume,
    ) -> Result<(), StorageError>;

    /// Checks the header of a received volume, which the guest of another node could write to: it may refer to no other
    /// file than the image. Blocking.
    fn check_incoming(layout: &Layout, id: &VolumeId, image: Digest) -> Result<(), StorageError>;

    /// The size that a guest sees; `None` if it cannot be read. Blocking.
    fn volume_size(layout: &Layout, path: &std::path::Path) -> Option<ByteSize>;
}

/// A volume that has to exist.
pub struct VolumeSpec {
    pub(crate) id: VolumeId,
    /// The image that it is a clone of.
    pub(crate) image: Digest,
    /// The minimum size.
    pub(crate) size: ByteSize,
}

/// The volumes of a pool, with their lock.
pub struct Volumes {
    pub(crate) layout: Layout,
    /// Held while volumes are created and removed, so that no image is removed while a volume is created from it.
    lock: Arc<Mutex<()>>,
}

impl Volumes {
    /// Waits until no other task creates or removes volumes.
    pub(crate) async fn lock(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.lock).lock_owned().await
    }

    /// Runs `work` on a thread for blocking work while no other task creates or removes volumes.
    pub(crate) async fn exclusively<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let guard = self.lock().await;
        let layout = self.layout.clone();
        blocking(move || {
            let _guard = guard;
            work(&layout)
        })
        .await
    }
}

/// A pool of files. Only one process at a time may use a directory.
pub struct FilePool<F> {
    volumes: Volumes,
    inspector: Tool,
    format: F,
    /// Held while images are imported and removed. Only one import runs at a time, which limits the load.
    images: Arc<Mutex<()>>,
}

impl<F: VolumeFormat> FilePool<F> {
    /// Opens the pool: creates its directories and removes the unfinished files of a crash. Fails on a filesystem that does
    /// not support this kind of pool.
    pub fn open(config: FilePoolConfig) -> Result<Self, StorageError> {
        let layout = Layout::open(&config, F::FORMAT)?;
        let format = F::open(&config, &layout)?;
        Ok(Self {
            volumes: Volumes {
                layout,
                lock: Arc::default(),
            },
            inspector: Tool::new(config.qemu_img, config.image_user, config.tool_timeout),
            format,
            images: Arc::default(),
        })
    }

    fn layout(&self) -> Layout {
        self.volumes.layout.clone()
    }

    /// Whether the file was received, and is no volume yet.
    async fn is_incoming(&self, id: &VolumeId) -> Result<bool, StorageError> {
        let (layout, id) = (self.layout(), id.clone());
        let found = move || {
            let arrived = layout.exists(&layout.incoming(&id))?;
            Ok(arrived && !layout.exists(&layout.volume(&id))?)
        };
        blocking(found).await
    }

    /// Verifies and inspects the staged file, then stores it as an image.
    async fn import(&self, image: Digest) -> Result<(), StorageError> {
        let layout = &self.volumes.layout;
        let verified = import::checked(layout, &self.inspector, image).await?;
        self.format.store_image(layout, verified).await
    }
}

#[async_trait]
impl<F: VolumeFormat> StoragePool for FilePool<F> {
    fn name(&self) -> &Name {
        &self.volumes.layout.pool
    }

    fn kind(&self) -> PoolKind {
        F::KIND
    }

    fn format(&self) -> DiskFormat {
        F::FORMAT
    }

    async fn usage(&self) -> Result<PoolUsage, StorageError> {
        let layout = self.layout();
        blocking(move || layout.usage()).await
    }

    async fn images(&self) -> Result<Vec<Digest>, StorageError> {
        let layout = self.layout();
        blocking(move || layout.image_files()).await
    }

    async fn has_image(&self, image: Digest) -> Result<bool, StorageError> {
        let layout = self.layout();
        blocking(move || layout.exists(&layout.image(image))).await
    }

    async fn staging_path(&self, image: Digest) -> Result<PathBuf, StorageError> {
        let layout = self.layout();
        blocking(move || layout.writable_staged(image)).await
    }

    async fn import_image(&self, image: Digest) -> Result<(), StorageError> {
        let _guard = self.images.lock().await;
        let outcome = if self.has_image(image).await? {
            Ok(())
        } else {
            self.import(image).await
        };
        let layout = self.layout();
        if outcome
            .as_ref()
            .is_err_and(|error| layout.keeps_staged(image, error))
        {
            return outcome;
        }
        let removed = blocking(move || layout.remove(&layout.staged(image))).await;
        outcome.and(removed)
    }

    async fn open_image(&self, image: Digest) -> Result<Option<File>, StorageError> {
        let layout = self.layout();
        blocking(move || {
            let path = layout.published(image);
            if !layout.exists(&path)? {
                return Ok(None);
            }
            layout.open_regular(&path).map(Some)
        })
        .await
    }

    async fn ensure_image_absent(&self, image: Digest) -> Result<(), StorageError> {
        let images = Arc::clone(&self.images).lock_owned().await;
        let volumes = self.volumes.lock().await;
        let layout = self.layout();
        blocking(move || {
            let _guards = (images, volumes);
            F::check_unused(&layout, image)?;
            layout.remove(&layout.published(image))?;
            layout.remove(&layout.image(image))
        })
        .await
    }

    async fn ensure_volume(
        &self,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<VolumeSource, StorageError> {
        let wanted = VolumeSpec {
            id: id.clone(),
            image,
            size,
        };
        let volume = self.format.ensure(&self.volumes, wanted);
        volume.await.map(VolumeSource::File)
    }

    async fn backing(&self, id: &VolumeId, image: Digest) -> Result<Option<PathBuf>, StorageError> {
        let (layout, id) = (self.layout(), id.clone());
        blocking(move || F::backing(&layout, id, image)).await
    }

    async fn volumes(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        let layout = self.layout();
        blocking(move || {
            let observed = |(id, path): (VolumeId, PathBuf)| ObservedVolume {
                id,
                size: F::volume_size(&layout, &path),
            };
            Ok(layout.volume_files()?.into_iter().map(observed).collect())
        })
        .await
    }

    async fn ensure_volume_absent(&self, id: &VolumeId) -> Result<(), StorageError> {
        let id = id.clone();
        let remove = move |layout: &Layout| {
            remove_incoming(layout, &id)?;
            layout.remove(&layout.volume(&id))
        };
        self.volumes.exclusively(remove).await
    }

    async fn open_volume(&self, id: &VolumeId) -> Result<File, StorageError> {
        let (layout, id) = (self.layout(), id.clone());
        blocking(move || layout.open_regular(&layout.volume(&id))).await
    }

    async fn open_incoming(&self, id: &VolumeId) -> Result<File, StorageError> {
        let id = id.clone();
        let open = move |layout: &Layout| {
            if layout.exists(&layout.volume(&id))? {
                return Err(StorageError::VolumeExists(id));
            }
            layout.open_incoming(&id)
        };
        self.volumes.exclusively(open).await
    }

    async fn complete_incoming(
        &self,
        id: &VolumeId,
        received: ReceivedVolume,
    ) -> Result<(), StorageError> {
        let converts = received.format != F::FORMAT;
        if converts && self.is_incoming(id).await? {
            // Other volumes are created and removed meanwhile.
            self.format.convert(&self.volumes, id, received).await?;
        }
        let id = id.clone();
        let complete = move |layout: &Layout| {
            let arrived = layout.exists(&layout.incoming(&id))?;
            match (arrived, layout.exists(&layout.volume(&id))?) {
                (false, true) => Ok(()),
                (true, true) => Err(StorageError::VolumeExists(id)),
                (_, false) if converts => {
                    layout.rename(&layout.unfinished_volume(&id), &layout.volume(&id))?;
                    layout.remove(&layout.incoming(&id))
                }
                (_, false) => {
                    F::check_incoming(layout, &id, received.image)?;
                    layout.complete_incoming(&id)
                }
            }
        };
        self.volumes.exclusively(complete).await
    }

    async fn incoming(&self) -> Result<Vec<VolumeId>, StorageError> {
        let layout = self.layout();
        blocking(move || layout.incoming_files()).await
    }

    async fn ensure_incoming_absent(&self, id: &VolumeId) -> Result<(), StorageError> {
        let id = id.clone();
        let remove = move |layout: &Layout| remove_incoming(layout, &id);
        self.volumes.exclusively(remove).await
    }
}

/// Removes what was received of a volume, and what was converted of it.
fn remove_incoming(layout: &Layout, id: &VolumeId) -> Result<(), StorageError> {
    layout.remove(&layout.unfinished_volume(id))?;
    layout.remove(&layout.incoming(id))
}
