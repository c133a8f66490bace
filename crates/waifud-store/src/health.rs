//! Whether changes can be stored: the database file is the one that was opened, and is writable.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rusqlite::{Connection, MAIN_DB};

use crate::StoreError;

/// Why the newest change was not stored, unless the disk was full. Absent while changes are stored.
pub(crate) type LastFailure = Arc<Mutex<Option<String>>>;

/// The database file and its state.
#[derive(Debug)]
pub(crate) struct Health {
    path: PathBuf,
    /// Device and inode of the opened file.
    opened: Option<(u64, u64)>,
    last_failure: LastFailure,
}

impl Health {
    pub(crate) fn of(path: &Path, last_failure: LastFailure) -> Self {
        Self {
            path: path.to_owned(),
            opened: identity(path).ok(),
            last_failure,
        }
    }

    /// Why changes cannot be stored; `None` if they can, as far as this is known without a write. Asks the filesystem.
    pub(crate) fn write_error(&self) -> Option<String> {
        let path = self.path.display();
        match identity(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Some(format!("the database {path} was removed while waifud runs"));
            }
            Err(error) => {
                return Some(format!(
                    "cannot read the file status of the database {path}: {error}"
                ));
            }
            Ok(found) if self.opened.is_some_and(|opened| opened != found) => {
                return Some(format!(
                    "the database {path} was replaced while waifud runs"
                ));
            }
            Ok(_) => {}
        }
        let read_only =
            waifud_kit::filesystem::usage(&self.path).is_ok_and(|usage| usage.read_only);
        let denied = faccessat(
            nix::fcntl::AT_FDCWD,
            &self.path,
            AccessFlags::W_OK,
            AtFlags::AT_EACCESS,
        )
        .is_err();
        if read_only || denied {
            return Some(format!("the database {path} is read-only"));
        }
        self.last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|why| format!("the newest change could not be stored in {path}: {why}"))
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|facts| (facts.dev(), facts.ino()))
}

/// Checks that the database is writable, with a write that changes nothing. A full disk is not a failure: reads work, and
/// space can be freed.
pub(crate) fn must_be_writable(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let read_only = |source| StoreError::ReadOnly {
        path: path.to_owned(),
        source,
    };
    if conn.is_readonly(MAIN_DB)? {
        return Err(read_only(None));
    }
    let stored = conn.execute(
        "UPDATE meta SET value = value WHERE key = 'incarnation'",
        [],
    );
    match stored {
        Err(error) if !crate::error::is_full(&error) => Err(read_only(Some(error))),
        _ => Ok(()),
    }
}
