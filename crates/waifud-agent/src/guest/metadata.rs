//! Guests' documents on this node: keeps metadatad told, the tunnel up, and what guests asked for at hand.
//! What it was told of each instance is [`crate::guest::assignments`]' to know.
//!
//! A guest is started only after metadatad has said that it holds the guest's bundle and the tunnel is up. When
//! metadatad's process changes, everything is said again. Bundles come from waifud; the last known good ones lie
//! encrypted beside the records, so that a node without waifud can hand them to a metadatad that lost its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use waifud_api::agent::{AgentInstance, BundleRef};
use waifud_api::metadatad::{Assignment, Observation, Observed, Status, Tunnel};
use waifud_cloudinit::Documents;
use waifud_network::IDENTITIES;
use waifud_types::{Digest, InstanceId, Timestamp};

use crate::control_link::record::Memory;
use crate::control_link::table::Table;
use crate::failpoints;
use crate::guest::assignments::Assignments;
use crate::guest::boot_report::BootReport;
use crate::guest::requests::Requests;
use crate::interfaces::{ControlLink, MetadataError, MetadataService, MetadataTunnel};
use crate::network::lan::identity;

/// Bytes of an encrypted bundle that goes into a report at most; one with the longest user-data is about half of it.
const KEPT_MAX: u64 = 4 << 20;

/// What a guest was seen to do with its documents, since metadatad's process began.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evidence {
    /// Requests that were answered with success.
    pub served: u64,
    /// Other requests.
    pub refused: u64,
    /// The last request: path (a guest's text, shortened), status, time.
    pub last: Option<(String, u16, Timestamp)>,
    /// The bundle whose user-data the guest asked for last, whether there was any.
    pub asked_for: Option<Digest>,
    /// The last phone-home: time, and the instance-id that the guest believes to have.
    pub phoned_home: Option<(Timestamp, Option<String>)>,
    /// Its different requests since its start, or since this process's own: kept over metadatad's end.
    pub requests: Requests,
    /// What cloud-init's reporter told of the current boot; kept over metadatad's end.
    pub report: BootReport,
    /// When the current boot began, as far as known: what was reported before is of another.
    pub boot: Option<Timestamp>,
    /// When the reporter told of another boot than before.
    pub booted_again: Option<Timestamp>,
}

/// Keeps guests' documents served. See the module's text.
pub struct Metadata {
    service: Arc<dyn MetadataService>,
    tunnel: Arc<dyn MetadataTunnel>,
    link: Arc<dyn ControlLink>,
    cache: PathBuf,
    assignments: Assignments,
    /// Held while the tunnel is changed.
    changing: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The process that everything was told to, while it answers and the tunnel is up.
    process: Option<String>,
    /// What it was told of the tunnel.
    told: Option<Tunnel>,
    /// Instances of which it keeps an assignment that it can't serve, as of the last look.
    unserved: Vec<InstanceId>,
    /// Bundles that it keeps and serves to no instance, as of the last look.
    unused: Vec<Digest>,
    trouble: Option<String>,
    /// When the trouble began.
    away_since: Option<Instant>,
    evidence: BTreeMap<InstanceId, Evidence>,
}

/// What a look at the service brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refreshed {
    /// It is another process than before, or was away: look at every instance again.
    pub changed: bool,
    /// The link to it was made anew: routes have to be made again.
    pub fresh_link: bool,
}

impl Metadata {
    /// Nothing is known to be served. `cache` holds encrypted bundles; it is made when needed.
    pub fn new(
        service: Arc<dyn MetadataService>,
        tunnel: Arc<dyn MetadataTunnel>,
        link: Arc<dyn ControlLink>,
        cache: PathBuf,
    ) -> Self {
        Self {
            assignments: Assignments::new(service.clone()),
            service,
            tunnel,
            link,
            cache,
            changing: tokio::sync::Mutex::new(()),
            inner: Mutex::default(),
        }
    }

    /// The service itself.
    pub fn service(&self) -> &Arc<dyn MetadataService> {
        &self.service
    }

    /// Whether the instance's documents are served, as far as known.
    pub fn serves(&self, want: &AgentInstance, memory: &Memory) -> bool {
        let identity = identity(want, memory);
        self.is_connected()
            && identity.is_none_or(|address| {
                self.assignments.of(want.id) == Some((address, want.bundle.digest))
            })
    }

    /// Whether it may hold anything of the instance: yes until it has confirmed a release.
    pub fn may_hold(&self, id: InstanceId) -> bool {
        self.assignments.may_hold(id)
    }

    /// Whether it answered last time, and the tunnel is up.
    pub fn is_connected(&self) -> bool {
        self.inner().process.is_some()
    }

    /// What is wrong with it, in a sentence; null when all is well.
    pub fn trouble(&self) -> Option<String> {
        self.inner().trouble.clone()
    }

    /// For how long it has been out of reach; null while it is not.
    pub fn away(&self) -> Option<Duration> {
        self.inner().away_since.map(|since| since.elapsed())
    }

    /// The instance's documents in the clear: what a disk with them is made of.
    pub async fn documents(&self, want: &AgentInstance) -> Result<Documents, MetadataError> {
        let BundleRef { digest, key, .. } = &want.bundle;
        if let Ok(bytes) = fs::read(self.cache.join(digest.hex()))
            && let Ok(documents) = waifud_cloudinit::open(&bytes, *digest, key)
        {
            return Ok(documents);
        }
        let bytes = self.fetch(*digest).await?;
        waifud_cloudinit::open(&bytes, *digest, key).map_err(|error| MetadataError::Refused {
            message: error.to_string(),
        })
    }

    /// What the guest was seen to do.
    pub fn evidence(&self, id: InstanceId) -> Evidence {
        self.inner().evidence.get(&id).cloned().unwrap_or_default()
    }

    /// cloud-init's module at work in the guest, as its reporter told.
    pub fn running_module(&self, id: InstanceId) -> Option<String> {
        let inner = self.inner();
        let running = inner.evidence.get(&id)?.report.running()?;
        Some(running.name.clone())
    }

    /// The guest starts: what it asked for before is of another boot.
    pub fn begin_boot(&self, id: InstanceId) {
        if let Some(evidence) = self.inner().evidence.get_mut(&id) {
            evidence.requests = Requests::default();
            evidence.report = BootReport::default();
            evidence.boot = Some(Timestamp::now());
            evidence.booted_again = None;
        }
    }

    /// Looks at the service, brings the tunnel up and says whose side it is.
    pub async fn refresh(&self, table: &Table) -> Result<Refreshed, MetadataError> {
        let _one_at_a_time = self.changing.lock().await;
        let asked = self.assignments.now();
        let outcome = self.connect(table).await;
        let mut inner = self.inner();
        match outcome {
            Ok((status, fresh_link)) => {
                let changed = inner.process.as_deref() != Some(status.process.as_str());
                if changed {
                    for evidence in inner.evidence.values_mut() {
                        *evidence = Evidence {
                            requests: std::mem::take(&mut evidence.requests),
                            report: std::mem::take(&mut evidence.report),
                            boot: evidence.boot,
                            booted_again: evidence.booted_again,
                            ..Evidence::default()
                        };
                    }
                }
                inner.process = Some(status.process);
                self.assignments.learn(&status.instances, asked, changed);
                inner.unserved = status.unserved;
                inner.unused = status.unused_bundles;
                inner.trouble = None;
                inner.away_since = None;
                Ok(Refreshed {
                    changed,
                    fresh_link,
                })
            }
            Err(error) => {
                inner.process = None;
                inner.trouble = Some(error.to_string());
                inner.away_since.get_or_insert_with(Instant::now);
                Err(error)
            }
        }
    }

    /// Instances that metadatad may hold something of and that no record names.
    pub fn unnamed(&self, table: &Table) -> Vec<InstanceId> {
        let records = table.records();
        let named: BTreeSet<InstanceId> = records.iter().map(|record| record.id).collect();
        self.assignments.retain(&named);
        let mut inner = self.inner();
        inner.evidence.retain(|id, _| named.contains(id));
        let living = |id: &InstanceId| {
            records
                .iter()
                .any(|record| record.id == *id && !record.destroyed)
        };
        let mut held = self.assignments.held();
        held.append(&mut inner.unserved);
        held.retain(|id| !living(id));
        held
    }

    /// Has an instance forgotten that still no record names when its turn comes.
    pub async fn release_unnamed(
        &self,
        table: &Table,
        id: InstanceId,
    ) -> Result<(), MetadataError> {
        let unnamed = || table.view(id).is_none_or(|view| view.record.destroyed);
        self.assignments.release(id, unnamed).await
    }

    /// Has bundles forgotten that are served to no instance and that no record names.
    pub async fn drop_unnamed_bundles(&self, table: &Table) -> Result<(), MetadataError> {
        let unused = std::mem::take(&mut self.inner().unused);
        if unused.is_empty() {
            return Ok(());
        }
        let named = named_bundles(table);
        for bundle in unused {
            if !named.contains(&bundle) {
                self.service.drop_bundle(bundle).await?;
            }
        }
        Ok(())
    }

    async fn connect(&self, table: &Table) -> Result<(Status, bool), MetadataError> {
        let status = self.service.status().await?;
        let slice = table.node().slice.ok_or_else(|| MetadataError::Tunnel {
            message: "waifud has not given this node a subnet yet".to_owned(),
        })?;
        let up = self
            .tunnel
            .ensure(&status.public_key, status.endpoint)
            .await?;
        let same_process = self.inner().process.as_deref() == Some(status.process.as_str());
        let tunnel = Tunnel {
            node_public_key: up.public_key,
            node_endpoint: up.endpoint,
            subnet: slice.subnet,
            identities: Some(IDENTITIES),
        };
        let told = self.inner().told.as_ref() == Some(&tunnel);
        let known = status.node_public_key.as_ref() == Some(&tunnel.node_public_key);
        if same_process && !up.fresh && told && known {
            return Ok((status, false));
        }
        let status = failpoints::TUNNEL
            .around(self.service.set_tunnel(&tunnel))
            .await?;
        self.inner().told = Some(tunnel);
        Ok((status, up.fresh))
    }

    /// Has the instance's documents served. The service must have been reached by [`Metadata::refresh`].
    pub async fn ensure(&self, want: &AgentInstance, memory: &Memory) -> Result<(), MetadataError> {
        let Some(address) = identity(want, memory) else {
            return Ok(());
        };
        if self.inner().process.is_none() {
            return Err(MetadataError::Unreachable {
                message: self
                    .trouble()
                    .unwrap_or_else(|| "the metadata service was not reached yet".to_owned()),
            });
        }
        let assignment = Assignment {
            name: want.name.clone(),
            address,
            bundle: want.bundle.clone(),
        };
        let former = self.assignments.of(want.id);
        if !self.assignments.uses(want.bundle.digest) {
            self.hand_over(&want.bundle).await?;
        }
        match self.assignments.assign(want.id, assignment.clone()).await {
            Err(MetadataError::BundleMissing) => {
                self.hand_over(&want.bundle).await?;
                self.assignments.assign(want.id, assignment).await?;
            }
            other => other?,
        }
        if let Some((_, former)) = former
            && !self.assignments.uses(former)
        {
            // Edited documents: the old ones are no longer used. What a kill here leaves goes with the next `tidy`.
            let _next_time = fs::remove_file(self.cache.join(former.hex()));
        }
        Ok(())
    }

    /// Has everything of the instance forgotten.
    pub async fn release(&self, id: InstanceId) -> Result<(), MetadataError> {
        self.assignments.release(id, || true).await?;
        self.inner().evidence.remove(&id);
        Ok(())
    }

    /// The encrypted bytes of a bundle, if a copy is kept here and is not unreasonably large.
    pub fn kept(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.cache.join(digest.hex());
        let size = fs::metadata(&path).ok()?.len();
        (size <= KEPT_MAX).then(|| fs::read(path).ok()).flatten()
    }

    /// Forgets cached bundles that no record names.
    pub fn tidy(&self, table: &Table) {
        let named: BTreeSet<String> = named_bundles(table).iter().map(Digest::hex).collect();
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| !named.contains(name)) {
                // A leftover that can't be removed now is removed next time.
                let _next_time = fs::remove_file(entry.path());
            }
        }
    }

    /// Takes note of what guests did. Returns whom it concerns.
    pub fn note(&self, observations: &[Observation]) -> BTreeSet<InstanceId> {
        let mut inner = self.inner();
        let mut concerned = BTreeSet::new();
        for observation in observations {
            let held = self.assignments.since(observation.instance);
            let evidence = inner.evidence.entry(observation.instance).or_default();
            concerned.insert(observation.instance);
            match &observation.what {
                Observed::Request { path, status } => {
                    if (200..300).contains(status) {
                        evidence.served += 1;
                    } else {
                        evidence.refused += 1;
                    }
                    if let Some((digest, since)) = held
                        && since <= observation.at
                        && (path.ends_with("user_data") || path.ends_with("user-data"))
                    {
                        evidence.asked_for = Some(digest);
                    }
                    let path: String = crate::guest::cloud_init::text(path)
                        .chars()
                        .take(120)
                        .collect();
                    evidence.requests.add(path.clone(), *status, observation.at);
                    evidence.last = Some((path, *status, observation.at));
                }
                Observed::PhoneHome { instance_id, .. } => {
                    let id = instance_id.as_deref().map(crate::guest::cloud_init::text);
                    evidence.phoned_home = Some((observation.at, id));
                }
                Observed::CloudInit(event) => {
                    let of_this_boot = evidence.boot.is_none_or(|boot| observation.at >= boot);
                    if of_this_boot && evidence.report.add(event, observation.at) {
                        evidence.booted_again = Some(observation.at);
                    }
                }
            }
        }
        concerned
    }

    async fn hand_over(&self, bundle: &BundleRef) -> Result<(), MetadataError> {
        let cached = self.cache.join(bundle.digest.hex());
        let put = |bytes| failpoints::BUNDLE.around(self.service.put_bundle(bundle.digest, bytes));
        if let Ok(bytes) = fs::read(&cached) {
            match put(bytes.into()).await {
                // Damaged on disk: fetch it again.
                Err(MetadataError::Refused { .. }) => {}
                other => return other,
            }
        }
        let bytes = self.fetch(bundle.digest).await?;
        put(bytes).await
    }

    /// Gets a bundle of waifud's, and keeps it.
    async fn fetch(&self, bundle: Digest) -> Result<Bytes, MetadataError> {
        let fetched = self.link.fetch_bundle(bundle).await;
        let bytes = fetched.map_err(|error| MetadataError::Refused {
            message: format!("its documents can't be fetched: {error}"),
        })?;
        self.keep(bundle, &bytes);
        Ok(bytes)
    }

    /// Keeps a copy for days without waifud. Failing to is no reason to fail: metadatad keeps its own.
    fn keep(&self, digest: Digest, bytes: &Bytes) {
        let path = self.cache.join(digest.hex());
        let beside = path.with_extension("tmp");
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&self.cache)?;
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        if let Err(error) = write() {
            let _goes_with_the_next_tidy = fs::remove_file(&beside);
            tracing::warn!(%digest, %error, "an encrypted bundle could not be kept");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bundles of all records.
fn named_bundles(table: &Table) -> BTreeSet<Digest> {
    let records = table.records();
    let instances = records.iter().filter_map(|record| record.instance.as_ref());
    instances.map(|instance| instance.bundle.digest).collect()
}
