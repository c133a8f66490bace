//! The current lab of `cargo xtask lab`. A file at a fixed place contains the path of its directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;

use crate::{Lab, guard, stale};

/// `$XDG_RUNTIME_DIR/waifud-lab-current`, else the same in the temporary directory.
pub fn place() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(std::env::temp_dir)
        .join("waifud-lab-current")
}

/// The directory in the file `place`, whether or not its lab is running; `None` if the file does not exist.
///
/// # Errors
/// The file belongs to another user than root or the caller, or cannot be read.
pub fn dir(place: &Path) -> Result<Option<PathBuf>> {
    let data = match fs::symlink_metadata(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        data => data.with_context(|| format!("cannot inspect {}", place.display()))?,
    };
    let trusted = data.is_file() && (data.uid() == 0 || data.uid() == Uid::effective().as_raw());
    ensure!(trusted, "{} is not ours: remove it", place.display());
    let text =
        fs::read_to_string(place).with_context(|| format!("cannot read {}", place.display()))?;
    Ok(Some(PathBuf::from(text.trim())))
}

/// The running lab of the file `place`, if any.
///
/// # Errors
/// As [`dir`], or attaching to the lab fails.
pub fn lab(place: &Path) -> Result<Option<Lab>> {
    match dir(place)? {
        Some(dir) if guard::alive(&dir) => Lab::attach(&dir).map(Some),
        _ => Ok(None),
    }
}

/// Stores `lab` as the current one in `place`.
///
/// # Errors
/// The file cannot be written.
pub fn set(place: &Path, lab: &Lab) -> Result<()> {
    let folder = place
        .parent()
        .context("the place of the current lab has no directory")?;
    // Replaced by a rename, so that a link planted in a shared directory is not followed.
    let new = folder.join(format!("{}.place", lab.name()));
    fs::write(&new, format!("{}\n", lab.dir().display()))
        .with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, place).with_context(|| format!("cannot write {}", place.display()))
}

/// Removes the file.
///
/// # Errors
/// The file exists and cannot be removed.
pub fn clear(place: &Path) -> Result<()> {
    stale::removed(fs::remove_file(place), place)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn new_place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("current");
        (directory, place)
    }

    #[test]
    fn there_is_no_current_lab_without_a_file_or_when_its_lab_is_dead() {
        let (_directory, place) = new_place();
        assert!(lab(&place).unwrap().is_none());
        fs::write(&place, "/nonexistent/waifud-lab-1-a\n").unwrap();
        assert!(lab(&place).unwrap().is_none());
        assert_eq!(
            dir(&place).unwrap().unwrap(),
            Path::new("/nonexistent/waifud-lab-1-a")
        );
        clear(&place).unwrap();
        clear(&place).unwrap();
    }

    #[test]
    fn a_link_is_not_followed() {
        let (_directory, place) = new_place();
        std::os::unix::fs::symlink("/etc/hostname", &place).unwrap();
        assert!(dir(&place).is_err());
    }
}
