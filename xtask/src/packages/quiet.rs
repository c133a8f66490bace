//! Installs programs without starting their services.
//!
//! Up to libvirt 9, programs and service files are in different packages, and only the programs are installed. From
//! version 11 on (Debian 13, and backports for 12), one package has both and starts the services. The lab runs its own
//! copies in namespaces, so they must not run on the machine itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{cargo, root};

/// invoke-rc.d and deb-systemd-invoke run this program before they start a service; exit code 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The units that packages start, by the beginning of the packages' names.
const UNITS: &[(&str, &[&str])] = &[
    ("libvirt-daemon", LIBVIRT),
    ("unbound", &["unbound.service"]),
];

const LIBVIRT: &[&str] = &[
    "libvirtd.service",
    "libvirtd.socket",
    "libvirtd-ro.socket",
    "libvirtd-admin.socket",
    "libvirt-guests.service",
    "virtlogd.service",
    "virtlogd.socket",
    "virtlogd-admin.socket",
    "virtlockd.service",
    "virtlockd.socket",
    "virtlockd-admin.socket",
];

/// The directories in which systemd finds units.
const UNIT_DIRS: &[&str] = &[
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// While this value exists, installed packages start no services.
pub struct NoServices {
    policy_made: bool,
}

impl NoServices {
    /// Without systemd (in a container), installs a policy until the value is dropped, unless the machine has a policy.
    /// With systemd, masks the units of libvirt and unbound permanently, except those that exist already: they belong to the machine's
    /// owner.
    ///
    /// # Errors
    /// The policy or the masks cannot be installed.
    pub fn start(packages: &[&str]) -> Result<Self> {
        if Path::new("/run/systemd/system").exists() {
            let exists = |unit: &str| {
                UNIT_DIRS
                    .iter()
                    .any(|dir| fs::symlink_metadata(Path::new(dir).join(unit)).is_ok())
            };
            let units = to_mask(packages, exists);
            if !units.is_empty() {
                eprintln!(
                    "services that run in labs and tests only are masked. To use this machine as a node, or to use them, run:"
                );
                eprintln!("  systemctl unmask {}", units.join(" "));
                cargo::run(as_root("systemctl").arg("mask").args(&units))?;
            }
            return Ok(Self { policy_made: false });
        }
        if fs::symlink_metadata(POLICY).is_ok() {
            return Ok(Self { policy_made: false });
        }
        let script = tempfile::NamedTempFile::new()?;
        fs::write(
            script.path(),
            "#!/bin/sh\n# Temporary, by cargo xtask packages\nexit 101\n",
        )?;
        fs::set_permissions(script.path(), fs::Permissions::from_mode(0o755))?;
        cargo::run(
            as_root("install")
                .args(["-m", "755"])
                .arg(script.path())
                .arg(POLICY),
        )?;
        Ok(Self { policy_made: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.policy_made
            && let Err(error) = cargo::run(as_root("rm").args(["-f", POLICY]))
        {
            eprintln!("warning: cannot remove {POLICY}, remove it by hand: {error:#}");
        }
    }
}

/// The units that `packages` would install and that do not exist yet.
fn to_mask(packages: &[&str], exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let installs = |prefix: &str| packages.iter().any(|name| name.starts_with(prefix));
    let services = UNITS.iter().filter(|(prefix, _)| installs(prefix));
    let units = services.flat_map(|(_, units)| units.iter().copied());
    units.filter(|unit| !exists(unit)).collect()
}

fn as_root(program: &str) -> Command {
    match root::sudo() {
        Some(sudo) if !root::is_root() => {
            let mut command = Command::new(sudo);
            command.args(["--", program]);
            command
        }
        _ => Command::new(program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_units_that_are_new_and_only_those_of_installed_packages_are_masked() {
        assert!(to_mask(&["gcc", "libvirt-dev"], |_| false).is_empty());
        assert_eq!(to_mask(&["libvirt-daemon"], |_| false), LIBVIRT);
        assert_eq!(to_mask(&["gcc", "unbound"], |_| false), ["unbound.service"]);
        assert!(to_mask(&["libvirt-daemon-driver-qemu"], |_| true).is_empty());
        let masked = to_mask(&["libvirt-daemon"], |unit| unit.starts_with("virtlogd"));
        assert!(
            masked.contains(&"libvirtd.socket")
                && !masked.iter().any(|unit| unit.starts_with("virtlogd"))
        );
    }
}
