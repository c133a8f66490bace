//! Writes empty qcow2 files, standalone or as overlays: a few kilobytes, without running a tool.
//!
//! Format: QEMU's `docs/interop/qcow2.txt`, version 3 with the refcount order 4 (16 bits). The layout is the smallest
//! complete one: header, refcount table, one or more refcount blocks, L1 table. QEMU allocates all further clusters
//! when the guest first writes. No I/O; the tests run `qemu-img check` on the result.

use std::path::Path;

use waifud_types::{ByteSize, DiskFormat};

/// 64 KiB, the default of `qemu-img create`.
pub(crate) const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// The size of the version 3 header in bytes, as QEMU writes it: up to and including the compression type and its
/// padding.
const HEADER_LENGTH: u32 = 112;
/// An L1 entry refers to one L2 table, a cluster full of 8-byte entries: 512 MiB with clusters of 64 KiB.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
/// A refcount block has a cluster full of 2-byte counts.
const CLUSTERS_PER_REFCOUNT_BLOCK: u64 = CLUSTER / 2;
/// Header extension: the backing file's format (qcow2.txt, "Header extensions").
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of a backing file that the format allows.
const BACKING_NAME_MAX: usize = 1023;

/// The backing file of an overlay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backing<'a>(pub &'a Path, pub DiskFormat);

/// Why a file cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("the backing file's path is longer than 1023 bytes")]
    BackingNameTooLong,
    #[error("the disk is larger than the qcow2 layout supports")]
    TooLarge,
}

/// The bytes of an empty image of the given size, which is rounded up to whole sectors of 512 bytes.
///
/// `note` is stored in a header extension that tools ignore. It makes otherwise equal images differ.
pub(crate) fn empty_image(
    size: ByteSize,
    backing: Option<Backing<'_>>,
    note: &[u8],
) -> Result<Vec<u8>, FormatError> {
    use std::os::unix::ffi::OsStrExt;

    let size = size.bytes().div_ceil(512).saturating_mul(512);
    let backing = backing.map(|Backing(path, format)| (path.as_os_str().as_bytes(), format));
    if backing.is_some_and(|(name, _)| name.len() > BACKING_NAME_MAX) {
        return Err(FormatError::BackingNameTooLong);
    }

    let l1_entries = size.div_ceil(BYTES_PER_L1_ENTRY).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    // One refcount block covers 32,768 clusters, far more than any supported L1 table: the largest disk with a table of
    // one cluster has 4 TiB, and a hundred of these tables need only 101 clusters.
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

    if let Some((_, format)) = backing {
        let format = format.as_str().as_bytes();
        extension(&mut header, EXTENSION_BACKING_FORMAT, format);
    }
    if !note.is_empty() {
        // An extension type that the format does not define, so tools keep and ignore it.
        extension(&mut header, 0x7761_6966, note);
    }
    header.extend([0_u8; 8]); // end of the extensions
    if let Some((name, _)) = backing {
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
    if let Some(target) = file.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use waifud_types::qcow2;

    #[test]
    fn an_empty_image_has_a_valid_header() {
        let image = empty_image(ByteSize::gib(2), None, b"").unwrap();
        let header = qcow2::parse(&image).unwrap();
        assert_eq!(header.virtual_size, ByteSize::gib(2));
        assert_eq!(image.len(), 4 << 16);
    }

    #[test]
    fn the_header_of_an_overlay_is_refused_for_images() {
        let path = Path::new("/images/a.qcow2");
        let overlay = empty_image(
            ByteSize::gib(2),
            Some(Backing(path, DiskFormat::Qcow2)),
            b"",
        )
        .unwrap();
        assert_eq!(qcow2::parse(&overlay), Err(qcow2::Qcow2Error::BackingFile));
    }

    #[test]
    fn images_with_different_notes_differ() {
        let make = |note: &[u8]| empty_image(ByteSize::mib(1), None, note).unwrap();
        assert_ne!(make(b"a"), make(b"b"));
    }

    #[test]
    fn a_backing_name_that_is_too_long_is_refused() {
        let long = format!("/{}", "a".repeat(1100));
        let refused = empty_image(
            ByteSize::mib(1),
            Some(Backing(Path::new(&long), DiskFormat::Qcow2)),
            b"",
        );
        assert_eq!(refused, Err(FormatError::BackingNameTooLong));
    }

    proptest! {
        #[test]
        fn sizes_are_rounded_up_to_whole_sectors(bytes in 1_u64..(64 << 40)) {
            let image = empty_image(ByteSize(bytes), None, b"").unwrap();
            let size = qcow2::parse(&image).unwrap().virtual_size.bytes();
            prop_assert!(size >= bytes && size - bytes < 512 && size.is_multiple_of(512));
        }
    }
}
