//! Writes empty qcow2 files, alone or on top of another: a few kilobytes, without starting a tool.
//!
//! Format: QEMU's `docs/interop/qcow2.txt`, version 3 with the refcount order 4 (16 bits). The layout is the
//! smallest that is whole: header, refcount table, one or more refcount blocks, L1 table; every cluster after those
//! is allocated by QEMU when the guest first writes. Pure: bytes in memory, tested against `qemu-img check`.

use std::path::Path;

use waifud_types::ByteSize;

/// 64 KiB, what `qemu-img create` takes by default.
pub(crate) const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the version 3 header that we write, as QEMU does: up to and with the compression type and its padding.
const HEADER_LENGTH: u32 = 112;
/// An L1 entry maps one L2 table, which has a cluster full of 8-byte entries: 512 MiB with clusters of 64 KiB.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
/// A refcount block has a cluster full of 2-byte counts.
const CLUSTERS_PER_REFCOUNT_BLOCK: u64 = CLUSTER / 2;
/// Header extension: the backing file's format (qcow2.txt, "Header extensions").
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of a backing file that the format allows.
const BACKING_NAME_MAX: usize = 1023;

/// The file on which an overlay lies; it must be qcow2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backing<'a>(pub &'a Path);

/// Why no file can be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("the backing file's path is longer than 1023 bytes")]
    BackingNameTooLong,
    #[error("the disk is larger than this layout can map")]
    TooLarge,
}

/// The bytes of an empty image of the given size; sizes are rounded up to whole sectors of 512 bytes.
///
/// `note` is kept in a header extension that tools ignore; it makes otherwise equal images differ.
pub(crate) fn empty_image(
    size: ByteSize,
    backing: Option<Backing<'_>>,
    note: &[u8],
) -> Result<Vec<u8>, FormatError> {
    use std::os::unix::ffi::OsStrExt;

    let size = size.bytes().div_ceil(512).saturating_mul(512);
    let backing = backing.map(|Backing(path)| path.as_os_str().as_bytes());
    if backing.is_some_and(|name| name.len() > BACKING_NAME_MAX) {
        return Err(FormatError::BackingNameTooLong);
    }

    let l1_entries = size.div_ceil(BYTES_PER_L1_ENTRY).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    // One block of refcounts covers 32,768 clusters, far more than any L1 that fits: the largest disk that the
    // table of one cluster maps is 4 TiB, and a hundred of those still need 101 clusters only.
    let used = 3 + l1_clusters;
    if used > CLUSTERS_PER_REFCOUNT_BLOCK {
        return Err(FormatError::TooLarge);
    }
    let l1_entries = u32::try_from(l1_entries).map_err(|_| FormatError::TooLarge)?;

    let mut header = Vec::with_capacity(512);
    header.extend(b"QFI\xfb");
    header.extend(3_u32.to_be_bytes());
    let backing_at = header.len();
    header.extend(0_u64.to_be_bytes());
    header.extend(0_u32.to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // no encryption
    header.extend(l1_entries.to_be_bytes());
    header.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // refcount table
    header.extend(1_u32.to_be_bytes()); // its clusters
    header.extend(0_u32.to_be_bytes()); // no snapshots
    header.extend(0_u64.to_be_bytes());
    header.extend([0_u8; 24]); // no feature bits
    header.extend(4_u32.to_be_bytes()); // refcounts of 1 << 4 bits
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend([0_u8; 8]); // zlib, padding

    if backing.is_some() {
        extension(&mut header, EXTENSION_BACKING_FORMAT, b"qcow2");
    }
    if !note.is_empty() {
        // Any number that the format does not define: tools keep and ignore it.
        extension(&mut header, 0x7761_6966, note);
    }
    header.extend([0_u8; 8]); // end of the extensions
    if let Some(name) = backing {
        let offset = u64::try_from(header.len()).map_err(|_| FormatError::TooLarge)?;
        let length = u32::try_from(name.len()).map_err(|_| FormatError::BackingNameTooLong)?;
        overwrite(&mut header, backing_at, &offset.to_be_bytes());
        overwrite(&mut header, backing_at + 8, &length.to_be_bytes());
        header.extend(name);
    }

    let total = usize::try_from(used * CLUSTER).map_err(|_| FormatError::TooLarge)?;
    let cluster = usize::try_from(CLUSTER).map_err(|_| FormatError::TooLarge)?;
    if header.len() > cluster {
        return Err(FormatError::BackingNameTooLong);
    }
    let mut file = header;
    file.resize(total, 0);
    overwrite(&mut file, cluster, &(2 * CLUSTER).to_be_bytes()); // the table's only block
    let counts = usize::try_from(used).map_err(|_| FormatError::TooLarge)?;
    for index in 0..counts {
        overwrite(&mut file, 2 * cluster + 2 * index, &1_u16.to_be_bytes());
    }
    Ok(file)
}

fn extension(header: &mut Vec<u8>, kind: u32, data: &[u8]) {
    header.extend(kind.to_be_bytes());
    header.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    header.extend(data);
    header.resize(header.len().next_multiple_of(8), 0);
}

fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = file.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use waifud_types::qcow2;

    #[test]
    fn an_empty_image_is_one_that_we_would_import() {
        let image = empty_image(ByteSize::gib(2), None, b"").unwrap();
        let header = qcow2::parse(&image).unwrap();
        assert_eq!(header.virtual_size, ByteSize::gib(2));
        assert_eq!(image.len(), 4 << 16);
    }

    #[test]
    fn an_overlay_is_none() {
        let path = Path::new("/images/a.qcow2");
        let overlay = empty_image(ByteSize::gib(2), Some(Backing(path)), b"").unwrap();
        assert_eq!(qcow2::parse(&overlay), Err(qcow2::Qcow2Error::BackingFile));
    }

    #[test]
    fn notes_tell_images_apart() {
        let make = |note: &[u8]| empty_image(ByteSize::mib(1), None, note).unwrap();
        assert_ne!(make(b"a"), make(b"b"));
    }

    #[test]
    fn a_name_that_the_format_has_no_room_for_is_refused() {
        let long = format!("/{}", "a".repeat(1100));
        let refused = empty_image(ByteSize::mib(1), Some(Backing(Path::new(&long))), b"");
        assert_eq!(refused, Err(FormatError::BackingNameTooLong));
    }

    proptest! {
        #[test]
        fn sizes_are_kept_in_whole_sectors(bytes in 1_u64..(64 << 40)) {
            let image = empty_image(ByteSize(bytes), None, b"").unwrap();
            let size = qcow2::parse(&image).unwrap().virtual_size.bytes();
            prop_assert!(size >= bytes && size - bytes < 512 && size.is_multiple_of(512));
        }
    }
}
