//! Unix sockets that replace what a crash left, and are never open wider than they should be, not even for an instant.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, chown};
use tokio::net::UnixListener;

/// Listens at `path` with these permissions, for that group when there is one.
pub fn listen(path: &Path, mode: u32, group: &str) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("making {} failed", dir.display()))?;
    }
    remove_stale(path)?;
    // Bound with no permissions at all; they are given once owner and group are right.
    let before = umask(Mode::from_bits_truncate(0o777));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.with_context(|| format!("listening at {} failed", path.display()))?;
    if let Some(gid) = find_group(group)? {
        chown(path, None, Some(gid))
            .with_context(|| format!("giving {} to its group failed", path.display()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the permissions of {} failed", path.display()))?;
    Ok(listener)
}

fn find_group(name: &str) -> anyhow::Result<Option<Gid>> {
    let group =
        Group::from_name(name).with_context(|| format!("looking up group {name} failed"))?;
    if group.is_none() {
        tracing::info!(group = name, "no such group: the socket is root's own");
    }
    Ok(group.map(|group| group.gid))
}

/// Whoever holds the state directory's lock owns its sockets: what is there is left over.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("looking at {} failed", path.display())),
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                anyhow::bail!("another program listens at {}", path.display());
            }
            std::fs::remove_file(path)
                .with_context(|| format!("removing the stale {} failed", path.display()))
        }
        Ok(_) => anyhow::bail!("{} exists and is no socket", path.display()),
    }
}
