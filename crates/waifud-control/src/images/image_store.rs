//! Image files: one per digest, whole and verified, or not there.
//!
//! An upload is written to a nameless-to-others file beside, looked at as soon as its header is there, made durable,
//! read back, verified and renamed. Whatever goes wrong before the rename leaves nothing behind.
//!
//! A row of the database is not the file: a disk fails, an administrator cleans up, a backup without images is restored.
//! So whoever needs the file asks here whether it exists with the size of its row, and its digest is verified before it
//! is served or adopted; once per version of the file, as reading gigabytes takes a while.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use waifud_api::Problem;
use waifud_types::qcow2::{self, HEADER_BYTES, Qcow2Header};
use waifud_types::{ByteSize, Digest};

use crate::ControlError;
use crate::env::Disk;
use crate::images::image_file::{Identity, keep_head, read_back};
use crate::images::problems as image_problems;
use crate::server::disk_space::ImageSpace;
use crate::server::problems as server_problems;

const INCOMING: &str = ".incoming-";
const PARTIAL: &str = ".download-";
/// Bytes written between two looks at the room.
pub(crate) const LOOK_EVERY: u64 = 8 << 20;

/// The directory of images.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    max: ByteSize,
    disk_space: ImageSpace,
    /// Held while a file appears or goes together with its row, so that the two never disagree.
    pub(crate) changing: Mutex<()>,
    verdicts: Arc<Verdicts>,
}

/// What was found when files were read.
#[derive(Debug, Default)]
struct Verdicts {
    /// By digest: the file that was read, and whether it has that digest.
    known: Lock<HashMap<Digest, (Identity, bool)>>,
    /// Held while a file is read: one at a time, and the others use what was found.
    reading: Lock<()>,
}

impl Verdicts {
    fn known(&self) -> MutexGuard<'_, HashMap<Digest, (Identity, bool)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this very file is whole; `None` when nobody has read it.
    fn of(&self, digest: Digest, file: Identity) -> Option<bool> {
        let (identity, whole) = self.known().get(&digest).copied()?;
        (identity == file).then_some(whole)
    }
}

/// An upload that was read to its end and verified; it vanishes unless it is kept.
#[derive(Debug)]
pub struct Incoming {
    file: NamedTempFile,
    digest: Digest,
    /// Bytes of the file.
    pub size: ByteSize,
    /// What its header says.
    pub header: Qcow2Header,
}

impl ImageStore {
    /// Opens the directory, and makes it (0700) when it is absent.
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

    /// Removes what broken uploads and crashes left: everything that is no image of the list, and no beginning of one
    /// that is on its way.
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
                tracing::info!(name, "removing what a broken upload left");
                std::fs::remove_file(entry.path())
                    .map_err(ControlError::io(format!("removing {name}")))?;
            }
        }
        Ok(())
    }

    /// How much room there is for images.
    pub(crate) fn disk_space(&self) -> &ImageSpace {
        &self.disk_space
    }

    /// Where an image's file is.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Where the beginning of an image lies that is on its way from a source.
    pub(crate) fn partial(&self, source: Digest) -> PathBuf {
        self.dir.join(format!("{PARTIAL}{}", source.hex()))
    }

    /// Throws away the beginning of an image that will not come. What can't be removed goes at the next start.
    pub(crate) fn discard_partial(&self, source: Digest) {
        match std::fs::remove_file(self.partial(source)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "what is left of a download can't be removed");
            }
            _ => {}
        }
    }

    /// Gives a whole, verified and durable file of this directory its name. Hold `changing`.
    pub(crate) fn adopt(&self, partial: &Path, digest: Digest) -> Result<(), ControlError> {
        std::fs::rename(partial, self.path(digest))
            .map_err(ControlError::io("naming the new image"))?;
        self.remember(digest);
        self.sync_dir()
    }

    /// Notes that the file under the name was verified just now.
    fn remember(&self, digest: Digest) {
        let facts = self.path(digest).symlink_metadata();
        let mut known = self.verdicts.known();
        match facts {
            Ok(facts) => known.insert(digest, (Identity::of(&facts), true)),
            Err(_) => known.remove(&digest),
        };
    }

    /// Whether the file of an image is there: a plain file of that size which nobody has found to be damaged. Its bytes
    /// are not read.
    pub(crate) fn holds(&self, digest: Digest, size: ByteSize) -> Result<bool, ControlError> {
        let path = self.path(digest);
        match path.symlink_metadata() {
            Ok(facts) => Ok(facts.is_file()
                && facts.len() == size.bytes()
                && self.verdicts.of(digest, Identity::of(&facts)) != Some(false)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ControlError::io(format!("looking at {}", path.display()))(
                error,
            )),
        }
    }

    /// Whether the file of an image is there and has its digest. Reads it unless this version of it was read before;
    /// `again` reads it in any case.
    pub(crate) async fn is_whole(
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
        // Goes on when the caller gives up, so that the next one finds the verdict.
        let read = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = verdicts
                .reading
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let file = File::open(&path)?;
            let identity = Identity::of(&file.metadata()?);
            if !again && let Some(whole) = verdicts.of(digest, identity) {
                return Ok(whole);
            }
            let whole = read_back(&file, false)?.digest == digest;
            if !whole {
                tracing::error!(image = %digest, "an image file is damaged: it is not used any more");
            }
            verdicts.known().insert(digest, (identity, whole));
            Ok(whole)
        });
        match read.await.map_err(std::io::Error::other) {
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Ok(false),
            Ok(Ok(whole)) => Ok(whole),
            Ok(Err(error)) | Err(error) => Err(ControlError::io(format!("reading {shown}"))(error)),
        }
    }

    /// Takes the name away again that [`ImageStore::adopt`] gave. Hold `changing`.
    pub(crate) fn give_back(&self, partial: &Path, digest: Digest) -> Result<(), ControlError> {
        std::fs::rename(self.path(digest), partial)
            .map_err(ControlError::io("taking back the new image's name"))?;
        self.verdicts.known().remove(&digest);
        self.sync_dir()
    }

    /// Reads an upload to its end and verifies it.
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
                "making a file in {}",
                self.dir.display()
            )))?;
        let handle = file
            .reopen()
            .map_err(ControlError::io("opening the new image"))?;
        let mut out =
            tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(handle));
        let mut head = Vec::with_capacity(HEADER_BYTES);
        let mut size = 0_u64;
        let mut looked_at = 0_u64;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|_| image_problems::upload_broken())?;
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
            if size >= looked_at + LOOK_EVERY {
                looked_at = size;
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

    /// Gives the upload its name; durable when it returns. Hold `changing`.
    pub fn keep(&self, incoming: Incoming) -> Result<(), ControlError> {
        incoming
            .file
            .persist(self.path(incoming.digest))
            .map_err(|e| ControlError::io("naming the new image")(e.error))?;
        self.remember(incoming.digest);
        self.sync_dir()
    }

    /// Removes an image's file. Hold `changing`. Succeeds when it is absent.
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

/// The SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> Digest {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    Digest::from_bytes(out)
}
