//! Sends a disk of an instance that this node has released.

use std::fs::File;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use waifud_api::disk_transfer::DiskFrame;
use waifud_hypervisor::ByteStream;

use super::blocks::{BlockHasher, for_each_block, sizes};
use crate::blocking;

/// Frames that are read ahead.
const READ_AHEAD: usize = 4;

/// After this many blocks that were read and not sent, the sender shows that it still reads. waifud and the receiver give a
/// silent connection up.
const SILENT_BLOCKS: u32 = 32;

/// Sends the file to its end, without the blocks before byte `from`, which the receiver has. Ends early when the receiver
/// goes away.
pub(crate) async fn send(file: File, from: u64, wire: Box<dyn ByteStream>) {
    let (mut gone, mut wire) = tokio::io::split(wire);
    let mut ignored = [0; 64];
    let disconnected =
        async { while gone.read(&mut ignored).await.is_ok_and(|count| count > 0) {} };
    let (frames, mut ready) = blocking::channel(READ_AHEAD);
    let read = blocking::on_a_thread(move || read(&file, from, &frames));
    let write = async {
        while let Some(frame) = ready.recv().await {
            wire.write_all(&frame).await?;
        }
        wire.flush().await
    };
    tokio::select! {
        (read, written) = async { tokio::join!(read, write) } => {
            if let Err(error) = read.and(written) {
                // Without the last frame, the receiver notices that the disk is incomplete.
                tracing::warn!(%error, "sending a disk failed");
            }
        }
        () = disconnected => {}
    }
    let _gone_already = wire.shutdown().await;
}

/// Reads the file, and sends its frames to the channel until the other end is closed. Blocks.
fn read(file: &File, from: u64, ready: &mpsc::Sender<Bytes>) -> io::Result<()> {
    frames(file, from, |frame| blocking::send(ready, frame.encode()))
}

/// Calls `each` with the frames of a file, without the blocks before byte `from`, until it returns false. Blocks.
pub(crate) fn frames(
    file: &File,
    from: u64,
    mut each: impl FnMut(DiskFrame) -> bool,
) -> io::Result<()> {
    let (length, allocated) = sizes(file)?;
    if !each(DiskFrame::Header { length, allocated }) {
        return Ok(());
    }
    let mut hasher = BlockHasher::default();
    let mut is_open = true;
    let mut silent = 0;
    for_each_block(file, length.bytes(), |offset, block| {
        if let Some(bytes) = block {
            hasher.add(offset, bytes);
        }
        silent += 1;
        match block.filter(|_| offset >= from) {
            Some(bytes) => {
                let bytes = Bytes::copy_from_slice(bytes);
                is_open = each(DiskFrame::Block { offset, bytes });
                silent = 0;
            }
            None if silent >= SILENT_BLOCKS => {
                is_open = each(DiskFrame::Alive);
                silent = 0;
            }
            None => {}
        }
        is_open
    })?;
    if is_open {
        let hash = hasher.finish();
        each(DiskFrame::End { hash });
    }
    Ok(())
}
