//! Parts of tests that need a module of the kernel. No package adds a module to a running kernel that was built without it, so
//! these are the only skips that `WAIFUD_TEST_NO_SKIP=1` allows. They are reported like all others.

use std::fmt;
use std::fs;
use std::path::Path;

use super::{report_skipped, skip};

/// Kernel modules. If the kernel lacks one, the parts of tests that need it may be skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelModule {
    /// WireGuard in the kernel. Without it, waifud uses a TUN device.
    WireGuard,
    /// Bridges that call iptables, as Docker enables them.
    BrNetfilter,
    /// Rules that know the VLAN of a bridge's port.
    NftMetaBridge,
}

impl KernelModule {
    /// The list of allowed skips.
    pub const ALL: [Self; 3] = [Self::WireGuard, Self::BrNetfilter, Self::NftMetaBridge];

    /// The module's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WireGuard => "wireguard",
            Self::BrNetfilter => "br_netfilter",
            Self::NftMetaBridge => "nft_meta_bridge",
        }
    }

    /// Returns whether the calling test must skip `part`, which needs this module; `usable` says whether it works.
    ///
    /// # Panics
    /// The module is installed and not loaded, and skipping is forbidden: the test fails.
    #[must_use]
    #[track_caller]
    pub fn skips(self, usable: bool, part: &str) -> bool {
        if usable {
            return false;
        }
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        if self.is_installed(Path::new("/"), release) {
            skip(&format!("{part}: load the kernel module: modprobe {self}"));
        } else {
            let allowed = Self::ALL.map(Self::name).join(", ");
            report_skipped(&format!(
                "{part}: kernel {release} has no module {self} (allowed skips: kernels without {allowed})"
            ));
        }
        true
    }

    /// Whether the kernel below this root has the module: loaded, built in, or as a file.
    fn is_installed(self, root: &Path, release: &str) -> bool {
        let modules = root.join("lib/modules").join(release);
        let file = format!("/{self}.ko");
        root.join("sys/module").join(self.name()).exists()
            || ["modules.dep", "modules.builtin"].iter().any(|list| {
                let list = fs::read_to_string(modules.join(list)).unwrap_or_default();
                list.lines().any(|line| line.contains(&file))
            })
    }
}

impl fmt::Display for KernelModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_available_if_it_is_loaded_built_in_or_on_disk() {
        let module = KernelModule::WireGuard;
        let of = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            module.is_installed(root.path(), "6.1.0")
        };
        let file = "kernel/drivers/net/wireguard/wireguard.ko";
        assert!(!of(&[]));
        assert!(of(&[("sys/module/wireguard/refcnt", "0")]));
        assert!(of(&[("lib/modules/6.1.0/modules.builtin", file)]));
        let compressed = format!("{file}.xz: kernel/lib/curve.ko.xz");
        assert!(of(&[("lib/modules/6.1.0/modules.dep", &compressed)]));
        // Another kernel's, and another module.
        assert!(!of(&[("lib/modules/6.2.0/modules.builtin", file)]));
        let other = "kernel/drivers/net/not_wireguard.ko:";
        assert!(!of(&[("lib/modules/6.1.0/modules.dep", other)]));
    }

    #[test]
    fn a_test_is_not_skipped_if_the_module_is_usable() {
        for module in KernelModule::ALL {
            assert!(!module.skips(true, "a part"));
        }
    }
}
