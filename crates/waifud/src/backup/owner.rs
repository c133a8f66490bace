//! Doing something as the owner of the state directory.
//!
//! root may ask for a backup; what it made in waifud's directory as root (SQLite's files beside the database among it)
//! waifud could not use afterwards.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use nix::unistd::{Gid, Uid, geteuid, setegid, seteuid};

/// Runs `work` as the owner of `dir` when this is root, else as who this is. Effective ids change for the whole process:
/// nothing else may be at work in it.
pub fn as_owner_of<T>(dir: &Path, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let metadata =
        std::fs::metadata(dir).with_context(|| format!("{} can't be read", dir.display()))?;
    let (uid, gid) = (metadata.uid(), metadata.gid());
    if !geteuid().is_root() || uid == 0 {
        return work();
    }
    setegid(Gid::from_raw(gid)).context("the group can't be changed")?;
    seteuid(Uid::from_raw(uid)).context("the user can't be changed")?;
    let result = work();
    seteuid(Uid::from_raw(0)).context("the user can't be changed back")?;
    setegid(Gid::from_raw(0)).context("the group can't be changed back")?;
    result
}
