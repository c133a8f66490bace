//! Downloads: images from URLs, fetched in the background, verified, and turned into templates.
//!
//! ```text
//!  POST /v1/downloads ─► source.rs: is it allowed, and how is it verified? ─► one row per template (durable)
//!                                                                                 │
//!  job.rs: one task per source, for all templates that wait for it ◄─────────────┘ also after a restart
//!     │  http.rs, fetch.rs: Range and If-Range from where the last attempt ended ─► partial.rs: the file
//!     │  reach.rs: which addresses are allowed, checked each time
//!     ▼
//!  checksum_file.rs: the publisher's checksum ─► records.rs: image store, then the templates in one transaction
//! ```
//!
//! If the contents of a URL change, the result is a new image and a new revision of the template. Existing instances keep
//! their image.

mod checksum_file;
mod config;
mod fetch;
mod http;
mod job;
mod limits;
mod partial;
mod problems;
mod reach;
mod records;
mod source;

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use waifud_api::{CreateDownload, Download, DownloadState, Page};
use waifud_store::{DownloadRow, Store, StoreError};
use waifud_types::event::Cause;
use waifud_types::{ByteSize, Digest};

pub(crate) use self::config::DownloadSettings;
pub use self::config::{DownloadConfig, Pace};
use self::job::{Jobs, WorkerContext};
use self::records::{DownloadRecords, begin};
pub(crate) use self::source::refresh;
use crate::env::Clock;
use crate::events::event_builder;
use crate::images::service::Images;
use crate::images::templates;
use crate::{Control, ControlError};

/// The downloads: their rows, and the workers that fetch them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Downloads {
    jobs: Jobs,
    worker: WorkerContext,
}

impl Downloads {
    pub(crate) fn new(
        store: Store,
        images: Images,
        clock: Arc<dyn Clock>,
        settings: DownloadSettings,
        stop: CancellationToken,
    ) -> Self {
        Self {
            jobs: Jobs::default(),
            worker: WorkerContext {
                records: DownloadRecords::new(store, images, clock),
                settings,
                stop,
                steps: broadcast::Sender::new(256),
            },
        }
    }

    #[cfg(test)]
    fn running(&self) -> usize {
        self.jobs.running()
    }

    /// Follows the progress of all sources; each message names one that got further.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Digest> {
        self.worker.steps.subscribe()
    }

    /// Starts a download. Repeating the request changes nothing, or retries a failed download.
    pub(crate) async fn create(
        &self,
        request: CreateDownload,
        cause: Cause,
    ) -> Result<Download, ControlError> {
        let request = source::complete(request, &self.worker.settings.downloads.mirror)?;
        let template = templates::checked_name(&request.name)?;
        templates::check(request.arch.as_deref(), request.default_user.as_deref())?;
        let from = source::source(&request, &self.worker.settings.reach())?;
        let at_once = self.worker.settings.downloads.at_once;
        let source = source::name(&from);
        let row = DownloadRow {
            template,
            source,
            request,
            error: None,
            validator: None,
            created_at: self.worker.records.now(),
        };
        let shown = problems::shown(&from.url);
        let row = self
            .worker
            .records
            .store()
            .write(move |tx| begin(tx, row, at_once, &shown, &cause))
            .await?;
        self.jobs.ensure(&self.worker, source, from);
        Ok(self.view(row))
    }

    /// Resumes the downloads that ran when waifud stopped.
    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        let rows = self
            .worker
            .records
            .store()
            .read(|tx| tx.downloads())
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        for row in rows.into_iter().filter(|row| row.error.is_none()) {
            match source::source(&row.request, &self.worker.settings.reach()) {
                Ok(from) => self.jobs.ensure(&self.worker, row.source, from),
                Err(problem) => {
                    self.worker
                        .records
                        .record_failure(row.source, problem)
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// One download.
    pub(crate) async fn show(&self, name: &str) -> Result<Download, ControlError> {
        let wanted = name.to_owned();
        let row = self
            .worker
            .records
            .store()
            .read(move |tx| tx.download(&wanted))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        row.map(|row| self.view(row))
            .ok_or_else(|| crate::problems::not_found("download", name).into())
    }

    /// All downloads, on one page.
    pub(crate) async fn list(&self) -> Result<Page<Download>, ControlError> {
        let (rows, revision) = self
            .worker
            .records
            .store()
            .read(move |tx| Ok::<_, StoreError>((tx.downloads()?, tx.at(tx.newest_event()?))))
            .await?;
        Ok(Page {
            items: rows.into_iter().map(|row| self.view(row)).collect(),
            next: None,
            revision,
        })
    }

    /// The downloads that share a source.
    pub(crate) async fn of_source(&self, source: Digest) -> Result<Vec<Download>, ControlError> {
        let rows = self
            .worker
            .records
            .store()
            .read(move |tx| tx.downloads_from(source))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        Ok(rows.into_iter().map(|row| self.view(row)).collect())
    }

    /// Cancels the download of a template. Other templates' downloads from the same source continue.
    pub(crate) async fn delete(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        let (wanted, at) = (name.to_owned(), self.worker.records.now());
        let (source, last) = self
            .worker
            .records
            .store()
            .write(move |tx| {
                let row = tx
                    .remove_download(&wanted)?
                    .ok_or_else(|| crate::problems::not_found("download", &wanted))?;
                let object = event_builder::template(&wanted);
                tx.emit(&event_builder::event(
                    at,
                    "template.download-ended",
                    object,
                    &cause,
                    "canceled",
                ))?;
                let last = tx.downloads_from(row.source)?.is_empty();
                Ok::<_, ControlError>((row.source, last))
            })
            .await?;
        if last {
            self.jobs.cancel(source);
        }
        Ok(())
    }

    fn view(&self, row: DownloadRow) -> Download {
        let progress = self.jobs.progress(row.source);
        let progress = progress.filter(|_| row.error.is_none()).unwrap_or_default();
        Download {
            name: row.template,
            state: if row.error.is_some() {
                DownloadState::Failed
            } else {
                DownloadState::Running
            },
            source_url: row.request.url.unwrap_or_default(),
            checksum: row.request.checksum.or(progress.checksum),
            done_bytes: ByteSize(progress.done),
            total_bytes: progress.total.map(ByteSize),
            waiting_for: progress.waiting_for,
            error: row.error,
            created_at: row.created_at,
        }
    }
}

impl Control {
    /// Starts to download an image that becomes a template.
    pub async fn create_download(
        &self,
        request: CreateDownload,
        cause: Cause,
    ) -> Result<Download, ControlError> {
        self.disk_space().require()?;
        self.downloads().create(request, cause).await
    }

    /// Resumes the downloads that ran when waifud stopped. Call it before serving.
    pub async fn resume_downloads(&self) -> Result<(), ControlError> {
        self.downloads().resume().await
    }
}
