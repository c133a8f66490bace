//! Downloads and imports images into pools, once for all instances that wait for an image.
//!
//! Other nodes that have the image are asked first, then waifud, which continues where they ended.
//!
//! The first caller starts the work and later ones join it. It is canceled when the last caller goes away. Downloaded data
//! stays in the staging file, where the download resumes.

pub(crate) mod collection;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;
use waifud_kit::sync::lock;
use waifud_storage::{StorageError, StoragePool};
use waifud_types::{ByteSize, Digest, Name};

use crate::blocking;
use crate::failpoints;
use crate::interfaces::{ControlLink, Destination, LinkError};
use crate::node::checks::NodeChecks;
use crate::peer_port::images::{Fetched, PeerImages};

/// Why an image is not in the pool.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    pub message: String,
    /// Whether a retry is unlikely to succeed soon.
    pub lasting: bool,
}

type Work = BoxFuture<'static, Result<(), ImageError>>;

struct Job {
    work: WeakShared<Work>,
    percent: watch::Receiver<u8>,
}

/// Where images come from.
struct Sources {
    link: Arc<dyn ControlLink>,
    peers: PeerImages,
    checks: Arc<NodeChecks>,
}

/// The images of a node; see the module documentation.
pub struct Images {
    sources: Arc<Sources>,
    jobs: Mutex<BTreeMap<(Name, Digest), Job>>,
}

impl Images {
    pub(crate) fn new(
        link: Arc<dyn ControlLink>,
        peers: PeerImages,
        checks: Arc<NodeChecks>,
    ) -> Self {
        Self {
            sources: Arc::new(Sources {
                link,
                peers,
                checks,
            }),
            jobs: Mutex::default(),
        }
    }

    /// Ensures that the image is in the pool. `progress` is called when the percentage changes.
    pub async fn ensure(
        &self,
        pool: &Arc<dyn StoragePool>,
        image: Digest,
        size: ByteSize,
        progress: impl Fn(u8) + Send,
    ) -> Result<(), ImageError> {
        let (work, mut percent) = self.join(pool, image, size);
        let mut work = std::pin::pin!(work);
        progress(*percent.borrow_and_update());
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                changed = percent.changed() => {
                    if changed.is_err() {
                        return work.await;
                    }
                    progress(*percent.borrow_and_update());
                }
            }
        }
    }

    fn join(
        &self,
        pool: &Arc<dyn StoragePool>,
        image: Digest,
        size: ByteSize,
    ) -> (Shared<Work>, watch::Receiver<u8>) {
        let mut jobs = lock(&self.jobs);
        jobs.retain(|_, job| job.work.upgrade().is_some_and(|work| work.peek().is_none()));
        let key = (pool.name().clone(), image);
        if let Some(job) = jobs.get(&key)
            && let Some(work) = job.work.upgrade()
        {
            return (work, job.percent.clone());
        }
        let (sender, percent) = watch::channel(0);
        let work = fetch_and_import(self.sources.clone(), pool.clone(), image, size, sender)
            .boxed()
            .shared();
        if let Some(weak) = work.downgrade() {
            let job = Job {
                work: weak,
                percent: percent.clone(),
            };
            jobs.insert(key, job);
        }
        (work, percent)
    }
}

async fn fetch_and_import(
    sources: Arc<Sources>,
    pool: Arc<dyn StoragePool>,
    image: Digest,
    size: ByteSize,
    percent: watch::Sender<u8>,
) -> Result<(), ImageError> {
    if pool
        .has_image(image)
        .await
        .map_err(|error| storage_error(&error))?
    {
        return Ok(());
    }
    let staged = pool
        .staging_path(image)
        .await
        .map_err(|error| storage_error(&error))?;
    let report = |bytes: u64| {
        let share = bytes.saturating_mul(100) / size.bytes().max(1);
        let share = u8::try_from(share.min(99)).unwrap_or(99);
        percent.send_if_modified(|shown| std::mem::replace(shown, share) != share);
    };
    // A complete file of a failed import is not downloaded again: the import verifies its digest anyway.
    let path = staged.clone();
    let facts = blocking::on_a_thread(move || path.symlink_metadata()).await;
    let to = Destination {
        file: &staged,
        progress: &report,
    };
    let failed = |error| fetch_error(error, &pool, image);
    let mut fetched = Fetched::default();
    if !facts.is_ok_and(|facts| facts.is_file() && facts.len() == size.bytes()) {
        fetched = failpoints::IMAGE_FETCH
            .around(sources.fetch(image, size, to))
            .await
            .map_err(failed)?;
    }
    let import = || failpoints::IMAGE_IMPORT.around(pool.import_image(image));
    let mut imported = import().await;
    if matches!(imported, Err(StorageError::DigestMismatch { .. })) && !fetched.sources.is_empty() {
        // The pool has removed the file. A part of it may have been right, but nothing says which one.
        tracing::warn!(%image, sources = ?fetched.sources, "other nodes have sent something else than the image; fetching it from waifud");
        sources.peers.avoid(&fetched.sources);
        fetched = Fetched::default();
        sources.link.fetch_image(image, to).await.map_err(failed)?;
        imported = import().await;
    }
    imported.map_err(|error| storage_error(&error))?;
    // Other nodes may get it from this one now.
    sources.checks.request_facts();
    if let Some(source) = fetched.sources.last().filter(|_| fetched.is_complete) {
        sources.peers.tell(image, *source).await;
    }
    Ok(())
}

impl Sources {
    /// Completes the file: from other nodes, and what they do not send from waifud.
    async fn fetch(
        &self,
        image: Digest,
        size: ByteSize,
        to: Destination<'_>,
    ) -> Result<Fetched, LinkError> {
        let fetched = self.peers.fetch(image, size, to).await?;
        if !fetched.is_complete {
            self.link.fetch_image(image, to).await?;
        }
        Ok(fetched)
    }
}

fn fetch_error(error: LinkError, pool: &Arc<dyn StoragePool>, image: Digest) -> ImageError {
    ImageError {
        lasting: error.is_final(),
        message: match error {
            LinkError::NoRoom { .. } => no_room(pool.name()),
            other => format!("cannot fetch image {}: {other}", image.short()),
        },
    }
}

fn no_room(pool: &Name) -> String {
    format!("pool {pool} is full; free space on its filesystem")
}

/// A storage error with its cause, and whether it is likely to last.
pub(crate) fn storage_error(error: &StorageError) -> ImageError {
    let lasting = match error {
        StorageError::BadImage(_)
        | StorageError::ImageRefused { .. }
        | StorageError::TooSmall { .. }
        | StorageError::OtherImage { .. }
        | StorageError::TooLarge { .. }
        | StorageError::VolumeExists(_) => true,
        StorageError::NoSpace { .. }
        | StorageError::NoImage(_)
        | StorageError::DigestMismatch { .. }
        | StorageError::Tool { .. }
        | StorageError::Io { .. }
        | StorageError::NoReflinks { .. } => false,
    };
    ImageError {
        message: waifud_kit::error::with_causes(error),
        lasting,
    }
}
