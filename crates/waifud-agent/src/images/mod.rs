//! Downloads and imports images into pools, once for all instances that wait for an image.
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

/// The images of a node; see the module documentation.
pub struct Images {
    link: Arc<dyn ControlLink>,
    jobs: Mutex<BTreeMap<(Name, Digest), Job>>,
}

impl Images {
    pub fn new(link: Arc<dyn ControlLink>) -> Self {
        Self {
            link,
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
        let work = fetch_and_import(self.link.clone(), pool.clone(), image, size, sender)
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
    link: Arc<dyn ControlLink>,
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
    if !facts.is_ok_and(|facts| facts.is_file() && facts.len() == size.bytes()) {
        let to = Destination {
            file: &staged,
            progress: &report,
        };
        failpoints::IMAGE_FETCH
            .around(link.fetch_image(image, to))
            .await
            .map_err(|error| ImageError {
                lasting: error.is_final(),
                message: match error {
                    LinkError::NoRoom { .. } => no_room(pool.name()),
                    other => format!("cannot fetch image {}: {other}", image.short()),
                },
            })?;
    }
    failpoints::IMAGE_IMPORT
        .around(pool.import_image(image))
        .await
        .map_err(|error| storage_error(&error))
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
