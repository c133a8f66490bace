//! GRUB without `grub-install`: its two images, and the sector numbers that `grub-bios-setup` would write into them.
//!
//! The offsets are GRUB's own, from `include/grub/i386/pc/boot.h` and `include/grub/offsets.h` (2.06 and 2.12 agree).
//! Both images look for their configuration on partition 1 of *the disk that they were started from*, so a second disk
//! cloned from the same image changes nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::gpt::Layout;
use crate::run::Tool;

const PREFIX: &str = "(,gpt1)/boot/grub";
const BIOS_BOOT_SECTOR: &str = "/usr/lib/grub/i386-pc/boot.img";
const BIOS_MODULES: [&str; 5] = ["biosdisk", "part_gpt", "ext2", "normal", "linux"];
const EFI_MODULES: [&str; 6] = ["part_gpt", "fat", "ext2", "normal", "linux", "efi_gop"];

/// Offset in the boot sector of the core image's sector number, which has 8 bytes.
const KERNEL_SECTOR: usize = 0x5c;
/// Offset of the BIOS drive to load from; 0xff stands for the boot drive.
const BOOT_DRIVE: usize = 0x64;
/// Offset of a jump that skips a workaround for BIOSes with a wrong drive number. `grub-bios-setup` removes it on hard
/// disks.
const DRIVE_CHECK: usize = 0x66;
/// From this offset on, the boot sector contains data of the disk (its id and partition records).
const DISK_OWN: usize = 0x1b8;
/// The first block list in the core image's first sector: start (8 bytes), sectors (2), segment to load to (2).
const BLOCK_LIST: usize = 0x200 - 12;
/// The rest of the core image is loaded directly after its first sector.
const LOAD_SEGMENT: u16 = 0x820;

/// The blocks that make the disk boot with a BIOS: (byte offset, bytes).
pub fn bios_blocks(layout: &Layout, work: &Path) -> Result<Vec<(u64, Vec<u8>)>> {
    let core = work.join("core.img");
    make_image("i386-pc", &BIOS_MODULES, &core, "grub-pc-bin")?;
    let core = fs::read(&core).context("cannot read the image that grub-mkimage created")?;
    let boot = fs::read(BIOS_BOOT_SECTOR).with_context(|| {
        format!("cannot read {BIOS_BOOT_SECTOR}; run: apt-get install --no-install-recommends grub-pc-bin")
    })?;
    ensure!(
        core.len() as u64 <= layout.bios.bytes(),
        "GRUB's core image does not fit into its partition"
    );
    Ok(vec![
        (0, patch_boot_sector(&boot, layout.bios.first)?),
        (layout.bios.offset(), patch_core(core, layout.bios.first)?),
    ])
}

/// Writes the EFI program that firmware starts from `EFI/BOOT/BOOTX64.EFI`.
pub fn efi_program(out: &Path) -> Result<()> {
    make_image("x86_64-efi", &EFI_MODULES, out, "grub-efi-amd64-bin")
}

fn make_image(platform: &str, modules: &[&str], out: &Path, package: &'static str) -> Result<()> {
    ensure!(
        Path::new("/usr/lib/grub").join(platform).is_dir(),
        "GRUB's {platform} modules are not installed; run: apt-get install --no-install-recommends {package}"
    );
    Tool::new("grub-mkimage", "grub-common")
        .args(["-O", platform, "-p", PREFIX, "-o"])
        .arg(out)
        .args(modules)
        .run()?;
    Ok(())
}

/// The code of the boot sector, with the sector number of the core image. Its end belongs to the partition table.
fn patch_boot_sector(boot: &[u8], core_sector: u64) -> Result<Vec<u8>> {
    ensure!(
        boot.len() == 512,
        "GRUB's boot sector is {} bytes long instead of 512",
        boot.len()
    );
    let mut code = boot.get(..DISK_OWN).unwrap_or_default().to_vec();
    put(&mut code, KERNEL_SECTOR, &core_sector.to_le_bytes())?;
    put(&mut code, BOOT_DRIVE, &[0xff])?;
    put(&mut code, DRIVE_CHECK, &[0x90, 0x90])?;
    Ok(code)
}

/// The core image, padded to complete sectors, with the position of its own rest.
fn patch_core(mut core: Vec<u8>, core_sector: u64) -> Result<Vec<u8>> {
    core.resize(core.len().next_multiple_of(512), 0);
    let rest = u16::try_from(core.len().saturating_sub(1) / 512)
        .context("GRUB's core image is too long for one block list")?;
    put(&mut core, BLOCK_LIST, &(core_sector + 1).to_le_bytes())?;
    put(&mut core, BLOCK_LIST + 8, &rest.to_le_bytes())?;
    put(&mut core, BLOCK_LIST + 10, &LOAD_SEGMENT.to_le_bytes())?;
    Ok(core)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    image
        .get_mut(at..at + bytes.len())
        .context("a GRUB image is too short to be patched")?
        .copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_sector_points_to_the_core_image_and_leaves_the_partition_table_alone() {
        let mut boot = vec![0x11; 512];
        boot[0x66..0x68].copy_from_slice(&[0xeb, 0x05]);
        let code = patch_boot_sector(&boot, 2048).unwrap();
        assert_eq!(code.len(), 0x1b8);
        assert_eq!(code[0x5c..0x64], 2048_u64.to_le_bytes());
        assert_eq!(code[0x64], 0xff);
        assert_eq!(code[0x66..0x68], [0x90, 0x90]);
        assert!(code[..0x5c].iter().all(|byte| *byte == 0x11));
    }

    #[test]
    fn the_core_image_is_padded_and_counts_the_sectors_of_its_rest() {
        let core = patch_core(vec![0x22; 1300], 2048).unwrap();
        assert_eq!(core.len(), 1536);
        assert_eq!(core[0x1f4..0x1fc], 2049_u64.to_le_bytes());
        assert_eq!(core[0x1fc..0x1fe], 2_u16.to_le_bytes());
        assert_eq!(core[0x1fe..0x200], 0x820_u16.to_le_bytes());
        assert_eq!(core[1299..1301], [0x22, 0]);
    }

    #[test]
    fn images_of_an_unexpected_size_are_refused() {
        assert!(patch_boot_sector(&[0; 511], 1).is_err());
        assert!(patch_core(Vec::new(), 1).is_err());
        assert!(patch_core(vec![0; 512 * 70_000], 1).is_err());
    }
}
