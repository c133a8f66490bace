//! Writes the blocks that arrive to a file, and hashes them, while the next ones arrive.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::blocks::BlockHasher;
use crate::blocking;

/// Blocks that have arrived and are not written.
const QUEUE: usize = 4;

/// After this many bytes, what was written is brought to the disk, so that a power cut costs little of it, and little is left to
/// do at the end.
const SYNC_EVERY: u64 = 64 << 20;

/// Writes to a file on a thread of its own. Dropped, it ends after the blocks that have arrived.
pub(super) struct BlockWriter {
    blocks: mpsc::Sender<(u64, Bytes)>,
    written: Arc<AtomicU64>,
    thread: AbortOnDropHandle<io::Result<BlockHasher>>,
}

impl BlockWriter {
    /// `hasher` has what the file contains already.
    pub fn new(file: Arc<File>, hasher: BlockHasher) -> Self {
        let (blocks, arriving) = mpsc::channel(QUEUE);
        let written = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            file,
            hasher,
            written: Arc::clone(&written),
            unsynced: 0,
            is_syncing: Arc::default(),
        };
        let thread = async {
            let writer = blocking::for_each(arriving, writer, Writer::write).await?;
            Ok(writer.hasher)
        };
        Self {
            blocks,
            written,
            thread: AbortOnDropHandle::new(tokio::spawn(thread)),
        }
    }

    /// Adds the next block. Returns false if an earlier one could not be written.
    pub async fn add(&self, offset: u64, bytes: Bytes) -> bool {
        self.blocks.send((offset, bytes)).await.is_ok()
    }

    /// How many bytes are written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until all blocks are written, and returns their hash.
    pub async fn finish(self) -> io::Result<BlockHasher> {
        drop(self.blocks);
        match self.thread.await {
            Ok(outcome) => outcome,
            Err(ended) => Err(io::Error::other(ended)),
        }
    }
}

/// What the thread works with.
struct Writer {
    file: Arc<File>,
    hasher: BlockHasher,
    written: Arc<AtomicU64>,
    unsynced: u64,
    is_syncing: Arc<AtomicBool>,
}

impl Writer {
    /// Writes and hashes a block. Blocks.
    fn write(&mut self, (offset, bytes): (u64, Bytes)) -> io::Result<()> {
        self.file.write_all_at(&bytes, offset)?;
        self.hasher.add(offset, &bytes);
        let size = u64::try_from(bytes.len()).unwrap_or(0);
        self.written.fetch_add(size, Ordering::Relaxed);
        self.unsynced += size;
        if self.unsynced >= SYNC_EVERY && !self.is_syncing.swap(true, Ordering::Relaxed) {
            self.unsynced = 0;
            let (file, is_syncing) = (Arc::clone(&self.file), Arc::clone(&self.is_syncing));
            // The end of the transfer reports an error.
            tokio::task::spawn_blocking(move || {
                let _again_at_the_end = file.sync_data();
                is_syncing.store(false, Ordering::Relaxed);
            });
        }
        Ok(())
    }
}
