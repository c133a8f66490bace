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
        let count = Arc::clone(&written);
        let thread = blocking::on_a_thread(move || write(&file, hasher, arriving, &count));
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

/// Blocks.
fn write(
    file: &Arc<File>,
    mut hasher: BlockHasher,
    mut arriving: mpsc::Receiver<(u64, Bytes)>,
    written: &AtomicU64,
) -> io::Result<BlockHasher> {
    let mut unsynced = 0;
    let is_syncing = Arc::new(AtomicBool::new(false));
    while let Some((offset, bytes)) = arriving.blocking_recv() {
        file.write_all_at(&bytes, offset)?;
        hasher.add(offset, &bytes);
        let size = u64::try_from(bytes.len()).unwrap_or(0);
        written.fetch_add(size, Ordering::Relaxed);
        unsynced += size;
        if unsynced >= SYNC_EVERY && !is_syncing.swap(true, Ordering::Relaxed) {
            unsynced = 0;
            let (file, is_syncing) = (Arc::clone(file), Arc::clone(&is_syncing));
            // The end of the transfer reports an error.
            tokio::task::spawn_blocking(move || {
                let _again_at_the_end = file.sync_data();
                is_syncing.store(false, Ordering::Relaxed);
            });
        }
    }
    Ok(hasher)
}
