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
use waifud_agent::interfaces::HostPower;
use waifud_agent::{Adapters, Agent, Settings, Timing};
use waifud_control::Peer;
use waifud_hypervisor::fake::{DomainFacts, FakeHypervisor};
use waifud_kit::sync::lock;
use waifud_network::fabric::fake::FakeFabric;
use waifud_network::fake::FakeNetwork;
use waifud_network::{NetworkState, Port};
use waifud_storage::fake::{FakePool, VolumeFacts};
use waifud_types::{BootId, ByteSize, Digest, Epoch, InstanceId, NodeId, VolumeId};

use super::link::Link;
use super::{Wire, World};
use crate::clock::SimClock;
use crate::disk;
use crate::random::Random;

/// A node and its machine.
pub struct Node {
    index: usize,
    /// Its name.
    pub name: String,
    /// What identifies its requests.
    pub peer: Peer,
    /// Its wire to waifud.
    pub wire: Wire,
    /// Its metadatad.
    pub metadata: FakeMetadata,
    /// The clock of its machine.
    pub clock: SimClock,
    dir: PathBuf,
    settings: Settings,
    hypervisor: FakeHypervisor,
    pool: FakePool,
    tunnel: FakeTunnel,
    /// Lost with the power.
    network: Mutex<Arc<FakeNetwork>>,
    fabric: Arc<FakeFabric>,
    host: Machine,
    agent: Mutex<Option<JoinHandle<()>>>,
    powered: Mutex<bool>,
}

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
        peer: Peer,
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
            peer,
            wire: Wire::new(Random::new(seed, part + 1)),
            metadata,
            clock,
            settings,
            hypervisor: FakeHypervisor::new(),
            pool: FakePool::new("main".parse()?, at("pool")?),
            tunnel: FakeTunnel::default(),
            network: Mutex::new(FakeNetwork::new()),
            fabric: FakeFabric::new(u8::try_from(index).unwrap_or(u8::MAX)),
            host: Machine(Arc::new(AtomicU64::new(part))),
            agent: Mutex::default(),
            powered: Mutex::new(true),
            dir,
        })
    }

    /// Its id.
    pub fn id(&self) -> Option<NodeId> {
        match self.peer {
            Peer::Certificate { node, .. } => Some(node),
            _ => None,
        }
    }

    /// Whether it has power.
    pub fn is_powered(&self) -> bool {
        *lock(&self.powered)
    }

    /// Starts its agent, if the node has power and no agent runs.
    pub fn start_agent(&self, world: &Arc<World>) -> Result<()> {
        if !self.is_powered() || lock(&self.agent).is_some() {
            return Ok(());
        }
        let adapters = Adapters {
            hypervisor: Arc::new(self.hypervisor.clone()),
            pools: vec![Arc::new(self.pool.clone())],
            network: lock(&self.network).clone(),
            fabric: self.fabric.clone(),
            link: Arc::new(Link {
                world: world.clone(),
                node: self.index,
            }),
            metadata: Arc::new(self.metadata.clone()),
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
        self.hypervisor.host_crash();
        self.metadata.restart(true);
        self.metadata.set_online(false);
        *lock(&self.network) = FakeNetwork::new();
        *lock(&self.powered) = false;
        disk::lose_unsynced(&self.settings.state_dir)?;
        empty(&self.settings.run_dir)?;
        // Downloads are not synced before they are complete.
        empty(&self.dir.join("pool"))
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
        self.hypervisor.domains()
    }

    /// The memory of the machine.
    pub fn memory(&self) -> ByteSize {
        ByteSize::gib(16)
    }

    /// The volumes on it.
    pub fn volumes(&self) -> BTreeMap<VolumeId, VolumeFacts> {
        self.pool.volume_facts()
    }

    /// The size to which a running guest's disk was grown.
    pub fn grown_disk(&self, id: InstanceId) -> Option<ByteSize> {
        self.hypervisor.disk_size(id, "root")
    }

    /// The images in its pool.
    pub fn images(&self) -> Vec<Digest> {
        self.pool.image_digests()
    }

    /// The ports of guests in its rules.
    pub fn ports(&self) -> Vec<Port> {
        let state: Option<NetworkState> = lock(&self.network).state();
        state.map(|state| state.ports).unwrap_or_default()
    }

    /// The epoch of the release that its agent has recorded on disk for an instance, so that it survives a power cut.
    pub fn recorded_release(&self, id: InstanceId) -> Option<Epoch> {
        let state = &self.settings.state_dir;
        let record = state.join(format!("records/{id}.json"));
        let text = disk::content_after_power_cut(state, &record)?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let epoch = record.pointer("/release/release/epoch")?;
        epoch.as_u64().map(Epoch)
    }

    /// The records that its agent could not read.
    pub fn damaged_records(&self) -> Vec<String> {
        let records = names(&self.settings.state_dir.join("records")).into_iter();
        records.filter(|name| name.contains("damaged")).collect()
    }

    /// The instances of which files are left on it, and the files that belong to no instance and are not needed either.
    pub fn files(&self) -> (BTreeSet<InstanceId>, Vec<String>) {
        let Settings {
            state_dir, run_dir, ..
        } = &self.settings;
        let mut of_instances = BTreeSet::new();
        let mut others = Vec::new();
        let of_instance = |name: &str| name.split('.').next().and_then(|id| id.parse().ok());
        for dir in [
            state_dir.join("records"),
            state_dir.join("instances"),
            run_dir.join("console"),
            run_dir.join("vnc"),
        ] {
            for name in names(&dir) {
                match of_instance(&name) {
                    Some(id) if !name.ends_with("tmp") && !name.ends_with("new") => {
                        of_instances.insert(id);
                    }
                    _ if matches!(name.as_str(), "node.json" | "peers.json") => {}
                    _ => others.push(dir.join(name).display().to_string()),
                }
            }
        }
        let recorded = self.recorded_bundles();
        let bundles = names(&state_dir.join("bundles")).into_iter();
        others.extend(bundles.filter(|bundle| !recorded.contains(bundle)));
        // Downloads.
        others.extend(names(&self.dir.join("pool")));
        (of_instances, others)
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
