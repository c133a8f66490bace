//! Images: their rows in the database together with their files in the image store.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use waifud_api::{Hint, Image, Page, Problem};
use waifud_store::{ImageRow, ReadTx, Store, StoreError, WriteTx};
use waifud_types::event::Cause;
use waifud_types::{ByteSize, Digest};

use super::image_store::ImageStore;
use super::problems as image_problems;
use crate::env::Clock;
use crate::events::event_builder;
use crate::pagination::{self, PageRequest};
use crate::server::problems as server_problems;
use crate::{ControlError, problems};

/// The images. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Images {
    store: Store,
    files: Arc<ImageStore>,
    clock: Arc<dyn Clock>,
}

impl Images {
    pub(crate) fn new(store: Store, files: ImageStore, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            files: Arc::new(files),
            clock,
        }
    }

    /// The image files.
    pub(super) fn files(&self) -> &ImageStore {
        &self.files
    }

    /// Refuses an image of this size that does not fit on the filesystem.
    pub(crate) fn require_space(&self, size: ByteSize) -> Result<(), Problem> {
        let checked = self.files.disk_space().check(size.bytes());
        checked.map_err(|_| server_problems::no_space())
    }

    /// One image.
    pub(crate) async fn show(&self, digest: Digest) -> Result<Image, ControlError> {
        let row = self.store.read(move |tx| tx.image(digest)).await?;
        let row = row.ok_or_else(|| problems::not_found("image", &digest.to_string()))?;
        self.view(&row)
    }

    fn view(&self, row: &ImageRow) -> Result<Image, ControlError> {
        let available = self.files.holds(row.digest, row.size)?;
        Ok(view(row, available))
    }

    /// A page of images, sorted by digest.
    pub(crate) async fn list(&self, page: PageRequest) -> Result<Page<Image>, ControlError> {
        let rows = |tx: &ReadTx<'_>, after: &str, limit| {
            let rows = tx.images(after.parse().ok(), limit)?.into_iter();
            let rows = rows.map(|row| (row.digest.to_string(), row));
            Ok::<Vec<_>, StoreError>(rows.collect())
        };
        let page = pagination::read(&self.store, page, rows, |(digest, _)| digest).await?;
        let images = page.items.iter().map(|(_, row)| self.view(row));
        Ok(Page {
            items: images.collect::<Result<_, _>>()?,
            next: page.next,
            revision: page.revision,
        })
    }

    /// Stores an upload; returns whether the image is new. For a known image, the file is replaced.
    pub(crate) async fn upload<E>(
        &self,
        digest: Digest,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        cause: Cause,
    ) -> Result<(Image, bool), ControlError> {
        let incoming = self.files.receive(digest, body).await?;
        let row = ImageRow {
            digest,
            size: incoming.size,
            virtual_size: incoming.header.virtual_size,
            created_at: self.clock.now(),
        };
        let _changing = self.files.changing.lock().await;
        let was_present = self.files.holds(digest, row.size)?;
        self.files.keep(incoming)?;
        let stored = row.clone();
        let new = self
            .store
            .write(move |tx| record_file(tx, &stored, was_present, "image.uploaded", &cause))
            .await;
        let new = match new {
            Ok(new) => new,
            Err(error) => {
                // A file without a row would never be removed.
                if !self.is_known(digest).await {
                    self.files.remove(digest)?;
                }
                return Err(error.into());
            }
        };
        if !new {
            return Ok((self.show(digest).await?, false));
        }
        Ok((view(&row, true), true))
    }

    /// Whether the database contains the image; true if it cannot be read.
    pub(crate) async fn is_known(&self, digest: Digest) -> bool {
        let found: Result<_, StoreError> = self.store.read(move |tx| tx.image(digest)).await;
        !found.is_ok_and(|row| row.is_none())
    }

    /// Removes an image; refused while it is in use.
    pub(crate) async fn delete(&self, digest: Digest, cause: Cause) -> Result<(), ControlError> {
        self.show(digest).await?;
        if self.collect_one(digest, cause).await? {
            Ok(())
        } else {
            Err(image_problems::image_in_use(digest).into())
        }
    }

    /// Removes those of the images that are unused. The change that made them unused is durable, so failures are only logged.
    pub(crate) async fn collect(&self, images: impl IntoIterator<Item = Digest>) {
        for image in images {
            if let Err(error) = self.collect_one(image, Cause::system()).await {
                tracing::warn!(%image, %error, "removing an image that may be unused failed");
            }
        }
    }

    /// Removes an image if it is unused; returns whether it was removed.
    async fn collect_one(&self, digest: Digest, cause: Cause) -> Result<bool, ControlError> {
        let _changing = self.files.changing.lock().await;
        let at = self.clock.now();
        let removed = self
            .store
            .write(move |tx| {
                let removed = tx.remove_unused_image(digest)?;
                if removed {
                    let object = event_builder::image(digest);
                    tx.emit(&event_builder::event(
                        at,
                        "image.deleted",
                        object,
                        &cause,
                        "unused",
                    ))?;
                }
                Ok::<_, StoreError>(removed)
            })
            .await?;
        // The row is removed already; a remaining file is removed at the next start.
        if removed && let Err(error) = self.files.remove(digest) {
            tracing::warn!(image = %digest, %error, "removing the file of a deleted image failed");
        }
        Ok(removed)
    }

    /// What brings back the file of an image; nothing if it is there.
    pub(crate) async fn hints_if_missing(&self, digest: Digest) -> Result<Vec<Hint>, ControlError> {
        let (row, templates) = self
            .store
            .read(move |tx| {
                Ok::<_, StoreError>((tx.image(digest)?, tx.templates_with_image(digest)?))
            })
            .await?;
        let Some(row) = row else {
            return Ok(Vec::new());
        };
        if self.files.holds(digest, row.size)? {
            return Ok(Vec::new());
        }
        Ok(image_problems::image_missing(digest, &templates).hints)
    }

    /// The path of an image file with a verified digest.
    pub(crate) async fn verified_file(&self, digest: Digest) -> Result<PathBuf, ControlError> {
        let (row, templates) = self
            .store
            .read(move |tx| {
                Ok::<_, StoreError>((tx.image(digest)?, tx.templates_with_image(digest)?))
            })
            .await?;
        let row = row.ok_or_else(|| problems::not_found("image", &digest.to_string()))?;
        if self.files.is_intact(digest, row.size, false).await? {
            Ok(self.files.path(digest))
        } else {
            Err(image_problems::image_missing(digest, &templates).into())
        }
    }
}

/// Records that a verified file is in the store, with an event if the image is new or was missing. Returns whether the row is
/// new.
pub(super) fn record_file(
    tx: &mut WriteTx<'_>,
    row: &ImageRow,
    was_present: bool,
    kind: &'static str,
    cause: &Cause,
) -> Result<bool, StoreError> {
    let new = tx.put_image(row)?;
    let (kind, message) = match (new, was_present) {
        (true, _) => (
            kind,
            format!("{} for a disk of {}", row.size, row.virtual_size),
        ),
        (false, false) => (
            "image.restored",
            "its file was missing or damaged and is restored".to_owned(),
        ),
        (false, true) => return Ok(false),
    };
    let object = event_builder::image(row.digest);
    tx.emit(&event_builder::event(
        row.created_at,
        kind,
        object,
        cause,
        message,
    ))?;
    Ok(new)
}

/// The image as the API shows it.
fn view(row: &ImageRow, available: bool) -> Image {
    Image {
        digest: row.digest,
        size_bytes: row.size,
        virtual_size_bytes: row.virtual_size,
        available,
        created_at: row.created_at,
    }
}
