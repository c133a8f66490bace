//! Reads the header of a volume: its size and its image.
//!
//! `waifud_types::qcow2::parse` is for untrusted files and refuses backing files, but a volume has one. The fields are
//! the same (QEMU's `docs/interop/qcow2.txt`, "Header").

use std::path::{Path, PathBuf};

use waifud_types::{ByteSize, Digest, DiskFormat};

use crate::format::{Backing, empty_image};

/// The number of bytes that contain the header, its extensions (QEMU writes about 400 bytes of them) and the name of
/// the backing file (at most 1,023 bytes), whether waifud or QEMU wrote them.
pub(crate) const HEAD: u64 = 4096;

/// The contents of a volume's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Overlay {
    pub(crate) size: ByteSize,
    /// The image; `None` if the name of the backing file is not that of an image in the pool.
    pub(crate) image: Option<Digest>,
    /// Whether it is standalone: it has no backing file.
    pub(crate) standalone: bool,
    /// Whether the data is in another file, or encrypted. No volume of waifud is.
    pub(crate) foreign: bool,
}

/// The incompatible feature "external data file".
const EXTERNAL_DATA_FILE: u64 = 1 << 2;

/// Parses the first bytes of a volume; `None` if it is not a qcow2 file.
pub(crate) fn parse(head: &[u8]) -> Option<Overlay> {
    if head.get(..4)? != b"QFI\xfb" {
        return None;
    }
    let size = ByteSize(number(head, 24, 8)?);
    let at = usize::try_from(number(head, 8, 8)?).ok()?;
    let length = usize::try_from(number(head, 16, 4)?).ok()?;
    let name = head.get(at..at.checked_add(length)?)?;
    let image = std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.rsplit('/').next())
        .and_then(|file| file.strip_suffix(".qcow2"))
        .and_then(|hex| hex.parse().ok());
    // Version 2 has no feature bits.
    let features = match number(head, 4, 4)? {
        2 => 0,
        _ => number(head, 72, 8)?,
    };
    let encryption = number(head, 32, 4)?;
    Some(Overlay {
        size,
        image,
        standalone: at == 0 || length == 0,
        foreign: features & EXTERNAL_DATA_FILE != 0 || encryption != 0,
    })
}

/// The backing file's name in an overlay: a relative path, so that a pool can be mounted elsewhere.
pub(crate) fn backing_name(image: Digest) -> PathBuf {
    PathBuf::from(format!("../images/{}.qcow2", image.hex()))
}

/// The bytes of a new volume.
pub(crate) fn new_volume(
    size: ByteSize,
    image: Digest,
) -> Result<Vec<u8>, crate::format::FormatError> {
    let name = backing_name(image);
    empty_image(size, Some(Backing(&name, DiskFormat::Qcow2)), b"")
}

/// The bytes of an overlay on a raw file in the directory of volumes.
pub(crate) fn on_raw_file(
    size: ByteSize,
    name: &Path,
) -> Result<Vec<u8>, crate::format::FormatError> {
    empty_image(size, Some(Backing(name, DiskFormat::Raw)), b"")
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_header_of_a_new_volume_is_parsed() {
        let image = Digest::from_bytes([0x5a; 32]);
        let bytes = new_volume(ByteSize::gib(20), image).unwrap();
        let header = parse(&bytes).unwrap();
        assert_eq!(header.size, ByteSize::gib(20));
        assert_eq!((header.image, header.standalone), (Some(image), false));
        let standalone = parse(&empty_image(ByteSize::gib(1), None, b"").unwrap()).unwrap();
        assert_eq!((standalone.image, standalone.standalone), (None, true));
        assert!(!header.foreign && !standalone.foreign);
    }

    #[test]
    fn external_data_and_encryption_are_noticed() {
        let bytes = new_volume(ByteSize::gib(20), Digest::from_bytes([1; 32])).unwrap();
        for (at, value) in [(79, 4), (35, 2)] {
            let mut changed = bytes.clone();
            changed[at] = value;
            assert!(parse(&changed).unwrap().foreign, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"QFI\xfb".to_vec();
            bytes.extend(tail);
            let _ = parse(&bytes);
        }
    }
}
