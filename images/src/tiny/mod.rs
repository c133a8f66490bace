//! The tiny guest: Debian's cloud kernel, busybox, dropbear and the guest agent on a disk that boots with GRUB. A shell
//! script replaces cloud-init. It is for tests: under emulation it is ready in seconds, with 96 MiB of memory.
//!
//! Its users `root` and `debian` are both root. Both are locked and accept only SSH keys from the metadata.

mod cpio;
mod libraries;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::Guest;
use crate::bootstrap::Bootstrap;
use crate::disk::{self, FileSystems};
use crate::run::Tool;
use crate::tree::Tree;

/// The size of the disk.
const DISK_BYTES: u64 = 128 << 20;

/// The packages of its parts.
pub const PACKAGES: [&str; 4] = [
    "linux-image-cloud-amd64",
    "busybox-static",
    "dropbear-bin",
    "qemu-guest-agent",
];

/// The modules that are needed to mount the root file system.
const DISK_MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4"];
/// More modules of a running guest: devices of our domains, the cidata disk, the power button.
const MODULES: [&str; 8] = [
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "sr_mod",
    "isofs",
    "button",
    "evdev",
];

const PROGRAMS: [&str; 3] = [
    "usr/sbin/dropbear",
    "usr/bin/dropbearkey",
    "usr/sbin/qemu-ga",
];

const INIT: &str = include_str!("../../guest/tiny/init");
const GRUB: &str = include_str!("../../guest/tiny/grub.cfg");

/// Path, mode and contents of our own files.
const FILES: [(&str, u32, &str); 17] = [
    (
        "etc/inittab",
        0o644,
        include_str!("../../guest/tiny/inittab"),
    ),
    ("lib/tiny/rcS", 0o755, include_str!("../../guest/tiny/rcS")),
    (
        "lib/tiny/counter",
        0o755,
        include_str!("../../guest/tiny/counter"),
    ),
    (
        "lib/tiny/dhcp",
        0o755,
        include_str!("../../guest/tiny/dhcp"),
    ),
    (
        "lib/tiny/metadata",
        0o755,
        include_str!("../../guest/tiny/metadata"),
    ),
    (
        "sbin/shutdown",
        0o755,
        include_str!("../../guest/tiny/shutdown"),
    ),
    ("usr/bin/sudo", 0o755, include_str!("../../guest/tiny/sudo")),
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\ndebian:x:0:0:debian:/home/debian:/bin/sh\n",
    ),
    (
        "etc/shadow",
        0o600,
        "root:*:19000:0:99999:7:::\ndebian:*:19000:0:99999:7:::\n",
    ),
    ("etc/group", 0o644, "root:x:0:\ntty:x:5:\n"),
    ("etc/shells", 0o644, "/bin/sh\n"),
    (
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
    ("etc/hostname", 0o644, "tiny\n"),
    ("etc/resolv.conf", 0o644, ""),
    ("etc/issue", 0o644, "waifud's tiny test guest\n"),
    (
        "etc/os-release",
        0o644,
        "ID=waifud-tiny\nID_LIKE=debian\nNAME=\"waifud tiny\"\nPRETTY_NAME=\"waifud's tiny test guest\"\n",
    ),
];

const DIRECTORIES: [&str; 14] = [
    "bin",
    "dev",
    "etc/dropbear",
    "home/debian",
    "mnt",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "var/lib/cloud",
    "var/log",
];

/// Every text that goes into the image, with its path.
pub fn texts() -> Vec<&'static str> {
    let mut texts = vec![INIT, GRUB];
    texts.extend(FILES.iter().flat_map(|(path, _, text)| [*path, *text]));
    texts.extend(DISK_MODULES);
    texts.extend(MODULES);
    texts.extend(PROGRAMS);
    texts
}

/// Builds the image in `work` and returns the path of the qcow2. `digest` is that of its recipe.
pub fn make(digest: &str, work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    progress("fetching packages");
    let packages = work.join("packages");
    Bootstrap {
        suite: Guest::Tiny.suite(),
        variant: "extract",
        packages: &PACKAGES,
        options: &[],
    }
    .run(work, &packages)?;

    progress("assembling the guest");
    let root = work.join("root");
    fs::create_dir(&root).context("cannot create the guest's tree")?;
    assemble(&packages, &Tree::new(&root), &FileSystems::of(digest))?;
    disk::make(&root, digest, DISK_BYTES, work, progress)
}

fn assemble(packages: &Path, tree: &Tree, names: &FileSystems) -> Result<()> {
    for directory in DIRECTORIES {
        tree.dir(directory)?;
    }
    for (path, mode, text) in FILES {
        tree.file(path, mode, text)?;
    }

    let busybox = packages.join("bin/busybox");
    tree.copy(&busybox, "bin/busybox", 0o755)?;
    let applets = Tool::new(busybox.display().to_string(), "busybox-static")
        .arg("--list")
        .run()?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        tree.link(&format!("bin/{applet}"), "busybox")?;
    }
    tree.link("sbin/init", "../bin/busybox")?;

    for program in PROGRAMS {
        tree.copy(&packages.join(program), program, 0o755)?;
        for library in libraries::of(packages, program)? {
            tree.copy(&library.on_host, &library.in_guest, 0o755)?;
        }
    }

    let kernel = modules::Kernel::find(packages)?;
    tree.copy(&kernel.image(), "boot/vmlinuz", 0o644)?;
    let mut archive = cpio::Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &read(&busybox)?);
    for (position, module) in kernel.closure(&DISK_MODULES)?.iter().enumerate() {
        archive.file(
            &in_order("modules", position, module),
            0o644,
            &read(module)?,
        );
    }
    // Not compressed: in an emulated guest, unpacking takes longer than reading. The disk image is compressed.
    tree.file("boot/initrd.img", 0o644, archive.finish())?;
    for (position, module) in kernel.closure(&MODULES)?.iter().enumerate() {
        tree.copy(
            module,
            &in_order("lib/tiny/modules", position, module),
            0o644,
        )?;
    }
    tree.file("boot/grub/grub.cfg", 0o644, names.fill_in(GRUB))
}

/// A name that sorts in load order.
fn in_order(directory: &str, position: usize, module: &Path) -> String {
    let name = module.file_name().unwrap_or_default().to_string_lossy();
    format!("{directory}/{position:02}-{name}")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
