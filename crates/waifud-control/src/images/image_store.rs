//! The image files: one per digest, either complete and verified or absent.
//!
//! An upload is written to a temporary file, checked as soon as its header is complete, synced, read back, verified and
//! renamed. A failure before the rename leaves nothing behind.
//!
//! A row in the database does not guarantee a file: a disk may fail, an administrator may delete files, a backup without
//! images may be restored. So callers check here whether the file exists with the size of its row. Its digest is verified
//! before it is served or adopted, once per version of the file, since reading gigabytes takes a while.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock, MutexGuard};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use waifud_api::Problem;
use waifud_kit::sync::lock;
use waifud_types::qcow2::{self, HEADER_BYTES, Qcow2Header};
use waifud_types::{ByteSize, Digest};

use crate::ControlError;
use crate::env::Disk;
use crate::images::image_file::{Identity, keep_head, read_back};
use crate::images::image_space::ImageSpace;
use crate::images::problems as image_problems;
use crate::server::problems as server_problems;

const INCOMING: &str = ".incoming-";
const PARTIAL: &str = ".download-";
/// Bytes written between two checks of the free space.
pub(crate) const SPACE_CHECK_INTERVAL: u64 = 8 << 20;

/// The directory of images.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    max: ByteSize,
    disk_space: ImageSpace,
    /// Held while a file and its row are created or removed together, so that they stay consistent.
    pub(crate) changing: Mutex<()>,
    verdicts: Arc<Verdicts>,
}

/// The results of verifications.
#[derive(Debug, Default)]
struct Verdicts {
    /// By digest: the verified version of the file, and whether it has the digest.
    known: Lock<HashMap<Digest, (Identity, bool)>>,
    /// Held while a file is read, so that concurrent callers share one verification.
    reading: Lock<()>,
}

impl Verdicts {
    fn known(&self) -> MutexGuard<'_, HashMap<Digest, (Identity, bool)>> {
        lock(&self.known)
    }

    /// Whether this version of the file is intact; `None` if it was not verified.
    fn of(&self, digest: Digest, file: Identity) -> Option<bool> {
        let (identity, intact) = self.known().get(&digest).copied()?;
        (identity == file).then_some(intact)
    }
}

/// A complete and verified upload; removed when dropped, unless it is kept.
#[derive(Debug)]
pub struct Incoming {
    file: NamedTempFile,
    digest: Digest,
    /// The size of the file.
    pub size: ByteSize,
    /// The parsed header.
    pub header: Qcow2Header,
}

impl ImageStore {
    /// Opens the directory; creates it (0700) if it is missing.
    pub fn open(
        state_dir: &Path,
        max: ByteSize,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, ControlError> {
        let dir = state_dir.join("images");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(ControlError::io(format!("making {}", dir.display())))?;
        Ok(Self {
            disk_space: ImageSpace::new(disk, dir.clone()),
            dir,
            max,
            changing: Mutex::new(()),
            verdicts: Arc::default(),
        })
    }

    /// Removes files of interrupted uploads and crashes: files that are neither known images nor partial files of current
    /// downloads.
    pub fn remove_strays(&self, known: &[Digest], coming: &[Digest]) -> Result<(), ControlError> {
        let entries = std::fs::read_dir(&self.dir)
            .map_err(ControlError::io(format!("reading {}", self.dir.display())))?;
        for entry in entries {
            let entry =
                entry.map_err(ControlError::io(format!("reading {}", self.dir.display())))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let stray = match name.parse::<Digest>() {
                Ok(digest) => digest.hex() == name && !known.contains(&digest),
                Err(_) => match name.strip_prefix(PARTIAL) {
                    Some(source) => source.parse().is_ok_and(|source| !coming.contains(&source)),
                    None => name.starts_with(INCOMING),
                },
            };
            if stray {
                tracing::info!(name, "removing the file of an interrupted upload");
                std::fs::remove_file(entry.path())
                    .map_err(ControlError::io(format!("removing {name}")))?;
            }
        }
        Ok(())
    }

    /// The free space for images.
    pub(crate) fn disk_space(&self) -> &ImageSpace {
        &self.disk_space
    }

    /// The path of an image file.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// The path of the partial file of a download.
    pub(crate) fn partial(&self, source: Digest) -> PathBuf {
        self.dir.join(format!("{PARTIAL}{}", source.hex()))
    }

    /// Removes the partial file of a download. If that fails, it is removed at the next start.
    pub(crate) fn discard_partial(&self, source: Digest) {
        match std::fs::remove_file(self.partial(source)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "removing the partial file of a download failed");
            }
            _ => {}
        }
    }

    /// Renames a complete, verified and durable file of this directory to its digest. Hold `changing`.
    pub(crate) fn adopt(&self, partial: &Path, digest: Digest) -> Result<(), ControlError> {
        std::fs::rename(partial, self.path(digest))
            .map_err(ControlError::io("renaming the new image"))?;
        self.remember(digest);
        self.sync_dir()
    }

    /// Records that the file with the digest was just verified.
    fn remember(&self, digest: Digest) {
        let facts = self.path(digest).symlink_metadata();
        let mut known = self.verdicts.known();
        match facts {
            Ok(facts) => known.insert(digest, (Identity::of(&facts), true)),
            Err(_) => known.remove(&digest),
        };
    }

    /// Whether the file of an image exists as a regular file of that size and is not known to be damaged. Its contents are
    /// not read.
    pub(crate) fn holds(&self, digest: Digest, size: ByteSize) -> Result<bool, ControlError> {
        let path = self.path(digest);
        match path.symlink_metadata() {
            Ok(facts) => Ok(facts.is_file()
                && facts.len() == size.bytes()
                && self.verdicts.of(digest, Identity::of(&facts)) != Some(false)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ControlError::io(format!(
                "reading the metadata of {}",
                path.display()
            ))(error)),
        }
    }

    /// Whether the file of an image exists and has its digest. The file is read unless this version was verified before;
    /// `again` reads it in any case.
    pub(crate) async fn is_intact(
        &self,
        digest: Digest,
        size: ByteSize,
        again: bool,
    ) -> Result<bool, ControlError> {
        if !self.holds(digest, size)? {
            return Ok(false);
        }
        let (path, verdicts) = (self.path(digest), Arc::clone(&self.verdicts));
        let shown = path.display().to_string();
        // The verification continues if the caller gives up, so that the next caller finds its result.
        let read = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = lock(&verdicts.reading);
            let file = File::open(&path)?;
            let identity = Identity::of(&file.metadata()?);
            if !again && let Some(intact) = verdicts.of(digest, identity) {
                return Ok(intact);
            }
            let intact = read_back(&file, false)?.digest == digest;
            if !intact {
                tracing::error!(image = %digest, "an image file is damaged and is no longer used");
            }
            verdicts.known().insert(digest, (identity, intact));
            Ok(intact)
        });
        match read.await.map_err(std::io::Error::other) {
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Ok(false),
            Ok(Ok(intact)) => Ok(intact),
            Ok(Err(error)) | Err(error) => Err(ControlError::io(format!("reading {shown}"))(error)),
        }
    }

    /// Reverts [`ImageStore::adopt`]. Hold `changing`.
    pub(crate) fn give_back(&self, partial: &Path, digest: Digest) -> Result<(), ControlError> {
        std::fs::rename(self.path(digest), partial)
            .map_err(ControlError::io("reverting the rename of the new image"))?;
        self.verdicts.known().remove(&digest);
        self.sync_dir()
    }

    /// Receives an upload completely and verifies it.
    pub async fn receive<E>(
        &self,
        digest: Digest,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Incoming, ControlError> {
        self.disk_space.check(0).map_err(write_error)?;
        let file = tempfile::Builder::new()
            .prefix(INCOMING)
            .tempfile_in(&self.dir)
            .map_err(ControlError::io(format!(
                "creating a file in {}",
                self.dir.display()
            )))?;
        let handle = file
            .reopen()
            .map_err(ControlError::io("opening the new image"))?;
        let mut out =
            tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(handle));
        let mut head = Vec::with_capacity(HEADER_BYTES);
        let mut size = 0_u64;
        let mut checked_at = 0_u64;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|_| image_problems::upload_interrupted())?;
            if head.len() < HEADER_BYTES {
                keep_head(&mut head, &chunk);
                if head.len() == HEADER_BYTES {
                    qcow2::parse(&head).map_err(|e| image_problems::bad_image(&head, &e))?;
                }
            }
            size = size.saturating_add(chunk.len() as u64);
            if size > self.max.bytes() {
                return Err(image_problems::image_too_large(self.max).into());
            }
            if size >= checked_at + SPACE_CHECK_INTERVAL {
                checked_at = size;
                self.disk_space.check(0).map_err(write_error)?;
            }
            out.write_all(&chunk).await.map_err(write_error)?;
        }
        qcow2::parse(&head).map_err(|e| image_problems::bad_image(&head, &e))?;
        out.flush().await.map_err(write_error)?;
        out.get_ref().sync_all().await.map_err(write_error)?;
        let written = out.into_inner().into_std().await;
        let contents = tokio::task::spawn_blocking(move || read_back(&written, false))
            .await
            .map_err(std::io::Error::other)
            .and_then(|read| read)
            .map_err(ControlError::io("reading back the new image"))?;
        if contents.digest != digest {
            return Err(image_problems::digest_mismatch(digest, contents.digest).into());
        }
        let header = qcow2::parse(&contents.head)
            .map_err(|e| image_problems::bad_image(&contents.head, &e))?;
        Ok(Incoming {
            file,
            digest,
            size: ByteSize(contents.length),
            header,
        })
    }

    /// Renames the upload to its digest; durable when it returns. Hold `changing`.
    pub fn keep(&self, incoming: Incoming) -> Result<(), ControlError> {
        incoming
            .file
            .persist(self.path(incoming.digest))
            .map_err(|e| ControlError::io("renaming the new image")(e.error))?;
        self.remember(incoming.digest);
        self.sync_dir()
    }

    /// Removes an image file. Hold `changing`. Succeeds if the file is missing.
    pub fn remove(&self, digest: Digest) -> Result<(), ControlError> {
        self.verdicts.known().remove(&digest);
        match std::fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(ControlError::io(format!("removing image {digest}"))(e))
            }
            _ => self.sync_dir(),
        }
    }

    fn sync_dir(&self) -> Result<(), ControlError> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(ControlError::io(format!("syncing {}", self.dir.display())))
    }
}

fn write_error(error: std::io::Error) -> ControlError {
    if matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    ) {
        return Problem::into(server_problems::no_space());
    }
    ControlError::io("writing the new image")(error)
}
