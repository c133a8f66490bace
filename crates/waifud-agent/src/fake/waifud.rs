//! A waifud in memory: keeps one node's slice and a history, and remembers what it was told.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::DuplexStream;
use tokio::sync::{oneshot, watch};
use waifud_api::agent::{
    AgentInstance, AgentReport, Hello, InstanceReport, NodeSlice, SliceObject, Tombstone,
    Unmanaged, WatchFrame, Welcome,
};
use waifud_api::stream::{StreamId, StreamOrder, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_types::node::NodeFacts;
use waifud_types::{BootId, Digest, Incarnation, InstanceId, MacAddr, NodeId, Revision};

use super::{lock, name};
use crate::interfaces::{ControlLink, FrameStream, LinkError};

/// The fake. Clones share one world.
#[derive(Clone)]
pub struct FakeWaifud {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
}

struct World {
    node: NodeId,
    incarnation: Incarnation,
    online: bool,
    history: Vec<(u64, Change)>,
    number: u64,
    /// Revisions up to here are trimmed.
    trimmed: u64,
    slice: NodeSlice,
    instances: BTreeMap<InstanceId, AgentInstance>,
    tombstones: BTreeMap<InstanceId, Tombstone>,
    images: BTreeMap<Digest, Vec<u8>>,
    bundles: BTreeMap<Digest, Vec<u8>>,
    /// Downloads stop after so many bytes.
    stall_after: Option<usize>,
    fetches: u64,
    said: BTreeMap<InstanceId, Vec<InstanceReport>>,
    destroyed: Vec<Tombstone>,
    unmanaged: Vec<Unmanaged>,
    facts: Option<NodeFacts>,
    boot: Option<BootId>,
    reports: u64,
    streams: BTreeMap<String, oneshot::Sender<StreamOutcome>>,
}

/// What came of an order: the other end of the stream, or why there is none.
pub type StreamOutcome = Result<DuplexStream, StreamRefusal>;

#[derive(Clone)]
enum Change {
    Node,
    Instance(InstanceId),
    Left(InstanceId),
    Tombstone(InstanceId),
    /// Told once, to whoever listens then.
    Stream(StreamOrder),
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
        let world = World {
            node,
            incarnation: Incarnation(1),
            online: true,
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
            },
            instances: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            images: BTreeMap::new(),
            bundles: BTreeMap::new(),
            stall_after: None,
            fetches: 0,
            said: BTreeMap::new(),
            destroyed: Vec::new(),
            unmanaged: Vec::new(),
            facts: None,
            boot: None,
            reports: 0,
            streams: BTreeMap::new(),
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            changed: watch::Sender::new(0),
        }
    }

    /// Has a real bundle; every other one is a few bytes that nobody opens.
    pub fn add_bundle(&self, bundle: Digest, sealed: Vec<u8>) {
        lock(&self.world).bundles.insert(bundle, sealed);
    }

    /// Gives the node an instance, or a new spec of one.
    pub fn put(&self, instance: AgentInstance) {
        let id = instance.id;
        lock(&self.world).instances.insert(id, instance);
        self.commit(Change::Instance(id));
    }

    /// Changes an instance's spec and counts its generation up.
    pub fn edit(&self, id: InstanceId, change: impl FnOnce(&mut AgentInstance)) {
        if let Some(instance) = lock(&self.world).instances.get_mut(&id) {
            instance.generation = instance.generation.next();
            change(instance);
        }
        self.commit(Change::Instance(id));
    }

    /// The instance as it should be.
    pub fn instance(&self, id: InstanceId) -> Option<AgentInstance> {
        lock(&self.world).instances.get(&id).cloned()
    }

    /// The instance leaves the node's slice; nothing is ordered.
    pub fn leave(&self, id: InstanceId) {
        lock(&self.world).instances.remove(&id);
        self.commit(Change::Left(id));
    }

    /// Orders the destruction of the instance's present epoch.
    pub fn delete(&self, id: InstanceId) {
        let order = lock(&self.world)
            .instances
            .get(&id)
            .map(|instance| Tombstone {
                instance: id,
                name: instance.name.clone(),
                epoch: instance.epoch,
            });
        if let Some(order) = order {
            lock(&self.world).instances.remove(&id);
            self.order(order);
        }
    }

    /// Sends an order as it is.
    pub fn order(&self, tombstone: Tombstone) {
        let id = tombstone.instance;
        lock(&self.world).tombstones.insert(id, tombstone);
        self.commit(Change::Tombstone(id));
    }

    /// Forgets the history so far: a watch that resumes in it is answered with 410.
    pub fn trim(&self) {
        let mut world = lock(&self.world);
        world.trimmed = world.number + 1;
        world.number += 1;
    }

    /// Becomes another database with what this one has, as after a restored backup; watches end.
    pub fn restore(&self, incarnation: u32) {
        {
            let mut world = lock(&self.world);
            world.incarnation = Incarnation(incarnation);
            world.slice.confirmed = None;
        }
        self.set_online(false);
        self.set_online(true);
    }

    /// An operator's word that the restored database is the right one.
    pub fn confirm(&self) {
        {
            let mut world = lock(&self.world);
            world.slice.confirmed = Some(world.incarnation);
            for instance in world.instances.values_mut() {
                instance.restored = false;
            }
        }
        self.commit(Change::Node);
    }

    /// Comes and goes. Watches end when it goes.
    pub fn set_online(&self, online: bool) {
        lock(&self.world).online = online;
        self.changed.send_modify(|n| *n += 1);
    }

    /// An image that can be fetched.
    pub fn add_image(&self, digest: Digest, bytes: Vec<u8>) {
        lock(&self.world).images.insert(digest, bytes);
    }

    /// Downloads hang after so many bytes, or no longer.
    pub fn stall_downloads(&self, after: Option<usize>) {
        lock(&self.world).stall_after = after;
        self.changed.send_modify(|n| *n += 1);
    }

    /// How many downloads were begun.
    pub fn fetches(&self) -> u64 {
        lock(&self.world).fetches
    }

    /// The last that was said of an instance.
    pub fn status(&self, id: InstanceId) -> Option<InstanceReport> {
        lock(&self.world).said.get(&id)?.last().cloned()
    }

    /// Everything that was said of an instance.
    pub fn story(&self, id: InstanceId) -> Vec<InstanceReport> {
        lock(&self.world).said.get(&id).cloned().unwrap_or_default()
    }

    /// Orders that were confirmed.
    pub fn destroyed(&self) -> Vec<Tombstone> {
        lock(&self.world).destroyed.clone()
    }

    /// Orders that were not.
    pub fn pending(&self) -> usize {
        lock(&self.world).tombstones.len()
    }

    /// What is on the node and in nobody's list.
    pub fn unmanaged(&self) -> Vec<Unmanaged> {
        lock(&self.world).unmanaged.clone()
    }

    /// What the node has.
    pub fn facts(&self) -> Option<NodeFacts> {
        lock(&self.world).facts.clone()
    }

    /// Which boot of its machine the node said that it runs in.
    pub fn boot(&self) -> Option<BootId> {
        lock(&self.world).boot
    }

    /// Asks the node for a stream. The receiver fails when nobody comes for it.
    pub fn ask(&self, order: StreamOrder) -> oneshot::Receiver<StreamOutcome> {
        let (sender, receiver) = oneshot::channel();
        let id = order.id.to_string();
        lock(&self.world).streams.insert(id, sender);
        self.commit(Change::Stream(order));
        receiver
    }

    /// How many reports came.
    pub fn reports(&self) -> u64 {
        lock(&self.world).reports
    }

    fn commit(&self, change: Change) {
        let mut world = lock(&self.world);
        world.number += 1;
        let number = world.number;
        world.history.push((number, change));
        drop(world);
        self.changed.send_modify(|n| *n += 1);
    }

    fn asker(&self, id: StreamId) -> Result<oneshot::Sender<StreamOutcome>, LinkError> {
        let asker = self.online()?.streams.remove(&id.to_string());
        asker.ok_or_else(no_such_stream)
    }

    fn online(&self) -> Result<std::sync::MutexGuard<'_, World>, LinkError> {
        let world = lock(&self.world);
        if world.online {
            Ok(world)
        } else {
            Err(LinkError::Unreachable {
                message: "waifud can't be reached: the fake was told so".to_owned(),
            })
        }
    }
}

fn no_such_stream() -> LinkError {
    LinkError::Refused {
        status: 404,
        message: "nobody waits for that stream".to_owned(),
    }
}

impl World {
    fn revision(&self, number: u64) -> Revision {
        Revision {
            incarnation: self.incarnation,
            number,
        }
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
            Change::Left(id) => WatchFrame::Delete {
                revision,
                instance: *id,
            },
            Change::Stream(order) => WatchFrame::Stream(*order),
            Change::Tombstone(id) => WatchFrame::Tombstone {
                revision,
                tombstone: self.tombstones.get(id)?.clone(),
            },
        })
    }
}

struct Frames {
    waifud: FakeWaifud,
    changes: watch::Receiver<u64>,
    incarnation: Incarnation,
    queue: std::collections::VecDeque<WatchFrame>,
    at: u64,
}

#[async_trait]
impl FrameStream for Frames {
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError> {
        loop {
            {
                let world = self.waifud.online()?;
                if world.incarnation != self.incarnation {
                    return Ok(None);
                }
                for (number, change) in world.history.iter().filter(|(n, _)| *n > self.at) {
                    self.queue.extend(world.frame(*number, change));
                }
                self.at = world.number;
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

#[async_trait]
impl ControlLink for FakeWaifud {
    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError> {
        let mut world = self.online()?;
        world.facts = Some(hello.facts.clone());
        world.boot = hello.boot_id;
        Ok(Welcome {
            node: world.node,
            incarnation: world.incarnation,
            addresses: Vec::new(),
        })
    }

    async fn watch(&self, since: Option<Revision>) -> Result<Box<dyn FrameStream>, LinkError> {
        let world = self.online()?;
        let mut queue = std::collections::VecDeque::new();
        match since {
            Some(since)
                if since.incarnation != world.incarnation || since.number < world.trimmed =>
            {
                return Err(LinkError::Gone);
            }
            Some(since) => {
                let missed = world.history.iter().filter(|(n, _)| *n > since.number);
                for (number, change) in missed {
                    if matches!(change, Change::Stream(_)) {
                        continue;
                    }
                    queue.extend(world.frame(*number, change));
                }
            }
            None => {
                let number = world.number;
                queue.extend(world.frame(number, &Change::Node));
                for id in world.instances.keys() {
                    queue.extend(world.frame(number, &Change::Instance(*id)));
                }
                for id in world.tombstones.keys() {
                    queue.extend(world.frame(number, &Change::Tombstone(*id)));
                }
            }
        }
        queue.push_back(WatchFrame::Sync {
            revision: world.revision(world.number),
        });
        Ok(Box::new(Frames {
            waifud: self.clone(),
            changes: self.changed.subscribe(),
            incarnation: world.incarnation,
            queue,
            at: world.number,
        }))
    }

    async fn report(&self, report: &AgentReport) -> Result<(), LinkError> {
        let mut world = self.online()?;
        world.reports += 1;
        for instance in &report.instances {
            let story = world.said.entry(instance.id).or_default();
            story.push(instance.clone());
        }
        for tombstone in &report.destroyed {
            if world.tombstones.remove(&tombstone.instance).is_some() {
                world.destroyed.push(tombstone.clone());
            }
        }
        if let Some(unmanaged) = &report.unmanaged {
            world.unmanaged.clone_from(unmanaged);
        }
        if report.facts.is_some() {
            world.facts.clone_from(&report.facts);
        }
        Ok(())
    }

    async fn fetch_image(
        &self,
        image: Digest,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), LinkError> {
        let bytes = {
            let mut world = self.online()?;
            world.fetches += 1;
            world.images.get(&image).cloned()
        };
        let Some(bytes) = bytes else {
            return Err(LinkError::Refused {
                status: 404,
                message: "there is no such image".to_owned(),
            });
        };
        let mut changes = self.changed.subscribe();
        loop {
            let stall = self.online()?.stall_after;
            let upto = stall.unwrap_or(bytes.len()).min(bytes.len());
            let part = bytes.get(..upto).unwrap_or_default();
            std::fs::write(to, part).map_err(|source| LinkError::File {
                path: to.to_owned(),
                source,
            })?;
            progress(u64::try_from(upto).unwrap_or(0));
            if upto == bytes.len() {
                return Ok(());
            }
            let _changed = changes.changed().await;
        }
    }

    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError> {
        let world = self.online()?;
        let known = world.bundles.get(&bundle).cloned();
        Ok(known.map_or(Bytes::from_static(b"sealed"), Bytes::from))
    }

    async fn stream(&self, id: StreamId) -> Result<Box<dyn ByteStream>, LinkError> {
        let asker = self.asker(id)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        asker.send(Ok(ours)).map_err(|_| no_such_stream())?;
        Ok(Box::new(theirs))
    }

    async fn refuse_stream(&self, id: StreamId, refusal: &StreamRefusal) -> Result<(), LinkError> {
        let asker = self.asker(id)?;
        asker
            .send(Err(refusal.clone()))
            .map_err(|_| no_such_stream())
    }
}
