//! The node's view of the file system, which its init creates in a private mount namespace.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::accounts::KVM;
use crate::layout::{HOST_VIEW, OWNED, outside_path};

const NONE: Option<&str> = None;

/// One bind mount. Paths are those of the host.
#[derive(Debug, PartialEq, Eq)]
struct Bind {
    from: PathBuf,
    to: PathBuf,
    /// Includes earlier binds below `from`.
    deep: bool,
}

/// All binds in order: first the visible paths of the host, then the lab's directories over the host's, and last
/// the one that hides the lab's directory.
fn plan(dir: &Path, node: &str, visible: &[PathBuf]) -> Vec<Bind> {
    let mut binds = Vec::new();
    for (path, _) in OWNED.iter().filter(|(_, linked)| *linked) {
        binds.push(Bind {
            from: path.into(),
            to: outside_path(dir, node, Path::new(&format!("{HOST_VIEW}{path}"))),
            deep: false,
        });
    }
    for path in visible {
        let to = outside_path(dir, node, path);
        if to != *path {
            binds.push(Bind {
                from: path.clone(),
                to,
                deep: false,
            });
        }
    }
    let mut covers: Vec<_> = OWNED.iter().map(|(path, _)| Path::new(path)).collect();
    covers.sort_by_key(|path| dir.starts_with(path));
    binds.extend(covers.into_iter().map(|path| Bind {
        from: outside_path(dir, node, path),
        to: path.to_owned(),
        deep: true,
    }));
    binds
}

/// Creates the view in the calling process's mount namespace only.
pub(crate) fn make(dir: &Path, node: &str, visible: &[PathBuf]) -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("cannot make the mounts private")?;
    for bind in plan(dir, node, visible) {
        let flags = if bind.deep {
            MsFlags::MS_BIND | MsFlags::MS_REC
        } else {
            MsFlags::MS_BIND
        };
        mount(Some(&bind.from), &bind.to, NONE, flags, NONE).with_context(|| {
            format!(
                "cannot bind {} on {}",
                bind.from.display(),
                bind.to.display()
            )
        })?;
    }
    read_only(Path::new("/"))?;
    for (path, _) in OWNED.iter().filter(|(_, linked)| *linked) {
        read_only(Path::new(&format!("{HOST_VIEW}{path}")))?;
    }
    for path in visible
        .iter()
        .filter(|path| OWNED.iter().any(|(own, _)| path.starts_with(own)))
    {
        read_only(path)?;
    }
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE)
        .context("cannot mount /proc")?;
    // Detached instead of hidden: libvirt searches the list of mounts for cgroups and must find none.
    let _ = umount2("/sys", MntFlags::MNT_DETACH);
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE)
        .context("cannot mount /sys")?;
    mount(
        Some("tmpfs"),
        "/dev/shm",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=1777"),
    )
    .context("cannot mount /dev/shm")?;
    own_boot_id()?;
    kvm_for_its_group()
}

/// Gives the machine a boot id of its own. Otherwise all machines of the lab have the kernel's, also after their boots.
fn own_boot_id() -> Result<()> {
    let id = std::fs::read("/proc/sys/kernel/random/uuid").context("cannot read a random id")?;
    let file = Path::new(HOST_VIEW).with_file_name("boot-id");
    std::fs::write(&file, id)?;
    let place = Path::new("/proc/sys/kernel/random/boot_id");
    mount(Some(&file), place, NONE, MsFlags::MS_BIND, NONE).context("cannot bind the boot id")?;
    read_only(place)
}

/// Creates `/dev/kvm` for root and the group `kvm`, as udev does on an installed Debian.
///
/// On a host without udev, only root can open it. libvirt queries QEMU's capabilities as root but checks the result
/// as QEMU's user. The two differ, so it queries again: ten times, one second each, for every guest that it starts.
fn kvm_for_its_group() -> Result<()> {
    let kvm = Path::new("/dev/kvm");
    let Ok(data) = kvm.metadata() else {
        return Ok(());
    };
    // On a separate file system: that of the lab's directory may not allow devices.
    let dir = Path::new(HOST_VIEW).with_file_name("dev");
    std::fs::create_dir_all(&dir)?;
    mount(
        Some("tmpfs"),
        &dir,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755"),
    )
    .context("cannot mount devices")?;
    let own = dir.join("kvm");
    mknod(&own, SFlag::S_IFCHR, Mode::empty(), data.rdev()).context("cannot create a device")?;
    std::os::unix::fs::chown(&own, Some(0), Some(KVM))?;
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o660))?;
    mount(Some(&own), kvm, NONE, MsFlags::MS_BIND, NONE).context("cannot bind /dev/kvm")
}

/// Makes `path` read-only in this namespace. The host's own mount keeps its flags.
fn read_only(path: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, path, NONE, flags, NONE)
        .with_context(|| format!("cannot make {} read-only", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bind_that_hides_the_labs_directory_is_last() {
        for (dir, last) in [
            ("/tmp/lab", "/tmp"),
            ("/run/user/0/lab", "/run"),
            ("/var/cache/lab", "/var/cache"),
        ] {
            let plan = plan(Path::new(dir), "alder", &[]);
            assert_eq!(plan.last().unwrap().to, Path::new(last));
        }
    }

    #[test]
    fn a_repository_below_tmp_stays_visible() {
        let plan = plan(
            Path::new("/tmp/lab"),
            "alder",
            &["/tmp/clone/target".into(), "/home/me/target".into()],
        );
        let shown: Vec<_> = plan
            .iter()
            .filter(|bind| bind.from.ends_with("target"))
            .collect();
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].to, Path::new("/tmp/lab/alder/tmp/clone/target"));
    }
}
