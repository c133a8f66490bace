//! Sends a disk of an instance that this node has released, or an image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use waifud_api::disk_transfer::DiskFrame;
use waifud_api::stream::{RefusalReason, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_kit::buffers::BufferPool;
use waifud_types::{DiskFormat, Epoch, InstanceId, VolumeId};

use super::blocks::{BlockHasher, ReadBlock, for_each_block, sizes};
use crate::blocking;
use crate::control_link::record::DesiredState;
use crate::control_link::table::Table;
use crate::shared::Pools;

/// A receiver that reads nothing for this long is gone.
const STALLED: Duration = Duration::from_mins(1);

/// Frames that are read ahead.
const READ_AHEAD: usize = 4;

/// Bytes of an image that are read at once.
const IMAGE_READ: usize = 1 << 20;

/// After this many blocks that were read and not sent, the sender shows that it still reads. waifud and the receiver give a
/// silent connection up.
const SILENT_BLOCKS: u32 = 32;

/// A disk that may be sent.
pub(crate) struct OpenDisk {
    pub file: File,
    pub format: DiskFormat,
}

/// Opens a disk for the node that receives the instance. The release of this epoch must be complete, so that the guest is off
/// and stays off.
pub(crate) async fn open_released(
    table: &Table,
    pools: &Pools,
    instance: InstanceId,
    epoch: Epoch,
    index: u32,
) -> Result<OpenDisk, StreamRefusal> {
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
    let file = pool.open_volume(&id).await;
    let file = file
        .map_err(|error| refusal(RefusalReason::Other, waifud_kit::error::with_causes(&error)))?;
    let format = pool.format();
    Ok(OpenDisk { file, format })
}

/// Sends the disk to its end, without the blocks before byte `from`, which the receiver has. Ends early when the receiver goes away,
/// or reads nothing.
pub(crate) async fn send(disk: OpenDisk, from: u64, wire: Box<dyn ByteStream>) {
    send_what_is_read(wire, move |ready| {
        let OpenDisk { file, format } = disk;
        each_frame(&file, format, from, |frame| {
            blocking::send(ready, frame.encode())
        })
    })
    .await;
}

/// Sends the bytes of a file from byte `from` on. Ends early as [`send`] does.
pub(crate) async fn send_image(file: File, from: u64, wire: Box<dyn ByteStream>) {
    send_what_is_read(wire, move |ready| {
        let buffers = BufferPool::new(IMAGE_READ);
        let mut at = from;
        loop {
            let mut buffer = buffers.get();
            let count = file.read_at(buffer.as_mut(), at)?;
            let bytes = Bytes::from_owner(buffer).slice(..count);
            if count == 0 || !blocking::send(ready, bytes) {
                return Ok(());
            }
            at = at.saturating_add(u64::try_from(count).unwrap_or(0));
        }
    })
    .await;
}

/// Sends what `read` passes to the channel. `read` blocks, and ends when the channel is closed.
async fn send_what_is_read(
    wire: Box<dyn ByteStream>,
    read: impl FnOnce(&mpsc::Sender<Bytes>) -> io::Result<()> + Send + 'static,
) {
    let (mut gone, mut wire) = tokio::io::split(wire);
    let mut ignored = [0; 64];
    let disconnected =
        async { while gone.read(&mut ignored).await.is_ok_and(|count| count > 0) {} };
    let (frames, mut ready) = blocking::channel(READ_AHEAD);
    let read = blocking::on_a_thread(move || read(&frames));
    let write = async {
        while let Some(frame) = ready.recv().await {
            timeout(STALLED, wire.write_all(&frame)).await??;
        }
        timeout(STALLED, wire.flush()).await?
    };
    tokio::select! {
        sent = async { tokio::try_join!(read, write) } => {
            if let Err(error) = sent {
                // Without its end, the receiver notices that the file is incomplete.
                tracing::warn!(%error, "sending a file failed");
            }
        }
        () = disconnected => {}
    }
    let _gone_already = timeout(STALLED, wire.shutdown()).await;
}

/// A frame as it is read from a file: the bytes of a block are not copied.
pub(crate) enum ReadFrame<'a> {
    Block {
        offset: u64,
        block: &'a mut ReadBlock,
    },
    Other(&'a DiskFrame),
}

impl ReadFrame<'_> {
    pub fn encode(self) -> Bytes {
        match self {
            Self::Block { offset, block } => block.take_frame(offset),
            Self::Other(frame) => frame.encode(),
        }
    }

    pub fn to_frame(&self) -> DiskFrame {
        match self {
            Self::Block { offset, block } => DiskFrame::Block {
                offset: *offset,
                bytes: Bytes::copy_from_slice(block.bytes()),
            },
            Self::Other(frame) => (*frame).clone(),
        }
    }
}

/// Calls `each` with the frames of a file, without the blocks before byte `from`, until it returns false. Blocks.
pub(crate) fn each_frame(
    file: &File,
    format: DiskFormat,
    from: u64,
    mut each: impl FnMut(ReadFrame<'_>) -> bool,
) -> io::Result<()> {
    let (length, allocated) = sizes(file)?;
    let header = DiskFrame::Header {
        format,
        length,
        allocated,
    };
    if !each(ReadFrame::Other(&header)) {
        return Ok(());
    }
    let mut hasher = BlockHasher::default();
    let mut is_open = true;
    let mut silent = 0;
    for_each_block(file, length.bytes(), |offset, block| {
        if let Some(block) = &block {
            hasher.add(offset, block.bytes());
        }
        silent += 1;
        match block.filter(|_| offset >= from) {
            Some(block) => {
                is_open = each(ReadFrame::Block { offset, block });
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
