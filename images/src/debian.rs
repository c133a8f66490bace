//! The Debian cloud image: Debian's cloud kernel, systemd-networkd and the real cloud-init with Debian's configuration.
//! The settings here are those of Debian's genericcloud image. Settings of one VM (locale, users, keys, packages) are
//! left to its user-data.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::bootstrap::Bootstrap;
use crate::disk::{self, FileSystems};
use crate::tree::Tree;
use crate::{Guest, sources};

/// The size of the disk. growpart extends the file system to the size of the actual disk.
const DISK_BYTES: u64 = 2 << 30;
/// QEMU, libvirt and their libraries need more.
const NODE_DISK_BYTES: u64 = 4 << 30;

/// The dependencies in `packaging/debian/control` that the image does not contain. With them, a guest that cannot reach
/// a mirror can install the package.
const NODE: [&str; 7] = [
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
    "dnsmasq-base",
    "nftables",
    "iptables",
];

const GRUB: &str = include_str!("../guest/debian/grub.cfg");
const FSTAB: &str = include_str!("../guest/debian/fstab");
const CLOUD: &str = include_str!("../guest/debian/01_debian_cloud.cfg");
const INITRAMFS: &str = include_str!("../guest/debian/initramfs.conf");
const INITRAMFS_MODULES: &str = include_str!("../guest/debian/initramfs-modules");
const BEFORE: &str = include_str!("../guest/debian/before-packages.sh");
const AFTER: &str = include_str!("../guest/debian/after-packages.sh");

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// Documentation that a server does not need. Licenses are kept.
const DPKG_OPTIONS: [&str; 7] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
    // Only for this build. dpkg in the guest syncs as usual.
    "force-unsafe-io",
];

const COMMON: [&str; 32] = [
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "systemd-sysv",
    "systemd-resolved",
    "systemd-timesyncd",
    // As in the published cloud images. cloud-init writes its network configuration for it.
    "netplan.io",
    "libpam-systemd",
    "libnss-resolve",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "cloud-init",
    "cloud-guest-utils",
    "qemu-guest-agent",
    "openssh-server",
    "openssh-client",
    "sudo",
    "iproute2",
    "iputils-ping",
    "netbase",
    "ca-certificates",
    "curl",
    "e2fsprogs",
    "dosfstools",
    "fdisk",
    "tzdata",
    "less",
    "nano",
    "apt-utils",
    "debian-archive-keyring",
];

/// The packages of the image, without their dependencies.
pub fn packages(guest: Guest) -> Vec<&'static str> {
    let mut packages = COMMON.to_vec();
    // cloud-init requests documents before the network is configured, with the DHCP client that it supports in that
    // release.
    packages.push(match guest {
        Guest::DebianTrixie => "dhcpcd-base",
        Guest::DebianBookworm | Guest::DebianNode | Guest::Tiny => "isc-dhcp-client",
    });
    if guest == Guest::DebianNode {
        packages.extend(NODE);
    }
    packages
}

/// Every text that goes into the image.
pub fn texts() -> [&'static str; 8] {
    [
        GRUB,
        FSTAB,
        CLOUD,
        INITRAMFS,
        INITRAMFS_MODULES,
        BEFORE,
        AFTER,
        HOSTS,
    ]
}

/// Builds the image in `work` and returns the path of the qcow2. `digest` is that of its recipe.
pub fn make(guest: Guest, digest: &str, work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let hooks = work.join("hooks");
    write_hooks(&hooks)?;
    let mut options: Vec<String> = DPKG_OPTIONS
        .iter()
        .map(|option| format!("--dpkgopt={option}"))
        .collect();
    options.push(hook("essential", &hooks.join("before-packages.sh")));
    options.push(hook("customize", &hooks.join("after-packages.sh")));

    progress(&format!("installing Debian {}", guest.suite()));
    let root = work.join("root");
    Bootstrap {
        suite: guest.suite(),
        variant: "minbase",
        packages: &packages(guest),
        options: &options,
    }
    .run(work, &root)?;

    progress("configuring the guest");
    let tree = Tree::new(&root);
    configure(&tree, &FileSystems::of(digest))?;
    // mmdebstrap numbers its hook files.
    let sources = "etc/apt/sources.list.d/";
    tree.remove(&format!("{sources}0000{}", sources::FILE))?;
    let mirrors = sources::apt_sources(guest.suite())?;
    tree.file(&format!("{sources}{}", sources::FILE), 0o644, mirrors)?;
    let bytes = if guest == Guest::DebianNode {
        NODE_DISK_BYTES
    } else {
        DISK_BYTES
    };
    disk::make(&root, digest, bytes, work, progress)
}

fn hook(stage: &str, script: &Path) -> String {
    format!("--{stage}-hook={}", script.display())
}

fn write_hooks(dir: &Path) -> Result<()> {
    let put = |name: &str, text: &str| -> std::io::Result<()> {
        let path = dir.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    fs::create_dir(dir)
        .and_then(|()| put("before-packages.sh", BEFORE))
        .and_then(|()| put("after-packages.sh", AFTER))
        .and_then(|()| put("initramfs.conf", INITRAMFS))
        .and_then(|()| put("initramfs-modules", INITRAMFS_MODULES))
        .context("cannot write the hooks for mmdebstrap")
}

fn configure(tree: &Tree, names: &FileSystems) -> Result<()> {
    tree.file("etc/fstab", 0o644, names.fill_in(FSTAB))?;
    tree.file("boot/grub/grub.cfg", 0o644, names.fill_in(GRUB))?;
    tree.dir("boot/efi")?;
    tree.file("etc/cloud/cloud.cfg.d/01_debian_cloud.cfg", 0o644, CLOUD)?;
    tree.file("etc/hostname", 0o644, "localhost\n")?;
    tree.file("etc/hosts", 0o644, HOSTS)?;
    tree.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?;

    // Each VM creates its own at its first boot.
    tree.file("etc/machine-id", 0o444, "")?;
    tree.remove("var/lib/dbus/machine-id")?;
    tree.remove("var/lib/systemd/random-seed")?;
    for kind in ["rsa", "dsa", "ecdsa", "ed25519"] {
        let key = format!("etc/ssh/ssh_host_{kind}_key");
        tree.remove(&key)?;
        tree.remove(&format!("{key}.pub"))?;
    }
    // The host's settings are for this build only. The guest starts with Debian's defaults.
    tree.remove("etc/apt/apt.conf.d/99mmdebstrap")?;
    tree.remove("etc/dpkg/dpkg.cfg.d/99mmdebstrap")?;
    for log in ["alternatives.log", "bootstrap.log", "dpkg.log"] {
        tree.remove(&format!("var/log/{log}"))?;
    }
    Ok(())
}
