//! Images by URL: asked for, fetched in the background, verified, and made templates.
//!
//! ```text
//!  POST /v1/downloads ─► source.rs: may it be fetched, and what proves it? ─► one row per template (durable)
//!                                                                                 │
//!  job.rs: one task per source, however many templates wait for it ◄──────────────┘ also after a restart
//!     │  http.rs, fetch.rs: Range and If-Range from where the last attempt broke ─► partial.rs: the file
//!     │  reach.rs: which addresses may be asked, each time
//!     ▼
//!  checksum_file.rs: the publisher's word ─► the image store ─► the templates, in one transaction
//! ```
//!
//! A publisher's URL whose contents change makes a new image and a new revision of the template; what instances were
//! made from stays as it is.

mod checksum_file;
mod fetch;
mod http;
mod job;
mod partial;
mod problems;
mod reach;
mod source;

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use waifud_api::{CreateDownload, Download, DownloadState, Page, Problem};
use waifud_store::{DownloadRow, ImageRow, NewTemplate, StoreError, WriteTx};
use waifud_types::template::TemplateOrigin;
use waifud_types::{ByteSize, Checksum, Digest};

pub(crate) use self::job::Jobs;
use self::reach::Reach;
pub(crate) use self::source::refresh;
use crate::auth::principal::Cause;
use crate::control::ControlConfig;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::images::templates;
use crate::{Control, ControlError};

/// What can be set about downloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DownloadConfig {
    /// Whether images may come from this machine itself.
    pub loopback: bool,
    /// Where the catalog's images come from instead of their publishers: `MIRROR/HOST/PATH`. Empty for none.
    pub mirror: String,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the environment count.
    pub proxies: bool,
    /// The pause after the first attempt that failed; it doubles, up to a minute.
    pub pause: Duration,
    /// A server that says nothing for so long has gone.
    pub silence: Duration,
    /// A server that is slower is given up.
    pub pace: Pace,
    /// So many downloads may go on at once.
    pub at_once: u64,
    /// Networks about whose machines an error tells nothing but that it failed.
    pub private: Vec<IpNet>,
}

/// The least that a server has to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// So many bytes
    pub bytes: ByteSize,
    /// in each span of this length.
    pub window: Duration,
}

impl Default for DownloadConfig {
    fn default() -> Self {
        Self {
            loopback: false,
            mirror: String::new(),
            proxies: true,
            pause: Duration::from_secs(1),
            silence: Duration::from_mins(1),
            pace: Pace {
                bytes: ByteSize::mib(1),
                window: Duration::from_mins(1),
            },
            at_once: 32,
            private: reach::private_networks(),
        }
    }
}

fn reach(config: &ControlConfig) -> Reach {
    Reach {
        loopback: config.downloads.loopback,
        own: config.interfaces.addresses(),
        guests: Some(config.guest_range),
        private: config.downloads.private.clone(),
    }
}

impl Control {
    /// Begins to fetch an image that becomes a template. The same request again changes nothing, or tries again what
    /// failed.
    pub async fn create_download(
        &self,
        request: CreateDownload,
        cause: Cause,
    ) -> Result<Download, ControlError> {
        self.require_disk_space()?;
        let config = &self.shared.config;
        let request = source::complete(request, &config.downloads.mirror)?;
        let template = templates::checked_name(&request.name)?;
        templates::check(request.arch.as_deref(), request.default_user.as_deref())?;
        let from = source::source(&request, &reach(config))?;
        let at_once = config.downloads.at_once;
        let source = source::name(&from);
        let row = DownloadRow {
            template,
            source,
            request,
            error: None,
            validator: None,
            created_at: self.now(),
        };
        let shown = problems::shown(&from.url);
        let row = self
            .shared
            .store
            .write(move |tx| begin(tx, row, at_once, &shown, &cause))
            .await?;
        self.shared.jobs.ensure(self, source, from);
        Ok(self.shown(row))
    }

    /// Goes on with what was on its way when waifud stopped. Call it before serving.
    pub async fn resume_downloads(&self) -> Result<(), ControlError> {
        let rows = self
            .shared
            .store
            .read(|tx| tx.downloads())
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        for row in rows.into_iter().filter(|row| row.error.is_none()) {
            match source::source(&row.request, &reach(&self.shared.config)) {
                Ok(from) => self.shared.jobs.ensure(self, row.source, from),
                Err(problem) => self.download_failed(row.source, problem).await?,
            }
        }
        Ok(())
    }

    /// A job of the source has ended. Somebody may have asked for the source again in the last moment, when it was
    /// still in the list of jobs: then there is a row that nobody works on.
    async fn go_on_with(&self, source: Digest) {
        let stop = &self.shared.stop;
        while !stop.is_cancelled() {
            match self
                .shared
                .store
                .read(move |tx| tx.downloads_from(source))
                .await
            {
                Ok(rows) => {
                    if let Some(row) = rows.first()
                        && let Ok(from) = source::source(&row.request, &reach(&self.shared.config))
                    {
                        self.shared.jobs.ensure(self, source, from);
                    }
                    return;
                }
                Err(error) => {
                    let error: StoreError = error;
                    tracing::warn!(%error, "whether a download goes on can't be read; it is tried again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// One template on its way.
    pub async fn download(&self, name: &str) -> Result<Download, ControlError> {
        let wanted = name.to_owned();
        let row = self
            .shared
            .store
            .read(move |tx| tx.download(&wanted))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        row.map(|row| self.shown(row))
            .ok_or_else(|| crate::problems::not_found("download", name).into())
    }

    /// Every template on its way, on one page: they are few.
    pub async fn downloads(&self) -> Result<Page<Download>, ControlError> {
        let (rows, revision) = self
            .shared
            .store
            .read(move |tx| Ok::<_, StoreError>((tx.downloads()?, tx.at(tx.newest_event()?))))
            .await?;
        Ok(Page {
            items: rows.into_iter().map(|row| self.shown(row)).collect(),
            next: None,
            revision,
        })
    }

    /// The downloads that share a source.
    pub(crate) async fn downloads_from(
        &self,
        source: Digest,
    ) -> Result<Vec<Download>, ControlError> {
        let rows = self
            .shared
            .store
            .read(move |tx| tx.downloads_from(source))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        Ok(rows.into_iter().map(|row| self.shown(row)).collect())
    }

    /// Ends the download of a template; another template's from the same source goes on.
    pub async fn delete_download(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        let (wanted, at) = (name.to_owned(), self.now());
        let (source, last) = self
            .shared
            .store
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
                    "given up",
                ))?;
                let last = tx.downloads_from(row.source)?.is_empty();
                Ok::<_, ControlError>((row.source, last))
            })
            .await?;
        if last {
            self.shared.jobs.cancel(source);
        }
        Ok(())
    }

    fn shown(&self, row: DownloadRow) -> Download {
        let progress = self.shared.jobs.progress(row.source);
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

    /// A source will not come.
    pub(crate) async fn download_failed(
        &self,
        source: Digest,
        problem: Problem,
    ) -> Result<(), ControlError> {
        let at = self.now();
        self.shared
            .store
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

    /// Makes the file an image of the store, under its digest.
    pub(crate) async fn keep_download(
        &self,
        partial: &Path,
        row: ImageRow,
    ) -> Result<(), ControlError> {
        let _changing = self.shared.images.changing.lock().await;
        let digest = row.digest;
        let was_here = self.shared.images.holds(digest, row.size)?;
        self.shared.images.adopt(partial, digest)?;
        let written = self
            .shared
            .store
            .write(move |tx| {
                templates::file_is_here(tx, &row, was_here, "image.downloaded", &Cause::system())?;
                Ok::<_, StoreError>(())
            })
            .await;
        if written.is_err() && !self.is_known(digest).await {
            // No image without a row; what came is where the next attempt looks for it.
            self.shared.images.give_back(partial, digest)?;
        }
        written.map_err(Into::into)
    }

    /// The image is here: everybody who waited for the source gets a template.
    pub(crate) async fn download_done(
        &self,
        source: Digest,
        image: Digest,
        checksum: Option<Checksum>,
    ) -> Result<(), ControlError> {
        let at = self.now();
        let checksum = checksum.map(|checksum| checksum.to_string());
        self.shared
            .store
            .write(move |tx| {
                let rows = tx.downloads_from(source)?;
                tracing::info!(templates = ?job::names(&rows), image = %image, "downloaded");
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
                        arch: request.arch.unwrap_or_else(|| "x86_64".to_owned()),
                        datasource: request.datasource.unwrap_or_default(),
                        firmware: request.firmware.unwrap_or_default(),
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
        // Whoever asked may have given up in the last moment.
        self.collect_images([image]).await;
        Ok(())
    }
}

fn begin(
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
            // Another template's download may be half-way: what is known of its file counts for this one too.
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
