//! Runs code as the owner of the state directory.
//!
//! root may create a backup. waifud could not use the files that root creates in its directory (for example those that
//! SQLite creates next to the database).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use nix::unistd::{Gid, Uid, geteuid, setegid, seteuid};

/// Runs `work` as the owner of `dir` if the process runs as root, and otherwise unchanged. The effective ids change for
/// the whole process, so no other thread may run meanwhile.
pub fn as_owner_of<T>(dir: &Path, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let metadata =
        std::fs::metadata(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let (uid, gid) = (metadata.uid(), metadata.gid());
    if !geteuid().is_root() || uid == 0 {
        return work();
    }
    setegid(Gid::from_raw(gid)).context("cannot change the group")?;
    seteuid(Uid::from_raw(uid)).context("cannot change the user")?;
    let result = work();
    seteuid(Uid::from_raw(0)).context("cannot restore the user")?;
    setegid(Gid::from_raw(0)).context("cannot restore the group")?;
    result
}
