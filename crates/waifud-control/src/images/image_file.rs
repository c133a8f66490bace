//! One image file: its contents, and whether it is still the file that was verified.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use ring::digest::{Context, SHA512};
use waifud_kit::sha256::{Hasher, hex};
use waifud_types::qcow2::HEADER_BYTES;
use waifud_types::{Checksum, ChecksumAlgorithm, Digest};

/// The size of a read.
const CHUNK: usize = 1 << 20;

/// The contents of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Contents {
    /// The SHA-256.
    pub(crate) digest: Digest,
    /// The SHA-512, if requested.
    pub(crate) sha512: Option<Checksum>,
    /// The first bytes, enough for an image header.
    pub(crate) head: Vec<u8>,
    /// The length in bytes.
    pub(crate) length: u64,
}

impl Contents {
    /// The checksum of the algorithm; `None` if it was not computed.
    pub(crate) fn checksum(&self, algorithm: ChecksumAlgorithm) -> Option<Checksum> {
        match algorithm {
            ChecksumAlgorithm::Sha256 => Checksum::from_hex(&self.digest.hex()),
            ChecksumAlgorithm::Sha512 => self.sha512.clone(),
        }
    }
}

/// Reads a file from the start. Blocking.
///
/// It first asks the kernel to drop its cached pages, so that the hash covers the data on the disk. Call it after syncing
/// the file.
pub(crate) fn read_back(file: &File, with_sha512: bool) -> io::Result<Contents> {
    // A filesystem may ignore this advice.
    let _advice = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let mut sha256 = Hasher::default();
    let mut sha512 = with_sha512.then(|| Context::new(&SHA512));
    let mut head = Vec::new();
    let mut length = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = match file.read_at(&mut buffer, length) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        sha256.update(bytes);
        if let Some(sha512) = &mut sha512 {
            sha512.update(bytes);
        }
        keep_head(&mut head, bytes);
        length += bytes.len() as u64;
    }
    Ok(Contents {
        digest: Digest::from_bytes(sha256.finish()),
        sha512: sha512.and_then(|context| Checksum::from_hex(&hex(context.finish().as_ref()))),
        head,
        length,
    })
}

/// Adds bytes until the header is complete.
pub(crate) fn keep_head(head: &mut Vec<u8>, bytes: &[u8]) {
    let missing = HEADER_BYTES.saturating_sub(head.len());
    head.extend(bytes.iter().take(missing));
}

/// Identifies a version of a file by its inode, size and times, as `make` and backup programs do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    place: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(facts: &Metadata) -> Self {
        Self {
            place: (facts.dev(), facts.ino()),
            length: facts.len(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_completely_from_any_offset() {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        file.write_all(&bytes).unwrap();
        file.seek(io::SeekFrom::Start(17)).unwrap();
        let contents = read_back(&file, true).unwrap();
        assert_eq!(contents.length, bytes.len() as u64);
        assert_eq!(contents.digest, waifud_types::Digest::of(&bytes));
        assert_eq!(contents.head, bytes[..HEADER_BYTES]);
        let sha512 = hex(ring::digest::digest(&SHA512, &bytes).as_ref());
        let sha512 = Checksum::from_hex(&sha512);
        assert_eq!(contents.checksum(ChecksumAlgorithm::Sha512), sha512);
        assert_eq!(
            read_back(&file, false)
                .unwrap()
                .checksum(ChecksumAlgorithm::Sha512),
            None
        );
    }
}
