//! The node's slice and what is remembered of it: the durable copy in memory, changed only together with the disk.
//!
//! Frames of a watch come in here. What they order is on disk before anybody acts on it, and the revision that a watch
//! resumes from is written after the objects that it covers, so a crash repeats a frame and never skips one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use waifud_api::agent::{AgentInstance, SliceObject, Tombstone, WatchFrame, Welcome};
use waifud_types::{Incarnation, InstanceId, Revision};

use crate::control_link::durable::{Durable, DurableError, Loaded, Unwritable};
use crate::control_link::record::{DesiredState, InstanceRecord, Memory, NodeRecord, RunMemory};
use crate::instance::restart_policy;
use crate::network::lan;

/// Whom a frame concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Concerns {
    /// Nobody.
    Nobody,
    /// These instances.
    Instances(Vec<InstanceId>),
    /// Everything on the node.
    Everybody,
    /// Everything, and the slice is complete from now on.
    Synced,
}

/// The table. See the module's text.
#[derive(Debug)]
pub struct Table {
    durable: Durable,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeRecord,
    entries: BTreeMap<InstanceId, Entry>,
    /// What a watch from the beginning has named so far; what it leaves out is not in the slice.
    named: Option<BTreeSet<InstanceId>>,
    /// Whether the present watch has sent its `sync`.
    synced: bool,
}

#[derive(Debug)]
struct Entry {
    record: InstanceRecord,
    version: u64,
}

/// One instance's record, its wish, and a number that changes with the wish.
#[derive(Clone, Debug)]
pub struct View {
    /// The record.
    pub record: InstanceRecord,
    /// What should become of it.
    pub wish: DesiredState,
    /// Changes whenever the wish may have.
    pub version: u64,
}

impl Table {
    /// Opens the copy in this directory. Returns what had to be set aside.
    pub fn open(dir: PathBuf) -> Result<(Self, Vec<String>), DurableError> {
        let (durable, loaded) = Durable::open(dir)?;
        let Loaded {
            node,
            instances,
            damaged,
        } = loaded;
        let entries = instances
            .into_iter()
            .map(|(id, record)| (id, Entry { record, version: 0 }))
            .collect();
        let table = Self {
            durable,
            inner: Mutex::new(Inner {
                node,
                entries,
                named: None,
                synced: false,
            }),
        };
        Ok((table, damaged))
    }

    /// Why nothing can be made durable, when that is so. It is tried again by the asking, so that what is mended counts.
    pub fn unwritable(&self) -> Option<Unwritable> {
        self.durable.unwritable()?;
        let inner = self.inner();
        let _noted = self.durable.save_node(&inner.node);
        self.durable.unwritable()
    }

    /// Waits until writing began to fail, or to succeed again.
    pub async fn writing_turned(&self) {
        self.durable.turned().await;
    }

    /// What is remembered of the node.
    pub fn node(&self) -> NodeRecord {
        self.inner().node.clone()
    }

    /// Every record.
    pub fn records(&self) -> Vec<InstanceRecord> {
        let inner = self.inner();
        inner.entries.values().map(|e| e.record.clone()).collect()
    }

    /// One instance.
    pub fn view(&self, id: InstanceId) -> Option<View> {
        let inner = self.inner();
        let held = inner.node.unconfirmed.is_some();
        inner.entries.get(&id).map(|entry| View {
            record: entry.record.clone(),
            wish: entry.record.wish(held),
            version: entry.version,
        })
    }

    /// The number of one instance's wish; `None` when there is no record.
    pub fn version(&self, id: InstanceId) -> Option<u64> {
        self.inner().entries.get(&id).map(|entry| entry.version)
    }

    /// Takes over a welcome. Says whether the incarnation changed: destruction is held from then on.
    pub fn welcome(&self, welcome: &Welcome) -> Result<bool, DurableError> {
        let mut inner = self.inner();
        let mut node = inner.node.clone();
        let changed = node
            .incarnation
            .is_some_and(|known| known != welcome.incarnation);
        node.node = Some(welcome.node);
        node.incarnation = Some(welcome.incarnation);
        if changed {
            node.unconfirmed = Some(welcome.incarnation);
            node.revision = None;
        }
        self.save_node(&mut inner, node)?;
        Ok(changed)
    }

    /// An operator's word that this incarnation is the right one. Says whether destruction was held for it.
    pub fn confirm(&self, incarnation: Incarnation) -> Result<bool, DurableError> {
        let mut inner = self.inner();
        if inner.node.unconfirmed != Some(incarnation) {
            return Ok(false);
        }
        let mut node = inner.node.clone();
        node.unconfirmed = None;
        self.save_node(&mut inner, node)?;
        for entry in inner.entries.values_mut() {
            entry.version += 1;
        }
        Ok(true)
    }

    /// Where the next watch begins; to be asked once for each.
    pub fn begin_watch(&self) -> Option<Revision> {
        let mut inner = self.inner();
        inner.synced = false;
        inner.named = inner.node.revision.is_none().then(BTreeSet::new);
        inner.node.revision
    }

    /// Forgets where the watch was: the next one is from the beginning.
    pub fn forget_revision(&self) -> Result<(), DurableError> {
        let mut inner = self.inner();
        let mut node = inner.node.clone();
        node.revision = None;
        self.save_node(&mut inner, node)
    }

    /// Takes over one frame. It is durable when this returns.
    pub fn apply(&self, frame: WatchFrame) -> Result<Concerns, DurableError> {
        let mut inner = self.inner();
        let (revision, concerns) = match frame {
            // Neither is of the slice, and neither is remembered.
            WatchFrame::Ping | WatchFrame::Stream(_) => return Ok(Concerns::Nobody),
            WatchFrame::Put {
                revision,
                object: SliceObject::Node(slice),
            } => {
                let mut node = inner.node.clone();
                let changed = node.slice.as_ref() != Some(&slice);
                let confirmed = node.unconfirmed.is_some() && node.unconfirmed == slice.confirmed;
                if confirmed {
                    tracing::warn!(
                        "the restored database is confirmed: what waifud orders to be destroyed is destroyed"
                    );
                    node.unconfirmed = None;
                }
                node.slice = Some(slice);
                self.save_node(&mut inner, node)?;
                if confirmed {
                    for entry in inner.entries.values_mut() {
                        entry.version += 1;
                    }
                }
                let concerns = if changed {
                    Concerns::Everybody
                } else {
                    Concerns::Nobody
                };
                (revision, concerns)
            }
            WatchFrame::Put {
                revision,
                object: SliceObject::Instance(instance),
            } => (revision, self.put(&mut inner, *instance)?),
            WatchFrame::Delete { revision, instance } => {
                if let Some(named) = &mut inner.named {
                    named.remove(&instance);
                }
                (revision, self.leave(&mut inner, instance)?)
            }
            WatchFrame::Tombstone {
                revision,
                tombstone,
            } => (revision, self.order(&mut inner, tombstone)?),
            WatchFrame::Sync { revision } => {
                self.sweep_unnamed(&mut inner)?;
                inner.synced = true;
                (revision, Concerns::Synced)
            }
        };
        if inner.synced && inner.node.revision != Some(revision) {
            let mut node = inner.node.clone();
            node.revision = Some(revision);
            self.save_node(&mut inner, node)?;
        }
        Ok(concerns)
    }

    /// Changes what is remembered of an instance; durable when it returns. Nothing happens without a record.
    pub fn remember(
        &self,
        id: InstanceId,
        change: impl FnOnce(&mut Memory),
    ) -> Result<(), DurableError> {
        let mut inner = self.inner();
        let Some(entry) = inner.entries.get_mut(&id) else {
            return Ok(());
        };
        let mut record = entry.record.clone();
        change(&mut record.memory);
        if record == entry.record {
            return Ok(());
        }
        self.durable.save_instance(&record)?;
        entry.record = record;
        Ok(())
    }

    /// Notes that the order to destroy was carried out; durable when it returns.
    pub fn destroyed(&self, id: InstanceId) -> Result<(), DurableError> {
        let mut inner = self.inner();
        self.change(&mut inner, id, |record| {
            record.destroyed = record.tombstone.is_some();
        })
    }

    /// Forgets an instance of which nothing is left, unless what should become of it has changed since this version.
    pub fn forget(&self, id: InstanceId, version: u64) -> Result<(), DurableError> {
        self.forget_if(id, |entry| entry.version == version)
    }

    /// Forgets an instance whose destruction was confirmed, unless it has come back since.
    pub fn forget_destroyed(&self, id: InstanceId) -> Result<(), DurableError> {
        self.forget_if(id, |entry| entry.record.destroyed)
    }

    fn forget_if(
        &self,
        id: InstanceId,
        still: impl FnOnce(&Entry) -> bool,
    ) -> Result<(), DurableError> {
        let mut inner = self.inner();
        if !inner.entries.get(&id).is_some_and(still) {
            return Ok(());
        }
        self.durable.forget_instance(id)?;
        inner.entries.remove(&id);
        Ok(())
    }

    fn put(&self, inner: &mut Inner, instance: AgentInstance) -> Result<Concerns, DurableError> {
        let id = instance.id;
        if let Some(named) = &mut inner.named {
            named.insert(id);
        }
        let held = inner.node.unconfirmed.is_some();
        if let Some(entry) = inner.entries.get(&id) {
            let older = |epoch| instance.epoch < epoch;
            if entry
                .record
                .instance
                .as_ref()
                .is_some_and(|i| older(i.epoch))
            {
                tracing::warn!(instance = %id, epoch = %instance.epoch, "an older epoch was sent and is ignored");
                return Ok(Concerns::Nobody);
            }
            // A restored database may know an instance as living that was deleted later: keeping it is the safe side.
            let deleted = entry
                .record
                .tombstone
                .as_ref()
                .is_some_and(|t| instance.epoch <= t.epoch);
            if deleted && !held {
                tracing::warn!(instance = %id, "an instance that is being destroyed was sent again and is ignored");
                return Ok(Concerns::Nobody);
            }
        }
        let taken = inner.entries.values();
        let taken = taken
            .filter_map(|entry| entry.record.memory.identity)
            .collect();
        self.change(inner, id, |record| {
            if lan::needs_identity(&instance) && record.memory.identity.is_none() {
                record.memory.identity = lan::free_identity(&taken);
            }
            if record
                .instance
                .as_ref()
                .is_some_and(|old| restart_policy::is_start_order(old, &instance))
                && record.memory.run == RunMemory::Stopped
            {
                record.memory.run = RunMemory::Free;
                record.memory.restarts = 0;
            }
            // What was ordered before this node knew of the instance is past, and a restored database counts from less.
            let ordered = instance.spec.power.reboots;
            let known = record.instance.is_some();
            let done = &mut record.memory.reboots_done;
            *done = if known { ordered.min(*done) } else { ordered };
            record.tombstone = None;
            record.destroyed = false;
            record.managed = true;
            record.instance = Some(instance);
        })?;
        Ok(Concerns::Instances(vec![id]))
    }

    fn leave(&self, inner: &mut Inner, id: InstanceId) -> Result<Concerns, DurableError> {
        if !inner.entries.contains_key(&id) {
            return Ok(Concerns::Nobody);
        }
        self.change(inner, id, |record| record.managed = false)?;
        Ok(Concerns::Instances(vec![id]))
    }

    fn order(&self, inner: &mut Inner, tombstone: Tombstone) -> Result<Concerns, DurableError> {
        let id = tombstone.instance;
        if let Some(named) = &mut inner.named {
            named.insert(id);
        }
        let copy = inner
            .entries
            .get(&id)
            .and_then(|entry| entry.record.instance.as_ref())
            .map(|instance| instance.epoch);
        if copy.is_some_and(|copy| copy > tombstone.epoch) {
            tracing::warn!(instance = %id, epoch = %tombstone.epoch, "an order to destroy an older copy than the one here is ignored");
            return Ok(Concerns::Nobody);
        }
        self.change(inner, id, |record| {
            let newer = record
                .tombstone
                .as_ref()
                .is_none_or(|known| known.epoch < tombstone.epoch);
            if newer {
                record.tombstone = Some(tombstone);
                record.destroyed = false;
            }
        })?;
        Ok(Concerns::Instances(vec![id]))
    }

    /// After a watch from the beginning: what it did not name left the slice. Absence is not deletion.
    fn sweep_unnamed(&self, inner: &mut Inner) -> Result<(), DurableError> {
        let Some(named) = inner.named.take() else {
            return Ok(());
        };
        let unnamed: Vec<InstanceId> = inner
            .entries
            .values()
            .filter(|entry| entry.record.managed && !named.contains(&entry.record.id))
            .map(|entry| entry.record.id)
            .collect();
        for id in unnamed {
            tracing::warn!(instance = %id, "waifud's list names it no more; it is left as it is, unmanaged");
            self.change(inner, id, |record| record.managed = false)?;
        }
        Ok(())
    }

    /// Changes a record (made when absent): the disk first, then memory.
    fn change(
        &self,
        inner: &mut Inner,
        id: InstanceId,
        change: impl FnOnce(&mut InstanceRecord),
    ) -> Result<(), DurableError> {
        let (mut record, version) = inner.entries.get(&id).map_or_else(
            || (InstanceRecord::new(id), 0),
            |entry| (entry.record.clone(), entry.version),
        );
        let before = record.clone();
        change(&mut record);
        if record == before && inner.entries.contains_key(&id) {
            return Ok(());
        }
        self.durable.save_instance(&record)?;
        let version = version + 1;
        inner.entries.insert(id, Entry { record, version });
        Ok(())
    }

    fn save_node(&self, inner: &mut Inner, node: NodeRecord) -> Result<(), DurableError> {
        if inner.node != node {
            self.durable.save_node(&node)?;
            inner.node = node;
        }
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is made as a whole, after the disk: a panic elsewhere leaves it sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
