//! The durable copy on disk: one JSON file for the node, one for all peers, one for the names of their instances, one for each instance.
//!
//! Files are replaced atomically: the new one is written to a temporary file, synced and renamed, and the directory is
//! synced. After a crash at any instant either the old or the new file exists. Writes are synchronous on purpose: they are
//! small, their order matters, and nothing may act on a change that is not on disk. Files have mode 0600 because they
//! contain bundle keys.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use waifud_kit::durable;
use waifud_kit::planted_bugs::Bug;
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use crate::blocking::here;
use crate::control_link::names::NamesRecord;
use crate::control_link::peers::PeersRecord;
use crate::control_link::record::{InstanceRecord, NodeRecord};
use crate::failpoints;

/// The durable copy could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path:?} failed")]
pub struct DurableError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Why the last write failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unwritable {
    /// The error of the system call.
    pub why: String,
    /// Whether the filesystem is full.
    pub full: bool,
}

/// The content of the directory.
#[derive(Debug, Default)]
pub struct Loaded {
    pub node: NodeRecord,
    pub peers: PeersRecord,
    pub names: NamesRecord,
    pub instances: BTreeMap<InstanceId, InstanceRecord>,
    /// Files that could not be parsed and were moved aside, with the reason.
    pub damaged: Vec<String>,
}

/// The directory that holds the copy.
#[derive(Debug)]
pub struct Durable {
    dir: PathBuf,
    unwritable: Mutex<Option<Unwritable>>,
    write_state_changed: Notify,
}

const NODE_FILE: &str = "node.json";
const PEERS_FILE: &str = "peers.json";
const NAMES_FILE: &str = "names.json";
const TEMPORARY: &str = "tmp";
const DAMAGED: &str = "damaged";

impl Durable {
    /// Opens and reads the copy in `dir`, which is created if absent. A file that cannot be parsed is moved aside and
    /// listed in [`Loaded::damaged`]; the revision is dropped then, so that waifud sends everything again.
    pub fn open(dir: PathBuf) -> Result<(Self, Loaded), DurableError> {
        let failed = |what, path: &Path, source| DurableError {
            what,
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| failed("creating", &dir, e))?;
        // Records are durable only if the directory is.
        durable::sync_parent(&dir).map_err(|e| failed("syncing the parent of", &dir, e))?;
        let copy = Self {
            dir,
            unwritable: Mutex::default(),
            write_state_changed: Notify::new(),
        };
        let mut loaded = Loaded::default();
        let entries = fs::read_dir(&copy.dir).map_err(|e| failed("listing", &copy.dir, e))?;
        for entry in entries {
            let path = entry.map_err(|e| failed("listing", &copy.dir, e))?.path();
            if path.extension().is_some_and(|e| e == TEMPORARY) {
                // A write that a crash interrupted. Nothing has acted on it.
                fs::remove_file(&path).map_err(|e| failed("removing", &path, e))?;
            } else if path.file_name().is_some_and(|name| name == NODE_FILE) {
                if let Some(node) = copy.read(&path, &mut loaded.damaged)? {
                    loaded.node = node;
                }
            } else if path.file_name().is_some_and(|name| name == PEERS_FILE) {
                if let Some(peers) = copy.read(&path, &mut loaded.damaged)? {
                    loaded.peers = peers;
                }
            } else if path.file_name().is_some_and(|name| name == NAMES_FILE) {
                if let Some(names) = copy.read(&path, &mut loaded.damaged)? {
                    loaded.names = names;
                }
            } else if path.extension().is_some_and(|e| e == "json")
                && let Some(record) = copy.read::<InstanceRecord>(&path, &mut loaded.damaged)?
            {
                loaded.instances.insert(record.id, record);
            }
        }
        if !loaded.damaged.is_empty() {
            loaded.node.revision = None;
        }
        Ok((copy, loaded))
    }

    /// Why the last write failed; `None` if it succeeded.
    pub fn unwritable(&self) -> Option<Unwritable> {
        lock(&self.unwritable).clone()
    }

    /// Returns when writing began to fail or to succeed again since the last call.
    pub async fn write_state_changed(&self) {
        self.write_state_changed.notified().await;
    }

    /// Records the outcome of a write.
    fn record_outcome(&self, outcome: Result<(), DurableError>) -> Result<(), DurableError> {
        let now = outcome.as_ref().err().map(|error| Unwritable {
            why: error.source.to_string(),
            full: matches!(
                error.source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
        });
        let mut unwritable = lock(&self.unwritable);
        if *unwritable != now {
            *unwritable = now;
            self.write_state_changed.notify_one();
        }
        outcome
    }

    pub fn save_node(&self, node: &NodeRecord) -> Result<(), DurableError> {
        failpoints::NODE_SAVE.before();
        self.record_outcome(here(|| Self::replace(&self.dir.join(NODE_FILE), node)))?;
        failpoints::NODE_SAVE.after();
        Ok(())
    }

    pub fn save_peers(&self, peers: &PeersRecord) -> Result<(), DurableError> {
        self.record_outcome(here(|| Self::replace(&self.dir.join(PEERS_FILE), peers)))
    }

    pub fn save_names(&self, names: &NamesRecord) -> Result<(), DurableError> {
        self.record_outcome(here(|| Self::replace(&self.dir.join(NAMES_FILE), names)))
    }

    pub fn save_instance(&self, record: &InstanceRecord) -> Result<(), DurableError> {
        if record.release.is_some() && Bug::HandoverBeforeRelease.is_planted() {
            return Ok(());
        }
        failpoints::RECORD_SAVE.before();
        self.record_outcome(here(|| {
            Self::replace(&self.instance_path(record.id), record)
        }))?;
        failpoints::RECORD_SAVE.after();
        Ok(())
    }

    /// Removes an instance's record. Succeeds when it is absent.
    pub fn forget_instance(&self, id: InstanceId) -> Result<(), DurableError> {
        let path = self.instance_path(id);
        failpoints::RECORD_FORGET.before();
        here(|| match fs::remove_file(&path) {
            Ok(()) => self.sync_dir(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(DurableError {
                what: "removing",
                path,
                source,
            }),
        })?;
        failpoints::RECORD_FORGET.after();
        Ok(())
    }

    fn instance_path(&self, id: InstanceId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        damaged: &mut Vec<String>,
    ) -> Result<Option<T>, DurableError> {
        let failed = |what, source| DurableError {
            what,
            path: path.to_owned(),
            source,
        };
        let bytes = fs::read(path).map_err(|e| failed("reading", e))?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                // The full error may quote a secret value. Its kind and position are enough.
                damaged.push(format!(
                    "{}: {:?} at line {} column {}",
                    path.display(),
                    error.classify(),
                    error.line(),
                    error.column()
                ));
                let aside = path.with_extension(DAMAGED);
                fs::rename(path, aside).map_err(|e| failed("moving aside", e))?;
                self.sync_dir()?;
                Ok(None)
            }
        }
    }

    fn replace(path: &Path, value: &impl Serialize) -> Result<(), DurableError> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other);
        let write = |bytes: Vec<u8>| {
            durable::Replacement::of(path)
                .draft(path.with_extension(TEMPORARY))
                .write(&bytes)
        };
        bytes.and_then(write).map_err(|source| DurableError {
            what: "writing",
            path: path.to_owned(),
            source,
        })
    }

    fn sync_dir(&self) -> Result<(), DurableError> {
        durable::sync_dir(&self.dir).map_err(|source| DurableError {
            what: "syncing",
            path: self.dir.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_link::record::RunMemory;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn written_records_are_read_again_and_have_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let (copy, loaded) = Durable::open(dir.path().join("records")).unwrap();
        assert!(loaded.instances.is_empty());
        let mut record = InstanceRecord::new(InstanceId::generate());
        record.memory.run = RunMemory::Started;
        copy.save_instance(&record).unwrap();
        let node = NodeRecord {
            revision: Some("000000ab.7".parse().unwrap()),
            ..NodeRecord::default()
        };
        copy.save_node(&node).unwrap();
        let file = copy.instance_path(record.id);
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let (copy, loaded) = Durable::open(dir.path().join("records")).unwrap();
        assert_eq!(loaded.node, node);
        assert_eq!(loaded.instances.get(&record.id), Some(&record));
        copy.forget_instance(record.id).unwrap();
        copy.forget_instance(record.id).unwrap();
        let (_, loaded) = Durable::open(dir.path().join("records")).unwrap();
        assert!(loaded.instances.is_empty());
    }

    #[test]
    fn a_record_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = InstanceRecord::new(InstanceId::generate());
        record.managed = true;
        record.memory.run = RunMemory::Started;
        let present = serde_json::to_string(&record).unwrap();
        let earlier = present.replace("\"managed\":", "\"claimed\":");
        assert_ne!(earlier, present);
        fs::write(dir.path().join(format!("{}.json", record.id)), earlier).unwrap();
        let (_, loaded) = Durable::open(dir.path().to_owned()).unwrap();
        assert!(loaded.damaged.is_empty(), "{:?}", loaded.damaged);
        assert_eq!(loaded.instances.get(&record.id), Some(&record));
    }

    #[test]
    fn an_interrupted_write_is_dropped_and_a_damaged_file_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (copy, _) = Durable::open(dir.path().to_owned()).unwrap();
        copy.save_node(&NodeRecord {
            revision: Some("000000ab.7".parse().unwrap()),
            ..NodeRecord::default()
        })
        .unwrap();
        let id = InstanceId::generate();
        fs::write(dir.path().join(format!("{id}.tmp")), "{").unwrap();
        let (_, loaded) = Durable::open(dir.path().to_owned()).unwrap();
        assert!(loaded.damaged.is_empty() && loaded.node.revision.is_some());

        fs::write(dir.path().join(format!("{id}.json")), "{\"id\":1}").unwrap();
        let (_, loaded) = Durable::open(dir.path().to_owned()).unwrap();
        assert_eq!(loaded.damaged.len(), 1);
        assert_eq!(loaded.node.revision, None, "waifud sends everything again");
        assert!(dir.path().join(format!("{id}.damaged")).exists());
    }
}
