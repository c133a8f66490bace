//! Pools of kind `qcow2`: images as files, volumes as overlays on them, on any filesystem.
//!
//! A volume is a header of a few kilobytes that names its image. Creating one takes two small writes and their syncs,
//! whatever the image's size, and starts no process. All pools of files share the directory layout and its rules for
//! crashes (`layout`) and the treatment of untrusted files (`import` and `tool`).

mod from_raw;
pub(crate) mod overlay;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use waifud_types::qcow2::{self, HEADER_BYTES};
use waifud_types::{ByteSize, Digest, DiskFormat, PoolKind, VolumeId};

use crate::file_pool::{FilePool, VolumeFormat, VolumeSpec, Volumes};
use crate::import::Verified;
use crate::layout::{Layout, blocking};
use crate::tool::Tool;
use crate::{FilePoolConfig, ReceivedVolume, StorageError, check_size};

/// A pool whose volumes are qcow2 overlays.
pub type Qcow2Pool = FilePool<Overlays>;

/// Volumes as qcow2 overlays on image files.
pub struct Overlays {
    resizer: Tool,
}

impl Overlays {
    /// Creates the volume if it does not exist. Grows it if no guest has written to it.
    async fn clone_image(volumes: &Volumes, wanted: VolumeSpec) -> Result<Cloned, StorageError> {
        let VolumeSpec { id, image, size } = wanted;
        let clone = move |layout: &Layout| {
            let path = layout.volume(&id);
            let create = |size| {
                let bytes =
                    overlay::new_volume(size, image).map_err(|error| StorageError::Tool {
                        tool: "the qcow2 writer",
                        message: error.to_string(),
                    })?;
                layout.put_volume(&id, &bytes)
            };
            // An error of `exists` is not absence: a new volume would replace one that cannot be read at the moment.
            if !layout.exists(&path)? {
                check_size(size, image_size(layout, image)?)?;
                create(size)?;
                return Ok(Cloned::LargeEnough(path));
            }
            let existing = header(layout, &path)?;
            if existing.size >= size {
                return Ok(Cloned::LargeEnough(path));
            }
            if is_unwritten(layout, &path, &existing)? && existing.image == Some(image) {
                create(size)?;
                return Ok(Cloned::LargeEnough(path));
            }
            Ok(Cloned::TooSmall(path))
        };
        volumes.exclusively(clone).await
    }

    /// Grows a volume that a guest has written to. QEMU's lock on the file refuses this while the guest runs.
    async fn grow(
        &self,
        volumes: &Volumes,
        path: &Path,
        size: ByteSize,
    ) -> Result<(), StorageError> {
        let _guard = volumes.lock().await;
        let size = size.bytes().to_string();
        let arguments = ["resize".as_ref(), "-f".as_ref(), "qcow2".as_ref()];
        let arguments = [&arguments[..], &[path.as_os_str(), size.as_ref()]].concat();
        let layout = volumes.layout.clone();
        let result = self.resizer.run(&arguments, None).await?;
        result.success(&layout)?;
        let path = path.to_owned();
        blocking(move || {
            let file = layout.open_regular(&path)?;
            file.sync_all()
                .map_err(|error| layout.io("sync", &path, error))
        })
        .await
    }
}

/// The outcome of `clone_image`.
enum Cloned {
    LargeEnough(PathBuf),
    /// The volume has to be grown with the tool, because a guest has written to it.
    TooSmall(PathBuf),
}

fn image_size(layout: &Layout, image: Digest) -> Result<ByteSize, StorageError> {
    let path = layout.existing_image(image)?;
    let head = layout.head(&path, u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX))?;
    let header = qcow2::parse(&head).map_err(StorageError::BadImage)?;
    Ok(header.virtual_size)
}

/// Whether nothing was written to the volume: then a new one can replace it, which is faster than growing it.
fn is_unwritten(
    layout: &Layout,
    path: &Path,
    existing: &overlay::Overlay,
) -> Result<bool, StorageError> {
    let Some(Ok(unwritten)) = existing
        .image
        .map(|image| overlay::new_volume(existing.size, image))
    else {
        return Ok(false);
    };
    let length = u64::try_from(unwritten.len()).unwrap_or(u64::MAX);
    // One byte more than a new volume has, so that a longer file differs.
    Ok(layout.head(path, length.saturating_add(1))? == unwritten)
}

/// The header of a volume.
fn header(layout: &Layout, path: &Path) -> Result<overlay::Overlay, StorageError> {
    let head = layout.head(path, overlay::HEAD)?;
    overlay::parse(&head).ok_or_else(|| StorageError::Io {
        operation: "read the header of",
        path: path.to_owned(),
        source: std::io::Error::other("it is not a qcow2 file"),
    })
}

/// The image file below a volume; `None` if it is standalone. Fails if its header refers to another file.
pub(crate) fn check_header(
    layout: &Layout,
    path: &Path,
    id: &VolumeId,
    image: Digest,
) -> Result<Option<PathBuf>, StorageError> {
    let header = header(layout, path)?;
    if header.standalone {
        // A user flattened it.
        return Ok(None);
    }
    if header.image == Some(image) {
        return Ok(Some(layout.image(image)));
    }
    Err(StorageError::OtherImage {
        volume: id.clone(),
        image,
    })
}

#[async_trait]
impl VolumeFormat for Overlays {
    const KIND: PoolKind = PoolKind::Qcow2;
    const FORMAT: DiskFormat = DiskFormat::Qcow2;

    fn open(config: &FilePoolConfig, _: &Layout) -> Result<Self, StorageError> {
        // The guest's QEMU can write anything to a volume, so the tool that grows it runs with QEMU's rights only.
        let resizer = Tool {
            write_limit: u64::MAX,
            ..Tool::new(
                config.qemu_img.clone(),
                config.volume_owner,
                config.tool_timeout,
            )
        };
        Ok(Self { resizer })
    }

    async fn store_image(&self, layout: &Layout, verified: Verified) -> Result<(), StorageError> {
        let layout = layout.clone();
        blocking(move || {
            let staged = layout.staged(verified.image);
            verified
                .file
                .sync_all()
                .map_err(|error| layout.io("sync", &staged, error))?;
            layout.rename(&staged, &layout.image(verified.image))
        })
        .await
    }

    async fn ensure(&self, volumes: &Volumes, wanted: VolumeSpec) -> Result<PathBuf, StorageError> {
        let size = wanted.size;
        match Self::clone_image(volumes, wanted).await? {
            Cloned::LargeEnough(path) => Ok(path),
            Cloned::TooSmall(path) => {
                self.grow(volumes, &path, size).await?;
                Ok(path)
            }
        }
    }

    fn check_unused(layout: &Layout, image: Digest) -> Result<(), StorageError> {
        for (id, path) in layout.volume_files()? {
            let head = layout.head(&path, overlay::HEAD)?;
            let backing = overlay::parse(&head).and_then(|overlay| overlay.image);
            // A volume whose header cannot be read might need the image.
            if backing.is_none_or(|backing| backing == image) {
                return Err(StorageError::Tool {
                    tool: "the pool",
                    message: format!("volume {id} needs image {}", image.short()),
                });
            }
        }
        Ok(())
    }

    fn backing(
        layout: &Layout,
        id: VolumeId,
        image: Digest,
    ) -> Result<Option<PathBuf>, StorageError> {
        check_header(layout, &layout.volume(&id), &id, image)
    }

    async fn convert(
        &self,
        volumes: &Volumes,
        id: &VolumeId,
        received: ReceivedVolume,
    ) -> Result<(), StorageError> {
        from_raw::convert(&self.resizer, &volumes.layout, id, received).await
    }

    fn check_incoming(layout: &Layout, id: &VolumeId, image: Digest) -> Result<(), StorageError> {
        check_header(layout, &layout.incoming(id), id, image).map(drop)
    }

    fn volume_size(layout: &Layout, path: &Path) -> Option<ByteSize> {
        let head = layout.head(path, overlay::HEAD).ok()?;
        overlay::parse(&head).map(|overlay| overlay.size)
    }
}
