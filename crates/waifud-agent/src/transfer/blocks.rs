//! The blocks of a file that do not consist of zeros, and their hash.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use waifud_api::disk_transfer::{BLOCK, HASH};
use waifud_kit::sha256::Hasher;
use waifud_types::ByteSize;

/// The hash of a file's blocks.
#[derive(Clone, Default)]
pub(super) struct BlockHasher(Hasher);

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
        self.0.finish()
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

/// Calls `each` with the blocks before byte `end` that are not in a hole, in order, until it returns false: `None` for a
/// block of zeros. `end` is the end of the file or a multiple of the size of a block. Blocks.
pub(super) fn for_each_block(
    file: &File,
    end: u64,
    mut each: impl FnMut(u64, Option<&[u8]>) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(BLOCK).map_err(io::Error::other)?];
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
        let block = buffer.get_mut(..length).unwrap_or_default();
        file.read_exact_at(block, offset)?;
        let block = Some(&*block).filter(|block| !is_zero(block));
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
