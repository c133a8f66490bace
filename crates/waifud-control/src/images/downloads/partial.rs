//! The partial file of a download.
//!
//! Bytes count only after the operating system has accepted them, and hashes are computed only from what is read back from
//! the file. After a failed write the file is measured again.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt;

use crate::images::image_file::{Contents, keep_head, read_back};

/// The size of a write.
const BUFFER: usize = 64 << 10;

/// The partial file, open while its download runs.
pub(super) struct Partial {
    path: PathBuf,
    file: tokio::fs::File,
    /// Received bytes that are not in the file yet.
    pending: Vec<u8>,
    /// The first bytes, to check the format.
    pub(super) head: Vec<u8>,
    /// The length of the file.
    pub(super) length: u64,
    /// Whether it contains bytes of more than one response.
    pub(super) resumed: bool,
}

impl Partial {
    /// Opens or creates the file.
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

    /// Reads the length and the first bytes of the file.
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

    /// Empties the file.
    pub(super) async fn clear(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.file.set_len(0).await?;
        self.head.clear();
        self.length = 0;
        self.resumed = false;
        Ok(())
    }

    /// The number of received bytes, including those not written yet.
    pub(super) fn received(&self) -> u64 {
        self.length + self.pending.len() as u64
    }

    /// Adds received bytes.
    pub(super) async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        keep_head(&mut self.head, bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= BUFFER {
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes all received bytes. After a failure, only the bytes in the file count.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        // tokio's write only buffers; the flush waits for the write itself.
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

    /// Syncs the file and reads it back.
    pub(super) async fn sync_and_read_back(&mut self, with_sha512: bool) -> io::Result<Contents> {
        self.flush().await?;
        if let Err(error) = self.file.sync_all().await {
            // The kernel may still show data that never reached the disk.
            self.clear().await?;
            return Err(error);
        }
        let file = self.file.try_clone().await?.into_std().await;
        tokio::task::spawn_blocking(move || read_back(&file, with_sha512))
            .await
            .map_err(io::Error::other)?
    }

    /// The path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_kit::testing::temp_path;

    #[tokio::test]
    async fn bytes_that_could_not_be_written_are_neither_counted_nor_hashed() {
        let (_dir, path) = temp_path("partial");
        let mut partial = Partial::open(&path).await.unwrap();
        partial.push(b"first ").await.unwrap();
        partial.flush().await.unwrap();
        // Writes fail for a moment.
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
        assert_eq!(contents.digest, waifud_types::Digest::of(&bytes));
    }
}
