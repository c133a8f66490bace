//! The agent's durable records: one for the node, and one for each instance.
//!
//! An instance's record outlives its place in the node's slice: while anything of it is on the node, its addresses and its
//! port stay known. The record is removed once waifud has confirmed the deletion, or when nothing of the instance is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use waifud_api::agent::{AgentInstance, Incoming, NodeSlice, Release, Released, Tombstone};
use waifud_types::ownership::NodeCopy;
use waifud_types::spec::NicSpec;
use waifud_types::status::{CloudInitStatus, ReadyBy, StoppedBy};
use waifud_types::{
    ByteSize, Digest, Epoch, Incarnation, InstanceId, Name, NodeId, Revision, TapName, Timestamp,
};

/// The node's record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRecord {
    /// Its id, from waifud's first welcome.
    pub node: Option<NodeId>,
    /// The incarnation of waifud's database that the records come from.
    pub incarnation: Option<Incarnation>,
    /// Set when the incarnation changed: nothing is destroyed until an administrator has confirmed the new one.
    pub unconfirmed: Option<Incarnation>,
    /// Everything up to here is applied; a watch resumes after it.
    pub revision: Option<Revision>,
    /// The kinds of objects and the types of frames that this agent knew up to that revision. A watch resumes only if it
    /// knows no others now. Empty in files of versions that knew instances and the node only.
    pub kinds: BTreeSet<String>,
    /// Subnet, gateway and confirmation.
    pub slice: Option<NodeSlice>,
    /// The hardware of the machine that waifud welcomed last; a copy of the disk contains it, too.
    pub hardware: Option<Digest>,
}

/// The record of one instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InstanceRecord {
    pub id: InstanceId,
    /// As waifud last sent it; `None` if only a tombstone is known.
    pub instance: Option<AgentInstance>,
    /// Whether the node keeps the instance as waifud sent it. Otherwise it is neither changed nor destroyed, except by a
    /// release or a tombstone. False while a release is recorded, so that an agent of an earlier version, which does not
    /// know releases, does not start the instance either. Files of earlier versions call this `claimed`.
    #[serde(alias = "claimed")]
    pub managed: bool,
    /// Set when the instance is to be deleted.
    pub tombstone: Option<Tombstone>,
    /// The instance was destroyed, and waifud may not have confirmed the report yet.
    pub destroyed: bool,
    /// Set while the node releases the instance, and until waifud sends a newer epoch. The instance is not started again.
    #[serde(default)]
    pub release: Option<ReleaseRecord>,
    /// Set while the node receives the instance from another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incoming: Option<IncomingRecord>,
    /// What the driver needs after a restart of the agent.
    #[serde(default)]
    pub memory: Memory,
}

/// A nic with a port on the node.
#[derive(Clone, Copy, Debug)]
pub struct PortNic<'a> {
    pub number: usize,
    pub nic: &'a NicSpec,
    /// The bridge of its network; `None` on `default`, or if waifud has not sent it.
    pub bridge: Option<&'a String>,
    /// Whether it is the first nic of the spec.
    pub is_first: bool,
}

/// An instance that the node receives.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IncomingRecord {
    pub incoming: Incoming,
    /// All disks were received and are durable.
    pub received: bool,
    /// Whether waifud still sends the order. If not, what was received is left alone.
    pub in_slice: bool,
}

#[cfg(test)]
impl InstanceRecord {
    /// The record of an instance that waifud has placed on this node.
    pub fn sample(name: &str) -> Self {
        let instance = crate::fake::sample_instance(name);
        Self {
            instance: Some(instance.clone()),
            managed: true,
            ..Self::new(instance.id)
        }
    }
}

impl InstanceRecord {
    /// An empty record.
    pub fn new(id: InstanceId) -> Self {
        Self {
            id,
            instance: None,
            managed: false,
            tombstone: None,
            destroyed: false,
            release: None,
            incoming: None,
            memory: Memory::default(),
        }
    }

    /// The epochs that decide which orders apply.
    pub fn copy(&self) -> NodeCopy {
        NodeCopy {
            epoch: self.instance.as_ref().map(|instance| instance.epoch),
            released: self.release.map(|record| record.release.epoch),
            deleted: self.tombstone.as_ref().map(|tombstone| tombstone.epoch),
        }
    }

    /// The nics whose ports have to be applied, each with its number and its bridge: those of the spec, and removed ones that the
    /// guest may still have. On `default`, the bridge is `None`.
    pub fn port_nics(&self) -> Vec<PortNic<'_>> {
        let Some(instance) = &self.instance else {
            return Vec::new();
        };
        let nics = instance.spec.numbered_nics().enumerate();
        let nics = nics.map(|(position, (number, nic))| PortNic {
            number,
            nic,
            bridge: instance.bridges.get(&nic.network),
            is_first: position == 0,
        });
        let removed = self.memory.removed_nics.iter();
        let removed = removed.filter(|removed| !removed.released);
        let removed = removed.map(|removed| PortNic {
            number: removed.number,
            nic: &removed.nic,
            bridge: removed.bridge.as_ref(),
            is_first: false,
        });
        nics.chain(removed).collect()
    }

    /// Whether the release is complete: the guest is off, and nothing of it is served or applied on this node.
    pub fn is_given_up(&self) -> bool {
        self.release.is_some_and(|record| record.completed)
    }

    /// Whether the instance is in the node's slice: to be kept, or to be released.
    pub fn is_in_slice(&self) -> bool {
        self.managed || self.ordered_release().is_some() || self.is_receiving()
    }

    /// Whether waifud lets the node receive the instance.
    fn is_receiving(&self) -> bool {
        self.incoming.as_ref().is_some_and(|record| record.in_slice)
    }

    /// Whether waifud has the instance in its database, so that it gives its addresses to no other. Not so one that was
    /// unmanaged before its deletion was ordered, or whose deletion a restored database does not contain: until it is
    /// destroyed, it is reported as unmanaged.
    pub fn is_known(&self) -> bool {
        self.is_in_slice() || (self.tombstone.is_some() && self.instance.is_none())
    }

    /// The release that waifud still sends.
    fn ordered_release(&self) -> Option<ReleaseRecord> {
        self.release
            .filter(|record| record.in_slice.unwrap_or(self.managed))
    }

    /// The instance has left the node's slice.
    pub fn leave_slice(&mut self) {
        self.managed = false;
        if let Some(record) = &mut self.release {
            record.in_slice = Some(false);
        }
        if let Some(record) = &mut self.incoming {
            record.in_slice = false;
        }
    }

    /// `held` means that deletions wait for an administrator.
    pub fn desired_state(&self, held: bool) -> DesiredState {
        if let Some(tombstone) = &self.tombstone {
            return DesiredState::Destroy(Deletion {
                tombstone: tombstone.clone(),
                held,
                epoch: self.instance.as_ref().map(|instance| instance.epoch),
                done: self.destroyed,
            });
        }
        if let Some(record) = self.ordered_release() {
            return DesiredState::Release(Box::new(Handover {
                record,
                instance: self.instance.clone(),
            }));
        }
        if let Some(record) = self.incoming.as_ref().filter(|record| record.in_slice) {
            return DesiredState::Receive(Box::new(record.clone()));
        }
        match &self.instance {
            Some(instance) if self.managed && self.release.is_none() => {
                DesiredState::Keep(Box::new(instance.clone()))
            }
            _ => DesiredState::LeaveAlone,
        }
    }
}

/// The desired state of an instance on this node.
#[derive(Clone, PartialEq, Debug)]
pub enum DesiredState {
    /// Exist as specified.
    Keep(Box<AgentInstance>),
    /// Be deleted.
    Destroy(Deletion),
    /// Be given up: off, with its disks.
    Release(Box<Handover>),
    /// Be received from another node, without a guest.
    Receive(Box<IncomingRecord>),
    /// Outside the slice: stay unchanged.
    LeaveAlone,
}

/// A tombstone, and what decides whether it may be applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deletion {
    pub tombstone: Tombstone,
    /// Deletions wait for an administrator.
    pub held: bool,
    /// The epoch of the copy on this node, as recorded.
    pub epoch: Option<Epoch>,
    /// The instance was already destroyed.
    pub done: bool,
}

/// A release, as recorded on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReleaseRecord {
    pub release: Release,
    /// The guest was seen off after the release was recorded, and its port and documents were removed.
    pub completed: bool,
    /// Whether waifud still sends the release. If not, the copy is left alone, and still not started. `None` in files of
    /// earlier versions, which kept this in `managed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_slice: Option<bool>,
}

/// A release, and the copy that it applies to.
#[derive(Clone, PartialEq, Debug)]
pub struct Handover {
    pub record: ReleaseRecord,
    /// `None` if the node has no record of the copy.
    pub instance: Option<AgentInstance>,
}

impl Handover {
    /// What is reported to waifud; `None` while a guest that has to stop may still run.
    pub fn reported(&self) -> Option<Released> {
        let ReleaseRecord {
            release, completed, ..
        } = self.record;
        (completed || !release.stop).then_some(Released {
            instance: release.instance,
            epoch: release.epoch,
            off: completed,
        })
    }
}

/// Facts about an instance that cannot be observed on the node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The last known phase of its run.
    pub run: RunMemory,
    /// Who stopped it; `None` while it runs and before its first run.
    pub stopped_by: Option<StoppedBy>,
    /// The agent asked the guest to shut down: the end of this run counts as requested by the user.
    pub stop_requested: bool,
    /// This agent defined a domain: one without our mark is still ours.
    pub defined: bool,
    /// The disks that it was given.
    #[serde(flatten)]
    pub disks: DiskMemory,
    /// How many of the requested reboots are done.
    pub reboots_done: u64,
    /// Restarts since the last stable run.
    pub restarts: u32,
    /// Its last start.
    #[serde(flatten)]
    pub start: StartMemory,
    /// The documents that the running guest has read, or that were served at its start.
    pub documents: Option<Digest>,
    /// What the guest has shown in its current boot.
    #[serde(flatten)]
    pub boot: BootMemory,
    /// When the first event of the current boot came from cloud-init's reporter.
    pub reported_boot: Option<Timestamp>,
    /// The documents with which it phoned home. cloud-init does so once per instance-id.
    pub called_with: Option<Digest>,
    /// Where the lines of the current boot begin in the console log.
    pub console_start: Option<ConsoleStart>,
    /// The address that identifies it to metadatad if waifud does not allocate its address. Never changes.
    pub identity: Option<Ipv4Addr>,
    /// Nics that were removed from the spec and whose ports may still be applied.
    pub removed_nics: Vec<RemovedNic>,
}

/// A nic that was removed from the spec. Its port keeps its rules and its address until the guest does not have it any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RemovedNic {
    /// Its number, which determines its port.
    pub number: usize,
    pub nic: NicSpec,
    /// The bridge of its network; `None` on `default`.
    pub bridge: Option<String>,
    /// The guest does not have it any more, so its port can be removed.
    pub released: bool,
}

impl RemovedNic {
    /// Its port on the node.
    pub fn tap(&self, instance: InstanceId) -> TapName {
        TapName::of(instance, self.number)
    }
}

/// The disks of an instance that were created. One that is missing later is not created again, which would hide the loss of
/// its data.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskMemory {
    /// Their names.
    #[serde(rename = "disks")]
    pub created: BTreeSet<Name>,
    /// The size that each was given.
    #[serde(rename = "disk_sizes")]
    pub sizes: BTreeMap<Name, ByteSize>,
}

/// The last start of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StartMemory {
    /// What it was started with; `None` if unknown.
    pub started_with: Option<StartedWith>,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When the guest last rebooted within this run.
    pub booted_at: Option<Timestamp>,
    /// Why its documents come from a disk although its template uses the metadata service; `None` if they do not.
    pub by_disk: Option<String>,
}

/// What a guest has shown in its current boot. Discarded when another boot begins.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BootMemory {
    /// When it phoned home.
    pub phoned_home_at: Option<Timestamp>,
    /// How readiness was proven.
    pub ready_by: Option<ReadyBy>,
    /// cloud-init's state.
    pub cloud_init: CloudInitStatus,
}

/// Where the lines of one boot begin in the console log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConsoleStart {
    /// When the boot began.
    pub boot: Timestamp,
    /// The length of the log when the boot was noticed.
    pub position: u64,
}

/// The fields of a spec that take effect at a start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartedWith {
    pub cpus: u32,
    pub memory_bytes: ByteSize,
}

impl StartedWith {
    /// The fields of this spec.
    pub fn of(want: &AgentInstance) -> Self {
        Self {
            cpus: want.spec.cpus,
            memory_bytes: want.spec.memory_bytes,
        }
    }
}

/// The last known phase of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunMemory {
    /// The instance never ran, or a user requested a new start.
    #[default]
    Free,
    /// A start was begun.
    Starting,
    /// It was seen running.
    Started,
    /// It was seen off after a run.
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_files_of_earlier_versions_managed_says_whether_waifud_still_sends_the_release() {
        let read = |managed: bool, in_slice: &str| {
            let id = InstanceId::generate();
            let text = format!(
                r#"{{"id":"{id}","instance":null,"managed":{managed},"tombstone":null,"destroyed":false,
                    "release":{{"release":{{"instance":"{id}","epoch":1,"stop":true}},"completed":true{in_slice}}}}}"#
            );
            let record: InstanceRecord = serde_json::from_str(&text).unwrap();
            let released = matches!(record.desired_state(false), DesiredState::Release(_));
            assert_eq!(record.is_in_slice(), released);
            if !released {
                assert_eq!(record.desired_state(false), DesiredState::LeaveAlone);
            }
            released
        };
        assert!(read(true, ""));
        assert!(!read(false, ""), "it has left the slice");
        assert!(read(false, r#","in_slice":true"#));
        assert!(!read(false, r#","in_slice":false"#));
    }

    #[test]
    fn memory_is_one_flat_object_with_the_names_of_earlier_versions() {
        let text = r#"{"run":"started","defined":true,"disks":["root"],"disk_sizes":{"root":1024},
            "started_with":{"cpus":2,"memory_bytes":4096},"started_at":"2026-06-01T00:00:00Z","by_disk":"no DHCP",
            "phoned_home_at":"2026-06-01T00:01:00Z","ready_by":"phone-home","reboots_done":3}"#;
        let memory: Memory = serde_json::from_str(text).unwrap();
        let root: Name = "root".parse().unwrap();
        assert_eq!(memory.disks.sizes.get(&root), Some(&ByteSize(1024)));
        assert!(memory.disks.created.contains(&root));
        assert_eq!(memory.start.by_disk.as_deref(), Some("no DHCP"));
        assert_eq!(memory.start.started_with.as_ref().unwrap().cpus, 2);
        assert_eq!(memory.boot.ready_by, Some(ReadyBy::PhoneHome));
        assert_eq!(memory.reboots_done, 3);
        let written = serde_json::to_value(&memory).unwrap();
        let earlier: serde_json::Value = serde_json::from_str(text).unwrap();
        for (key, value) in earlier.as_object().unwrap() {
            assert_eq!(&written[key], value, "{key}");
        }
    }
}
