//! The lab's directory, which is written before any process starts.
//!
//! `DIR/NODE/run`, `etc`, `tmp`, `var/lib`, `var/log`, `var/cache` become those directories of the node. Entries of the
//! host's `/etc`, `/var/lib` and `/var/cache` that the lab does not replace are symbolic links into
//! `/run/waifud-lab/host`, where the node's init binds the originals. So no mount point is created on the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::accounts::{self, Caller};
use crate::files;
use crate::options::{LabSpec, MachineSpec};
use crate::redis;
use crate::stale::remove;

/// Directories of a node that belong to the lab. Those with `true` contain links to the host's other entries.
pub(crate) const OWNED: [(&str, bool); 6] = [
    ("/etc", true),
    ("/var/lib", true),
    ("/var/cache", true),
    ("/var/log", false),
    ("/tmp", false),
    ("/run", false),
];

/// Those that are empty after a boot.
const VOLATILE: [&str; 2] = ["/tmp", "/run"];

/// The place inside a node of the originals of the linked directories.
pub(crate) const HOST_VIEW: &str = "/run/waifud-lab/host";

/// The path outside of the node's `path`. Paths that do not belong to the lab are the same inside and outside.
pub(crate) fn outside_path(dir: &Path, node: &str, path: &Path) -> PathBuf {
    let owned = OWNED.iter().any(|(own, _)| path.starts_with(own));
    match (owned, path.strip_prefix("/")) {
        (true, Ok(relative)) => dir.join(node).join(relative),
        _ => path.to_owned(),
    }
}

/// Writes all files of `node` below `dir`.
pub(crate) fn write(
    dir: &Path,
    spec: &LabSpec,
    node: &MachineSpec,
    extra: &[(PathBuf, String)],
) -> Result<()> {
    let caller = Caller::look();
    let root = dir.join(&node.name);
    let place = |path: &str| root.join(path.trim_start_matches('/'));
    directory(&root, 0, 0o711)?;
    directory(&place("/var"), 0, 0o755)?;
    for (path, _) in OWNED.iter().filter(|(path, _)| !VOLATILE.contains(path)) {
        directory(&place(path), 0, 0o755)?;
    }
    for (path, uid, mode) in directories(node) {
        if !is_volatile(path) {
            directory(&place(path), uid, mode)?;
        }
    }
    power_cycle(dir, spec, node)?;
    for (path, text) in texts(spec, node, caller) {
        let target = place(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))?;
    }
    if node.redis {
        redis::write(&place("/etc"), node)?;
    }
    for (path, text) in extra {
        let target = outside_path(dir, &node.name, path);
        if target == *path || path.components().any(|part| part == Component::ParentDir) {
            bail!("{} is not in a directory that the lab owns", path.display());
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))?;
    }
    for (path, _) in OWNED.iter().filter(|(_, linked)| *linked) {
        link_others(Path::new(path), &place(path))?;
    }
    Ok(())
}

/// Empties `/run` and `/tmp` of a machine that does not run, as a power cut does, and creates what it needs to boot.
pub(crate) fn power_cycle(dir: &Path, spec: &LabSpec, node: &MachineSpec) -> Result<()> {
    let root = dir.join(&node.name);
    let place = |path: &str| root.join(path.trim_start_matches('/'));
    for path in VOLATILE {
        remove(&place(path))?;
        let mode = if path == "/tmp" { 0o1777 } else { 0o755 };
        directory(&place(path), 0, mode)?;
    }
    for (path, uid, mode) in directories(node) {
        if is_volatile(path) {
            directory(&place(path), uid, mode)?;
        }
    }
    for (path, _) in OWNED.iter().filter(|(_, linked)| *linked) {
        fs::create_dir_all(place(&format!("{HOST_VIEW}{path}")))?;
    }
    for path in &spec.visible {
        let target = outside_path(dir, &node.name, path);
        if target != *path {
            fs::create_dir_all(&target)?;
        }
    }
    Ok(())
}

fn is_volatile(path: &str) -> bool {
    VOLATILE.iter().any(|own| Path::new(path).starts_with(own))
}

/// Directories with their owner and mode. The group is the owner's.
fn directories(node: &MachineSpec) -> Vec<(&'static str, u32, u32)> {
    let mut list = vec![
        ("/run/lock", 0, 0o1777),
        ("/run/waifud-lab", 0, 0o755),
        ("/var/log/waifud", 0, 0o755),
        ("/var/lib/misc", 0, 0o755),
    ];
    if node.index != 0 {
        list.extend([
            ("/etc/waifud", 0, 0o755),
            ("/etc/libvirt", 0, 0o755),
            ("/run/libvirt", 0, 0o755),
            ("/var/lib/libvirt", 0, 0o755),
            ("/var/log/libvirt", 0, 0o755),
            ("/var/cache/libvirt", 0, 0o755),
            ("/run/waifud", accounts::WAIFUD, 0o755),
            ("/var/lib/waifud", accounts::WAIFUD, 0o700),
            ("/run/waifud-agent", 0, 0o755),
            // QEMU, which runs as another user, must reach the disks below.
            ("/var/lib/waifud-agent", 0, 0o711),
            ("/run/waifud-metadata", accounts::METADATA, 0o755),
            ("/var/lib/waifud-metadata", accounts::METADATA, 0o700),
        ]);
    }
    if node.redis {
        list.extend([("/run/redis", 0, 0o755), ("/var/lib/redis", 0, 0o700)]);
    }
    list
}

fn texts(spec: &LabSpec, node: &MachineSpec, caller: Caller) -> Vec<(&'static str, String)> {
    let mut list = vec![
        ("/etc/passwd", accounts::passwd()),
        ("/etc/group", accounts::group(caller)),
        ("/etc/hostname", format!("{}\n", node.name)),
        ("/etc/machine-id", format!("{}\n", node.machine_id)),
        ("/etc/hosts", files::hosts(spec)),
        ("/etc/resolv.conf", files::resolv_conf()),
        ("/etc/nsswitch.conf", files::NSSWITCH.to_owned()),
    ];
    if node.index != 0 {
        list.extend([
            ("/etc/libvirt/libvirtd.conf", files::libvirtd_conf(node)),
            ("/etc/libvirt/qemu.conf", files::QEMU_CONF.to_owned()),
            ("/etc/waifud/waifud.toml", files::waifud_toml(node)),
            ("/etc/waifud/agentd.toml", files::agentd_toml(node)),
            ("/etc/waifud/metadatad.toml", String::new()),
        ]);
    }
    list
}

/// Creates a directory with this owner and mode, independent of the umask.
fn directory(path: &Path, uid: u32, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    chown(path, Some(uid), Some(uid))
        .with_context(|| format!("cannot change the owner of {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Creates a link in `to` for each entry of the host's `from` that `to` does not have yet.
fn link_others(from: &Path, to: &Path) -> Result<()> {
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", from.display())),
    };
    for entry in entries {
        let entry = entry?;
        let link = to.join(entry.file_name());
        if link.symlink_metadata().is_ok() {
            continue;
        }
        // Links are copied: a relative one is valid only in its own directory.
        let target = if entry.file_type()?.is_symlink() {
            fs::read_link(entry.path())?
        } else {
            PathBuf::from(format!("{HOST_VIEW}{}", entry.path().display()))
        };
        symlink(&target, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;

    use super::*;
    use crate::options::Role;

    #[test]
    fn a_power_cycle_empties_run_and_tmp_and_keeps_the_rest() {
        if !Uid::effective().is_root() {
            waifud_kit::testing::skip("only root changes the owner of a directory");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let machine = MachineSpec::for_test("alder", 1, Role::Node);
        let spec = LabSpec::for_test(vec![machine.clone()]);
        write(dir.path(), &spec, &machine, &[]).unwrap();
        let at = |path: &str| outside_path(dir.path(), "alder", Path::new(path));
        for path in [
            "/run/x",
            "/tmp/x",
            "/run/waifud-agent/x",
            "/etc/x",
            "/var/lib/waifud-agent/x",
        ] {
            fs::write(at(path), "x").unwrap();
        }
        power_cycle(dir.path(), &spec, &machine).unwrap();
        let kept = |path: &str| at(path).exists();
        assert!(!kept("/run/x") && !kept("/tmp/x") && !kept("/run/waifud-agent/x"));
        assert!(kept("/etc/x") && kept("/var/lib/waifud-agent/x") && kept("/run/waifud-agent"));
        assert_eq!(
            fs::metadata(at("/tmp")).unwrap().permissions().mode() & 0o7777,
            0o1777
        );
    }

    #[test]
    fn only_paths_of_the_lab_differ_outside() {
        let at = |path: &str| outside_path(Path::new("/tmp/l"), "alder", Path::new(path));
        assert_eq!(
            at("/run/waifud/waifud.sock"),
            Path::new("/tmp/l/alder/run/waifud/waifud.sock")
        );
        assert_eq!(at("/var/lib/x"), Path::new("/tmp/l/alder/var/lib/x"));
        assert_eq!(at("/usr/bin/env"), Path::new("/usr/bin/env"));
        assert_eq!(at("/etcetera"), Path::new("/etcetera"));
    }

    #[test]
    fn links_of_the_machine_are_copied_and_files_are_linked_to_the_host_view() {
        let machine = tempfile::tempdir().unwrap();
        let own = tempfile::tempdir().unwrap();
        fs::write(machine.path().join("passwd"), "theirs").unwrap();
        fs::write(machine.path().join("services"), "x").unwrap();
        symlink("../usr/lib/os-release", machine.path().join("os-release")).unwrap();
        fs::write(own.path().join("passwd"), "ours").unwrap();
        link_others(machine.path(), own.path()).unwrap();
        assert_eq!(
            fs::read_to_string(own.path().join("passwd")).unwrap(),
            "ours"
        );
        let link = |name: &str| fs::read_link(own.path().join(name)).unwrap();
        assert_eq!(link("os-release"), Path::new("../usr/lib/os-release"));
        assert_eq!(
            link("services"),
            Path::new(&format!("{HOST_VIEW}{}/services", machine.path().display()))
        );
    }
}
