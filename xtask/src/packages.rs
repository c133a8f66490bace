//! `cargo xtask packages`: the Debian packages that each command needs, installed when they are missing.
//!
//! Nothing that is installed runs by itself afterwards: of libvirt only the programs, never the package that sets up a
//! daemon for the machine, and what newer packages bring along is kept from starting ([`quiet`]). QEMU and libvirt come from one suite; where the machine already has QEMU's tools from backports,
//! the rest comes from there too ([`plan`]).

mod apt;
mod plan;
mod python;
mod quiet;
mod sources;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::root;

/// Which command packages are for. Each includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum For {
    /// Compile everything
    Build,
    /// Build guest images
    Image,
    /// A node on this machine
    Lab,
    /// From a template to a configured VM
    Demo,
    /// Every test
    Test,
}

/// One package: since which command, its name, and why.
type Line = (For, &'static str, &'static str);

const LINES: &[Line] = &[
    (For::Build, "gcc", "links, and compiles SQLite"),
    (For::Build, "libc6-dev", "headers for it"),
    (For::Build, "pkg-config", "finds libvirt"),
    (For::Build, "libvirt-dev", "libvirt's headers"),
    (For::Image, "cpio", "packs the tiny guest's initramfs"),
    (For::Image, "fdisk", "looks at partition tables"),
    (For::Image, "grub-common", "boots images"),
    (For::Lab, "qemu-system-x86", "runs guests"),
    (For::Lab, "qemu-utils", "makes disks"),
    (
        For::Lab,
        "libvirt-daemon",
        "libvirtd, which the lab starts in its own namespaces",
    ),
    (For::Lab, "libvirt-daemon-driver-qemu", "its driver"),
    (For::Lab, "libvirt-clients", "virsh, to look at it"),
    (For::Lab, "dnsmasq-base", "DHCP and DNS for guests"),
    (For::Lab, "nftables", "the guests' firewall"),
    (For::Lab, "iproute2", "the lab's wires"),
    (For::Lab, "util-linux", "nsenter and setpriv"),
    (For::Demo, "openssh-client", "logs in to guests"),
    (For::Test, "iputils-ping", "asks whether the wires work"),
    (For::Lab, "ovmf", "starts guests by UEFI"),
    (For::Test, "iptables", "plays Docker and ufw"),
    (
        For::Test,
        "btrfs-progs",
        "makes a filesystem that clones files",
    ),
    (For::Test, "xfsprogs", "makes another one"),
    (For::Test, "procps", "asks what runs"),
    (For::Test, "curl", "plays a user of the API"),
    (
        For::Test,
        "python3-venv",
        "has schemathesis, which tries the API against its description",
    ),
    (
        For::Test,
        "python3",
        "runs cloud-init's own client against our metadata",
    ),
    (
        For::Test,
        "python3-botocore",
        "an AWS SDK: asks our metadata as programs in guests do",
    ),
    (For::Test, "python3-requests", "imported by cloud-init"),
    (For::Test, "python3-yaml", "imported by cloud-init"),
    (For::Test, "python3-jinja2", "imported by cloud-init"),
    (For::Test, "python3-configobj", "imported by cloud-init"),
    (For::Test, "python3-jsonpatch", "imported by cloud-init"),
    (For::Test, "python3-jsonschema", "imported by cloud-init"),
    (For::Test, "python3-oauthlib", "imported by cloud-init"),
    (For::Test, "git", "lists our files for the lint"),
    (For::Test, "lintian", "checks the Debian package"),
];

#[derive(clap::Parser)]
pub struct Args {
    /// For which command
    #[arg(value_enum, default_value = "test")]
    command: For,
    /// Only print the command that would install them
    #[arg(long)]
    print: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.print {
        let missing = missing(args.command)?;
        if !missing.is_empty() {
            println!("{}", by_hand(&missing));
        }
        return Ok(());
    }
    install(args.command)?;
    if args.command == For::Test {
        python::install();
    }
    eprintln!("everything is installed");
    Ok(())
}

/// Installs what `command` (a name of [`For`]: "build", "image", "lab", "demo", "test") needs and this machine lacks.
///
/// # Errors
/// Neither root nor sudo, or apt fails; says what to run by hand.
pub fn ensure(command: &str) -> Result<()> {
    let command = For::from_str(command, true).map_err(anyhow::Error::msg)?;
    install(command)?;
    if command == For::Test {
        python::install();
    }
    Ok(())
}

fn install(command: For) -> Result<()> {
    let missing = missing(command)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Debian packages to install:");
    for (name, why) in &missing {
        eprintln!("  {name:<28} {why}");
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    if !root::is_root() && root::sudo().is_none() {
        bail!(
            "this needs root or sudo; as root, run:\n  {}",
            by_hand(&missing)
        );
    }
    plan::install(&names)?;
    let still = apt::installed()?;
    let still: Vec<_> = names
        .into_iter()
        .filter(|name| !still.contains_key(*name))
        .collect();
    if !still.is_empty() {
        bail!(
            "apt-get succeeded, but these are not installed: {}",
            still.join(" ")
        );
    }
    Ok(())
}

/// What `command` needs, once each, with the reason.
fn needed(command: For) -> Vec<(&'static str, &'static str)> {
    let mut list: Vec<(&str, &str)> = LINES
        .iter()
        .filter(|line| line.0 <= command)
        .map(|(_, name, why)| (*name, *why))
        .collect();
    if command >= For::Image {
        for guest in waifud_images::Guest::ALL {
            for name in waifud_images::packages(guest) {
                if !list.iter().any(|(known, _)| known == name) {
                    list.push((name, "builds guest images"));
                }
            }
        }
    }
    list
}

fn missing(command: For) -> Result<Vec<(&'static str, &'static str)>> {
    let installed = apt::installed()?;
    let mut list = needed(command);
    list.retain(|(name, _)| !installed.contains_key(*name));
    Ok(list)
}

fn by_hand(missing: &[(&str, &str)]) -> String {
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    format!(
        "apt-get update && apt-get install --no-install-recommends {}",
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_commands_need_what_earlier_ones_do_and_no_package_twice() {
        let names = |command| {
            needed(command)
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        let (build, test) = (names(For::Build), names(For::Test));
        assert!(build.iter().all(|name| test.contains(name)));
        assert!(!build.contains(&"qemu-system-x86"));
        let mut once = test.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), test.len());
    }

    #[test]
    fn nothing_that_sets_up_a_service_is_installed() {
        for (name, _) in needed(For::Test) {
            assert!(
                ![
                    "libvirt-daemon-system",
                    "dnsmasq",
                    "redis-server",
                    "libvirt-daemon-system-systemd"
                ]
                .contains(&name)
            );
        }
    }
}
