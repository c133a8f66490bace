//! An in-memory waifud: keeps one node's slice and a history, and records the requests that it received.

mod disks;
mod link;
mod tickets;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::io::DuplexStream;
use tokio::sync::{oneshot, watch};
use waifud_api::agent::{
    AgentInstance, DiskTicket, ImageTicketOrder, ImageTickets, Incoming, InstanceName,
    InstanceReport, MeshClients, NodeNames, NodeSlice, Peer, Receiving, RedisAccess, Release,
    Released, SliceKey, SliceObject, TicketOrder, Tombstone, Unmanaged, WatchFrame,
};
use waifud_api::stream::{StreamId, StreamOrder, StreamRefusal};
use waifud_kit::sync::lock;
use waifud_types::node::NodeFacts;
use waifud_types::{
    BootId, Digest, DiskFormat, FabricKind, Incarnation, InstanceId, MacAddr, NodeId, Revision,
};

use super::name;
use crate::interfaces::{FrameStream, LinkError};

/// The fake. Clones share one state.
#[derive(Clone)]
pub struct FakeWaifud {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

struct State {
    node: NodeId,
    incarnation: Incarnation,
    /// The incarnation of a database that replaces this one when the next watch is requested.
    next_incarnation: Option<Incarnation>,
    online: bool,
    /// Whether waifud takes the machine for a copy of its node.
    duplicate: bool,
    /// A watch that is older than the last of them has ended.
    outages: u64,
    history: Vec<(u64, Change)>,
    number: u64,
    /// Revisions up to here are trimmed.
    trimmed: u64,
    slice: NodeSlice,
    instances: BTreeMap<InstanceId, AgentInstance>,
    tombstones: BTreeMap<InstanceId, Tombstone>,
    releases: BTreeMap<InstanceId, Release>,
    incoming: BTreeMap<InstanceId, Incoming>,
    /// The last report about each instance that the node receives.
    receiving: BTreeMap<InstanceId, Receiving>,
    /// Files that are sent as disks.
    disks: BTreeMap<(InstanceId, u32), PathBuf>,
    /// The offset that each transfer of a disk began at.
    transfers: Vec<u64>,
    /// What happens to transfers of disks.
    disk_fault: Option<DiskFault>,
    /// The format that the sender of disks states.
    disk_format: DiskFormat,
    /// Tickets for disks, which are issued with new random bits each time.
    tickets: Option<TicketIssuer>,
    /// The same for images.
    image_tickets: Option<ImageTicketIssuer>,
    /// Where the node has got images from.
    copied: Vec<(Digest, NodeId)>,
    peers: BTreeMap<NodeId, Peer>,
    names: BTreeMap<NodeId, NodeNames>,
    images: BTreeMap<Digest, Vec<u8>>,
    bundles: BTreeMap<Digest, Vec<u8>>,
    /// Downloads stop after this many bytes.
    stall_after: Option<usize>,
    fetches: u64,
    statuses: BTreeMap<InstanceId, Vec<InstanceReport>>,
    destroyed: Vec<Tombstone>,
    released: Vec<Released>,
    unmanaged: Vec<Unmanaged>,
    facts: Option<NodeFacts>,
    boot: Option<BootId>,
    reports: u64,
    streams: BTreeMap<String, oneshot::Sender<StreamOutcome>>,
}

/// The outcome of a request: the other end of the stream, or the refusal.
pub type StreamOutcome = Result<DuplexStream, StreamRefusal>;

/// Issues a ticket for a disk of an instance.
pub type TicketIssuer = Arc<dyn Fn(InstanceId, u32) -> DiskTicket + Send + Sync>;

/// Issues tickets for an image.
pub type ImageTicketIssuer = Arc<dyn Fn(Digest) -> ImageTickets + Send + Sync>;

/// What happens to a disk on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// The connection ends after this many frames.
    EndsAfter(usize),
    /// A byte of the last block is another one.
    Damaged,
}

#[derive(Clone)]
enum Change {
    Node,
    Instance(InstanceId),
    Removed(InstanceId),
    Tombstone(InstanceId),
    Release(InstanceId),
    Incoming(InstanceId),
    Names(NodeId),
    Peer(NodeId),
    RemovedPeer(NodeId),
    /// Sent once, to the watches that are open then.
    Stream(StreamOrder),
    /// Sent once, to the watches that are open then.
    Ticket(TicketOrder),
    /// Sent once, to the watches that are open then.
    ImageTicket(ImageTicketOrder),
}

impl Default for FakeWaifud {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeWaifud {
    /// Online, with a node that has 10.144.1.0/24 and nothing on it.
    pub fn new() -> Self {
        let node = NodeId::generate();
        let net = ipnet::Ipv4Net::new_assert([10, 144, 1, 0].into(), 24);
        let state = State {
            node,
            incarnation: Incarnation(1),
            next_incarnation: None,
            online: true,
            duplicate: false,
            outages: 0,
            history: vec![(1, Change::Node)],
            number: 1,
            trimmed: 0,
            slice: NodeSlice {
                id: node,
                name: name("alder"),
                subnet: net,
                gateway: [10, 144, 1, 1].into(),
                gateway_mac: MacAddr::of_guest([0, 0, 1]),
                confirmed: Some(Incarnation(1)),
                clients: None,
                redis: None,
                fabric: FabricKind::None,
            },
            instances: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            releases: BTreeMap::new(),
            incoming: BTreeMap::new(),
            receiving: BTreeMap::new(),
            disks: BTreeMap::new(),
            transfers: Vec::new(),
            disk_fault: None,
            disk_format: DiskFormat::Qcow2,
            tickets: None,
            image_tickets: None,
            copied: Vec::new(),
            peers: BTreeMap::new(),
            names: BTreeMap::new(),
            images: BTreeMap::new(),
            bundles: BTreeMap::new(),
            stall_after: None,
            fetches: 0,
            statuses: BTreeMap::new(),
            destroyed: Vec::new(),
            released: Vec::new(),
            unmanaged: Vec::new(),
            facts: None,
            boot: None,
            reports: 0,
            streams: BTreeMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
        }
    }

    /// Adds a real bundle. Every other one is a few bytes that are not opened.
    pub fn add_bundle(&self, bundle: Digest, sealed: Vec<u8>) {
        lock(&self.state).bundles.insert(bundle, sealed);
    }

    /// Adds an instance to the slice, or replaces its spec. An instance that exists has no tombstone.
    pub fn put(&self, instance: AgentInstance) {
        let id = instance.id;
        self.change(Change::Instance(id), |state| {
            state.tombstones.remove(&id);
            state.instances.insert(id, instance);
        });
    }

    /// Changes an instance's spec and increments its generation.
    pub fn edit(&self, id: InstanceId, change: impl FnOnce(&mut AgentInstance)) {
        self.change(Change::Instance(id), |state| {
            if let Some(instance) = state.instances.get_mut(&id) {
                instance.generation = instance.generation.next();
                change(instance);
            }
        });
    }

    /// The instance as in the slice.
    pub fn instance(&self, id: InstanceId) -> Option<AgentInstance> {
        lock(&self.state).instances.get(&id).cloned()
    }

    /// Removes the instance from the node's slice without a tombstone.
    pub fn remove_from_slice(&self, id: InstanceId) {
        self.change(Change::Removed(id), |state| {
            state.instances.remove(&id);
        });
    }

    /// Chooses the fabric.
    pub fn set_fabric(&self, kind: FabricKind) {
        self.change(Change::Node, |state| state.slice.fabric = kind);
    }

    /// Sets the clients of the fabric.
    pub fn set_clients(&self, clients: Option<MeshClients>) {
        self.change(Change::Node, |state| state.slice.clients = clients);
    }

    /// Adds another node, or changes it.
    pub fn put_peer(&self, peer: Peer) {
        let id = peer.id;
        self.change(Change::Peer(id), |state| {
            state.peers.insert(id, peer);
        });
    }

    /// Removes another node.
    pub fn remove_peer(&self, id: NodeId) {
        self.change(Change::RemovedPeer(id), |state| {
            state.peers.remove(&id);
        });
    }

    /// Replaces the names of another node's instances.
    pub fn put_names(&self, node: NodeId, names: &[(&str, Ipv4Addr)]) {
        let names = names.iter();
        let names = names.map(|(name, address)| InstanceName {
            name: super::name(name),
            addresses: vec![*address],
        });
        let names = names.collect();
        self.change(Change::Names(node), |state| {
            let revision = state.revision(state.number + 1);
            let names = NodeNames {
                node,
                revision,
                names,
            };
            state.names.insert(node, names);
        });
    }

    /// Deletes the instance: adds a tombstone of its current epoch.
    pub fn delete(&self, id: InstanceId) {
        let tombstone = lock(&self.state)
            .instances
            .get(&id)
            .map(|instance| Tombstone {
                instance: id,
                name: instance.name.clone(),
                epoch: instance.epoch,
            });
        if let Some(tombstone) = tombstone {
            lock(&self.state).instances.remove(&id);
            self.add_tombstone(tombstone);
        }
    }

    /// Orders the node to receive an instance. An instance that exists has no tombstone.
    pub fn put_incoming(&self, incoming: Incoming) {
        let id = incoming.id;
        self.change(Change::Incoming(id), |state| {
            state.tombstones.remove(&id);
            state.incoming.insert(id, incoming);
        });
    }

    /// The node owns the instance that it has received.
    pub fn hand_over(&self, instance: AgentInstance) {
        lock(&self.state).incoming.remove(&instance.id);
        self.put(instance);
    }

    /// The last report about an instance that the node receives.
    pub fn receiving(&self, id: InstanceId) -> Option<Receiving> {
        lock(&self.state).receiving.get(&id).cloned()
    }

    /// Adds this tombstone.
    pub fn add_tombstone(&self, tombstone: Tombstone) {
        let id = tombstone.instance;
        self.change(Change::Tombstone(id), |state| {
            state.tombstones.insert(id, tombstone);
        });
    }

    /// Orders the node to release this copy of the instance, which is not sent again.
    pub fn release(&self, release: Release) {
        let id = release.instance;
        self.change(Change::Release(id), |state| {
            state.instances.remove(&id);
            state.releases.insert(id, release);
        });
    }

    /// Withdraws a release: the instance comes back in the next epoch.
    pub fn withdraw_release(&self, mut instance: AgentInstance) {
        lock(&self.state).releases.remove(&instance.id);
        instance.epoch = instance.epoch.next();
        self.put(instance);
    }

    /// Every report of a recorded release, repeated ones included.
    pub fn released(&self) -> Vec<Released> {
        lock(&self.state).released.clone()
    }

    /// Trims the history: a watch that resumes before this point is answered with 410.
    pub fn trim(&self) {
        let mut state = lock(&self.state);
        state.trimmed = state.number + 1;
        state.number += 1;
    }

    /// Acts like a restored backup: the same content in a new incarnation. Watches end.
    pub fn restore(&self, incarnation: u32) {
        {
            let mut state = lock(&self.state);
            state.incarnation = Incarnation(incarnation);
            state.slice.confirmed = None;
        }
        self.set_online(false);
        self.set_online(true);
    }

    /// Restores the database once more after the next hello, before the watch that follows it.
    pub fn restore_before_watch(&self, incarnation: u32) {
        lock(&self.state).next_incarnation = Some(Incarnation(incarnation));
    }

    /// Loses a bundle.
    pub fn remove_bundle(&self, bundle: Digest) {
        lock(&self.state).bundles.remove(&bundle);
    }

    /// Tells the node about a Redis, or that there is none.
    pub fn set_redis(&self, redis: Option<RedisAccess>) {
        self.change(Change::Node, |state| state.slice.redis = redis);
    }

    /// Removes every order to destroy something, as when the database is replaced with one that does not contain it.
    pub fn lose_tombstones(&self) {
        lock(&self.state).tombstones.clear();
    }

    /// Confirms the restored database, as an administrator would.
    pub fn confirm(&self) {
        self.change(Change::Node, |state| {
            state.slice.confirmed = Some(state.incarnation);
            for instance in state.instances.values_mut() {
                instance.restored = false;
            }
        });
    }

    /// Takes the machine for a copy of its node, or not any more.
    pub fn set_duplicate(&self, duplicate: bool) {
        lock(&self.state).duplicate = duplicate;
    }

    /// Goes online or offline. Watches end when it goes offline.
    pub fn set_online(&self, online: bool) {
        {
            let mut state = lock(&self.state);
            state.online = online;
            state.outages += u64::from(!online);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// An image that can be fetched.
    pub fn add_image(&self, digest: Digest, bytes: Vec<u8>) {
        lock(&self.state).images.insert(digest, bytes);
    }

    /// Makes downloads stall after this many bytes; `None` ends that.
    pub fn stall_downloads(&self, after: Option<usize>) {
        lock(&self.state).stall_after = after;
        self.changed.send_modify(|n| *n += 1);
    }

    /// How many downloads were started.
    pub fn fetches(&self) -> u64 {
        lock(&self.state).fetches
    }

    /// The last reported status of an instance.
    pub fn status(&self, id: InstanceId) -> Option<InstanceReport> {
        lock(&self.state).statuses.get(&id)?.last().cloned()
    }

    /// Every reported status of an instance.
    pub fn status_history(&self, id: InstanceId) -> Vec<InstanceReport> {
        lock(&self.state)
            .statuses
            .get(&id)
            .cloned()
            .unwrap_or_default()
    }

    /// Confirmed tombstones.
    pub fn destroyed(&self) -> Vec<Tombstone> {
        lock(&self.state).destroyed.clone()
    }

    /// How many tombstones are not confirmed yet.
    pub fn pending_tombstones(&self) -> usize {
        lock(&self.state).tombstones.len()
    }

    /// The reported unmanaged objects.
    pub fn unmanaged(&self) -> Vec<Unmanaged> {
        lock(&self.state).unmanaged.clone()
    }

    /// The reported facts.
    pub fn facts(&self) -> Option<NodeFacts> {
        lock(&self.state).facts.clone()
    }

    /// The boot id that the node reported.
    pub fn boot(&self) -> Option<BootId> {
        lock(&self.state).boot
    }

    /// Requests a stream from the node. The receiver fails if the node does not answer.
    pub fn request_stream(&self, order: StreamOrder) -> oneshot::Receiver<StreamOutcome> {
        let (sender, receiver) = oneshot::channel();
        let id = order.id.to_string();
        self.change(Change::Stream(order), |state| {
            state.streams.insert(id, sender);
        });
        receiver
    }

    /// How many reports arrived.
    pub fn reports(&self) -> u64 {
        lock(&self.state).reports
    }

    /// Changes the state, and tells the watches what has changed.
    fn change(&self, change: Change, edit: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        edit(&mut state);
        state.number += 1;
        let number = state.number;
        state.history.push((number, change));
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    fn take_requester(&self, id: StreamId) -> Result<oneshot::Sender<StreamOutcome>, LinkError> {
        let requester = self.online()?.streams.remove(&id.to_string());
        requester.ok_or_else(no_such_stream)
    }

    fn online(&self) -> Result<std::sync::MutexGuard<'_, State>, LinkError> {
        super::online(&self.state, "waifud", |state| state.online)
            .map_err(|message| LinkError::Unreachable { message })
    }
}

fn no_such_stream() -> LinkError {
    LinkError::Refused {
        status: 404,
        message: "no such stream".to_owned(),
    }
}

impl State {
    fn revision(&self, number: u64) -> Revision {
        Revision {
            incarnation: self.incarnation,
            number,
        }
    }

    /// The names that are newer than a revision.
    fn names_after(&self, revision: u64) -> Option<WatchFrame> {
        let nodes = self.names.values();
        let nodes = nodes.filter(|names| names.revision.number > revision);
        let mut nodes: Vec<_> = nodes.cloned().collect();
        nodes.sort_by_key(|names| names.revision.number);
        (!nodes.is_empty()).then_some(WatchFrame::Names { nodes })
    }

    fn frame(&self, number: u64, change: &Change) -> Option<WatchFrame> {
        let revision = self.revision(number);
        Some(match change {
            Change::Node => WatchFrame::Put {
                revision,
                object: SliceObject::Node(self.slice.clone()),
            },
            Change::Instance(id) => WatchFrame::Put {
                revision,
                object: SliceObject::Instance(Box::new(self.instances.get(id)?.clone())),
            },
            Change::Removed(id) => WatchFrame::Delete {
                revision,
                key: SliceKey::Instance(*id),
            },
            Change::Peer(id) => WatchFrame::Put {
                revision,
                object: SliceObject::Peer(self.peers.get(id)?.clone()),
            },
            Change::RemovedPeer(id) => WatchFrame::Delete {
                revision,
                key: SliceKey::Peer(*id),
            },
            Change::Names(id) => WatchFrame::Names {
                nodes: vec![self.names.get(id)?.clone()],
            },
            Change::Stream(order) => WatchFrame::Stream(*order),
            Change::Ticket(order) => WatchFrame::Ticket(*order),
            Change::ImageTicket(order) => WatchFrame::ImageTicket(*order),
            Change::Tombstone(id) => WatchFrame::Tombstone {
                revision,
                tombstone: self.tombstones.get(id)?.clone(),
            },
            Change::Incoming(id) => WatchFrame::Put {
                revision,
                object: SliceObject::Incoming(Box::new(self.incoming.get(id)?.clone())),
            },
            Change::Release(id) => WatchFrame::Release {
                revision,
                release: *self.releases.get(id)?,
            },
        })
    }
}

struct Frames {
    waifud: FakeWaifud,
    changes: watch::Receiver<u64>,
    incarnation: Incarnation,
    outages: u64,
    queue: std::collections::VecDeque<WatchFrame>,
    at: u64,
}

#[async_trait]
impl FrameStream for Frames {
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError> {
        loop {
            {
                let state = self.waifud.online()?;
                if state.incarnation != self.incarnation || state.outages != self.outages {
                    return Ok(None);
                }
                for (number, change) in state.history.iter().filter(|(n, _)| *n > self.at) {
                    self.queue.extend(state.frame(*number, change));
                }
                self.at = state.number;
            }
            if let Some(frame) = self.queue.pop_front() {
                return Ok(Some(frame));
            }
            if self.changes.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
