//! Parses the header of a qcow2 file, so that hostile images are refused before any tool opens them.
//!
//! Format: QEMU's `docs/interop/qcow2.txt`. Only the header is parsed, in safe code. A reference to another file (a
//! backing file, an external data file) is a reason to refuse the image; the file is never opened.

use crate::ByteSize;

/// Maximum number of bytes that `parse` needs: the fixed part of a version 3 header.
pub const HEADER_BYTES: usize = 112;

/// The header of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Qcow2Header {
    /// 2 or 3.
    pub version: u32,
    /// Virtual size of the image.
    pub virtual_size: ByteSize,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
}

/// Why an image is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The magic `QFI\xfb` is missing.
    #[error("not a qcow2 image")]
    NotQcow2,
    /// The file ends within its header.
    #[error("the image ends within its header")]
    Truncated,
    /// An unknown version.
    #[error("qcow2 version {0} is not supported (only 2 and 3)")]
    UnknownVersion(u32),
    /// The image has a backing file.
    #[error("the image has a backing file, which is not allowed")]
    BackingFile,
    /// The image has an external data file.
    #[error("the image has an external data file, which is not allowed")]
    ExternalData,
    /// Encrypted images cannot be cloned for other instances.
    #[error("the image is encrypted")]
    Encrypted,
    /// The image is marked corrupt or dirty.
    #[error("the image is marked corrupt or was not closed properly")]
    Damaged,
    /// Unknown incompatible features.
    #[error("the image requires unknown features (bits {0:#x})")]
    UnknownFeatures(u64),
    /// A cluster size outside of the format's limits (512 bytes to 2 MiB).
    #[error("the image's cluster size is out of range")]
    ClusterSize,
    /// Internal snapshots contain data that a guest should not inherit.
    #[error("the image has internal snapshots; flatten it first")]
    Snapshots,
    /// The virtual size is zero or too large.
    #[error("the virtual size of the image, {0}, is out of range")]
    AbsurdSize(ByteSize),
}

/// A compression format of downloads, which `qemu-img` cannot read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packing {
    /// Name of the format, for example `xz`.
    pub name: &'static str,
    /// The program that decompresses it.
    pub tool: &'static str,
    magic: &'static [u8],
}

/// Known compression formats.
const PACKINGS: [Packing; 5] = [
    Packing {
        name: "xz",
        tool: "unxz",
        magic: b"\xfd7zXZ\0",
    },
    Packing {
        name: "gzip",
        tool: "gunzip",
        magic: b"\x1f\x8b",
    },
    Packing {
        name: "zstd",
        tool: "unzstd",
        magic: b"\x28\xb5\x2f\xfd",
    },
    Packing {
        name: "bzip2",
        tool: "bunzip2",
        magic: b"BZh",
    },
    Packing {
        name: "zip",
        tool: "unzip",
        magic: b"PK\x03\x04",
    },
];

/// Detects the compression format of a file by its first bytes; `None` if it is not compressed or the format is
/// unknown.
pub fn packing(head: &[u8]) -> Option<Packing> {
    PACKINGS
        .into_iter()
        .find(|packing| head.starts_with(packing.magic))
}

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// Parses the first bytes of a file (112, or all if there are fewer).
pub fn parse(head: &[u8]) -> Result<Qcow2Header, Qcow2Error> {
    let u32_at = |at: usize| -> Result<u32, Qcow2Error> {
        let bytes = head.get(at..at + 4).ok_or(Qcow2Error::Truncated)?;
        bytes
            .try_into()
            .map(u32::from_be_bytes)
            .map_err(|_| Qcow2Error::Truncated)
    };
    let u64_at = |at: usize| -> Result<u64, Qcow2Error> {
        Ok(u64::from(u32_at(at)?) << 32 | u64::from(u32_at(at + 4)?))
    };

    if head.get(..4) != Some(b"QFI\xfb") {
        return Err(Qcow2Error::NotQcow2);
    }
    let version = u32_at(4)?;
    if !(2..=3).contains(&version) {
        return Err(Qcow2Error::UnknownVersion(version));
    }
    if u64_at(8)? != 0 || u32_at(16)? != 0 {
        return Err(Qcow2Error::BackingFile);
    }
    let cluster_bits = u32_at(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Qcow2Error::ClusterSize);
    }
    let virtual_size = ByteSize(u64_at(24)?);
    if u32_at(32)? != 0 {
        return Err(Qcow2Error::Encrypted);
    }
    if u32_at(60)? != 0 {
        return Err(Qcow2Error::Snapshots);
    }
    if version == 3 {
        let incompatible = u64_at(72)?;
        if incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 {
            return Err(Qcow2Error::ExternalData);
        }
        if incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) != 0 {
            return Err(Qcow2Error::Damaged);
        }
        let unknown = incompatible & !(INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2);
        if unknown != 0 {
            return Err(Qcow2Error::UnknownFeatures(unknown));
        }
    }
    if virtual_size.bytes() == 0 || virtual_size > crate::spec::limits::DISK_MAX {
        return Err(Qcow2Error::AbsurdSize(virtual_size));
    }
    Ok(Qcow2Header {
        version,
        virtual_size,
        cluster_bits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Vec<u8> {
        let mut head = vec![0; HEADER_BYTES];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[7] = 3;
        head[23] = 16;
        head[24..32].copy_from_slice(&(2_u64 << 30).to_be_bytes());
        head
    }

    fn with(at: usize, value: u8) -> Result<Qcow2Header, Qcow2Error> {
        let mut head = header();
        head[at] = value;
        parse(&head)
    }

    #[test]
    fn a_valid_header_gives_its_size() {
        assert_eq!(parse(&header()).unwrap().virtual_size, ByteSize::gib(2));
    }

    #[test]
    fn each_hostile_header_is_refused_with_its_reason() {
        assert_eq!(parse(b"PNG"), Err(Qcow2Error::NotQcow2));
        assert_eq!(parse(b"QFI\xfb\0\0"), Err(Qcow2Error::Truncated));
        assert_eq!(with(7, 9), Err(Qcow2Error::UnknownVersion(9)));
        assert_eq!(with(15, 1), Err(Qcow2Error::BackingFile));
        assert_eq!(with(19, 1), Err(Qcow2Error::BackingFile));
        assert_eq!(with(23, 40), Err(Qcow2Error::ClusterSize));
        assert_eq!(with(35, 2), Err(Qcow2Error::Encrypted));
        assert_eq!(with(63, 1), Err(Qcow2Error::Snapshots));
        assert_eq!(with(79, 4), Err(Qcow2Error::ExternalData));
        assert_eq!(with(79, 2), Err(Qcow2Error::Damaged));
        assert_eq!(with(79, 64), Err(Qcow2Error::UnknownFeatures(64)));
        assert!(matches!(with(24, 0x7f), Err(Qcow2Error::AbsurdSize(_))));
    }

    #[test]
    fn compression_and_extended_l2_entries_are_accepted() {
        assert_eq!(with(79, 1), Err(Qcow2Error::Damaged));
        for accepted in [0, 8, 16, 24] {
            let header = with(79, accepted).unwrap();
            assert_eq!((header.version, header.cluster_bits), (3, 16), "{accepted}");
        }
    }

    #[test]
    fn the_largest_disk_is_accepted_and_a_larger_one_is_not() {
        let max = crate::spec::limits::DISK_MAX;
        let sized = |size: u64| {
            let mut head = header();
            head[24..32].copy_from_slice(&size.to_be_bytes());
            parse(&head).map(|header| header.virtual_size)
        };
        assert_eq!(sized(max.bytes()), Ok(max));
        for size in [0, max.bytes() + 1] {
            assert_eq!(sized(size), Err(Qcow2Error::AbsurdSize(ByteSize(size))));
        }
    }

    #[test]
    fn compressed_downloads_are_recognized_by_their_first_bytes() {
        let name = |head: &[u8]| packing(head).map(|packing| packing.name);
        assert_eq!(name(b"\xfd7zXZ\0\0\x04"), Some("xz"));
        assert_eq!(name(b"\x1f\x8b\x08\0"), Some("gzip"));
        assert_eq!(name(b"\x28\xb5\x2f\xfd\x24"), Some("zstd"));
        assert_eq!(name(b"BZh9"), Some("bzip2"));
        assert_eq!(name(b"PK\x03\x04"), Some("zip"));
        assert_eq!(name(&header()), None);
        assert_eq!(name(b""), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_cause_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            if magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _ = parse(&bytes);
        }
    }
}
