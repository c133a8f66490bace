//! Reads what a volume of ours says of itself: its size and the image it lies on.
//!
//! `waifud_types::qcow2::parse` is for files from outside and refuses a backing file; a volume has one by design. The
//! fields are the same (QEMU's `docs/interop/qcow2.txt`, "Header").

use std::path::PathBuf;

use waifud_types::{ByteSize, Digest};

use crate::format::{Backing, empty_image};

/// Bytes that hold the header, its extensions (QEMU writes some 400 bytes of them) and the backing file's name (at most
/// 1,023 bytes) in whatever we or QEMU wrote.
pub(crate) const HEAD: u64 = 4096;

/// What the header of a volume says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Overlay {
    pub(crate) size: ByteSize,
    /// The image; `None` when the name is not one of ours.
    pub(crate) image: Option<Digest>,
    /// Whether it stands for itself: it names no other file.
    pub(crate) alone: bool,
}

/// Reads the first bytes of a volume; `None` when it is no qcow2 file.
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
    Some(Overlay {
        size,
        image,
        alone: at == 0 || length == 0,
    })
}

/// How an overlay names its image: relative to itself, so that a pool can be mounted elsewhere.
fn backing_name(image: Digest) -> PathBuf {
    PathBuf::from(format!("../images/{}.qcow2", image.hex()))
}

/// A fresh volume's bytes.
pub(crate) fn fresh(size: ByteSize, image: Digest) -> Result<Vec<u8>, crate::format::FormatError> {
    empty_image(size, Some(Backing(&backing_name(image))), b"")
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
    fn what_we_write_is_what_we_read() {
        let image = Digest::from_bytes([0x5a; 32]);
        let bytes = fresh(ByteSize::gib(20), image).unwrap();
        let seen = parse(&bytes).unwrap();
        assert_eq!(seen.size, ByteSize::gib(20));
        assert_eq!((seen.image, seen.alone), (Some(image), false));
        let alone = parse(&empty_image(ByteSize::gib(1), None, b"").unwrap()).unwrap();
        assert_eq!((alone.image, alone.alone), (None, true));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"QFI\xfb".to_vec();
            bytes.extend(tail);
            let _ = parse(&bytes);
        }
    }
}
