//! The format in which one node sends a disk to another one during a move. Integers are unsigned and big-endian.
//!
//! ```text
//! header   8 bytes  "wfdisk03"
//!          u8       format of the file: 1 qcow2, 2 raw
//!          u64      length of the file in bytes
//!          u64      bytes of it that are allocated, for progress
//! block    u8       1
//!          u64      offset in the file, a multiple of 1 MiB
//!          u32      length, at most 1 MiB
//!          bytes
//! alive    u8       2
//! end      u8       0
//!          32 bytes BLAKE3 of the file's blocks
//! ```
//!
//! The file is that of the volume as the sender's pool stores it. A receiver whose pool stores volumes in another format converts it.
//! `alive` shows that the sender still reads: it skips what is zero, and what the receiver of a resumed transfer has.
//!
//! Blocks are sent in the order of their offsets. A block that consists of zeros is not sent. The hash covers, for every
//! block that does not consist of zeros, its offset (u64), its length (u32) and its bytes, in the same order. So it is the
//! hash of the contents, whatever the source's filesystem has allocated, and the receiver of a resumed transfer computes the
//! first part from what it has. It is there to notice damage: the connection proves who sends. A format with another hash has
//! another number in its first bytes, and is refused.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use waifud_kit::buffers::{Buffer, BufferPool};
use waifud_types::{ByteSize, DiskFormat};

/// Bytes of a block, except for the last one of a file.
pub const BLOCK: u64 = 1 << 20;

/// The length of the hash in bytes.
pub const HASH: usize = 32;

const MAGIC: &[u8; 8] = b"wfdisk03";
const HEADER_LENGTH: usize = MAGIC.len() + 1 + 8 + 8;
const QCOW2: u8 = 1;
const RAW: u8 = 2;
const BLOCK_TAG: u8 = 1;
/// The bytes before those of a block.
pub const BLOCK_HEADER: usize = 1 + 8 + 4;
const END_TAG: u8 = 0;
const ALIVE_TAG: u8 = 2;

/// A part of a transfer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskFrame {
    /// The first one.
    Header {
        /// Format of the file.
        format: DiskFormat,
        /// Length of the file.
        length: ByteSize,
        /// Bytes of it that are allocated.
        allocated: ByteSize,
    },
    /// Bytes of the file.
    Block {
        /// Offset in the file.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// The sender still reads.
    Alive,
    /// The last one.
    End {
        /// BLAKE3 of the file's blocks.
        hash: [u8; HASH],
    },
}

/// Why a transfer cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskFrameError {
    /// It does not begin with a header of this format.
    #[error("the disk arrives in an unknown format")]
    UnknownFormat,
    /// A block is too long, not in its place or outside the file, or a part has an unknown type.
    #[error("the disk arrives with an invalid block at byte {offset}")]
    InvalidBlock {
        /// Offset of the block, or of the last valid one.
        offset: u64,
    },
}

impl DiskFrame {
    /// The bytes to send.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Header {
                format,
                length,
                allocated,
            } => {
                out.put_slice(MAGIC);
                out.put_u8(match format {
                    DiskFormat::Qcow2 => QCOW2,
                    DiskFormat::Raw => RAW,
                });
                out.put_u64(length.bytes());
                out.put_u64(allocated.bytes());
            }
            Self::Block { offset, bytes } => return encode_block(*offset, bytes),
            Self::Alive => out.put_u8(ALIVE_TAG),
            Self::End { hash } => {
                out.put_u8(END_TAG);
                out.put_slice(hash);
            }
        }
        out.freeze()
    }
}

/// The bytes to send of a block.
fn encode_block(offset: u64, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(BLOCK_HEADER + bytes.len());
    out.put_slice(&block_header(offset, bytes.len()));
    out.put_slice(bytes);
    out.freeze()
}

/// The bytes to send before those of a block of this length.
pub fn block_header(offset: u64, length: usize) -> [u8; BLOCK_HEADER] {
    let mut header = [0; BLOCK_HEADER];
    let mut out = header.as_mut_slice();
    out.put_u8(BLOCK_TAG);
    out.put_u64(offset);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    header
}

/// Splits received bytes into frames, and checks that the blocks are in order and inside the file.
#[derive(Debug)]
pub struct DiskDecoder {
    /// What follows the last frame, or the block that arrives.
    buffer: BytesMut,
    length: Option<u64>,
    /// The end of the last block.
    at: u64,
    block: Option<ArrivingBlock>,
    blocks: BufferPool,
}

/// A block of which a part may be missing.
#[derive(Debug)]
struct ArrivingBlock {
    offset: u64,
    buffer: Buffer,
    length: usize,
    filled: usize,
}

impl Default for DiskDecoder {
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            length: None,
            at: 0,
            block: None,
            blocks: BufferPool::new(usize::try_from(BLOCK).unwrap_or(usize::MAX)),
        }
    }
}

impl DiskDecoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let rest = self.fill(bytes);
        self.buffer.extend_from_slice(rest);
    }

    /// Adds bytes to the block that arrives. Returns those after it.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(space) = self.space() else {
            return bytes;
        };
        let count = space.len().min(bytes.len());
        let (now, rest) = bytes.split_at(count);
        if let Some(space) = space.get_mut(..count) {
            space.copy_from_slice(now);
        }
        self.filled(count);
        rest
    }

    /// Where the next received bytes belong, while a block arrives; then [`filled`](Self::filled). Otherwise `None`.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        let block = self.block.as_mut()?;
        block.buffer.as_mut().get_mut(block.filled..block.length)
    }

    /// Bytes were written to the beginning of [`space`](Self::space).
    pub fn filled(&mut self, count: usize) {
        if let Some(block) = &mut self.block {
            block.filled = block.length.min(block.filled.saturating_add(count));
        }
    }

    /// The next frame; `None` until more bytes have arrived.
    pub fn frame(&mut self) -> Result<Option<DiskFrame>, DiskFrameError> {
        let Some(length) = self.length else {
            return self.header();
        };
        if self.block.is_some() {
            return Ok(self.arrived());
        }
        match self.buffer.first() {
            None => Ok(None),
            Some(&END_TAG) => Ok(self.end()),
            Some(&ALIVE_TAG) => {
                self.buffer.advance(1);
                Ok(Some(DiskFrame::Alive))
            }
            Some(&BLOCK_TAG) => self.block(length),
            Some(_) => Err(DiskFrameError::InvalidBlock { offset: self.at }),
        }
    }

    fn header(&mut self) -> Result<Option<DiskFrame>, DiskFrameError> {
        let known = self.buffer.len().min(MAGIC.len());
        if self.buffer.get(..known) != MAGIC.get(..known) {
            return Err(DiskFrameError::UnknownFormat);
        }
        if self.buffer.len() < HEADER_LENGTH {
            return Ok(None);
        }
        self.buffer.advance(MAGIC.len());
        let format = match self.buffer.get_u8() {
            QCOW2 => DiskFormat::Qcow2,
            RAW => DiskFormat::Raw,
            _ => return Err(DiskFrameError::UnknownFormat),
        };
        let length = self.buffer.get_u64();
        let allocated = self.buffer.get_u64();
        self.length = Some(length);
        Ok(Some(DiskFrame::Header {
            format,
            length: ByteSize(length),
            allocated: ByteSize(allocated),
        }))
    }

    fn block(&mut self, length: u64) -> Result<Option<DiskFrame>, DiskFrameError> {
        let mut head = self.buffer.get(1..).unwrap_or_default();
        if head.len() < BLOCK_HEADER - 1 {
            return Ok(None);
        }
        let offset = head.get_u64();
        let size = u64::from(head.get_u32());
        let fits = offset.checked_add(size).is_some_and(|end| end <= length);
        if size == 0 || size > BLOCK || offset % BLOCK != 0 || offset < self.at || !fits {
            return Err(DiskFrameError::InvalidBlock { offset });
        }
        self.buffer.advance(BLOCK_HEADER);
        self.at = offset.saturating_add(size);
        self.block = Some(ArrivingBlock {
            offset,
            buffer: self.blocks.get(),
            length: usize::try_from(size).unwrap_or(usize::MAX),
            filled: 0,
        });
        let arrived = std::mem::take(&mut self.buffer);
        let rest = self.fill(&arrived).len();
        self.buffer = arrived;
        self.buffer.advance(self.buffer.len() - rest);
        Ok(self.arrived())
    }

    /// The block that arrives, if it is complete.
    fn arrived(&mut self) -> Option<DiskFrame> {
        let block = self.block.take_if(|block| block.filled == block.length)?;
        Some(DiskFrame::Block {
            offset: block.offset,
            bytes: Bytes::from_owner(block.buffer).slice(..block.length),
        })
    }

    fn end(&mut self) -> Option<DiskFrame> {
        let hash: [u8; HASH] = self.buffer.get(1..=HASH)?.try_into().ok()?;
        self.buffer.advance(1 + HASH);
        Some(DiskFrame::End { hash })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut DiskDecoder) -> Result<Vec<DiskFrame>, DiskFrameError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn header(length: u64) -> DiskFrame {
        DiskFrame::Header {
            format: DiskFormat::Raw,
            length: ByteSize(length),
            allocated: ByteSize(length / 2),
        }
    }

    fn block(offset: u64, bytes: Vec<u8>) -> DiskFrame {
        DiskFrame::Block {
            offset,
            bytes: bytes.into(),
        }
    }

    proptest! {
        #[test]
        fn frames_arrive_as_sent_however_the_bytes_are_split(
            blocks in prop::collection::btree_map(0..64_u64, prop::collection::vec(any::<u8>(), 1..200), 0..6),
            pieces in 1..400_usize,
        ) {
            let mut sent = vec![header(65 * BLOCK)];
            sent.extend(blocks.into_iter().map(|(at, bytes)| block(at * BLOCK, bytes)));
            sent.insert(1, DiskFrame::Alive);
            sent.push(DiskFrame::End { hash: [7; HASH] });
            let wire: Vec<u8> = sent.iter().flat_map(|frame| frame.encode().to_vec()).collect();
            let mut decoder = DiskDecoder::default();
            let mut received = Vec::new();
            for piece in wire.chunks(pieces) {
                decoder.push(piece);
                received.extend(all(&mut decoder).unwrap());
            }
            prop_assert_eq!(&received, &sent);

            // The same, with blocks that are received in their place.
            let mut decoder = DiskDecoder::default();
            let mut received = Vec::new();
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                let next = if let Some(space) = decoder.space() {
                    let count = space.len().min(pieces).min(rest.len());
                    let (now, next) = rest.split_at(count);
                    space[..count].copy_from_slice(now);
                    decoder.filled(count);
                    next
                } else {
                    let (now, next) = rest.split_at(pieces.min(rest.len()));
                    decoder.push(now);
                    next
                };
                rest = next;
                received.extend(all(&mut decoder).unwrap());
            }
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), begun: bool) {
            let mut decoder = DiskDecoder::default();
            if begun {
                decoder.push(&header(1 << 30).encode());
            }
            decoder.push(&bytes);
            let _either = all(&mut decoder);
        }
    }

    #[test]
    fn invalid_blocks_are_refused() {
        let length = 3 * BLOCK + 5;
        let refused = |frames: &[DiskFrame]| {
            let mut decoder = DiskDecoder::default();
            decoder.push(&header(length).encode());
            for frame in frames {
                decoder.push(&frame.encode());
            }
            all(&mut decoder).err()
        };
        let at = |offset| Some(DiskFrameError::InvalidBlock { offset });
        assert_eq!(refused(&[block(3 * BLOCK, vec![1; 5])]), None);
        assert_eq!(refused(&[block(3 * BLOCK, vec![1; 6])]), at(3 * BLOCK));
        assert_eq!(refused(&[block(5, vec![1])]), at(5));
        assert_eq!(refused(&[block(0, vec![])]), at(0));
        let long = vec![1; usize::try_from(BLOCK).unwrap() + 1];
        assert_eq!(refused(&[block(0, long)]), at(0));
        let twice = block(BLOCK, vec![1]);
        assert_eq!(refused(&[twice.clone(), twice]), at(BLOCK));
        let last = u64::MAX - BLOCK + 1;
        assert_eq!(refused(&[block(last, vec![1])]), at(last));
    }

    #[test]
    fn another_format_is_refused_at_its_first_bytes() {
        let mut decoder = DiskDecoder::default();
        decoder.push(b"HT");
        assert_eq!(decoder.frame(), Err(DiskFrameError::UnknownFormat));

        // A file in a format that only a newer version knows.
        let mut bytes = header(BLOCK).encode().to_vec();
        bytes[MAGIC.len()] = 3;
        let mut decoder = DiskDecoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.frame(), Err(DiskFrameError::UnknownFormat));
    }
}
