//! Turns a directory into a disk that boots with BIOS and with UEFI.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use uuid::Uuid;

use crate::gpt::{self, Ids, Layout};
use crate::run::Tool;
use crate::{grub, hash};

/// The identifiers of the file systems, derived from the recipe.
pub struct FileSystems {
    /// Of the root file system.
    pub root: Uuid,
    /// The volume serial number of the EFI system partition.
    pub esp: u32,
}

impl FileSystems {
    /// Of the image that `recipe` (its digest) describes.
    pub fn of(recipe: &str) -> Self {
        let (esp, ..) = hash::derived_uuid(recipe, "esp file system").as_fields();
        Self {
            root: hash::derived_uuid(recipe, "root file system"),
            esp,
        }
    }

    /// Replaces `@ROOT_UUID@` and `@ESP_UUID@` in a text.
    pub fn fill_in(&self, text: &str) -> String {
        let esp = format!("{:04X}-{:04X}", self.esp >> 16, self.esp & 0xffff);
        text.replace("@ROOT_UUID@", &self.root.to_string())
            .replace("@ESP_UUID@", &esp)
    }
}

/// Writes `root` to a qcow2 disk of `bytes` and returns its path in `work`.
pub fn make(
    root: &Path,
    recipe: &str,
    bytes: u64,
    work: &Path,
    progress: &dyn Fn(&str),
) -> Result<PathBuf> {
    let layout = Layout::new(bytes)?;
    let ids = Ids {
        disk: hash::derived_uuid(recipe, "disk"),
        bios: hash::derived_uuid(recipe, "bios partition"),
        esp: hash::derived_uuid(recipe, "esp partition"),
        root: hash::derived_uuid(recipe, "root partition"),
    };
    let names = FileSystems::of(recipe);
    let raw = work.join("disk.raw");
    let out = work.join("disk.qcow2");

    progress("writing the file system");
    let mut disk = File::create_new(&raw).context("cannot create the raw disk")?;
    disk.set_len(bytes).context("cannot size the raw disk")?;
    Tool::new("mke2fs", "e2fsprogs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096"])
        // Features that mke2fs of newer hosts enables and GRUB 2.06 cannot read.
        .args(["-O", "^metadata_csum_seed,^orphan_file"])
        .arg("-U")
        .arg(names.root.to_string())
        .arg("-E")
        .arg(format!(
            "offset={},hash_seed={}",
            layout.root.offset(),
            names.root
        ))
        .arg("-d")
        .arg(root)
        .arg(&raw)
        .arg((layout.root.bytes() / 4096).to_string())
        .limit(Duration::from_mins(10))
        .run()?;

    progress("writing the boot loaders");
    let mut blocks = gpt::blocks(&layout, &ids);
    // The boot code comes after the protective MBR, whose first part it replaces.
    blocks.extend(grub::bios_blocks(&layout, work)?);
    blocks.push((layout.esp.offset(), esp(&layout, &names, work)?));
    for (at, block) in blocks {
        disk.seek(SeekFrom::Start(at))
            .and_then(|_| disk.write_all(&block))
            .context("cannot write to the raw disk")?;
    }
    drop(disk);

    progress("compressing the image");
    // zstd halves the file in a few seconds. A smaller image is imported and copied faster.
    Tool::new("qemu-img", "qemu-utils")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-c"])
        .args(["-o", "compression_type=zstd", "-m", "4"])
        .arg(&raw)
        .arg(&out)
        .limit(Duration::from_mins(10))
        .run()?;
    Ok(out)
}

fn esp(layout: &Layout, names: &FileSystems, work: &Path) -> Result<Vec<u8>> {
    let program = work.join("BOOTX64.EFI");
    grub::efi_program(&program)?;
    let image = work.join("esp.img");
    File::create_new(&image)
        .and_then(|file| file.set_len(layout.esp.bytes()))
        .context("cannot create the EFI system partition")?;
    Tool::new("mkfs.vfat", "dosfstools")
        .args(["-n", "UEFI", "-i"])
        .arg(format!("{:08x}", names.esp))
        .arg(&image)
        .run()?;
    let mtool = |name: &str| Tool::new(name, "mtools").arg("-i").arg(&image);
    mtool("mmd").args(["::/EFI", "::/EFI/BOOT"]).run()?;
    mtool("mcopy").arg(&program).arg("::/EFI/BOOT/").run()?;
    std::fs::read(&image).context("cannot read the EFI system partition")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_files_refer_to_the_file_systems_of_its_recipe() {
        let names = FileSystems {
            root: Uuid::from_u128(7),
            esp: 0x12ab_0034,
        };
        assert_eq!(
            names.fill_in("root=UUID=@ROOT_UUID@ UUID=@ESP_UUID@"),
            "root=UUID=00000000-0000-0000-0000-000000000007 UUID=12AB-0034"
        );
    }
}
