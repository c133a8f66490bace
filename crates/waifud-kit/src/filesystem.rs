//! Size, free space and state of a filesystem, and lock files.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

/// How full the filesystem of a path is. All sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// The size, with the blocks that are reserved for root.
    pub size: u64,
    /// What other users than root can still write.
    pub available: u64,
    /// What is in use.
    pub used: u64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// Asks the filesystem on which `path` is.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let facts = statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(facts.fragment_size());
    Ok(Usage {
        size: bytes(facts.blocks()),
        available: bytes(facts.blocks_available()),
        used: bytes(facts.blocks().saturating_sub(facts.blocks_free())),
        read_only: facts.flags().contains(FsFlags::ST_RDONLY),
    })
}

/// Creates and locks a lock file. Returns `None` if another process holds the lock, which ends with its process.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_and_available_space_do_not_exceed_the_size() {
        let usage = usage(&std::env::temp_dir()).unwrap();
        assert!(usage.size > 0 && !usage.read_only, "{usage:?}");
        assert!(usage.used + usage.available <= usage.size, "{usage:?}");
    }

    #[test]
    fn a_missing_path_is_an_error() {
        let error = usage(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
