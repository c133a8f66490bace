//! The blocks of a file that do not consist of zeros, and their hash.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use waifud_api::disk_transfer::{BLOCK, BLOCK_HEADER, HASH, block_header};
use waifud_kit::buffers::{Buffer, BufferPool};
use waifud_types::ByteSize;

/// The hash of a file's blocks.
#[derive(Clone, Default)]
pub(super) struct BlockHasher(blake3::Hasher);

impl BlockHasher {
    /// Adds a block.
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.update(&offset.to_be_bytes());
        self.0.update(&length.to_be_bytes());
        self.0.update(bytes);
    }

    /// The hash of all blocks.
    pub(super) fn finish(self) -> [u8; HASH] {
        self.0.finalize().into()
    }
}

/// The length of a file, or of a block device, and how many bytes of it are allocated. Blocks.
pub(super) fn sizes(file: &File) -> io::Result<(ByteSize, ByteSize)> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        // `st_blocks` counts units of 512 bytes: stat(2).
        let allocated = metadata.blocks().saturating_mul(512);
        return Ok((ByteSize(metadata.len()), ByteSize(allocated)));
    }
    let end = lseek(file, 0, Whence::SeekEnd)?;
    let length = u64::try_from(end).map_err(io::Error::other)?;
    Ok((ByteSize(length), ByteSize(length)))
}

/// A block that was read, with space for the bytes that are sent before it.
pub(crate) struct ReadBlock {
    buffers: BufferPool,
    buffer: Buffer,
    length: usize,
}

impl ReadBlock {
    fn new() -> io::Result<Self> {
        let block = usize::try_from(BLOCK).map_err(io::Error::other)?;
        let buffers = BufferPool::new(BLOCK_HEADER + block);
        Ok(Self {
            buffer: buffers.get(),
            buffers,
            length: 0,
        })
    }

    /// Space for a block of this length.
    fn space(&mut self, length: usize) -> &mut [u8] {
        self.length = length;
        let after = self.buffer.as_mut().get_mut(BLOCK_HEADER..);
        after
            .and_then(|it| it.get_mut(..length))
            .unwrap_or_default()
    }

    /// The bytes of the block.
    pub fn bytes(&self) -> &[u8] {
        let after = self.buffer.as_ref().get(BLOCK_HEADER..);
        after
            .and_then(|it| it.get(..self.length))
            .unwrap_or_default()
    }

    /// The block as it is sent. It is not copied, so the bytes are gone here.
    pub fn take_frame(&mut self, offset: u64) -> Bytes {
        let header = block_header(offset, self.length);
        if let Some(to) = self.buffer.as_mut().first_chunk_mut() {
            *to = header;
        }
        let buffer = std::mem::replace(&mut self.buffer, self.buffers.get());
        Bytes::from_owner(buffer).slice(..BLOCK_HEADER + self.length)
    }
}

/// Calls `each` with the blocks before byte `end` that are not in a hole, in order, until it returns false: `None` for a
/// block of zeros. `end` is the end of the file or a multiple of the size of a block. Blocks.
pub(super) fn for_each_block(
    file: &File,
    end: u64,
    mut each: impl FnMut(u64, Option<&mut ReadBlock>) -> bool,
) -> io::Result<()> {
    let mut read = ReadBlock::new()?;
    let mut offset = 0;
    while offset < end {
        let Some(data) = next_data(file, offset)? else {
            return Ok(());
        };
        offset = data - data % BLOCK;
        if offset >= end {
            return Ok(());
        }
        let length = usize::try_from(BLOCK.min(end - offset)).map_err(io::Error::other)?;
        let space = read.space(length);
        file.read_exact_at(space, offset)?;
        let block = if is_zero(space) {
            None
        } else {
            Some(&mut read)
        };
        if !each(offset, block) {
            return Ok(());
        }
        offset = offset.saturating_add(BLOCK);
    }
    Ok(())
}

/// The offset of the next byte that is not in a hole; `None` if only a hole follows.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(Some(u64::try_from(data).map_err(io::Error::other)?)),
        Err(Errno::ENXIO) => Ok(None),
        // A block device has no holes.
        Err(Errno::EINVAL) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
