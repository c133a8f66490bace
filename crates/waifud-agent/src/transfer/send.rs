//! Sends a disk of an instance that this node has released.

use std::fs::File;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use waifud_api::disk_transfer::{DiskFrame, encode_block};
use waifud_api::stream::{RefusalReason, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_types::{Epoch, InstanceId, VolumeId};

use super::blocks::{BlockHasher, for_each_block, sizes};
use crate::blocking;
use crate::control_link::record::DesiredState;
use crate::control_link::table::Table;
use crate::shared::Pools;

/// A receiver that reads nothing for this long is gone.
const STALLED: Duration = Duration::from_mins(1);

/// Frames that are read ahead.
const READ_AHEAD: usize = 4;

/// After this many blocks that were read and not sent, the sender shows that it still reads. waifud and the receiver give a
/// silent connection up.
const SILENT_BLOCKS: u32 = 32;

/// Opens a disk for the node that receives the instance. The release of this epoch must be complete, so that the guest is off
/// and stays off.
pub(crate) async fn open_released(
    table: &Table,
    pools: &Pools,
    instance: InstanceId,
    epoch: Epoch,
    index: u32,
) -> Result<File, StreamRefusal> {
    let refusal = |reason, message: String| StreamRefusal { reason, message };
    let refused = |message: &str| refusal(RefusalReason::NotHere, message.to_owned());
    let view = table.view(instance);
    let view =
        view.ok_or_else(|| refused("this node does not have the requested copy of the instance"))?;
    let DesiredState::Release(handover) = view.desired else {
        return Err(refused("this node has not released the instance"));
    };
    let record = handover.record;
    if !record.completed || record.release.epoch != epoch {
        return Err(refused(
            "this node has not released this copy of the instance",
        ));
    }
    let released = handover.instance.as_ref();
    let disk = usize::try_from(index)
        .ok()
        .and_then(|index| released?.spec.disks.get(index));
    let disk = disk.ok_or_else(|| refused("the instance has no such disk"))?;
    let pool = pools.get(&disk.pool);
    let pool = pool.ok_or_else(|| refused("this node has no longer the pool of the disk"))?;
    let id = VolumeId {
        instance,
        disk: disk.name.clone(),
    };
    pool.open_volume(&id)
        .await
        .map_err(|error| refusal(RefusalReason::Other, waifud_kit::error::with_causes(&error)))
}

/// Sends the file to its end, without the blocks before byte `from`, which the receiver has. Ends early when the receiver
/// goes away, or reads nothing.
pub(crate) async fn send(file: File, from: u64, wire: Box<dyn ByteStream>) {
    let (mut gone, mut wire) = tokio::io::split(wire);
    let mut ignored = [0; 64];
    let disconnected =
        async { while gone.read(&mut ignored).await.is_ok_and(|count| count > 0) {} };
    let (frames, mut ready) = blocking::channel(READ_AHEAD);
    let read = blocking::on_a_thread(move || read(&file, from, &frames));
    let write = async {
        while let Some(frame) = ready.recv().await {
            timeout(STALLED, wire.write_all(&frame)).await??;
        }
        timeout(STALLED, wire.flush()).await?
    };
    tokio::select! {
        sent = async { tokio::try_join!(read, write) } => {
            if let Err(error) = sent {
                // Without the last frame, the receiver notices that the disk is incomplete.
                tracing::warn!(%error, "sending a disk failed");
            }
        }
        () = disconnected => {}
    }
    let _gone_already = timeout(STALLED, wire.shutdown()).await;
}

/// Reads the file, and sends its frames to the channel until the other end is closed. Blocks.
fn read(file: &File, from: u64, ready: &mpsc::Sender<Bytes>) -> io::Result<()> {
    each_frame(file, from, |frame| blocking::send(ready, frame.encode()))
}

/// A frame as it is read from a file: the bytes of a block are not copied.
#[derive(Clone, Copy)]
pub(crate) enum ReadFrame<'a> {
    Block { offset: u64, bytes: &'a [u8] },
    Other(&'a DiskFrame),
}

impl ReadFrame<'_> {
    pub fn encode(self) -> Bytes {
        match self {
            Self::Block { offset, bytes } => encode_block(offset, bytes),
            Self::Other(frame) => frame.encode(),
        }
    }

    pub fn to_frame(self) -> DiskFrame {
        match self {
            Self::Block { offset, bytes } => DiskFrame::Block {
                offset,
                bytes: Bytes::copy_from_slice(bytes),
            },
            Self::Other(frame) => frame.clone(),
        }
    }
}

/// Calls `each` with the frames of a file, without the blocks before byte `from`, until it returns false. Blocks.
pub(crate) fn each_frame(
    file: &File,
    from: u64,
    mut each: impl FnMut(ReadFrame<'_>) -> bool,
) -> io::Result<()> {
    let (length, allocated) = sizes(file)?;
    let header = DiskFrame::Header { length, allocated };
    if !each(ReadFrame::Other(&header)) {
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
                is_open = each(ReadFrame::Block { offset, bytes });
                silent = 0;
            }
            None if silent >= SILENT_BLOCKS => {
                is_open = each(ReadFrame::Other(&DiskFrame::Alive));
                silent = 0;
            }
            None => {}
        }
        is_open
    })?;
    if is_open {
        let hash = hasher.finish();
        each(ReadFrame::Other(&DiskFrame::End { hash }));
    }
    Ok(())
}
