//! `cargo xtask packages`: installs the Debian packages that each command needs.
//!
//! No service is left running: only libvirt's programs are installed, not the package that sets up a daemon, and
//! services of newer packages are kept from starting ([`quiet`]). QEMU and libvirt come from one suite. If the machine
//! already has QEMU's tools from backports, the rest comes from backports too ([`plan`]).

mod apt;
mod plan;
mod python;
mod quiet;
mod sources;

pub use python::install as install_python;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::root;

/// The command that needs packages. Each includes the packages of those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum For {
    /// Compile everything
    Build,
    /// Build guest images
    Image,
    /// Run a node on this machine
    Lab,
    /// Create and configure a VM
    Demo,
    /// Run every test
    Test,
}

/// One package: since which command, its name, and why.
type Line = (For, &'static str, &'static str);

const LINES: &[Line] = &[
    (For::Build, "gcc", "links, and compiles SQLite"),
    (For::Build, "libc6-dev", "C headers"),
    (For::Build, "pkg-config", "finds libvirt"),
    (For::Build, "libvirt-dev", "libvirt's headers"),
    (For::Image, "cpio", "packs the tiny guest's initramfs"),
    (For::Image, "fdisk", "checks partition tables"),
    (For::Image, "grub-common", "boots images"),
    (For::Lab, "qemu-system-x86", "runs guests"),
    (For::Lab, "qemu-utils", "creates disks"),
    (
        For::Lab,
        "libvirt-daemon",
        "libvirtd, which the lab starts in its own namespaces",
    ),
    (
        For::Lab,
        "libvirt-daemon-driver-qemu",
        "libvirt's QEMU driver",
    ),
    (For::Lab, "libvirt-clients", "virsh, to inspect libvirt"),
    (For::Lab, "dnsmasq-base", "DHCP and DNS for guests"),
    (For::Lab, "nftables", "the guests' firewall"),
    (For::Lab, "iproute2", "configures the lab's network"),
    (For::Lab, "util-linux", "nsenter and setpriv"),
    (
        For::Lab,
        "redis-tools",
        "Redis' server, without the service that redis-server adds, and redis-cli",
    ),
    (For::Lab, "openssl", "creates the certificate of Redis"),
    (For::Lab, "iperf3", "measures the mesh between nodes"),
    (
        For::Lab,
        "wireguard-go",
        "what the mesh is compared with, and a foreign client of it",
    ),
    (For::Lab, "wireguard-tools", "configures wireguard-go"),
    (For::Demo, "openssh-client", "logs in to guests"),
    (For::Test, "iputils-ping", "checks the lab's network"),
    (For::Lab, "ovmf", "boots guests with UEFI"),
    (For::Test, "iptables", "simulates Docker and ufw"),
    (
        For::Test,
        "unbound",
        "a resolver that asks nodes about guests' names; its service is not started",
    ),
    (
        For::Test,
        "libsystemd-shared",
        "libraries of systemd-resolved, which asks nodes about guests' names and is not installed",
    ),
    (
        For::Test,
        "btrfs-progs",
        "creates a filesystem that supports reflinks",
    ),
    (
        For::Test,
        "xfsprogs",
        "creates another filesystem that supports reflinks",
    ),
    (For::Test, "procps", "lists processes"),
    (For::Test, "curl", "calls the API"),
    (
        For::Test,
        "python3-venv",
        "holds schemathesis, which tests the API against its description",
    ),
    (
        For::Test,
        "python3",
        "runs cloud-init's own client against our metadata",
    ),
    (
        For::Test,
        "python3-botocore",
        "an AWS SDK that reads our metadata as programs in guests do",
    ),
    (For::Test, "python3-requests", "imported by cloud-init"),
    (For::Test, "python3-yaml", "imported by cloud-init"),
    (For::Test, "python3-jinja2", "imported by cloud-init"),
    (For::Test, "python3-configobj", "imported by cloud-init"),
    (For::Test, "python3-jsonpatch", "imported by cloud-init"),
    (For::Test, "python3-jsonschema", "imported by cloud-init"),
    (For::Test, "python3-oauthlib", "imported by cloud-init"),
    (For::Test, "git", "lists files for the lints"),
    (For::Test, "lintian", "checks the Debian package"),
];

#[derive(clap::Parser)]
pub struct Args {
    /// The command that needs the packages
    #[arg(value_enum, default_value = "test")]
    command: For,
    /// Print the command that installs them, and do nothing
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
    eprintln!("all packages are installed");
    Ok(())
}

/// Installs the missing packages of `command`: "build", "image", "lab", "demo" or "test".
///
/// # Errors
/// There is neither root nor sudo (the error contains the command to run), or apt fails.
pub fn ensure(command: &str) -> Result<()> {
    install(For::from_str(command, true).map_err(anyhow::Error::msg)?)
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
            "installing packages needs root or sudo; as root, run:\n  {}",
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
            "apt-get succeeded, but these packages are not installed: {}",
            still.join(" ")
        );
    }
    Ok(())
}

/// The packages that `command` needs, without duplicates, with the reasons.
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
    fn later_commands_include_the_packages_of_earlier_ones_without_duplicates() {
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
    fn no_package_that_sets_up_a_service_is_installed() {
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
