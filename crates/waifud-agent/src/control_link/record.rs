//! What the agent remembers durably: of the node, and of each instance.
//!
//! An instance's record outlives its place in the node's slice: while anything of it is on the node, its addresses and
//! port stay known. It ends when waifud has heard that everything was destroyed, or when nothing is left of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use waifud_api::agent::{AgentInstance, NodeSlice, Tombstone};
use waifud_types::status::{CloudInitStatus, ReadyBy, StoppedBy};
use waifud_types::{
    ByteSize, Digest, Epoch, Incarnation, InstanceId, Name, NodeId, Revision, Timestamp,
};

/// What is remembered of the node itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRecord {
    /// Its id, as waifud's first welcome gave it.
    pub node: Option<NodeId>,
    /// The life of waifud's database that the records come from.
    pub incarnation: Option<Incarnation>,
    /// Set when the incarnation changed: nothing is destroyed until an operator has confirmed the new one.
    pub unconfirmed: Option<Incarnation>,
    /// Everything up to here has been taken over; a watch resumes after it.
    pub revision: Option<Revision>,
    /// Subnet and gateway.
    pub slice: Option<NodeSlice>,
}

/// What is remembered of one instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Which instance.
    pub id: InstanceId,
    /// As waifud last gave it; null when only a tombstone is known.
    pub instance: Option<AgentInstance>,
    /// Whether it is in the node's slice. What left it is neither changed nor destroyed.
    pub managed: bool,
    /// The order to destroy it.
    pub tombstone: Option<Tombstone>,
    /// The order was carried out and waifud may not have heard of it yet.
    pub destroyed: bool,
    /// What the driver has to know after a restart.
    #[serde(default)]
    pub memory: Memory,
}

impl InstanceRecord {
    /// A record of an instance of which nothing is known.
    pub fn new(id: InstanceId) -> Self {
        Self {
            id,
            instance: None,
            managed: false,
            tombstone: None,
            destroyed: false,
            memory: Memory::default(),
        }
    }

    /// What should become of it. `held` when destruction waits for an operator.
    pub fn wish(&self, held: bool) -> DesiredState {
        match (&self.tombstone, &self.instance) {
            (Some(tombstone), instance) => DesiredState::Destroy(Order {
                tombstone: tombstone.clone(),
                held,
                epoch: instance.as_ref().map(|instance| instance.epoch),
                done: self.destroyed,
            }),
            (None, Some(instance)) if self.managed => {
                DesiredState::Keep(Box::new(instance.clone()))
            }
            _ => DesiredState::LeaveAlone,
        }
    }
}

/// What should become of an instance on this node.
#[derive(Clone, PartialEq, Debug)]
pub enum DesiredState {
    /// Be as the spec says.
    Keep(Box<AgentInstance>),
    /// Be gone.
    Destroy(Order),
    /// In nobody's list: stay as it is.
    LeaveAlone,
}

/// A tombstone, and what decides whether it may be carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// The order.
    pub tombstone: Tombstone,
    /// Destruction waits for an operator.
    pub held: bool,
    /// The epoch of the copy on this node, as recorded.
    pub epoch: Option<Epoch>,
    /// It was carried out already.
    pub done: bool,
}

/// Facts about an instance that nothing on the node shows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Where it is in its life.
    pub run: RunMemory,
    /// Who stopped it; null while it runs and before it ever did.
    pub stopped_by: Option<StoppedBy>,
    /// The agent asked this run of the guest to shut down: however it ends, it was by wish.
    pub stop_requested: bool,
    /// A domain was defined by us: one without our mark is ours nevertheless.
    pub defined: bool,
    /// Disks that were made. One that is missing later is not made again: its data would silently be gone.
    pub disks: BTreeSet<Name>,
    /// How many of the reboots that were ordered are carried out.
    pub reboots_done: u64,
    /// How often it was restarted since it last ran for a while.
    pub restarts: u32,
    /// What it was last started with; null when that is not known.
    pub started_with: Option<StartedWith>,
    /// How large each disk was made.
    pub disk_sizes: BTreeMap<Name, ByteSize>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// When the guest was seen to boot again within this run.
    pub booted_at: Option<Timestamp>,
    /// The documents that the running guest has read, or found at its start.
    pub documents: Option<Digest>,
    /// When it last phoned home.
    pub phoned_home_at: Option<Timestamp>,
    /// When the first event of the current boot came from cloud-init's reporter.
    pub reported_boot: Option<Timestamp>,
    /// The documents with which it phoned home: cloud-init does so once for each instance-id.
    pub called_with: Option<Digest>,
    /// How readiness was proven since.
    pub ready_by: Option<ReadyBy>,
    /// Why its documents come from a disk, against its template's wish; null when they do not.
    pub by_disk: Option<String>,
    /// What stands for it towards metadatad, where its address is not ours to give. Kept for life.
    pub identity: Option<Ipv4Addr>,
    /// What cloud-init said since.
    pub cloud_init: CloudInitStatus,
}

/// The parts of a spec that count from a start to the next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartedWith {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_bytes: ByteSize,
}

impl StartedWith {
    /// What this start takes from the spec.
    pub fn of(want: &AgentInstance) -> Self {
        Self {
            cpus: want.spec.cpus,
            memory_bytes: want.spec.memory_bytes,
        }
    }
}

/// Where an instance is in its life, as the agent last knew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunMemory {
    /// Nothing speaks against a start: it never ran, or its owner asked anew.
    #[default]
    Free,
    /// A start was begun.
    Starting,
    /// It was seen running.
    Started,
    /// It was seen off after it had run.
    Stopped,
}
