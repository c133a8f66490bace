//! The beginning of an image that is on its way: a file, and how much of it is certainly there.
//!
//! Nothing is counted before the operating system has taken it, and nothing is hashed but what is read back from the
//! file: after a failed write the file is measured again.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt;

use crate::images::image_file::{Contents, keep_head, read_back};

/// Bytes that are written at once.
const BUFFER: usize = 64 << 10;

/// The file. Open as long as its download is at work.
pub(super) struct Partial {
    path: PathBuf,
    file: tokio::fs::File,
    /// What came and is not in the file yet.
    pending: Vec<u8>,
    /// Its first bytes, for a look at the format.
    pub(super) head: Vec<u8>,
    /// Bytes that the file has.
    pub(super) length: u64,
    /// Whether bytes of more than one answer are in it.
    pub(super) resumed: bool,
}

impl Partial {
    /// Opens or makes it.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let file = tokio::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .await?;
        let mut partial = Self {
            path: path.to_owned(),
            file,
            pending: Vec::with_capacity(BUFFER),
            head: Vec::new(),
            length: 0,
            resumed: false,
        };
        partial.measure().await?;
        partial.resumed = partial.length > 0;
        Ok(partial)
    }

    /// Takes the length and the first bytes from the file itself.
    async fn measure(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.length = self.file.metadata().await?.len();
        let mut head = vec![0; waifud_types::qcow2::HEADER_BYTES];
        let file = self.file.try_clone().await?.into_std().await;
        let read = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::FileExt;
            let n = file.read_at(&mut head, 0)?;
            head.truncate(n);
            Ok::<_, io::Error>(head)
        });
        self.head = read.await.map_err(io::Error::other)??;
        Ok(())
    }

    /// Begins again with nothing.
    pub(super) async fn clear(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.file.set_len(0).await?;
        self.head.clear();
        self.length = 0;
        self.resumed = false;
        Ok(())
    }

    /// Bytes that came, whether or not they are in the file yet.
    pub(super) fn received(&self) -> u64 {
        self.length + self.pending.len() as u64
    }

    /// Adds what came.
    pub(super) async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        keep_head(&mut self.head, bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= BUFFER {
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits until everything that came is the operating system's. When that fails, what is in the file counts.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        // tokio says that bytes were written when it has put them aside; a flush waits for the write itself.
        let written = match self.file.write_all(&self.pending).await {
            Ok(()) => self.file.flush().await,
            failed => failed,
        };
        if let Err(error) = written {
            self.measure().await?;
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Makes it durable, and reads what the disk has kept.
    pub(super) async fn sync_and_read_back(&mut self, with_sha512: bool) -> io::Result<Contents> {
        self.flush().await?;
        if let Err(error) = self.file.sync_all().await {
            // What the kernel still shows may never have reached the disk.
            self.clear().await?;
            return Err(error);
        }
        let file = self.file.try_clone().await?.into_std().await;
        tokio::task::spawn_blocking(move || read_back(&file, with_sha512))
            .await
            .map_err(io::Error::other)?
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_that_could_not_be_written_are_neither_counted_nor_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("partial");
        let mut partial = Partial::open(&path).await.unwrap();
        partial.push(b"first ").await.unwrap();
        partial.flush().await.unwrap();
        // The disk takes nothing for a moment.
        let broken = tokio::fs::File::open(&path).await.unwrap();
        let works = std::mem::replace(&mut partial.file, broken);
        let pushed = partial.push(b"second ").await;
        let flushed = partial.flush().await;
        assert!(pushed.is_err() || flushed.is_err());
        partial.file = works;
        let rest = &b"first second third"[usize::try_from(partial.length).unwrap()..];
        partial.push(rest).await.unwrap();
        let contents = partial.sync_and_read_back(false).await.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes, b"first second third");
        assert_eq!(partial.length, bytes.len() as u64);
        assert_eq!(contents.digest, crate::images::image_store::sha256(&bytes));
    }
}
