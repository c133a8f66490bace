//! What waifud and a node's agent say to each other, under `/v1/agent`.
//!
//! The agent dials out, and everything it needs comes back on its own requests:
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/agent/hello` [`Hello`] | [`Welcome`]: who it is, and the database's incarnation |
//! | `GET /v1/agent/watch?since=REVISION` | NDJSON, one [`WatchFrame`] a line, for as long as the connection lives |
//! | `POST /v1/agent/report` [`AgentReport`] | 204 once it is durable |
//! | `GET /v1/agent/images/{digest}` | the image's bytes |
//! | `GET /v1/agent/bundles/{digest}` | the encrypted bundle's bytes |
//! | `GET /v1/agent/streams/{id}` with `Upgrade` | a stream's bytes, both ways ([`crate::stream`]) |
//! | `POST /v1/agent/streams/{id}/refuse` [`StreamRefusal`](crate::stream::StreamRefusal) | 204 |
//!
//! A watch begins with a `put` for everything in the node's slice that changed after `since` (everything, without
//! it), then one `sync`, then changes as they are committed, and a `ping` at least every 10 seconds. `delete` means
//! "no longer yours to look after", never "destroy": only a `tombstone` orders destruction. 410 Gone says that the
//! history after `since` was trimmed, or is of another incarnation: ask again without `since`.
//!
//! Who asks is said by the client's certificate; [`crate::join`] tells how a node gets one. A report, even an empty
//! one, at least every 10 seconds is the heartbeat.
//!
//! What a node says is bounded ([`bounds`]): 422 names the field that is out of bounds. 429 says that a node changes
//! faster than waifud writes down; the same report is taken a little later.

pub mod bounds;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::evidence::GuestEvidence;
use waifud_types::node::NodeFacts;
use waifud_types::spec::InstanceSpec;
use waifud_types::status::{
    CloudInitStatus, Condition, HypervisorKind, InstanceAddress, ReadyBy, StepStatus, StoppedBy,
};
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{
    BootId, ByteSize, Digest, Epoch, Generation, Incarnation, InstanceId, InstanceState, MacAddr,
    Name, NodeId, Revision, Secret, Timestamp, VolumeId,
};

use crate::stream::StreamOrder;

/// The agent introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Hello {
    /// What the node calls itself: its host name's first label unless configured. Its name is the one that it was let in
    /// by, or that an administrator gave it since.
    pub name: Name,
    /// What the node has.
    pub facts: NodeFacts,
    /// The agent's clock, so that skew can be shown.
    #[schema(value_type = String)]
    pub now: Timestamp,
    /// Which boot of its machine the agent runs in; null where the kernel has none to tell.
    #[serde(default)]
    pub boot_id: Option<BootId>,
}

/// waifud knows the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Welcome {
    /// The node's id, as its certificate names it.
    pub node: NodeId,
    /// The life of waifud's database. When it changes, agents destroy nothing until an operator has confirmed.
    pub incarnation: Incarnation,
    /// Where waifud is, `https://HOST:PORT`; the agent keeps them. Empty: as before.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// One line of a watch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WatchFrame {
    /// The object is as given from this revision on.
    Put {
        /// Where in the history.
        revision: Revision,
        /// The whole object.
        object: SliceObject,
    },
    /// The instance left this node's slice. What is on the node stays as it is.
    Delete {
        /// Where in the history.
        revision: Revision,
        /// Which instance.
        instance: InstanceId,
    },
    /// Destroy this instance, and confirm.
    Tombstone {
        /// Where in the history.
        revision: Revision,
        /// The order.
        tombstone: Tombstone,
    },
    /// Everything up to this revision has been sent.
    Sync {
        /// Resume from here.
        revision: Revision,
    },
    /// Somebody wants a stream: open it and come back with its id. Has no revision, and is not sent again.
    Stream(StreamOrder),
    /// The connection lives.
    Ping,
}

/// An object of a node's slice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SliceObject {
    /// What the node itself is given.
    Node(NodeSlice),
    /// An instance placed on it.
    Instance(Box<AgentInstance>),
}

/// What a node is given by waifud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeSlice {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// The guests' subnet on it, such as 10.144.1.0/24.
    #[schema(value_type = String)]
    pub subnet: Ipv4Net,
    /// The gateway's address in the subnet: its first host address.
    #[schema(value_type = String)]
    pub gateway: Ipv4Addr,
    /// The gateway's MAC address, the same on every node.
    pub gateway_mac: MacAddr,
    /// The life of the database that an operator has confirmed for this node: what waifud orders in it is carried out.
    /// Null after a restore, until somebody has.
    #[serde(default)]
    pub confirmed: Option<Incarnation>,
}

/// Everything that a node has to know to run one instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentInstance {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: Name,
    /// The count of its owners; a tombstone of another epoch is not for this copy.
    pub epoch: Epoch,
    /// Which spec this is.
    pub generation: Generation,
    /// The spec, addresses filled in.
    pub spec: InstanceSpec,
    /// Bytes of the image's file, for progress.
    pub image_size_bytes: ByteSize,
    /// The size that the image's header claims.
    pub image_virtual_size_bytes: ByteSize,
    /// The image of `spec.rescue`, while there is one.
    #[serde(default)]
    pub rescue_image: Option<RescueImage>,
    /// How the guest finds its documents.
    pub datasource: Datasource,
    /// What starts its boot loader.
    pub firmware: Firmware,
    /// The documents; the guest is not started before metadatad holds them.
    pub bundle: BundleRef,
    /// It was in the database before that was restored from a backup, and nobody has confirmed it for this node yet:
    /// if nothing of it is here, it may have been deleted since the backup, and is not made anew.
    #[serde(default)]
    pub restored: bool,
    /// The bridge on the node of each named network that its nics are on; `default` is not among them. It never changes
    /// while an instance uses the network.
    #[serde(default)]
    pub bridges: BTreeMap<Name, String>,
}

/// The image that an instance boots while it is being mended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RescueImage {
    /// Its name.
    pub digest: Digest,
    /// Bytes of the file.
    pub size_bytes: ByteSize,
    /// Bytes of the disk in it.
    pub virtual_size_bytes: ByteSize,
}

/// Names a bundle and opens it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BundleRef {
    /// The digest of the encrypted bytes.
    pub digest: Digest,
    /// The key, 32 bytes in base64 (RFC 4648, section 4).
    pub key: Secret<String>,
    /// Bytes of the encrypted form.
    pub size_bytes: u64,
}

/// The order to destroy one copy of one instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tombstone {
    /// The instance.
    pub instance: InstanceId,
    /// Its name, for people who read logs.
    pub name: Name,
    /// Copies of this epoch or older.
    pub epoch: Epoch,
}

/// What an agent has to say: every part may be empty.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AgentReport {
    /// What the node has now; null when nothing changed.
    pub facts: Option<NodeFacts>,
    /// The agent's clock.
    #[schema(value_type = Option<String>)]
    pub now: Option<Timestamp>,
    /// Instances whose status changed.
    pub instances: Vec<InstanceReport>,
    /// Tombstones that were carried out: nothing of these is on the node any more.
    pub destroyed: Vec<Tombstone>,
    /// The whole list of what is on the node and in nobody's list; null when it did not change.
    pub unmanaged: Option<Vec<Unmanaged>>,
}

/// One instance as its node sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceReport {
    /// Which instance.
    pub id: InstanceId,
    /// Which copy.
    pub epoch: Epoch,
    /// The generation that the driver was working towards.
    pub observed_generation: Generation,
    /// What it is doing.
    pub state: InstanceState,
    /// Why, in a sentence.
    pub reason: Option<String>,
    /// When it was last started; null unless it is on.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// Who stopped it, when stopped.
    pub stopped_by: Option<StoppedBy>,
    /// What runs it.
    pub hypervisor: Option<HypervisorKind>,
    /// Whether cloud-init is done.
    pub ready: bool,
    /// How that was proven.
    pub ready_by: Option<ReadyBy>,
    /// Addresses seen at the guest.
    pub addresses: Vec<InstanceAddress>,
    /// The step at work.
    pub step: Option<StepStatus>,
    /// Fields that count only after the next start.
    pub restart_needed: Vec<String>,
    /// What cloud-init says.
    pub cloud_init: CloudInitStatus,
    /// Further conditions.
    pub conditions: Vec<Condition>,
    /// What the guest was seen to do since its start; null when that is as it was told before.
    #[serde(default)]
    pub evidence: Option<GuestEvidence>,
}

/// Something on a node that no list of waifud's names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unmanaged {
    /// `domain` or `volume`.
    pub kind: String,
    /// Its instance, as its own record says.
    pub instance: InstanceId,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// The volume, when it is one.
    pub volume: Option<VolumeId>,
    /// Whether it runs.
    pub running: bool,
    /// Addresses that it has, as far as known: nobody else is given them.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Ipv4Addr>,
    /// What the node was once given of the instance; on one entry of each instance. Null when the node has forgotten.
    #[serde(default)]
    pub record: Option<Box<AgentInstance>>,
    /// The encrypted bytes of its documents in base64, so that it can be adopted with its user-data.
    #[serde(default)]
    pub bundle: Option<String>,
}
