//! Serves guests' documents on this node: keeps metadatad informed, the tunnel up, and bundles available.
//! [`crate::guest::assignments`] tracks what metadatad holds for each instance.
//!
//! A guest is started only after metadatad has confirmed that it holds the guest's bundle, and while the tunnel is up.
//! After a restart of metadatad everything is sent again. Bundles come from Redis, which metadatad reads, or from waifud;
//! encrypted copies are cached next to the records, so that a node without both can send them to a metadatad that lost its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use waifud_api::agent::{AgentInstance, BundleRef, RedisAccess};
use waifud_api::metadatad::{Assignment, Observation, RedisSetting, Status, Tunnel};
use waifud_cloudinit::Documents;
use waifud_kit::sync::lock;
use waifud_network::IDENTITIES;
use waifud_types::status::Condition;
use waifud_types::{Digest, InstanceId};

use crate::control_link::record::{InstanceRecord, Memory};
use crate::control_link::table::Table;
use crate::failpoints;
use crate::guest::assignments::Assignments;
use crate::guest::bundle_cache::BundleCache;
use crate::guest::evidence::{Evidence, EvidenceStore};
use crate::interfaces::{Clock, ControlLink, MetadataError, MetadataService, MetadataTunnel};
use crate::network::identity::{identity, is_on_lan};
use crate::network::ports::ports_of;

/// Keeps guests' documents served; see the module documentation.
pub struct Metadata {
    service: Arc<dyn MetadataService>,
    tunnel: Arc<dyn MetadataTunnel>,
    link: Arc<dyn ControlLink>,
    clock: Arc<dyn Clock>,
    cache: BundleCache,
    assignments: Assignments,
    /// Held while the tunnel is changed.
    changing: tokio::sync::Mutex<()>,
    check: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The process that has the tunnel and the assignments; `None` while it does not answer or the tunnel is down.
    process: Option<String>,
    /// The tunnel that was last sent to it.
    tunnel: Option<Tunnel>,
    /// The Redis that was last sent to it. `None` while it is unknown.
    redis: Option<RedisSetting>,
    /// What is wrong with Redis, as of the last refresh.
    redis_trouble: Option<Condition>,
    /// Instances whose assignment it keeps and cannot serve, as of the last refresh.
    unserved: Vec<InstanceId>,
    /// Bundles that it keeps and serves to no instance, as of the last refresh.
    unused: Vec<Digest>,
    error: Option<String>,
    /// When the error began.
    unreachable_since: Option<Instant>,
    evidence: EvidenceStore,
}

/// The outcome of a refresh.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refreshed {
    /// The service was restarted or was unreachable: every instance has to be checked again.
    pub changed: bool,
    /// The tunnel's link was created again: its routes have to be added again.
    pub fresh_link: bool,
}

impl Metadata {
    /// `cache_dir` holds encrypted bundles; it is created when needed.
    pub fn new(
        service: Arc<dyn MetadataService>,
        tunnel: Arc<dyn MetadataTunnel>,
        link: Arc<dyn ControlLink>,
        clock: Arc<dyn Clock>,
        cache_dir: PathBuf,
    ) -> Self {
        Self {
            assignments: Assignments::new(service.clone(), clock.clone()),
            clock,
            service,
            tunnel,
            link,
            cache: BundleCache::new(cache_dir),
            changing: tokio::sync::Mutex::new(()),
            check: Notify::new(),
            inner: Mutex::default(),
        }
    }

    pub fn service(&self) -> &Arc<dyn MetadataService> {
        &self.service
    }

    /// Requests a check of the service.
    pub fn request_check(&self) {
        self.check.notify_one();
    }

    /// Returns when a check was requested.
    pub async fn check_requested(&self) {
        self.check.notified().await;
    }

    /// Whether the instance's documents are served, as far as known.
    pub fn serves(&self, want: &AgentInstance, memory: &Memory) -> bool {
        let identity = identity(want, memory);
        self.is_connected()
            && self.accepts(want)
            && identity.is_none_or(|address| {
                self.assignments.of(want.id) == Some((address, want.bundle.digest))
            })
    }

    /// Whether metadatad accepts packets from the instance's address, if it is one that the instance had on another node.
    pub fn accepts(&self, want: &AgentInstance) -> bool {
        want.home.is_none() || {
            let inner = self.inner();
            let moved = inner.tunnel.iter().flat_map(|tunnel| &tunnel.moved);
            let moved: BTreeSet<_> = moved.copied().collect();
            let nics = want.spec.nics.iter().filter(|nic| !is_on_lan(nic));
            nics.filter_map(|nic| nic.address)
                .all(|address| moved.contains(&address))
        }
    }

    /// Whether metadatad may hold anything of the instance. True until it has confirmed a release.
    pub fn may_hold(&self, id: InstanceId) -> bool {
        self.assignments.may_hold(id)
    }

    /// Whether metadatad answered the last time and the tunnel is up.
    pub fn is_connected(&self) -> bool {
        self.inner().process.is_some()
    }

    /// Why the last refresh failed; `None` if it succeeded.
    pub fn error(&self) -> Option<String> {
        self.inner().error.clone()
    }

    /// How long the service has been unreachable; `None` while it is reachable.
    pub fn unreachable_for(&self) -> Option<Duration> {
        self.inner().unreachable_since.map(|since| since.elapsed())
    }

    /// What is wrong with Redis, according to metadatad.
    pub fn redis_trouble(&self) -> Option<Condition> {
        self.inner().redis_trouble.clone()
    }

    /// The instance's decrypted documents, for a disk that contains them.
    pub async fn documents(&self, want: &AgentInstance) -> Result<Documents, MetadataError> {
        let BundleRef { digest, key, .. } = &want.bundle;
        if let Some(bytes) = self.cache.read(*digest)
            && let Ok(documents) = waifud_cloudinit::open(&bytes, *digest, key)
        {
            return Ok(documents);
        }
        let bytes = self.fetch(*digest).await?;
        waifud_cloudinit::open(&bytes, *digest, key).map_err(|error| MetadataError::Refused {
            message: error.to_string(),
        })
    }

    pub fn evidence(&self, id: InstanceId) -> Evidence {
        self.inner().evidence.get(id)
    }

    /// The cloud-init module that runs in the guest, according to its reporter.
    pub fn running_module(&self, id: InstanceId) -> Option<String> {
        self.inner().evidence.running_module(id)
    }

    /// The guest starts: earlier requests belong to another boot.
    pub fn begin_boot(&self, id: InstanceId) {
        let now = self.clock.now();
        self.inner().evidence.begin_boot(id, now);
    }

    /// Checks the service, brings the tunnel up, and sends the service this node's end of it.
    pub async fn refresh(&self, table: &Table) -> Result<Refreshed, MetadataError> {
        let _one_at_a_time = self.changing.lock().await;
        let asked = self.assignments.now();
        let outcome = self.connect(table).await;
        let mut inner = self.inner();
        match outcome {
            Ok((status, fresh_link)) => {
                let changed = inner.process.as_deref() != Some(status.process.as_str());
                if changed {
                    inner.evidence.forget_process();
                }
                inner.process = Some(status.process);
                self.assignments.learn(&status.instances, asked, changed);
                inner.redis_trouble = status.redis;
                inner.unserved = status.unserved;
                inner.unused = status.unused_bundles;
                inner.error = None;
                inner.unreachable_since = None;
                Ok(Refreshed {
                    changed,
                    fresh_link,
                })
            }
            Err(error) => {
                inner.process = None;
                inner.redis = None;
                inner.redis_trouble = None;
                inner.error = Some(error.to_string());
                inner.unreachable_since.get_or_insert_with(Instant::now);
                Err(error)
            }
        }
    }

    /// Instances that metadatad may still serve although no record exists, or only one of a destroyed instance.
    pub fn unknown_instances(&self, table: &Table) -> Vec<InstanceId> {
        let records = table.records();
        let recorded: BTreeSet<InstanceId> = records.iter().map(|record| record.id).collect();
        self.assignments.retain(&recorded);
        let mut inner = self.inner();
        inner.evidence.retain(|id| recorded.contains(id));
        let living = |id: &InstanceId| {
            records
                .iter()
                .any(|record| record.id == *id && !record.destroyed && !record.is_given_up())
        };
        let mut held = self.assignments.held();
        held.append(&mut inner.unserved);
        held.retain(|id| !living(id));
        held
    }

    /// Makes metadatad release an instance, unless it has a living record by the time the request is sent.
    pub async fn release_unknown(
        &self,
        table: &Table,
        id: InstanceId,
    ) -> Result<(), MetadataError> {
        let unknown = || {
            table
                .view(id)
                .is_none_or(|view| view.record.destroyed || view.record.is_given_up())
        };
        self.assignments.release(id, unknown).await
    }

    /// Makes metadatad drop bundles that it serves to no instance and that no record uses.
    pub async fn drop_unused_bundles(&self, table: &Table) -> Result<(), MetadataError> {
        let unused = std::mem::take(&mut self.inner().unused);
        if unused.is_empty() {
            return Ok(());
        }
        let recorded = served_bundles(table);
        for bundle in unused {
            if !recorded.contains(&bundle) {
                self.service.drop_bundle(bundle).await?;
            }
        }
        Ok(())
    }

    async fn connect(&self, table: &Table) -> Result<(Status, bool), MetadataError> {
        let status = self.service.status().await?;
        let slice = table.node().slice.ok_or_else(|| MetadataError::Tunnel {
            message: "waifud has not assigned a subnet to this node yet".to_owned(),
        })?;
        let up = self
            .tunnel
            .ensure(&status.public_key, status.endpoint)
            .await?;
        let same_process = self.inner().process.as_deref() == Some(status.process.as_str());
        self.send_redis(slice.redis, same_process).await?;
        let tunnel = Tunnel {
            node_public_key: up.public_key,
            node_endpoint: up.endpoint,
            subnet: slice.subnet,
            moved: moved_here(table),
            identities: Some(IDENTITIES),
        };
        let sent = self.inner().tunnel.as_ref() == Some(&tunnel);
        let known = status.node_public_key.as_ref() == Some(&tunnel.node_public_key);
        if same_process && !up.fresh && sent && known {
            return Ok((status, false));
        }
        let status = failpoints::TUNNEL
            .around(self.service.set_tunnel(&tunnel))
            .await?;
        self.inner().tunnel = Some(tunnel);
        Ok((status, up.fresh))
    }

    /// Tells metadatad which Redis to read bundles from, unless it knows.
    async fn send_redis(
        &self,
        access: Option<RedisAccess>,
        same_process: bool,
    ) -> Result<(), MetadataError> {
        let setting = RedisSetting { access };
        if same_process && self.inner().redis.as_ref() == Some(&setting) {
            return Ok(());
        }
        self.service.set_redis(&setting).await?;
        self.inner().redis = Some(setting);
        Ok(())
    }

    /// Whether metadatad may find bundles in Redis.
    fn uses_redis(&self) -> bool {
        let inner = self.inner();
        let setting = inner.redis.as_ref();
        setting.is_some_and(|setting| setting.access.is_some())
    }

    /// Copies bundles that metadatad read from Redis, so that this node has them as if waifud had sent them.
    pub async fn copy_bundles(&self, table: &Table) -> Result<(), MetadataError> {
        if !self.uses_redis() {
            return Ok(());
        }
        for bundle in served_bundles(table) {
            if !self.cache.has(bundle)
                && let Some(bytes) = self.service.bundle(bundle).await?
                && Digest::of(&bytes) == bundle
            {
                self.cache.store(bundle, &bytes);
            }
        }
        Ok(())
    }

    /// Makes metadatad serve the instance's documents. [`Metadata::refresh`] must have succeeded before.
    pub async fn ensure(&self, want: &AgentInstance, memory: &Memory) -> Result<(), MetadataError> {
        let Some(address) = identity(want, memory) else {
            return Ok(());
        };
        if self.inner().process.is_none() {
            return Err(MetadataError::Unreachable {
                message: self
                    .error()
                    .unwrap_or_else(|| "the metadata service has not answered yet".to_owned()),
            });
        }
        let assignment = Assignment {
            name: want.name.clone(),
            address,
            bundle: want.bundle.clone(),
        };
        let former = self.assignments.of(want.id);
        // A bundle that is not here may be in Redis. Otherwise metadatad asks for it.
        let may_be_in_redis = self.uses_redis() && !self.cache.has(want.bundle.digest);
        if !self.assignments.uses(want.bundle.digest) && !may_be_in_redis {
            self.upload(&want.bundle).await?;
        }
        match self.assignments.assign(want.id, assignment.clone()).await {
            Err(MetadataError::BundleMissing) => {
                self.upload(&want.bundle).await?;
                self.assignments.assign(want.id, assignment).await?;
            }
            other => other?,
        }
        if let Some((_, former)) = former
            && !self.assignments.uses(former)
        {
            // The documents were edited, and the former ones are not used any more.
            self.cache.remove(former);
        }
        Ok(())
    }

    /// Makes metadatad release everything of the instance.
    pub async fn release(&self, id: InstanceId) -> Result<(), MetadataError> {
        self.assignments.release(id, || true).await?;
        self.inner().evidence.remove(id);
        Ok(())
    }

    /// The bundle's encrypted bytes for a report; `None` if they are not cached or too large.
    pub fn bundle_for_report(&self, digest: Digest) -> Option<Vec<u8>> {
        self.cache.read_for_report(digest)
    }

    /// Removes cached bundles that no record uses. Those of released instances are kept: they are reported with unmanaged
    /// copies.
    pub fn remove_unused_bundles(&self, table: &Table) {
        self.cache.retain(&bundles(table.records().into_iter()));
    }

    /// Records what guests did. Returns the instances concerned.
    pub fn record_observations(&self, observations: &[Observation]) -> BTreeSet<InstanceId> {
        let mut inner = self.inner();
        for observation in observations {
            let held = self.assignments.since(observation.instance);
            inner.evidence.record(observation, held);
        }
        observations.iter().map(|one| one.instance).collect()
    }

    /// Sends a bundle to metadatad, from the cache if possible.
    async fn upload(&self, bundle: &BundleRef) -> Result<(), MetadataError> {
        let put = |bytes| failpoints::BUNDLE.around(self.service.put_bundle(bundle.digest, bytes));
        if let Some(bytes) = self.cache.read(bundle.digest) {
            match put(bytes.into()).await {
                // The cached copy is damaged: fetch it again.
                Err(MetadataError::Refused { .. }) => {}
                other => return other,
            }
        }
        let bytes = self.fetch(bundle.digest).await?;
        put(bytes).await
    }

    /// Fetches a bundle from waifud and caches it.
    async fn fetch(&self, bundle: Digest) -> Result<Bytes, MetadataError> {
        let fetched = self.link.fetch_bundle(bundle).await;
        let bytes = fetched.map_err(|error| MetadataError::Refused {
            message: format!(
                "cannot fetch the instance's metadata and user-data from waifud: {error}"
            ),
        })?;
        self.cache.store(bundle, &bytes);
        Ok(bytes)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// The addresses of guests that moved to this node and kept them. Sorted.
fn moved_here(table: &Table) -> Vec<Ipv4Addr> {
    let records = table.records().into_iter();
    let here = records.filter(|record| !record.destroyed && !record.is_given_up());
    let ports = here.filter_map(|record| ports_of(&record).ok()).flatten();
    let moved = ports.filter(|port| port.home.is_some());
    let moved: BTreeSet<_> = moved.map(|port| port.address).collect();
    moved.into_iter().collect()
}

/// The bundles of all records. An instance that was given up is not served here again in this epoch, and metadatad needs no
/// bundle of it.
fn served_bundles(table: &Table) -> BTreeSet<Digest> {
    let served = table.records().into_iter();
    bundles(served.filter(|record| !record.is_given_up()))
}

fn bundles(records: impl Iterator<Item = InstanceRecord>) -> BTreeSet<Digest> {
    let instances = records.filter_map(|record| record.instance);
    instances.map(|instance| instance.bundle.digest).collect()
}
