//! The protocol between waifud and node agents, under `/v1/agent`.
//!
//! The agent opens all connections; waifud sends everything in answers to requests of the agent:
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/agent/hello` [`Hello`] | [`Welcome`]: who it is, and the database's incarnation |
//! | `GET /v1/agent/watch?since=REVISION` | NDJSON, one [`WatchFrame`] a line, for as long as the connection lives |
//! | `POST /v1/agent/report` [`AgentReport`] | 204 once it is durable |
//! | `GET /v1/agent/images/{digest}` | the image's bytes |
//! | `POST /v1/agent/images/{digest}/tickets` | [`ImageTickets`]: the same bytes, from nodes that have them ([`crate::node_to_node`]) |
//! | `POST /v1/agent/images/{digest}/copied` [`ImageCopied`] | 204 |
//! | `GET /v1/agent/bundles/{digest}` | the encrypted bundle's bytes |
//! | `GET /v1/agent/moves/{instance}/disks/{index}?from=BYTES` | a disk of an instance that the node receives ([`crate::disk_transfer`]) |
//! | `POST /v1/agent/moves/{instance}/disks/{index}/ticket` | [`DiskTicket`]: the same disk, from the node that has it ([`crate::node_to_node`]) |
//! | `GET /v1/agent/streams/{id}` with `Upgrade` | a stream's bytes, both ways ([`crate::stream`]) |
//! | `POST /v1/agent/streams/{id}/refuse` [`StreamRefusal`](crate::stream::StreamRefusal) | 204 |
//!
//! A watch begins with a `put` for every object in the node's slice that changed after `since` (all objects without
//! it). Then it sends one `sync`, changes as they are committed, and a `ping` at least every 10 seconds. `delete`
//! means that an object left the slice. The node stops managing an instance that left; only a `tombstone` orders its
//! destruction. 410 Gone means that the history after `since` was trimmed or belongs to another incarnation: repeat the
//! request without `since`.
//!
//! The slice has objects of the node itself (its configuration, its instances) and objects of the whole cluster (its
//! peers, [`Peer`]), which are the same for every node. `put` and `delete` name the kind of the object. An agent ignores
//! objects of kinds that it does not know. When it learns new kinds by an upgrade, it watches from the beginning.
//!
//! A watch with the header [`NAMES_HEADER`] also sends `names`: the names and addresses of the instances of other nodes
//! ([`NodeNames`]). They are sent after `sync`, and collected for about half a second or longer. They have revisions of their
//! own, from which the header's value resumes. A revision of another incarnation has the same effect as `all`.
//!
//! A `release` orders the node to give an instance up. The node records that durably, shuts the guest down if the release
//! says so, keeps the disks, and reports the instance in [`AgentReport::released`]. From then on it does not start the
//! instance again, also not after a reboot and without waifud, until it receives a `put` of a newer epoch. waifud has
//! another node start the instance only after it has stored a report that says that the guest is [`off`](Released::off).
//! An agent that knows releases has the feature `release` in its facts; others are not sent any.
//!
//! During a move, the node that receives the instance has an object [`Incoming`] in its slice, and reports
//! [`AgentReport::receiving`]. A node that can send and receive disks has the feature `move` in its facts.
//!
//! A node gets images from other nodes, if waifud knows any that have them, or else from waifud. A node that can send images
//! has the feature `peer-images` in its facts.
//!
//! The client's certificate identifies the node; [`crate::join`] describes how a node gets one. Reports are the
//! heartbeat: the agent sends one, possibly empty, at least every 10 seconds.
//!
//! Messages of a node are bounded ([`bounds`]): 422 names the field that is out of bounds. 429 means that the node
//! reports changes faster than waifud can store them; the agent sends the same report again later.

pub mod bounds;
mod incoming;
mod mesh_clients;
mod names;
mod redis;
mod slice;
mod ticket;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::evidence::GuestEvidence;
use waifud_types::node::NodeFacts;
use waifud_types::spec::InstanceSpec;
use waifud_types::status::{
    CloudInitStatus, Condition, HypervisorKind, InstanceAddress, NicStatus, ReadyBy, StepStatus,
    StoppedBy,
};
use waifud_types::template::{Datasource, Firmware};
use waifud_types::tolerance::known_or_none;
use waifud_types::{
    BootId, ByteSize, Digest, Epoch, Generation, Incarnation, InstanceId, InstanceState, Name,
    NodeId, ProcessId, Revision, Secret, Timestamp, VolumeId,
};

pub use self::incoming::{Incoming, Receiving};
pub use self::mesh_clients::{MeshClient, MeshClients};
pub use self::names::{ALL_NAMES, InstanceName, NAMES_HEADER, NodeNames, WatchStart};
pub use self::redis::RedisAccess;
pub use self::slice::{NodeSlice, Peer, SliceKey, SliceObject};
pub use self::ticket::{
    DiskTicket, ImageCopied, ImageTicket, ImageTicketOrder, ImageTickets, Ticket, TicketOrder,
};
use crate::PeerAddresses;
use crate::stream::StreamOrder;

/// The first request of an agent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Hello {
    /// The name in the agent's configuration; by default the first label of the hostname. waifud uses the name from
    /// the join, or the one that an administrator has set since.
    pub name: Name,
    /// Hardware and software of the node.
    pub facts: NodeFacts,
    /// The agent's clock, for showing clock skew.
    #[schema(value_type = String)]
    pub now: Timestamp,
    /// The boot id of the agent's machine; null if the kernel does not provide one.
    pub boot_id: Option<BootId>,
    /// The incarnation of waifud's database that the node's records come from; null before the first welcome, and from agents
    /// of earlier versions. A database that was restored from before the node's first hello recognizes the node by it.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
    /// Its place among the messages of the node. Agents of earlier versions do not send it.
    #[serde(default)]
    pub order: Option<MessageOrder>,
    /// A hash of what identifies the hardware; null if the firmware says nothing. If the disk of a node is used in another
    /// machine, it differs there. Agents of earlier versions do not send it.
    #[serde(default)]
    pub hardware: Option<Digest>,
}

/// The place of a hello or a report among the messages of its node.
///
/// A message that the agent has stopped waiting for can arrive after a newer one. waifud refuses it with 503 and the code
/// `outdated-report`. waifud takes a process that it has not heard of before for the newest one. So after a restart of waifud,
/// a late message of an earlier process that arrives after one of the present process makes it refuse the messages of the
/// present one. An agent whose message is refused therefore chooses a new id and sends its message again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MessageOrder {
    /// The process of the agent: a random number, chosen at its start.
    pub process: ProcessId,
    /// Grows with each message of the process.
    pub number: u64,
}

/// The node that a certificate belongs to: `GET /v1/agent/node`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct OwnNode {
    /// Id of the node.
    pub node: NodeId,
}

/// The answer to a known node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Welcome {
    /// Id of the node, as in its certificate.
    pub node: NodeId,
    /// The incarnation of waifud's database. After it changes, agents do not destroy anything until an administrator has
    /// confirmed the node.
    pub incarnation: Incarnation,
    /// Addresses of waifud, `https://HOST:PORT`, which the agent stores. Empty if unchanged.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// One line of a watch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WatchFrame {
    /// The object was created or changed.
    Put {
        /// The revision of the change.
        revision: Revision,
        /// The complete object.
        object: SliceObject,
    },
    /// The object left this node's slice. If it is an instance, its domain and volumes on the node are not changed.
    Delete {
        /// The revision of the change.
        revision: Revision,
        /// The object.
        #[serde(flatten)]
        #[schema(value_type = slice::KeyFields)]
        key: SliceKey,
    },
    /// Destroy this instance and confirm it.
    Tombstone {
        /// The revision of the change.
        revision: Revision,
        /// The order.
        tombstone: Tombstone,
    },
    /// Give the instance up and report it.
    Release {
        /// The revision of the change.
        revision: Revision,
        /// The order.
        release: Release,
    },
    /// Everything up to this revision has been sent.
    Sync {
        /// The revision to resume from.
        revision: Revision,
    },
    /// The names of instances of other nodes. They have revisions of their own.
    Names {
        /// The nodes whose names have changed, in the order of their revisions.
        nodes: Vec<NodeNames>,
    },
    /// A client requested a stream: the agent opens it and connects with its id. Has no revision and is not sent
    /// again.
    Stream(StreamOrder),
    /// Another node was given a ticket for a disk of this one. Has no revision and is not sent again.
    Ticket(TicketOrder),
    /// Another node was given a ticket for an image that this one has. Only for nodes with the feature `peer-images`. Has no
    /// revision and is not sent again.
    #[serde(rename = "image-ticket")]
    ImageTicket(ImageTicketOrder),
    /// Keeps the connection alive.
    Ping,
}

impl WatchFrame {
    /// The types of frames that have a revision, so that a watch that resumes does not repeat them.
    pub const REVISIONED: [&'static str; 5] = ["put", "delete", "tombstone", "release", "sync"];

    /// The revision to resume from after this frame; `None` for a frame without one.
    pub fn revision_mut(&mut self) -> Option<&mut Revision> {
        match self {
            Self::Put { revision, .. }
            | Self::Delete { revision, .. }
            | Self::Tombstone { revision, .. }
            | Self::Release { revision, .. }
            | Self::Sync { revision } => Some(revision),
            Self::Names { .. }
            | Self::Stream(_)
            | Self::Ticket(_)
            | Self::ImageTicket(_)
            | Self::Ping => None,
        }
    }
}

/// Everything that a node needs to run one instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentInstance {
    /// The id.
    pub id: InstanceId,
    /// The name.
    pub name: Name,
    /// Counts changes of owner; a tombstone of another epoch does not apply to this copy.
    pub epoch: Epoch,
    /// Generation of the spec.
    pub generation: Generation,
    /// The spec, including assigned addresses.
    pub spec: InstanceSpec,
    /// Size of the image file in bytes, for progress.
    pub image_size_bytes: ByteSize,
    /// The virtual size in the header of the image.
    pub image_virtual_size_bytes: ByteSize,
    /// The image of `spec.rescue`; null without a rescue.
    pub rescue_image: Option<RescueImage>,
    /// How the guest finds its metadata and user-data.
    pub datasource: Datasource,
    /// The firmware that starts the boot loader.
    pub firmware: Firmware,
    /// The metadata documents; the guest is started only after metadatad has stored them.
    pub bundle: BundleRef,
    /// True if the instance comes from a restored backup and the node is not confirmed. If no part of the instance
    /// exists on the node, it may have been deleted after the backup, so the node does not create it again.
    #[serde(default)]
    pub restored: bool,
    /// The node's bridge for each named network of its nics, except `default`. It does not change while an instance
    /// uses the network.
    #[serde(default)]
    pub bridges: BTreeMap<Name, String>,
    /// The subnet of its address on `default`, if it is not that of the node: the instance kept its address when it moved. Null
    /// otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub home: Option<Ipv4Net>,
    /// The addresses of the instances and labels in `spec.firewall`. They change with those instances, without a change of
    /// the generation.
    #[serde(default)]
    pub firewall_peers: Vec<PeerAddresses>,
}

/// The image that an instance boots during a rescue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RescueImage {
    /// The name.
    pub digest: Digest,
    /// Size of the image file in bytes.
    pub size_bytes: ByteSize,
    /// Virtual size of the image in bytes.
    pub virtual_size_bytes: ByteSize,
}

/// A bundle and the key to decrypt it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BundleRef {
    /// Digest of the encrypted bundle.
    pub digest: Digest,
    /// The key, 32 bytes in base64 (RFC 4648, section 4).
    pub key: Secret<String>,
    /// Size of the encrypted bundle in bytes.
    pub size_bytes: u64,
}

/// An order to destroy one copy of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tombstone {
    /// The instance.
    pub instance: InstanceId,
    /// Name of the instance, for logs.
    pub name: Name,
    /// Applies to copies of this epoch or older.
    pub epoch: Epoch,
}

/// An order to give an instance up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// The instance.
    pub instance: InstanceId,
    /// Applies to copies of this epoch or older.
    pub epoch: Epoch,
    /// Whether to shut a running guest down. The release is reported after the guest is off, and its port and documents
    /// are removed from the node. If false, it is reported at once; a running guest keeps running and is not started
    /// again after it has ended.
    pub stop: bool,
}

/// A release that the node has recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Released {
    /// The instance.
    pub instance: InstanceId,
    /// The epoch of the release.
    pub epoch: Epoch,
    /// Whether the guest is off and nothing of it is served or applied on the node. If the release does not stop the
    /// guest, the same release is reported again when the guest has ended.
    #[serde(default)]
    pub off: bool,
}

/// A report of an agent; every part can be empty.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AgentReport {
    /// Current hardware and software of the node; null if unchanged.
    pub facts: Option<NodeFacts>,
    /// The agent's clock.
    #[schema(value_type = Option<String>)]
    pub now: Option<Timestamp>,
    /// Instances whose status changed.
    pub instances: Vec<InstanceReport>,
    /// Executed tombstones: no part of these instances is left on the node.
    pub destroyed: Vec<Tombstone>,
    /// Recorded releases: the node does not start these instances in this epoch again.
    #[serde(default)]
    pub released: Vec<Released>,
    /// Instances that the node receives, if something has changed.
    #[serde(default)]
    pub receiving: Vec<Receiving>,
    /// The complete list of unmanaged objects on the node; null if unchanged. Agents of earlier versions call this
    /// `unclaimed`.
    #[serde(alias = "unclaimed")]
    pub unmanaged: Option<Vec<Unmanaged>>,
    /// Its place among the messages of the node. Agents of earlier versions do not send it.
    #[serde(default)]
    pub order: Option<MessageOrder>,
    /// The boot id of the agent's machine, by which waifud recognizes a copy of the machine. Agents of earlier versions do
    /// not send it.
    #[serde(default)]
    pub boot_id: Option<BootId>,
}

/// The status of one instance on its node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceReport {
    /// The instance.
    pub id: InstanceId,
    /// Epoch of the copy.
    pub epoch: Epoch,
    /// The generation that the status was observed for.
    pub observed_generation: Generation,
    /// The state.
    pub state: InstanceState,
    /// Reason for the state, as a sentence.
    pub reason: Option<String>,
    /// Time of the last start; null if the instance is off.
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// What stopped the instance; null if it is not stopped.
    #[serde(default, deserialize_with = "known_or_none")]
    pub stopped_by: Option<StoppedBy>,
    /// The hypervisor that runs it.
    pub hypervisor: Option<HypervisorKind>,
    /// Whether cloud-init has finished.
    pub ready: bool,
    /// How readiness was detected.
    pub ready_by: Option<ReadyBy>,
    /// Addresses observed at the guest.
    pub addresses: Vec<InstanceAddress>,
    /// Its nics on the node, including those that were removed from the spec and may still have a port. Null if unknown; agents
    /// of earlier versions do not send it.
    #[serde(default)]
    pub nics: Option<Vec<NicStatus>>,
    /// The current step; null if there is none.
    pub step: Option<StepStatus>,
    /// Changed fields that take effect at the next start.
    pub restart_needed: Vec<String>,
    /// The state of cloud-init.
    pub cloud_init: CloudInitStatus,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Observations of the guest since its start; null if unchanged.
    pub evidence: Option<GuestEvidence>,
}

impl InstanceReport {
    /// A report of nothing but a state, of the first generation and epoch.
    pub fn of_state(id: InstanceId, state: InstanceState) -> Self {
        Self {
            id,
            epoch: Epoch::FIRST,
            observed_generation: Generation::FIRST,
            state,
            reason: None,
            started_at: None,
            stopped_by: None,
            hypervisor: None,
            ready: false,
            ready_by: None,
            addresses: Vec::new(),
            nics: None,
            step: None,
            restart_needed: Vec::new(),
            cloud_init: CloudInitStatus::default(),
            conditions: Vec::new(),
            evidence: None,
        }
    }
}

/// A domain or volume on a node that is not in waifud's database.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unmanaged {
    /// `domain` or `volume`.
    pub kind: String,
    /// The instance that it belongs to, according to its own metadata.
    pub instance: InstanceId,
    /// The name; null if it has none.
    pub name: Option<String>,
    /// Id of the volume; null for a domain.
    pub volume: Option<VolumeId>,
    /// Whether it is running.
    pub running: bool,
    /// Its known addresses, which are not assigned to other instances.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Ipv4Addr>,
    /// The node's copy of the instance, on one entry per instance. Null if the node has no copy.
    pub record: Option<Box<AgentInstance>>,
    /// Its encrypted bundle in base64, so that it can be adopted with its user-data.
    pub bundle: Option<String>,
}
