//! Removes the directories that killed guards left. They are recognized by a lock that no process holds.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use waifud_kit::filesystem;

/// The prefix of a lab's directory.
pub(crate) const PREFIX: &str = "waifud-lab-";
/// The guard holds this lock exclusively until it ends.
pub(crate) const GUARD_LOCK: &str = "guard.lock";
/// The creator of the lab holds this lock exclusively until the guard has its own.
pub(crate) const MAKER_LOCK: &str = "maker.lock";

/// Takes the lock file `name` in `dir`; `None` if another process holds it.
pub(crate) fn lock(dir: &Path, name: &str) -> Result<Option<File>> {
    let path = dir.join(name);
    filesystem::lock(&path).with_context(|| format!("cannot lock {}", path.display()))
}

/// Whether a process holds the lock `name` of the lab in `dir`. A missing file is not locked.
pub(crate) fn held(dir: &Path, name: &str) -> bool {
    let Ok(file) = File::open(dir.join(name)) else {
        return false;
    };
    // Shared, so that two concurrent checks do not affect each other.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The default parent of labs: `$WAIFUD_LAB_BASE`, else the temporary directory.
pub(crate) fn default_base() -> PathBuf {
    std::env::var_os("WAIFUD_LAB_BASE").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Creates the directory `dir`. It becomes visible only when the creator's lock in it is held, so that other processes
/// do not take it for a dead lab.
pub(crate) fn create(dir: &Path) -> Result<File> {
    let (base, name) = dir
        .parent()
        .zip(dir.file_name())
        .context("the lab's directory has no parent")?;
    let hidden = base.join(format!(".{}", name.to_string_lossy()));
    fs::create_dir(&hidden).with_context(|| format!("cannot create {}", dir.display()))?;
    let maker =
        lock(&hidden, MAKER_LOCK)?.context("another process has locked the new directory")?;
    fs::rename(&hidden, dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(maker)
}

/// Removes the directories of dead labs in `base` (by default the default parent), and returns their paths.
///
/// # Errors
/// `base` cannot be listed, or a dead lab's directory cannot be removed.
pub fn remove_stale(base: Option<&Path>) -> Result<Vec<PathBuf>> {
    let base = base.map_or_else(default_base, Path::to_owned);
    let mut removed = Vec::new();
    let entries = fs::read_dir(&base).with_context(|| format!("cannot list {}", base.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let hidden = name.strip_prefix('.');
        if !hidden.unwrap_or(&name).starts_with(PREFIX) || !path.is_dir() || path.is_symlink() {
            continue;
        }
        let just_made = || {
            let age = entry
                .metadata()
                .and_then(|data| data.modified())
                .map(|then| then.elapsed().unwrap_or_default());
            age.is_ok_and(|age| age < Duration::from_mins(1))
        };
        if (hidden.is_some() && just_made()) || held(&path, MAKER_LOCK) || held(&path, GUARD_LOCK) {
            continue;
        }
        remove(&path)?;
        removed.push(path);
    }
    Ok(removed)
}

/// Removes a lab's directory, if it exists.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    removed(fs::remove_dir_all(dir), dir)
}

/// The result of a removal, which also succeeds if there was nothing at `path`.
pub(crate) fn removed(result: io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_labs_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = base.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (dead, alive) = (make("waifud-lab-1-a"), make("waifud-lab-2-b"));
        let (unborn, other) = (make(".waifud-lab-3-c"), make("something-else"));
        let newborn = base.path().join("waifud-lab-4-d");
        let _maker = create(&newborn).unwrap();
        // Unlocked instead of closed: a test that forks at this moment has a copy of the descriptor.
        lock(&dead, MAKER_LOCK).unwrap().unwrap().unlock().unwrap();
        let guard = lock(&alive, GUARD_LOCK).unwrap().unwrap();
        lock(&alive, MAKER_LOCK).unwrap().unwrap().unlock().unwrap();

        assert_eq!(remove_stale(Some(base.path())).unwrap(), [dead]);
        assert!(alive.exists() && unborn.exists() && newborn.exists() && other.exists());

        guard.unlock().unwrap();
        assert_eq!(remove_stale(Some(base.path())).unwrap(), [alive]);
    }
}
