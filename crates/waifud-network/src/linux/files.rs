//! Our small files, which are replaced atomically.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::NetworkError;

pub(super) fn io(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> NetworkError {
    let what = format!("{what} {}", path.display());
    move |source| NetworkError::Io { what, source }
}

/// The text of a file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<String>, NetworkError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("reading", path)(error)),
    }
}

/// Replaces a file: readers see the complete old text or the complete new text. The file is readable by all users,
/// regardless of the umask, because dnsmasq reads its files as an unprivileged user. None of them is secret.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), NetworkError> {
    let draft = path.with_extension("new");
    std::fs::write(&draft, text).map_err(io("writing", &draft))?;
    std::fs::set_permissions(&draft, Permissions::from_mode(0o644))
        .map_err(io("opening", &draft))?;
    std::fs::rename(&draft, path).map_err(io("replacing", path))
}

/// Removes a file, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), NetworkError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("removing", path)(error)),
        _ => Ok(()),
    }
}
