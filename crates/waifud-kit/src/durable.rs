//! Replacing, renaming and removing files so that the result survives a crash.
//!
//! A file is replaced by a draft in the same directory: the draft is written and synced, renamed over the file, and the
//! directory is synced. After a crash at any point the file has its old contents or its new ones. A draft that a crash
//! leaves behind is removed by the next replacement.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// How to replace one file.
#[derive(Clone, Debug)]
pub struct Replacement<'a> {
    path: &'a Path,
    draft: PathBuf,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl<'a> Replacement<'a> {
    /// A replacement with mode 0600, by a draft with `.new` appended to the file's name.
    pub fn of(path: &'a Path) -> Self {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        Self {
            path,
            draft: draft.into(),
            mode: 0o600,
            owner: None,
        }
    }

    /// Sets the permissions, whatever the umask is.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the owner: user id and group id.
    #[must_use]
    pub fn owner(mut self, owner: Option<(u32, u32)>) -> Self {
        self.owner = owner;
        self
    }

    /// Sets the draft's path, in the same directory as the file.
    #[must_use]
    pub fn draft(mut self, draft: PathBuf) -> Self {
        self.draft = draft;
        self
    }

    /// Replaces the file with these contents. The change is durable when this returns.
    ///
    /// On failure the draft is removed, so that it takes no space on a full disk.
    pub fn write(&self, contents: &[u8]) -> io::Result<()> {
        self.write_draft(contents)
            .and_then(|()| fs::rename(&self.draft, self.path))
            .inspect_err(|_| {
                let _may_be_absent = fs::remove_file(&self.draft);
            })?;
        sync_parent(self.path)
    }

    fn write_draft(&self, contents: &[u8]) -> io::Result<()> {
        remove_if_present(&self.draft)?;
        // A new file: it is never readable by more users than `mode` allows, and a link is not followed.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(&self.draft)?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.write_all(contents)?;
        if let Some((user, group)) = self.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.sync_all()
    }
}

/// Replaces the file with these contents and permissions. The change is durable when this returns.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    Replacement::of(path).mode(mode).write(contents)
}

/// Renames a file within one filesystem. The change is durable when this returns.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Removes a file. The change is durable when this returns. Succeeds if the file does not exist.
pub fn remove(path: &Path) -> io::Result<()> {
    if remove_if_present(path)? {
        sync_parent(path)?;
    }
    Ok(())
}

/// Makes the directory's entries durable.
pub fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes the file's entry in its directory durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    })
}

/// Removes a file and returns whether it existed.
fn remove_if_present(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::temp_path;

    #[test]
    fn a_file_is_created_and_replaced_with_its_permissions_and_no_draft_is_left() {
        let (directory, path) = temp_path("key.pem");
        replace(&path, b"first", 0o640).unwrap();
        replace(&path, b"second", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_place_of_the_draft_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("other"));
        fs::write(&other, "untouched").unwrap();
        std::os::unix::fs::symlink(&other, directory.path().join("a.new")).unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"untouched");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_failure_keeps_the_old_contents_and_removes_the_draft() {
        let directory = tempfile::tempdir().unwrap();
        // A directory that is not empty cannot be replaced by a file.
        let path = directory.path().join("a");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("b"), "kept").unwrap();
        assert!(replace(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read(path.join("b")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn removing_succeeds_twice_and_renaming_moves_the_contents() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        let draft = directory.path().join("draft");
        Replacement::of(&a)
            .draft(draft.clone())
            .write(b"x")
            .unwrap();
        assert!(!draft.exists());
        rename(&a, &b).unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"x");
        remove(&b).unwrap();
        remove(&b).unwrap();
        assert!(rename(&a, &b).is_err());
    }
}
