//! The node's slice and the agent's own records, in memory; every change is written to disk first.
//!
//! The watch applies its frames here. A frame is on disk before anything acts on it, and the revision that a watch resumes
//! from is written after the objects that it covers, so a crash repeats frames and never skips one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use waifud_api::agent::{
    AgentInstance, Release, SliceKey, SliceObject, Tombstone, WatchFrame, Welcome,
};
use waifud_kit::planted_bugs::Bug;
use waifud_kit::sync::lock;
use waifud_types::ownership::{NodeCopy, Outdated};
use waifud_types::{Digest, InstanceId, Revision};

use crate::control_link::durable::{Durable, DurableError, Loaded, Unwritable};
use crate::control_link::known_kinds::known_kinds;
use crate::control_link::names::NamesTable;
use crate::control_link::outcome::{Affected, Welcomed};
use crate::control_link::peers::PeerTable;
use crate::control_link::planted_bug::destroy_without_an_order;
use crate::control_link::record::{
    DesiredState, InstanceRecord, Memory, NodeRecord, ReleaseRecord, RunMemory,
};
use crate::instance::{nics, restart_policy};
use crate::network::identity;

/// The table; see the module documentation.
#[derive(Debug)]
pub struct Table {
    pub(super) durable: Durable,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) node: NodeRecord,
    entries: BTreeMap<InstanceId, Entry>,
    pub(super) peers: PeerTable,
    pub(super) names: NamesTable,
    /// The instances that a watch from the beginning has sent so far. Those that it omits are not in the slice.
    pub(super) named: Option<BTreeSet<InstanceId>>,
    /// Whether the present watch has sent its `sync`.
    synced: bool,
    /// Whether a watch has sent the whole slice of this incarnation, in this process or in an earlier one.
    slice_known: bool,
    /// How often a whole slice became known or unknown.
    slices: u64,
}

impl Inner {
    /// A watch from the beginning has sent the instance.
    pub(super) fn name(&mut self, id: InstanceId) {
        if let Some(named) = &mut self.named {
            named.insert(id);
        }
    }

    /// Whether deletions wait for an administrator.
    pub(super) fn is_held(&self) -> bool {
        self.node.unconfirmed.is_some()
    }

    /// Every desired state may have changed.
    pub(super) fn count_all(&mut self) {
        for entry in self.entries.values_mut() {
            entry.version += 1;
        }
    }

    /// Whether the instance was destroyed, and waifud may not have confirmed that yet.
    pub(super) fn is_destroyed(&self, id: InstanceId) -> bool {
        self.record(id).is_some_and(|record| record.destroyed)
    }

    /// Its record.
    pub(super) fn record(&self, id: InstanceId) -> Option<&InstanceRecord> {
        self.entries.get(&id).map(|entry| &entry.record)
    }

    /// The version of an instance's desired state.
    pub(super) fn version(&self, id: InstanceId) -> Option<u64> {
        self.entries.get(&id).map(|entry| entry.version)
    }

    /// The epochs recorded for an instance.
    pub(super) fn copy(&self, id: InstanceId) -> NodeCopy {
        self.record(id)
            .map_or_else(NodeCopy::default, InstanceRecord::copy)
    }
}

#[derive(Debug)]
struct Entry {
    record: InstanceRecord,
    version: u64,
}

/// One instance's record and desired state.
#[derive(Clone, Debug)]
pub struct View {
    pub record: InstanceRecord,
    pub desired: DesiredState,
    /// Changes whenever the desired state may have changed.
    pub version: u64,
}

impl Table {
    /// Opens the copy in this directory. Returns the records that were moved aside because they are damaged.
    pub fn open(dir: PathBuf) -> Result<(Self, Vec<String>), DurableError> {
        let (durable, loaded) = Durable::open(dir)?;
        let Loaded {
            node,
            peers,
            names,
            instances,
            damaged,
        } = loaded;
        let entries = instances
            .into_iter()
            .map(|(id, record)| (id, Entry { record, version: 0 }))
            .collect();
        let held = node.unconfirmed.is_some();
        let table = Self {
            durable,
            inner: Mutex::new(Inner {
                // No revision means that no watch has sent all of it yet, for example after a restore of waifud's database.
                slice_known: node.slice.is_some() && node.revision.is_some(),
                slices: 0,
                node,
                entries,
                peers: PeerTable::of(peers, held),
                names: NamesTable::of(names),
                named: None,
                synced: false,
            }),
        };
        Ok((table, damaged))
    }

    /// Why writing fails; `None` if it works. The call tries to write again, so that a repair is noticed.
    pub fn unwritable(&self) -> Option<Unwritable> {
        self.durable.unwritable()?;
        let inner = self.inner();
        let _outcome = self.durable.save_node(&inner.node);
        self.durable.unwritable()
    }

    /// Returns when writing began to fail or to succeed again.
    pub async fn write_state_changed(&self) {
        self.durable.write_state_changed().await;
    }

    /// The node's record.
    pub fn node(&self) -> NodeRecord {
        self.inner().node.clone()
    }

    /// Whether the whole slice is known. Before that, an absent record proves nothing.
    pub fn is_slice_known(&self) -> bool {
        self.inner().slice_known
    }

    /// A number for the known slice; another one after a restore of waifud's database. `None` while it is unknown.
    pub fn known_slice(&self) -> Option<u64> {
        let inner = self.inner();
        inner.slice_known.then_some(inner.slices)
    }

    pub fn records(&self) -> Vec<InstanceRecord> {
        let inner = self.inner();
        inner.entries.values().map(|e| e.record.clone()).collect()
    }

    pub fn view(&self, id: InstanceId) -> Option<View> {
        let inner = self.inner();
        let held = inner.node.unconfirmed.is_some();
        inner.entries.get(&id).map(|entry| View {
            record: entry.record.clone(),
            desired: entry.record.desired_state(held),
            version: entry.version,
        })
    }

    /// The version of one instance's desired state; `None` if there is no record.
    pub fn version(&self, id: InstanceId) -> Option<u64> {
        self.inner().version(id)
    }

    /// Applies a welcome. After a change, the next watch starts from the beginning.
    pub fn welcome(
        &self,
        welcome: &Welcome,
        hardware: Option<Digest>,
    ) -> Result<Welcomed, DurableError> {
        let mut inner = self.inner();
        let mut node = inner.node.clone();
        let restored = node
            .incarnation
            .is_some_and(|known| known != welcome.incarnation);
        // This machine was removed and has joined again: what it has is not in the slice of the new node.
        let other_node = node.node.is_some_and(|known| known != welcome.node);
        node.node = Some(welcome.node);
        node.incarnation = Some(welcome.incarnation);
        node.hardware = hardware.or(node.hardware);
        if restored {
            node.unconfirmed = Some(welcome.incarnation);
        }
        let welcomed = match (restored, other_node) {
            (true, _) => Welcomed::OtherIncarnation,
            (false, true) => Welcomed::OtherNode,
            (false, false) => Welcomed::Unchanged,
        };
        if welcomed != Welcomed::Unchanged {
            node.revision = None;
        }
        self.save_node(&mut inner, node)?;
        if welcomed != Welcomed::Unchanged {
            inner.slice_known = false;
            inner.slices += 1;
        }
        Ok(welcomed)
    }

    /// Where the next watch begins. To be called once for each watch.
    pub fn begin_watch(&self) -> Option<Revision> {
        let mut inner = self.inner();
        let since = inner
            .node
            .revision
            .filter(|_| inner.node.kinds == known_kinds());
        inner.synced = false;
        let complete = since.is_none() || Bug::AbsenceIsDeletion.is_planted();
        inner.named = complete.then(BTreeSet::new);
        inner.peers.begin_watch(since.is_none());
        inner.names.begin_watch();
        since
    }

    /// Makes the next watch start from the beginning.
    pub fn forget_revision(&self) -> Result<(), DurableError> {
        let mut inner = self.inner();
        let mut node = inner.node.clone();
        node.revision = None;
        self.save_node(&mut inner, node)
    }

    /// Applies one frame. It is durable when this returns, except for changes of peers and names: call [`Table::save_peers`] soon.
    pub fn apply(&self, frame: WatchFrame) -> Result<Affected, DurableError> {
        let mut inner = self.inner();
        let (revision, affected) = match frame {
            // Neither belongs to the slice.
            WatchFrame::Ping
            | WatchFrame::Stream(_)
            | WatchFrame::Ticket(_)
            | WatchFrame::ImageTicket(_) => {
                return Ok(Affected::None);
            }
            WatchFrame::Names { nodes } => {
                inner.names.put(nodes);
                return Ok(Affected::None);
            }
            WatchFrame::Put { revision, object } => match object {
                SliceObject::Peer(peer) => {
                    inner.peers.put(peer, revision);
                    return Ok(Affected::None);
                }
                SliceObject::Instance(instance) => (revision, self.put(&mut inner, *instance)?),
                SliceObject::Incoming(incoming) => {
                    (revision, self.put_incoming(&mut inner, *incoming)?)
                }
                SliceObject::Node(slice) => {
                    let mut node = inner.node.clone();
                    let changed = node.slice.as_ref() != Some(&slice);
                    node.slice = Some(slice);
                    self.save_node(&mut inner, node)?;
                    self.note_confirmation(&mut inner)?;
                    let affected = if changed {
                        Affected::All
                    } else {
                        Affected::None
                    };
                    (revision, affected)
                }
            },
            WatchFrame::Delete { revision, key } => match key {
                SliceKey::Peer(id) => {
                    inner.peers.delete(id, revision);
                    inner.names.remove(id);
                    return Ok(Affected::None);
                }
                SliceKey::Instance(instance) => {
                    if let Some(named) = &mut inner.named {
                        named.remove(&instance);
                    }
                    (revision, self.remove_from_slice(&mut inner, instance)?)
                }
            },
            WatchFrame::Tombstone {
                revision,
                tombstone,
            } => (revision, self.apply_tombstone(&mut inner, tombstone)?),
            WatchFrame::Release { revision, release } => {
                (revision, self.apply_release(&mut inner, release)?)
            }
            WatchFrame::Sync { revision } => {
                self.release_unlisted(&mut inner)?;
                self.note_confirmation(&mut inner)?;
                let keep = inner.is_held();
                inner.peers.synced(keep);
                let peers = inner.peers.current_peers();
                inner.names.retain(&peers);
                inner.synced = true;
                (revision, Affected::Synced)
            }
        };
        self.save_revision(&mut inner, revision)?;
        if affected == Affected::Synced && !inner.slice_known {
            inner.slice_known = true;
            inner.slices += 1;
        }
        Ok(affected)
    }

    /// Changes an instance's memory; durable when it returns. Without a record nothing happens.
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

    /// Records that the instance was destroyed; durable when it returns.
    pub fn mark_destroyed(&self, id: InstanceId) -> Result<(), DurableError> {
        let mut inner = self.inner();
        self.change(&mut inner, id, |record| {
            record.destroyed = record.tombstone.is_some();
        })
    }

    /// Records that a release is complete: the guest is off, and this node serves and applies nothing of it any more.
    /// Durable when it returns. Does nothing if the desired state has changed since this version.
    pub fn complete_release(&self, id: InstanceId, version: u64) -> Result<(), DurableError> {
        let mut inner = self.inner();
        if inner.version(id) != Some(version) {
            return Ok(());
        }
        self.change(&mut inner, id, |record| {
            if let Some(release) = &mut record.release {
                release.completed = true;
                record.memory.stop_requested = false;
            }
        })
    }

    /// Removes the record of an instance of which nothing is left, unless the desired state has changed since this version.
    pub fn forget(&self, id: InstanceId, version: u64) -> Result<(), DurableError> {
        self.forget_if(id, |entry| entry.version == version)
    }

    /// Removes the record of an instance whose destruction was confirmed, unless the instance has come back since.
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

    fn put(&self, inner: &mut Inner, instance: AgentInstance) -> Result<Affected, DurableError> {
        let id = instance.id;
        inner.name(id);
        let held = inner.is_held();
        let copy = inner.copy(id);
        if let Err(outdated) = copy.check_put(instance.epoch, held) {
            tracing::warn!(instance = %id, epoch = %instance.epoch, "ignoring an instance that waifud sent: {outdated}");
            return match outdated {
                Outdated::Released => self.bring_back_release(inner, id),
                Outdated::OlderEpoch | Outdated::Deleted => Ok(Affected::None),
            };
        }
        let taken = inner.entries.values();
        let taken = taken
            .filter_map(|entry| entry.record.memory.identity)
            .collect();
        self.change(inner, id, |record| {
            if record.destroyed {
                // Nothing is left of the former copy: its disks are not missing.
                *record = InstanceRecord::new(id);
            }
            if identity::needs_identity(&instance) && record.memory.identity.is_none() {
                record.memory.identity = identity::free_identity(&taken);
            }
            if record
                .instance
                .as_ref()
                .is_some_and(|old| restart_policy::is_start_request(old, &instance))
                && record.memory.run == RunMemory::Stopped
            {
                record.memory.run = RunMemory::Free;
                record.memory.restarts = 0;
            }
            if let Some(old) = &record.instance {
                nics::record_change(&mut record.memory, old, &instance);
            }
            // Reboots requested before this node knew the instance are past, and a restored database may count fewer.
            let ordered = instance.spec.power.reboots;
            let known = record.instance.is_some();
            let done = &mut record.memory.reboots_done;
            *done = if known { ordered.min(*done) } else { ordered };
            record.tombstone = None;
            record.destroyed = false;
            record.release = None;
            record.incoming = None;
            record.managed = true;
            record.instance = Some(instance);
        })?;
        Ok(Affected::Instances(vec![id]))
    }

    fn remove_from_slice(
        &self,
        inner: &mut Inner,
        id: InstanceId,
    ) -> Result<Affected, DurableError> {
        if !inner.entries.contains_key(&id) {
            return Ok(Affected::None);
        }
        self.change(inner, id, InstanceRecord::leave_slice)?;
        Ok(Affected::Instances(vec![id]))
    }

    fn apply_tombstone(
        &self,
        inner: &mut Inner,
        tombstone: Tombstone,
    ) -> Result<Affected, DurableError> {
        let id = tombstone.instance;
        inner.name(id);
        if let Err(outdated) = inner.copy(id).check_deletion(tombstone.epoch) {
            tracing::warn!(instance = %id, epoch = %tombstone.epoch, "ignoring a deletion: {outdated}");
            return Ok(Affected::None);
        }
        self.change(inner, id, |record| {
            let newer = record
                .tombstone
                .as_ref()
                .is_none_or(|known| known.epoch < tombstone.epoch);
            if newer {
                // What was received of it is deleted with it.
                record.incoming = None;
                record.tombstone = Some(tombstone);
                record.destroyed = false;
            }
        })?;
        Ok(Affected::Instances(vec![id]))
    }

    fn apply_release(&self, inner: &mut Inner, release: Release) -> Result<Affected, DurableError> {
        let id = release.instance;
        inner.name(id);
        let held = inner.is_held();
        if let Err(outdated) = inner.copy(id).check_release(release.epoch, held) {
            tracing::warn!(instance = %id, epoch = %release.epoch, "ignoring a release: {outdated}");
            return Ok(Affected::None);
        }
        self.change(inner, id, |record| {
            record.managed = false;
            // As with a put: a deletion from before a restore of waifud must not destroy the disks that are kept.
            record.tombstone = None;
            record.destroyed = false;
            // A release that is sent again may say now that the guest has to stop.
            let completed = record
                .release
                .is_some_and(|known| known.completed && known.release.epoch == release.epoch);
            record.release = Some(ReleaseRecord {
                release,
                completed,
                in_slice: Some(true),
            });
        })?;
        Ok(Affected::Instances(vec![id]))
    }

    /// After a watch from the beginning: instances that it omitted have left the slice. Absence is not deletion.
    fn release_unlisted(&self, inner: &mut Inner) -> Result<(), DurableError> {
        let Some(named) = inner.named.take() else {
            return Ok(());
        };
        let unnamed: Vec<InstanceId> = inner
            .entries
            .values()
            .filter(|entry| entry.record.is_in_slice() && !named.contains(&entry.record.id))
            .map(|entry| entry.record.id)
            .collect();
        for id in unnamed {
            if Bug::AbsenceIsDeletion.is_planted() {
                self.change(inner, id, destroy_without_an_order)?;
                continue;
            }
            tracing::warn!(instance = %id, "waifud no longer lists this instance for this node; it is kept unchanged, as unmanaged");
            self.change(inner, id, InstanceRecord::leave_slice)?;
        }
        Ok(())
    }

    /// Changes a record, which is created if absent: first on disk, then in memory.
    pub(super) fn change(
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

    /// Records that everything up to `revision` is applied, once the watch has sent its `sync`.
    pub(super) fn save_revision(
        &self,
        inner: &mut Inner,
        revision: Revision,
    ) -> Result<(), DurableError> {
        if !inner.synced {
            return Ok(());
        }
        // The revision covers the peers that were sent before.
        self.save_staged_peers(inner)?;
        let mut node = inner.node.clone();
        node.revision = Some(revision);
        node.kinds = known_kinds();
        self.save_node(inner, node)
    }

    pub(super) fn save_node(
        &self,
        inner: &mut Inner,
        node: NodeRecord,
    ) -> Result<(), DurableError> {
        if inner.node != node {
            self.durable.save_node(&node)?;
            inner.node = node;
        }
        Ok(())
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change is applied at once, after the disk: a panic elsewhere cannot leave it half done.
        lock(&self.inner)
    }
}
