//! Creates unix sockets. Replaces sockets left behind by a crash, and never grants too many permissions, not even briefly.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, chown};
use tokio::net::UnixListener;

/// Listens on `path` with these permissions and, if it exists, this group.
pub fn listen(path: &Path, mode: u32, group: &str) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    remove_stale(path)?;
    // Created without permissions, which are set after the group.
    let before = umask(Mode::from_bits_truncate(0o777));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
    let mode = match find_group(group)? {
        Some(gid) => {
            chown(path, None, Some(gid))
                .with_context(|| format!("cannot set the group of {}", path.display()))?;
            mode
        }
        // The socket has the group of this process, whose members must not get in.
        None => mode & !0o070,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
    Ok(listener)
}

fn find_group(name: &str) -> anyhow::Result<Option<Gid>> {
    let group =
        Group::from_name(name).with_context(|| format!("cannot look up the group {name}"))?;
    if group.is_none() {
        tracing::info!(
            group = name,
            "the socket's group does not exist; only root and waifud's own user can use the socket"
        );
    }
    Ok(group.map(|group| group.gid))
}

/// Removes a socket left behind by an earlier process. The caller holds the lock of the state directory.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot inspect {}", path.display())),
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                anyhow::bail!("another program listens on {}", path.display());
            }
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Ok(_) => anyhow::bail!("{} exists and is not a socket", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_kit::testing::temp_path;

    #[tokio::test]
    async fn without_the_group_only_the_owner_and_root_can_connect() {
        let (_dir, path) = temp_path("waifud.sock");
        let _listener = listen(&path, 0o660, "no-such-group-of-waifud").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
