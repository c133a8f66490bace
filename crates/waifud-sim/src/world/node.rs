//! A node: fakes of everything below the agent, and the real agent, which can be killed and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waifud_agent::fake::{FakeDialer, FakeMetadata, FakeTunnel, sample_settings};
use waifud_agent::interfaces::{HostPower, NoPeers};
use waifud_agent::{Adapters, Agent, Settings, Timing};
use waifud_control::Peer;
use waifud_hypervisor::fake::{DomainFacts, FakeHypervisor};
use waifud_kit::sync::lock;
use waifud_network::fabric::fake::FakeFabric;
use waifud_network::fake::FakeNetwork;
use waifud_network::{HostNetworkFacts, NetworkState, Port};
use waifud_storage::fake::{FakePool, VolumeFacts};
use waifud_types::{BootId, ByteSize, Digest, Epoch, InstanceId, NodeId, TapName, VolumeId};

use super::link::Link;
use super::{BRIDGE, Wire, World};
use crate::clock::SimClock;
use crate::disk;
use crate::random::Random;

/// A node and its machine.
pub struct Node {
    index: usize,
    /// Its name.
    pub name: String,
    /// What identifies its requests, once it has joined.
    peer: Mutex<Option<Peer>>,
    /// Its wire to waifud.
    pub wire: Wire,
    /// Its metadatad.
    pub metadata: FakeMetadata,
    /// The clock of its machine.
    pub clock: SimClock,
    dir: PathBuf,
    settings: Settings,
    /// Lost with the disks of the machine.
    hypervisor: Mutex<FakeHypervisor>,
    pool: Mutex<FakePool>,
    tunnel: FakeTunnel,
    /// Lost with the power.
    network: Mutex<Arc<FakeNetwork>>,
    fabric: Arc<FakeFabric>,
    host: Machine,
    agent: Mutex<Option<JoinHandle<()>>>,
    /// The releases in records that were read before, with the text of the record.
    releases: Mutex<BTreeMap<InstanceId, ReadRelease>>,
    powered: Mutex<bool>,
    /// Whether waifud has it as a node.
    member: Mutex<bool>,
}

/// The text of a record, and the epoch of the release in it.
type ReadRelease = (Vec<u8>, Option<Epoch>);

/// The machine's boot id.
#[derive(Clone)]
struct Machine(Arc<AtomicU64>);

#[async_trait]
impl HostPower for Machine {
    async fn is_stopping(&self) -> bool {
        false
    }

    fn boot_id(&self) -> Option<BootId> {
        let number = u128::from(self.0.load(Ordering::SeqCst));
        Some(BootId::from_uuid(Uuid::from_u128(number)))
    }

    fn hardware(&self) -> Option<Digest> {
        None
    }
}

impl Node {
    pub(super) fn new(
        index: usize,
        name: &str,
        dir: PathBuf,
        clock: SimClock,
        seed: u64,
    ) -> Result<Self> {
        let at = |name: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::create_dir(&path)?;
            Ok(path)
        };
        let timing = Timing {
            // A check every half a second would be most of the work of a run.
            report_port: Duration::from_secs(10),
            ..Timing::default()
        };
        let mut settings = sample_settings(at("state")?, at("run")?, timing);
        settings.node = name.parse()?;
        let metadata = FakeMetadata::new();
        let part = 100 * (index as u64 + 1);
        let random = Random::new(seed, part);
        metadata.set_delays(random.below(u64::MAX));
        metadata.open_bundles();
        Ok(Self {
            index,
            name: name.to_owned(),
            peer: Mutex::default(),
            wire: Wire::new(Random::new(seed, part + 1)),
            metadata,
            clock,
            settings,
            hypervisor: Mutex::new(FakeHypervisor::new()),
            pool: Mutex::new(FakePool::new("main".parse()?, at("pool")?)),
            tunnel: FakeTunnel::default(),
            network: Mutex::new(network()),
            fabric: FakeFabric::new(u8::try_from(index).unwrap_or(u8::MAX)),
            host: Machine(Arc::new(AtomicU64::new(part))),
            agent: Mutex::default(),
            releases: Mutex::default(),
            powered: Mutex::new(true),
            member: Mutex::new(false),
            dir,
        })
    }

    /// Its id.
    pub fn id(&self) -> Option<NodeId> {
        match self.peer() {
            Some(Peer::Certificate { node, .. }) => Some(node),
            _ => None,
        }
    }

    /// What identifies its requests, once it has joined.
    pub fn peer(&self) -> Option<Peer> {
        *lock(&self.peer)
    }

    /// Whether waifud has it as a node.
    pub fn is_member(&self) -> bool {
        *lock(&self.member)
    }

    /// waifud has admitted it.
    pub(super) fn admit(&self, peer: Peer) {
        *lock(&self.peer) = Some(peer);
        *lock(&self.member) = true;
    }

    /// waifud has removed it. Its agent does not notice before its next request is refused.
    pub(super) fn leave(&self) {
        *lock(&self.member) = false;
    }

    /// Whether it has power.
    pub fn is_powered(&self) -> bool {
        *lock(&self.powered)
    }

    /// Starts its agent, if the node has power and no agent runs.
    pub fn start_agent(&self, world: &Arc<World>) -> Result<()> {
        if !self.is_powered() || self.peer().is_none() || lock(&self.agent).is_some() {
            return Ok(());
        }
        let adapters = Adapters {
            hypervisor: Arc::new(self.hypervisor()),
            pools: vec![Arc::new(self.pool())],
            network: lock(&self.network).clone(),
            fabric: self.fabric.clone(),
            link: Arc::new(Link {
                world: world.clone(),
                node: self.index,
            }),
            metadata: Arc::new(self.metadata.clone()),
            peers: Arc::new(NoPeers),
            tunnel: Arc::new(self.tunnel.clone()),
            dialer: Arc::new(FakeDialer::default()),
            clock: Arc::new(self.clock.clone()),
            host: Arc::new(self.host.clone()),
        };
        let agent = Agent::open(self.settings.clone(), adapters)?;
        let task = tokio::spawn(agent.run(CancellationToken::new()));
        *lock(&self.agent) = Some(task);
        Ok(())
    }

    /// Ends its agent at once. Everything else keeps running. Returns whether there was one.
    pub async fn kill_agent(&self) -> bool {
        let task = lock(&self.agent).take();
        let Some(task) = task else { return false };
        task.abort();
        let _killed = task.await;
        // The link of the tunnel ends with the agent.
        self.tunnel.lose();
        true
    }

    /// Ends everything on the machine at once. What was synced to its disks remains.
    pub async fn cut_power(&self) -> Result<()> {
        self.kill_agent().await;
        self.wire.lose_all();
        self.hypervisor().host_crash();
        self.metadata.restart(true);
        self.metadata.set_online(false);
        *lock(&self.network) = network();
        *lock(&self.powered) = false;
        disk::lose_unsynced(&self.settings.state_dir)?;
        empty(&self.settings.run_dir)?;
        // Downloads are not synced before they are complete.
        empty(&self.dir.join("pool"))
    }

    /// Its disks are lost and replaced by empty ones, while it has no power.
    pub(super) async fn lose_disks(&self) -> Result<()> {
        self.kill_agent().await;
        disk::forget(&self.dir);
        for dir in [&self.settings.state_dir, &self.settings.run_dir] {
            empty(dir)?;
        }
        let pool = self.dir.join("pool");
        empty(&pool)?;
        *lock(&self.hypervisor) = FakeHypervisor::new();
        *lock(&self.pool) = FakePool::new("main".parse()?, pool);
        self.metadata.restart(false);
        Ok(())
    }

    fn hypervisor(&self) -> FakeHypervisor {
        lock(&self.hypervisor).clone()
    }

    fn pool(&self) -> FakePool {
        lock(&self.pool).clone()
    }

    /// The machine boots after a power cut.
    pub fn boot(&self, world: &Arc<World>) -> Result<()> {
        self.host.0.fetch_add(1, Ordering::SeqCst);
        self.metadata.set_online(true);
        *lock(&self.powered) = true;
        self.start_agent(world)
    }

    /// The domains on it.
    pub fn domains(&self) -> Vec<DomainFacts> {
        self.hypervisor().domains()
    }

    /// The memory of the machine.
    pub fn memory(&self) -> ByteSize {
        ByteSize::gib(16)
    }

    /// The volumes on it.
    pub fn volumes(&self) -> BTreeMap<VolumeId, VolumeFacts> {
        self.pool().volume_facts()
    }

    /// What the instance's disk on it contains; `None` without a disk.
    pub fn mark(&self, id: InstanceId) -> Option<u64> {
        let volumes = self.volumes().into_iter();
        let mut of_instance = volumes.filter(|(volume, _)| volume.instance == id);
        of_instance.next().map(|(_, facts)| facts.mark)
    }

    /// The instances of which anything is on it.
    pub fn instances(&self) -> BTreeSet<InstanceId> {
        let mut all = self.instances_with_files();
        all.extend(self.volumes().into_keys().map(|volume| volume.instance));
        all.extend(self.domains().into_iter().map(|domain| domain.id));
        all.extend(self.ports().into_iter().map(|port| port.instance));
        all.extend(self.metadata.held().into_keys());
        all
    }

    /// Whether anything of an instance is on it.
    pub fn has(&self, id: InstanceId) -> bool {
        self.mark(id).is_some()
            || self.domains().iter().any(|domain| domain.id == id)
            || self.serves(id)
            || self.instances_with_files().contains(&id)
    }

    /// Whether an instance has a port or documents on it.
    pub fn serves(&self, id: InstanceId) -> bool {
        let has_port = self.ports().iter().any(|port| port.instance == id);
        has_port || self.metadata.held().contains_key(&id)
    }

    /// Its running guest writes to the disk.
    pub fn write(&self, volume: &VolumeId, mark: u64) {
        self.pool().write(volume, mark);
    }

    /// Whether its agent has recorded on disk that it has a copy of the instance, as its owner or its former owner.
    pub fn has_recorded_copy(&self, id: InstanceId) -> bool {
        let record = self.record(id);
        record.is_some_and(|record| record["instance"].is_object())
    }

    /// Whether its agent has recorded that waifud gives it the instance in this epoch.
    pub fn is_given(&self, id: InstanceId, epoch: Epoch) -> bool {
        let record = self.record(id);
        record.is_some_and(|record| {
            record["managed"] == true && record["instance"]["epoch"] == epoch.0
        })
    }

    /// What its agent has recorded about an instance, for a message.
    pub fn record_text(&self, id: InstanceId) -> String {
        self.record(id)
            .map_or("no record".to_owned(), |record| record.to_string())
    }

    /// What its agent has recorded on disk about an instance, so that it survives a power cut.
    fn record(&self, id: InstanceId) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.record_bytes(id)?).ok()
    }

    fn record_bytes(&self, id: InstanceId) -> Option<Vec<u8>> {
        let state = &self.settings.state_dir;
        let record = state.join(format!("records/{id}.json"));
        disk::content_after_power_cut(state, &record)
    }

    /// The size to which a running guest's disk was grown.
    pub fn grown_disk(&self, id: InstanceId) -> Option<ByteSize> {
        self.hypervisor().disk_size(id, "root")
    }

    /// The images in its pool.
    pub fn images(&self) -> Vec<Digest> {
        self.pool().image_digests()
    }

    /// The ports of guests in its rules.
    pub fn ports(&self) -> Vec<Port> {
        lock(&self.network).ports()
    }

    /// Its rules and routes; `None` until its agent has set them.
    pub fn network_state(&self) -> Option<NetworkState> {
        lock(&self.network).state()
    }

    /// The nics of a running guest.
    pub fn nics(&self, id: InstanceId) -> BTreeSet<TapName> {
        self.hypervisor().nics(id)
    }

    /// Sets whether a guest keeps nics that are removed.
    pub fn hold_nics(&self, id: InstanceId, hold: bool) {
        self.hypervisor().set_holds_nics(id, hold);
    }

    /// The epoch of the release that its agent has recorded on disk for an instance, so that it survives a power cut.
    pub fn recorded_release(&self, id: InstanceId) -> Option<Epoch> {
        let text = self.record_bytes(id)?;
        if let Some((known, epoch)) = lock(&self.releases).get(&id)
            && *known == text
        {
            return *epoch;
        }
        let record: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
        let epoch = record.and_then(|record| record.pointer("/release/release/epoch")?.as_u64());
        let epoch = epoch.map(Epoch);
        lock(&self.releases).insert(id, (text, epoch));
        epoch
    }

    /// The records that its agent could not read.
    pub fn damaged_records(&self) -> Vec<String> {
        let records = names(&self.settings.state_dir.join("records")).into_iter();
        records.filter(|name| name.contains("damaged")).collect()
    }

    /// The instances of which files are left on it.
    pub fn instances_with_files(&self) -> BTreeSet<InstanceId> {
        let mut found = BTreeSet::new();
        self.each_file(|_, instance, _| found.extend(instance));
        found
    }

    /// The files that belong to no instance and are not needed either.
    pub fn other_files(&self) -> Vec<String> {
        let mut others = Vec::new();
        self.each_file(|dir, instance, name| {
            let is_of_node = matches!(name, "node.json" | "peers.json" | "names.json");
            if instance.is_none() && !is_of_node {
                others.push(dir.join(name).display().to_string());
            }
        });
        let recorded = self.recorded_bundles();
        let bundles = names(&self.settings.state_dir.join("bundles")).into_iter();
        others.extend(bundles.filter(|bundle| !recorded.contains(bundle)));
        // Downloads.
        others.extend(names(&self.dir.join("pool")));
        others
    }

    /// Calls a function with each file of the agent: its directory, the instance that it belongs to, and its name.
    fn each_file(&self, mut each: impl FnMut(&Path, Option<InstanceId>, &str)) {
        let Settings {
            state_dir, run_dir, ..
        } = &self.settings;
        for dir in [
            state_dir.join("records"),
            state_dir.join("instances"),
            run_dir.join("console"),
            run_dir.join("vnc"),
        ] {
            for name in names(&dir) {
                let id = name.split('.').next().and_then(|id| id.parse().ok());
                let is_new = name.ends_with("tmp") || name.ends_with("new");
                each(&dir, id.filter(|_| !is_new), &name);
            }
        }
    }

    /// The bundles that its records name.
    fn recorded_bundles(&self) -> BTreeSet<String> {
        let records = self.settings.state_dir.join("records");
        let digest = |name: String| {
            let text = std::fs::read_to_string(records.join(name)).ok()?;
            let record: serde_json::Value = serde_json::from_str(&text).ok()?;
            let digest = record.pointer("/instance/bundle/digest")?.as_str()?;
            digest.parse::<Digest>().ok().map(|digest| digest.hex())
        };
        names(&records).into_iter().filter_map(digest).collect()
    }
}

/// The network of a machine without guests.
fn network() -> Arc<FakeNetwork> {
    let network = FakeNetwork::new();
    network.set_facts(HostNetworkFacts {
        bridges: vec![BRIDGE.to_owned()],
        ..HostNetworkFacts::default()
    });
    network
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn empty(dir: &Path) -> Result<()> {
    for name in names(dir) {
        let path = dir.join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
