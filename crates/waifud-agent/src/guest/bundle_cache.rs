//! The encrypted bundles of this node's instances, kept on disk so that the node works without waifud.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use waifud_types::Digest;

/// The largest encrypted bundle that is added to a report. A bundle with the longest user-data is about half as large.
const REPORTED_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct BundleCache {
    dir: PathBuf,
}

impl BundleCache {
    /// The directory is created when the first bundle is stored.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The bundle's bytes. They are not verified here.
    pub fn read(&self, digest: Digest) -> Option<Vec<u8>> {
        fs::read(self.path(digest)).ok()
    }

    /// Whether there is a copy.
    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The bundle's bytes, unless they are too large for a report.
    pub fn read_for_report(&self, digest: Digest) -> Option<Vec<u8>> {
        let size = fs::metadata(self.path(digest)).ok()?.len();
        (size <= REPORTED_MAX).then(|| self.read(digest)).flatten()
    }

    /// Stores a copy. A failure is only logged: metadatad keeps its own copy.
    pub fn store(&self, digest: Digest, bytes: &Bytes) {
        let path = self.path(digest);
        let write = || {
            if !self.dir.is_dir() {
                fs::create_dir_all(&self.dir)?;
                waifud_kit::durable::sync_parent(&self.dir)?;
            }
            waifud_kit::durable::replace(&path, bytes, 0o600)
        };
        if let Err(error) = write() {
            tracing::warn!(%digest, %error, "could not store an encrypted bundle");
        }
    }

    /// Removes a bundle that is no longer used. If this fails, the next `retain` removes it.
    pub fn remove(&self, digest: Digest) {
        let _leftover = fs::remove_file(self.path(digest));
    }

    /// Removes every file except these bundles.
    pub fn retain(&self, used: &BTreeSet<Digest>) {
        let used: BTreeSet<String> = used.iter().map(Digest::hex).collect();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // A bundle that is being stored has a draft, which ends in this.
            let digest = |name: &str| name.strip_suffix(".new").unwrap_or(name).to_owned();
            let name = name.to_str().map(digest);
            if name.is_some_and(|name| !used.contains(&name)) {
                // What cannot be removed now is removed next time.
                let _leftover = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_is_being_stored_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(dir.path().to_owned());
        let (used, unused) = (Digest::of(b"used"), Digest::of(b"unused"));
        let file = |name: String| fs::write(dir.path().join(name), b"").unwrap();
        for digest in [used, unused] {
            file(digest.hex());
            file(format!("{}.new", digest.hex()));
        }
        cache.retain(&BTreeSet::from([used]));
        let left = fs::read_dir(dir.path()).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut left: Vec<String> = left.map(|entry| name(entry).unwrap()).collect();
        left.sort();
        assert_eq!(left, [used.hex(), format!("{}.new", used.hex())]);
    }
}
