//! The beginning of an image that is on its way: a file, and the digests of what is in it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256, SHA512};
use tokio::io::AsyncWriteExt;
use waifud_types::qcow2::HEADER_BYTES;
use waifud_types::{Checksum, ChecksumAlgorithm};

/// Both digests of the same bytes: the publisher's kind is compared, SHA-256 is the image's name.
#[derive(Clone)]
struct Hashes {
    sha256: Context,
    sha512: Context,
}

impl Hashes {
    fn new() -> Self {
        Self {
            sha256: Context::new(&SHA256),
            sha512: Context::new(&SHA512),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.sha512.update(bytes);
    }
}

/// The file. Open as long as its download is at work.
pub(super) struct Partial {
    path: PathBuf,
    file: tokio::fs::File,
    hashes: Hashes,
    /// Its first bytes, for a look at the format.
    pub(super) head: Vec<u8>,
    /// Bytes that it has.
    pub(super) length: u64,
    /// Whether bytes of more than one answer are in it.
    pub(super) resumed: bool,
}

impl Partial {
    /// Opens or makes it, and reads what is in it already.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let to = path.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::OpenOptionsExt;
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .append(true)
                .mode(0o600)
                .open(&to)?;
            let mut hashes = Hashes::new();
            let mut head = Vec::new();
            let mut length = 0;
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = file.read(&mut buffer)?;
                let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
                    break;
                };
                hashes.update(bytes);
                keep_head(&mut head, bytes);
                length += bytes.len() as u64;
            }
            Ok::<_, io::Error>(Self {
                path: to,
                file: tokio::fs::File::from_std(file),
                hashes,
                head,
                length,
                resumed: length > 0,
            })
        });
        read.await.map_err(io::Error::other)?
    }

    /// Begins again with nothing.
    pub(super) async fn clear(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.set_len(0).await?;
        self.hashes = Hashes::new();
        self.head.clear();
        self.length = 0;
        self.resumed = false;
        Ok(())
    }

    /// Adds what came.
    pub(super) async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await?;
        self.hashes.update(bytes);
        keep_head(&mut self.head, bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Waits until everything that came is the operating system's.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.file.flush().await
    }

    /// Makes it durable.
    pub(super) async fn sync(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_all().await
    }

    /// The digest of what is in it.
    pub(super) fn checksum(&self, algorithm: ChecksumAlgorithm) -> Option<Checksum> {
        let context = match algorithm {
            ChecksumAlgorithm::Sha256 => &self.hashes.sha256,
            ChecksumAlgorithm::Sha512 => &self.hashes.sha512,
        };
        let hex = context
            .clone()
            .finish()
            .as_ref()
            .iter()
            .fold(String::new(), |mut text, byte| {
                use std::fmt::Write;
                let _infallible = write!(text, "{byte:02x}");
                text
            });
        Checksum::from_hex(&hex)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn keep_head(head: &mut Vec<u8>, bytes: &[u8]) {
    let missing = HEADER_BYTES.saturating_sub(head.len());
    head.extend(bytes.iter().take(missing));
}
