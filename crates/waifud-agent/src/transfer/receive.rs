//! Receives the disks of an instance from another node.
//!
//! A disk arrives in the format of the other node's pool, and the pool here converts it if necessary. It is written to a file that is
//! no volume yet. An interrupted transfer continues where it ended: the bytes that are
//! there are hashed again, and the hash of the complete file must be the one that the sender has computed. If not, the file
//! is deleted, and the transfer begins again.

use std::fs::File;
use std::io;
use std::sync::Arc;

use waifud_api::agent::{Incoming, Receiving};
use waifud_api::disk_transfer::{BLOCK, DiskDecoder, DiskFrame, HASH};
use waifud_storage::{ReceivedVolume, StoragePool};
use waifud_types::spec::DiskSpec;
use waifud_types::{ByteSize, CopyPath, DiskFormat, ReceiveState, VolumeId};

use super::blocks::{BlockHasher, for_each_block};
use super::writer::BlockWriter;
use crate::instance::failure::Failure;
use crate::interfaces::{Arrived, ByteChunks};
use crate::peer_port::direct;
use crate::shared::{Pools, Shared};
use crate::{blocking, failpoints};

/// The largest file for a disk: its size, and what a format adds to it.
fn largest(disk: &DiskSpec) -> u64 {
    let size = disk.size_bytes.bytes();
    size.saturating_add(size / 64).saturating_add(64 << 20)
}

/// The bytes of all disks.
#[derive(Clone, Copy, Default)]
struct Bytes {
    done: u64,
    total: u64,
    /// The path of the disk that is being copied.
    path: Option<CopyPath>,
}

/// Brings the instance to this node as far as the order says: its images, and its disks once they may be copied. `report` is
/// called with the progress. May be dropped at any point.
pub(crate) async fn receive(
    shared: &Shared,
    incoming: &Incoming,
    report: impl Fn(Receiving) + Send + Sync,
) -> Result<(), Failure> {
    let tell = |state, bytes: Bytes| {
        report(Receiving {
            instance: incoming.id,
            epoch: incoming.epoch,
            state,
            done_bytes: ByteSize(bytes.done),
            total_bytes: ByteSize(bytes.total.max(bytes.done)),
            reason: None,
            path: bytes.path,
        });
    };
    if shared.hypervisor.get(incoming.id).await?.is_some() {
        return Err(Failure::lasting(
            "a domain on this node has the id of the instance; undefine it (virsh undefine)",
        ));
    }
    for disk in &incoming.disks {
        let pool = pool(&shared.pools, disk)?;
        if !pool.has_image(incoming.image).await? {
            tell(ReceiveState::Preparing, Bytes::default());
            let images = &shared.instances.images;
            images
                .ensure(pool, incoming.image, incoming.image_size_bytes, |_| {})
                .await?;
        }
    }
    if !incoming.copy {
        tell(ReceiveState::Prepared, Bytes::default());
        return Ok(());
    }
    let mut bytes = Bytes::default();
    tell(ReceiveState::Copying, bytes);
    for (index, disk) in (0..).zip(&incoming.disks) {
        let before = bytes;
        let transfer = Transfer {
            shared,
            incoming,
            index,
            disk,
        };
        bytes = transfer
            .run(|now| {
                tell(
                    ReceiveState::Copying,
                    Bytes {
                        done: before.done.saturating_add(now.done),
                        total: before.total.saturating_add(now.total),
                        path: now.path,
                    },
                );
            })
            .await?;
        bytes.done = bytes.done.saturating_add(before.done);
        bytes.total = bytes.total.saturating_add(before.total);
    }
    Ok(())
}

fn pool<'a>(pools: &'a Pools, disk: &DiskSpec) -> Result<&'a Arc<dyn StoragePool>, Failure> {
    pools
        .get(&disk.pool)
        .ok_or_else(|| Failure::lasting(format!("this node has no pool {}", disk.pool)))
}

/// The transfer of one disk.
struct Transfer<'a> {
    shared: &'a Shared,
    incoming: &'a Incoming,
    index: u32,
    disk: &'a DiskSpec,
}

impl Transfer<'_> {
    async fn run(&self, progress: impl Fn(Bytes) + Send + Sync) -> Result<Bytes, Failure> {
        let pool = pool(&self.shared.pools, self.disk)?;
        let id = VolumeId {
            instance: self.incoming.id,
            disk: self.disk.name.clone(),
        };
        if pool.volumes().await?.iter().any(|volume| volume.id == id) {
            // Received before the agent was restarted.
            return Ok(Bytes::default());
        }
        let file = Arc::new(pool.open_incoming(&id).await?);
        let received = failpoints::DISK_RECEIVE
            .around(self.copy(&file, &progress))
            .await;
        match received {
            Ok((bytes, format)) => {
                let received = ReceivedVolume {
                    image: self.incoming.image,
                    format,
                    largest: ByteSize(largest(self.disk)),
                };
                failpoints::DISK_COMPLETE
                    .around(pool.complete_incoming(&id, received))
                    .await?;
                Ok(bytes)
            }
            Err(CopyError::Damaged(message)) => {
                pool.ensure_incoming_absent(&id).await?;
                Err(Failure::passing(message))
            }
            Err(CopyError::Failed(failure)) => Err(failure),
        }
    }

    /// Writes the disk to the file, beginning with what it contains. Returns its format, too.
    async fn copy(
        &self,
        file: &Arc<File>,
        progress: &(impl Fn(Bytes) + Send + Sync),
    ) -> Result<(Bytes, DiskFormat), CopyError> {
        let (from, hasher, had) = resume(file).await?;
        let (body, path) = self.open(from).await?;
        let progress = |bytes| {
            progress(Bytes {
                path: Some(path),
                ..bytes
            });
        };
        progress(Bytes::default());
        let mut arriving = Arriving {
            transfer: self,
            from,
            had,
            writer: BlockWriter::new(Arc::clone(file), hasher),
            bytes: Bytes::default(),
            length: 0,
            format: None,
        };
        let ended = arriving.read(body, &progress).await;
        let has_progress = arriving.bytes.done > 0;
        // Also after a failure: what has arrived is written before the file is used again.
        let hasher = arriving.writer.finish().await;
        let complete = async {
            let hasher = hasher.map_err(|error| self.write_error(&error))?;
            if hasher.finish() != ended? {
                let why = self.describe("what has arrived differs from what was sent");
                return Err(CopyError::Damaged(why));
            }
            let (to, end) = (Arc::clone(file), arriving.length);
            let synced = blocking::on_a_thread(move || {
                to.set_len(end)?;
                to.sync_all()
            });
            synced.await.map_err(|error| self.write_error(&error))?;
            let Some(format) = arriving.format else {
                return Err(CopyError::Damaged(self.describe("it has no header")));
            };
            let bytes = Bytes {
                done: had.saturating_add(arriving.bytes.done),
                ..arriving.bytes
            };
            Ok((bytes, format))
        };
        let complete = complete.await;
        // A direct path that delivers nothing, or something else, is not taken again at once.
        let useless = match &complete {
            Ok(_) => false,
            Err(CopyError::Damaged(_)) => true,
            Err(CopyError::Failed(_)) => !has_progress,
        };
        if useless && path == CopyPath::Direct {
            self.shared.avoided_paths.avoid(self.incoming.id);
        }
        complete
    }

    /// Opens the disk: directly at the node that has it if possible, or else through waifud.
    async fn open(&self, from: u64) -> Result<(Box<dyn ByteChunks>, CopyPath), CopyError> {
        let direct = direct::open(self.shared, self.incoming, self.index, from);
        if let Some(body) = direct.await {
            return Ok((body, CopyPath::Direct));
        }
        let link = &self.shared.link;
        let body = link.fetch_disk(self.incoming.id, self.index, from);
        let body = body.await.map_err(|error| {
            Failure::passing(format!("cannot copy {}: {error}", self.disk.name))
        })?;
        Ok((body, CopyPath::Waifud))
    }

    fn describe(&self, why: &str) -> String {
        format!(
            "copying disk {} from {} failed: {why}",
            self.disk.name, self.incoming.source
        )
    }

    fn write_error(&self, error: &io::Error) -> CopyError {
        let message = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                format!(
                    "pool {} is full; free space on its filesystem",
                    self.disk.pool
                )
            }
            _ => self.describe(&error.to_string()),
        };
        Failure::passing(message).into()
    }
}

/// A disk that arrives.
struct Arriving<'a> {
    transfer: &'a Transfer<'a>,
    /// The file has the blocks before this byte.
    from: u64,
    /// The bytes of these blocks.
    had: u64,
    writer: BlockWriter,
    /// What has arrived, without what was there before.
    bytes: Bytes,
    /// The length of the complete file.
    length: u64,
    /// The format that the sender has stated.
    format: Option<DiskFormat>,
}

impl Arriving<'_> {
    /// Passes what arrives to the writer. Returns the hash that the complete file must have.
    async fn read(
        &mut self,
        mut body: Box<dyn ByteChunks>,
        progress: &(impl Fn(Bytes) + Send + Sync),
    ) -> Result<[u8; HASH], CopyError> {
        let transfer = self.transfer;
        let damaged = |why: &str| CopyError::Damaged(transfer.describe(why));
        let mut decoder = DiskDecoder::default();
        loop {
            let frame = decoder
                .frame()
                .map_err(|error| damaged(&error.to_string()))?;
            let Some(frame) = frame else {
                let disk = &transfer.disk.name;
                let arrived = match decoder.space() {
                    Some(space) => body.read(space).await,
                    None => body.chunk().await.map(Arrived::of),
                };
                let arrived = arrived
                    .map_err(|error| Failure::passing(format!("cannot copy {disk}: {error}")))?;
                match arrived {
                    Arrived::Read(count) => decoder.filled(count),
                    Arrived::Chunk(chunk) => decoder.push(&chunk),
                    Arrived::End => {
                        let why = transfer.describe("the transfer was interrupted");
                        return Err(Failure::passing(why).into());
                    }
                }
                continue;
            };
            match frame {
                DiskFrame::Header {
                    format,
                    length,
                    allocated,
                } => {
                    if length.bytes() > largest(transfer.disk) || length.bytes() < self.from {
                        return Err(damaged("the file has an impossible size"));
                    }
                    self.format = Some(format);
                    self.length = length.bytes();
                    self.bytes.total = allocated.bytes();
                }
                DiskFrame::Block { offset, bytes } => {
                    if offset < self.from {
                        return Err(damaged("a block arrives twice"));
                    }
                    let size = u64::try_from(bytes.len()).unwrap_or(0);
                    self.bytes.done = self.bytes.done.saturating_add(size);
                    if !self.writer.add(offset, bytes).await {
                        // The writer says why.
                        let why = transfer.describe("it cannot be written");
                        return Err(Failure::passing(why).into());
                    }
                }
                DiskFrame::Alive => continue,
                DiskFrame::End { hash } => return Ok(hash),
            }
            progress(Bytes {
                done: self.had.saturating_add(self.writer.written()),
                ..self.bytes
            });
        }
    }
}

/// Why a disk was not copied.
enum CopyError {
    /// What was received cannot be used.
    Damaged(String),
    /// Another reason. What was received is kept.
    Failed(Failure),
}

impl From<Failure> for CopyError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where to continue, the hash of what is there, and how many bytes these are.
async fn resume(file: &Arc<File>) -> Result<(u64, BlockHasher, u64), CopyError> {
    let file = Arc::clone(file);
    let hashed = blocking::on_a_thread(move || {
        let length = file.metadata()?.len();
        let from = length - length % BLOCK;
        file.set_len(from)?;
        let mut hasher = BlockHasher::default();
        let mut had = 0_u64;
        for_each_block(&file, from, |offset, block| {
            if let Some(block) = block {
                hasher.add(offset, block.bytes());
                had = had.saturating_add(u64::try_from(block.bytes().len()).unwrap_or(0));
            }
            true
        })?;
        Ok((from, hasher, had))
    });
    hashed
        .await
        .map_err(|error| Failure::passing(format!("cannot read what was received: {error}")).into())
}
