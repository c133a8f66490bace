//! The host: directories, users, and the lock that prevents a second agent.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use nix::unistd::{Group, User};

/// Creates a directory and its parents that other users may traverse but not list.
pub fn ensure_traversable_dir(path: &Path) -> anyhow::Result<()> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o711).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o711))
    };
    make().with_context(|| format!("cannot create {}", path.display()))
}

/// Takes the lock in the state directory. It is held until the returned file is closed.
pub fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    waifud_kit::filesystem::lock(&path)
        .with_context(|| format!("cannot lock {}", path.display()))?
        .with_context(|| format!("another waifud-agentd already uses {}", state_dir.display()))
}

/// Whether an agent holds the lock. Creates nothing.
pub fn is_locked(state_dir: &Path) -> anyhow::Result<bool> {
    let path = state_dir.join("lock");
    match File::open(&path) {
        Ok(file) => Ok(matches!(file.try_lock(), Err(TryLockError::WouldBlock))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
    }
}

/// The ids of a user and a group; `None` if one of them does not exist.
pub fn owner(user: &str, group: Option<&str>) -> anyhow::Result<Option<(u32, u32)>> {
    let Some(user) = User::from_name(user).context("cannot look up users")? else {
        return Ok(None);
    };
    let Some(group) = group else {
        return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
    };
    let group = Group::from_name(group).context("cannot look up groups")?;
    Ok(group.map(|group| (user.uid.as_raw(), group.gid.as_raw())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).is_err());
        assert!(is_locked(dir.path()).unwrap());
        drop(first);
        assert!(!is_locked(dir.path()).unwrap());
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn users_are_found_by_name() {
        assert_eq!(owner("root", Some("root")).unwrap(), Some((0, 0)));
        assert_eq!(owner("no-such-user", None).unwrap(), None);
    }
}
