//! The rows of downloads: what a worker reads and writes.

use std::path::Path;
use std::sync::Arc;

use waifud_api::Problem;
use waifud_store::{DownloadRow, ImageRow, ImageTraits, NewTemplate, Store, StoreError, WriteTx};
use waifud_types::event::Cause;
use waifud_types::template::TemplateOrigin;
use waifud_types::{Checksum, Digest, Name, Timestamp};

use super::problems;
use crate::ControlError;
use crate::env::Clock;
use crate::events::event_builder::{self, EventExt};
use crate::images::image_store::ImageStore;
use crate::images::service::{Images, record_file};
use crate::images::templates;

/// The rows of downloads, and the images that they become. Cheap to clone.
#[derive(Clone)]
pub(super) struct DownloadRecords {
    store: Store,
    images: Images,
    clock: Arc<dyn Clock>,
}

impl DownloadRecords {
    pub(super) fn new(store: Store, images: Images, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            images,
            clock,
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn files(&self) -> &ImageStore {
        self.images.files()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The running downloads from a source.
    pub(super) async fn of_source(&self, source: Digest) -> Result<Vec<DownloadRow>, StoreError> {
        self.store.read(move |tx| tx.downloads_from(source)).await
    }

    /// Records which version of the file the kept bytes belong to.
    pub(super) async fn set_validator(
        &self,
        source: Digest,
        validator: Option<String>,
    ) -> Result<(), StoreError> {
        self.store
            .write(move |tx| tx.set_download_validator(source, validator.as_deref()))
            .await
    }

    /// The image with the expected checksum, if its file is complete.
    pub(super) async fn complete_image(
        &self,
        expected: String,
    ) -> Result<Option<Digest>, ControlError> {
        let found = self
            .store
            .read(move |tx| {
                let named = match expected.parse::<Digest>() {
                    Ok(digest) => Some(digest),
                    Err(_) => tx.image_with_checksum(&expected)?,
                };
                let Some(digest) = named else {
                    return Ok(None);
                };
                tx.image(digest)
            })
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        let Some(row) = found else {
            return Ok(None);
        };
        let complete = self.files().is_intact(row.digest, row.size, true).await?;
        Ok(complete.then_some(row.digest))
    }

    /// Records that a source cannot be downloaded.
    pub(super) async fn record_failure(
        &self,
        source: Digest,
        problem: Problem,
    ) -> Result<(), ControlError> {
        let at = self.clock.now();
        self.store
            .write(move |tx| {
                for row in tx.downloads_from(source)? {
                    let object = event_builder::template(row.template.as_str());
                    let event = event_builder::event(
                        at,
                        "template.download-failed",
                        object,
                        &Cause::system(),
                        problem.title.clone(),
                    );
                    tx.emit(&event.reason(problem.code.clone()))?;
                }
                tx.fail_downloads(source, &problem)
            })
            .await
            .map_err(|error: StoreError| error.into())
    }

    /// Moves the file into the image store and records the image.
    pub(super) async fn keep_image(
        &self,
        partial: &Path,
        row: ImageRow,
    ) -> Result<(), ControlError> {
        let _changing = self.files().changing.lock().await;
        let digest = row.digest;
        let was_present = self.files().holds(digest, row.size)?;
        self.files().adopt(partial, digest)?;
        let written = self
            .store()
            .write(move |tx| {
                record_file(tx, &row, was_present, "image.downloaded", &Cause::system())?;
                Ok::<_, StoreError>(())
            })
            .await;
        if written.is_err() && !self.images.is_known(digest).await {
            // A file without a row would never be removed; the next attempt finds the partial file again.
            self.files().give_back(partial, digest)?;
        }
        written.map_err(Into::into)
    }

    /// Creates the templates of all downloads from the source.
    pub(super) async fn record_success(
        &self,
        source: Digest,
        image: Digest,
        checksum: Option<Checksum>,
    ) -> Result<(), ControlError> {
        let at = self.clock.now();
        let checksum = checksum.map(|checksum| checksum.to_string());
        self.store
            .write(move |tx| {
                let rows = tx.downloads_from(source)?;
                tracing::info!(templates = ?names(&rows), image = %image, "downloaded");
                for row in rows {
                    tx.remove_download(row.template.as_str())?;
                    let request = row.request;
                    let origin = request.url.clone().map(|url| TemplateOrigin {
                        url,
                        catalog: request.catalog.clone(),
                        checksum: request.checksum.clone(),
                        checksums_url: request.checksums_url.clone(),
                        checksums_file: request.checksums_file.clone(),
                        insecure_no_checksum: request.insecure_no_checksum,
                    });
                    let new = NewTemplate {
                        name: row.template,
                        traits: ImageTraits {
                            arch: request.arch.unwrap_or_else(|| "x86_64".to_owned()),
                            datasource: request.datasource.unwrap_or_default(),
                            firmware: request.firmware.unwrap_or_default(),
                        },
                        default_user: request.default_user,
                        image,
                        checksum: checksum.clone(),
                        origin,
                        at,
                    };
                    templates::put(tx, &new, &Cause::system())?;
                }
                Ok::<_, ControlError>(())
            })
            .await?;
        // The download may have been canceled at the last moment.
        self.images.collect([image]).await;
        Ok(())
    }
}

/// The templates that wait for a source, for the log.
fn names(rows: &[DownloadRow]) -> Vec<Name> {
    rows.iter().map(|row| row.template.clone()).collect()
}

/// Creates or updates the row of a download.
pub(super) fn begin(
    tx: &mut WriteTx<'_>,
    row: DownloadRow,
    at_once: u64,
    shown: &str,
    cause: &Cause,
) -> Result<DownloadRow, ControlError> {
    let before = tx.download(row.template.as_str())?;
    let row = match before {
        Some(before) if before.error.is_none() && before.source != row.source => {
            return Err(problems::download_running(&row.template).into());
        }
        Some(before) if before.error.is_none() && before.request == row.request => {
            return Ok(before);
        }
        Some(before) if before.error.is_none() => DownloadRow {
            created_at: before.created_at,
            validator: before.validator,
            ..row
        },
        _ => {
            if tx.downloads_running()? >= at_once {
                return Err(problems::too_many_downloads(at_once).into());
            }
            // Another template's download from the source may have a partial file, to which its validator belongs.
            let validator = tx
                .downloads_from(row.source)?
                .into_iter()
                .find_map(|other| other.validator);
            let object = event_builder::template(row.template.as_str());
            let message = format!("from {shown}");
            tx.emit(&event_builder::event(
                row.created_at,
                "template.download-started",
                object,
                cause,
                message,
            ))?;
            DownloadRow { validator, ..row }
        }
    };
    tx.put_download(&row)?;
    Ok(row)
}
