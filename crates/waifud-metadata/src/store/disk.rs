//! The store on this node's disk: one file per object, complete or absent, readable only by the service's user.
//!
//! ```text
//!  STATE/bundles/HEX               ciphertext, named by its digest
//!  STATE/instances/UUID.json       an assignment, with the bundle's key
//!  STATE/tunnel.json               the node's end of the tunnel
//! ```
//!
//! A file is written under another name, synced, renamed, and its directory synced. So a crash leaves the old or the new
//! file.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use waifud_api::metadatad::{Assignment, Tunnel};
use waifud_kit::durable;
use waifud_types::{Digest, InstanceId};

use super::{BundleStore, StateStore, StoreError};

/// Prefix of the name of a file that is being written.
const UNFINISHED: &str = ".new-";

/// The store on disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskStore {
    root: Arc<Path>,
}

impl DiskStore {
    /// Opens the store below `root`. Creates missing directories (0700) and removes incomplete files of a crash.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.into() };
        for directory in [root.to_owned(), store.bundles_dir(), store.instances_dir()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .and_then(|()| sweep(&directory))
                .map_err(failed("open", &directory))?;
        }
        Ok(store)
    }

    fn bundles_dir(&self) -> PathBuf {
        self.root.join("bundles")
    }

    fn instances_dir(&self) -> PathBuf {
        self.root.join("instances")
    }

    fn bundle_file(&self, digest: Digest) -> PathBuf {
        self.bundles_dir().join(digest.hex())
    }

    fn instance_file(&self, instance: InstanceId) -> PathBuf {
        self.instances_dir().join(format!("{instance}.json"))
    }

    fn tunnel_file(&self) -> PathBuf {
        self.root.join("tunnel.json")
    }
}

/// Adds the action to an error.
fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let action = format!("{verb} {}", path.display());
    |source| StoreError { action, source }
}

fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Reads and writes files on a thread that may block.
async fn blocking<T: Send + 'static>(
    verb: &'static str,
    path: PathBuf,
    act: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let name = path.clone();
    tokio::task::spawn_blocking(move || act(&path))
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the work was canceled")))
        .map_err(failed(verb, &name))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = directory.join(format!("{UNFINISHED}{name}"));
    durable::Replacement::of(path)
        .draft(unfinished)
        .write(bytes)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write(path, &serde_json::to_vec(value)?)
}

/// The contents of a file; `None` if it is missing, or damaged, which is logged without its contents.
fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes);
    if value.is_err() {
        tracing::warn!(file = %path.display(), "a damaged file is ignored until the agent sends its contents again");
    }
    Ok(value.ok())
}

/// The names in a directory that are valid for us.
fn names<T>(directory: &Path, read: impl Fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(entry?.file_name().to_str().and_then(&read));
    }
    Ok(found)
}

#[async_trait]
impl BundleStore for DiskStore {
    async fn put_bundle(&self, digest: Digest, ciphertext: Bytes) -> Result<(), StoreError> {
        blocking("write", self.bundle_file(digest), move |path| {
            // The agent puts bundles again after its restart; that needs no write.
            if read(path)?.is_some_and(|bytes| bytes == ciphertext) {
                return Ok(());
            }
            write(path, &ciphertext)
        })
        .await
    }

    async fn bundle(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        blocking("read", self.bundle_file(digest), |path| {
            Ok(read(path)?.map(Bytes::from))
        })
        .await
    }

    async fn delete_bundle(&self, digest: Digest) -> Result<(), StoreError> {
        blocking("delete", self.bundle_file(digest), durable::remove).await
    }

    async fn bundles(&self) -> Result<Vec<Digest>, StoreError> {
        blocking("list", self.bundles_dir(), |path| {
            names(path, |name| name.parse().ok())
        })
        .await
    }
}

#[async_trait]
impl StateStore for DiskStore {
    async fn put_assignment(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), StoreError> {
        let assignment = assignment.clone();
        blocking("write", self.instance_file(instance), move |path| {
            write_json(path, &assignment)
        })
        .await
    }

    async fn delete_assignment(&self, instance: InstanceId) -> Result<(), StoreError> {
        blocking("delete", self.instance_file(instance), durable::remove).await
    }

    async fn assignments(&self) -> Result<Vec<(InstanceId, Assignment)>, StoreError> {
        blocking("read", self.instances_dir(), |path| {
            let instances: Vec<InstanceId> =
                names(path, |name| name.strip_suffix(".json")?.parse().ok())?;
            let mut all = Vec::with_capacity(instances.len());
            for instance in instances {
                let assignment = read_json(&path.join(format!("{instance}.json")))?;
                all.extend(assignment.map(|assignment| (instance, assignment)));
            }
            Ok(all)
        })
        .await
    }

    async fn put_tunnel(&self, tunnel: &Tunnel) -> Result<(), StoreError> {
        let tunnel = tunnel.clone();
        blocking("write", self.tunnel_file(), move |path| {
            write_json(path, &tunnel)
        })
        .await
    }

    async fn tunnel(&self) -> Result<Option<Tunnel>, StoreError> {
        blocking("read", self.tunnel_file(), read_json).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::conformance;

    #[tokio::test]
    async fn the_disk_store_conforms_also_after_reopening() {
        let root = tempfile::tempdir().unwrap();
        let store = DiskStore::open(&root.path().join("state")).unwrap();
        conformance::bundles(&store).await.unwrap();
        conformance::state(&store).await.unwrap();
        let again = DiskStore::open(&root.path().join("state")).unwrap();
        assert_eq!(again.assignments().await.unwrap().len(), 1);
        assert!(again.tunnel().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn other_users_cannot_read_files_or_list_directories() {
        let root = tempfile::tempdir().unwrap();
        let store = DiskStore::open(&root.path().join("state")).unwrap();
        let digest = Digest::from_bytes([1; 32]);
        store
            .put_bundle(digest, Bytes::from_static(b"x"))
            .await
            .unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.bundle_file(digest)), 0o600);
        assert_eq!(mode(&store.bundles_dir()), 0o700);
    }

    #[tokio::test]
    async fn damaged_and_incomplete_files_do_not_prevent_reading_others() {
        let root = tempfile::tempdir().unwrap();
        let store = DiskStore::open(root.path()).unwrap();
        conformance::state(&store).await.unwrap();
        let damaged = store.instance_file(InstanceId::generate());
        fs::write(&damaged, b"{\"name\":").unwrap();
        let unfinished = store.instances_dir().join(".new-x.json");
        fs::write(&unfinished, b"x").unwrap();
        fs::write(store.instances_dir().join("README"), b"x").unwrap();
        let again = DiskStore::open(root.path()).unwrap();
        assert_eq!(again.assignments().await.unwrap().len(), 1);
        assert!(!unfinished.exists());
    }
}
