//! The partition table, as in Debian's cloud images: root is partition 1 and last on the disk, so that growpart can
//! extend it. Partition 14 contains GRUB for BIOS, and 15 is the EFI system partition.
//!
//! Layout and fields: UEFI specification 2.10, chapter 5 ("GUID Partition Table (GPT) Disk Layout").

use anyhow::{Result, ensure};
use uuid::{Uuid, uuid};

/// Size of a sector in bytes.
pub const SECTOR: u64 = 512;
/// Partitions start and end at multiples of this number of sectors (1 MiB).
const ALIGN: u64 = 2048;
/// 128 entries of 128 bytes.
const ENTRIES: u32 = 128;
const ENTRY_BYTES: u32 = 128;
const TABLE_BYTES: usize = 128 * 128;
const TABLE_SECTORS: u64 = 32;
const HEADER_BYTES: u32 = 92;

const TYPE_BIOS_BOOT: Uuid = uuid!("21686148-6449-6e6f-744e-656564454649");
const TYPE_ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// "Root (x86-64)" of the Discoverable Partitions Specification.
const TYPE_ROOT_AMD64: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");

/// Sectors `first..end` of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first sector.
    pub first: u64,
    /// The sector after the last.
    pub end: u64,
}

impl Extent {
    /// Its offset in bytes.
    pub fn offset(self) -> u64 {
        self.first * SECTOR
    }

    /// Its size in bytes.
    pub fn bytes(self) -> u64 {
        (self.end - self.first) * SECTOR
    }
}

/// The layout of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Sectors of the disk.
    pub sectors: u64,
    /// Partition 14.
    pub bios: Extent,
    /// Partition 15.
    pub esp: Extent,
    /// Partition 1.
    pub root: Extent,
}

impl Layout {
    /// The layout of a disk of `bytes`. An incomplete MiB at the end is not used.
    pub fn new(bytes: u64) -> Result<Self> {
        let sectors = bytes / SECTOR;
        let bios = Extent {
            first: ALIGN,
            end: ALIGN + 3 * ALIGN,
        };
        let esp = Extent {
            first: bios.end,
            end: bios.end + 12 * ALIGN,
        };
        // The backup table and header take the last 33 sectors.
        let usable = sectors.saturating_sub(TABLE_SECTORS + 1);
        let root = Extent {
            first: esp.end,
            end: usable / ALIGN * ALIGN,
        };
        ensure!(
            root.end > root.first,
            "a disk of {bytes} bytes is too small for a root partition"
        );
        Ok(Self {
            sectors,
            bios,
            esp,
            root,
        })
    }
}

/// The partition table's identifiers.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// Of the disk.
    pub disk: Uuid,
    /// Of partition 14.
    pub bios: Uuid,
    /// Of partition 15.
    pub esp: Uuid,
    /// Of partition 1.
    pub root: Uuid,
}

/// The blocks to write: (byte offset, bytes). The first one is the protective MBR's partition record, without boot
/// code.
pub fn blocks(layout: &Layout, ids: &Ids) -> Vec<(u64, Vec<u8>)> {
    let table = table(layout, ids);
    let last = layout.sectors - 1;
    let backup_table = last - TABLE_SECTORS;
    vec![
        (0, protective_mbr(layout.sectors)),
        (SECTOR, header(layout, ids, &table, 1, last, 2)),
        (2 * SECTOR, table.clone()),
        (
            last * SECTOR,
            header(layout, ids, &table, last, 1, backup_table),
        ),
        (backup_table * SECTOR, table),
    ]
}

fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; 446];
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr.extend([0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
    mbr.extend(1_u32.to_le_bytes());
    mbr.extend(size.to_le_bytes());
    mbr.resize(510, 0);
    mbr.extend([0x55, 0xaa]);
    mbr
}

fn table(layout: &Layout, ids: &Ids) -> Vec<u8> {
    let mut table = Vec::new();
    let mut put = |number: usize, kind: Uuid, id: Uuid, extent: Extent, name: &str| {
        table.resize((number - 1) * (TABLE_BYTES / 128), 0);
        table.extend(kind.to_bytes_le());
        table.extend(id.to_bytes_le());
        table.extend(extent.first.to_le_bytes());
        table.extend((extent.end - 1).to_le_bytes());
        table.extend(0_u64.to_le_bytes());
        table.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    };
    put(1, TYPE_ROOT_AMD64, ids.root, layout.root, "root");
    put(14, TYPE_BIOS_BOOT, ids.bios, layout.bios, "bios");
    put(15, TYPE_ESP, ids.esp, layout.esp, "esp");
    table.resize(TABLE_BYTES, 0);
    table
}

fn header(
    layout: &Layout,
    ids: &Ids,
    table: &[u8],
    here: u64,
    other: u64,
    table_at: u64,
) -> Vec<u8> {
    let fill = |checksum: u32| {
        let mut header = Vec::new();
        header.extend(b"EFI PART");
        header.extend(0x0001_0000_u32.to_le_bytes());
        header.extend(HEADER_BYTES.to_le_bytes());
        header.extend(checksum.to_le_bytes());
        header.extend([0; 4]);
        header.extend(here.to_le_bytes());
        header.extend(other.to_le_bytes());
        header.extend((2 + TABLE_SECTORS).to_le_bytes());
        header.extend((layout.sectors - TABLE_SECTORS - 2).to_le_bytes());
        header.extend(ids.disk.to_bytes_le());
        header.extend(table_at.to_le_bytes());
        header.extend(ENTRIES.to_le_bytes());
        header.extend(ENTRY_BYTES.to_le_bytes());
        header.extend(crc32(table).to_le_bytes());
        header
    };
    let mut header = fill(crc32(&fill(0)));
    header.resize(512, 0);
    header
}

/// CRC-32 as of ISO 3309, the polynomial that GPT uses.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Seek as _, SeekFrom, Write as _};

    const IDS: Ids = Ids {
        disk: Uuid::from_u128(1),
        bios: Uuid::from_u128(2),
        esp: Uuid::from_u128(3),
        root: Uuid::from_u128(4),
    };

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        // The check value that every catalog of CRCs lists.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused() {
        assert!(Layout::new(0).is_err());
        assert!(Layout::new(17 << 20).is_err());
        assert!(Layout::new(18 << 20).is_ok());
    }

    proptest! {
        #[test]
        fn partitions_are_aligned_disjoint_and_clear_of_both_tables(bytes in (18_u64 << 20)..(64 << 40)) {
            let layout = Layout::new(bytes).unwrap();
            prop_assert!(2 + TABLE_SECTORS <= layout.bios.first);
            prop_assert_eq!(layout.bios.end, layout.esp.first);
            prop_assert_eq!(layout.esp.end, layout.root.first);
            prop_assert!(layout.root.end < layout.sectors - TABLE_SECTORS);
            for extent in [layout.bios, layout.esp, layout.root] {
                prop_assert!(extent.first < extent.end);
                prop_assert_eq!(extent.first % ALIGN, 0);
                prop_assert_eq!(extent.end % ALIGN, 0);
            }
            // mke2fs counts in blocks of 4 KiB.
            prop_assert_eq!(layout.root.bytes() % 4096, 0);
        }

        #[test]
        fn blocks_stay_inside_of_the_disk_and_off_the_partitions(bytes in (18_u64 << 20)..(64 << 40)) {
            let layout = Layout::new(bytes).unwrap();
            for (at, block) in blocks(&layout, &IDS) {
                let end = at + block.len() as u64;
                prop_assert!(end <= layout.sectors * SECTOR);
                prop_assert!(end <= layout.bios.offset() || at >= layout.root.end * SECTOR);
            }
        }
    }

    #[test]
    fn sfdisk_reads_the_table_without_errors() {
        let layout = Layout::new(64 << 20).unwrap();
        let mut disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(64 << 20).unwrap();
        for (at, block) in blocks(&layout, &IDS) {
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(&block).unwrap();
        }
        let sfdisk = |option: &str| {
            crate::run::Tool::new("sfdisk", "fdisk")
                .arg(option)
                .arg(disk.path())
                .run()
        };
        match sfdisk("--dump") {
            Err(error) if error.to_string().contains("not installed") => {
                waifud_kit::testing::skip(&error.to_string());
            }
            dump => {
                let dump = dump.unwrap();
                assert!(dump.contains("label: gpt"), "{dump}");
                assert!(dump.contains("start=       32768, size="), "{dump}");
                let verdict = sfdisk("--verify").unwrap();
                assert!(verdict.contains("No errors detected"), "{verdict}");
            }
        }
    }
}
