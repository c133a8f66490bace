//! A metadatad in memory, and a tunnel without a link.
//!
//! Like the real one, it processes a request whether or not the sender waits for the answer, and requests of different
//! senders are not ordered. [`FakeMetadata::set_delays`] makes that visible.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use waifud_api::agent::RedisAccess;
use waifud_api::metadatad::{
    Assignment, Held, Observation, Observations, Observed, RedisSetting, Status, Tunnel,
};
use waifud_cloudinit::Documents;
use waifud_kit::sync::lock;
use waifud_types::status::Condition;
use waifud_types::{Digest, InstanceId, Timestamp};

use crate::interfaces::{MetadataError, MetadataService, MetadataTunnel, TunnelUp};

/// The fake service. Clones share one state.
#[derive(Clone)]
pub struct FakeMetadata {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    process: u64,
    online: bool,
    hanging: bool,
    tunnel: Option<Tunnel>,
    bundles: BTreeMap<Digest, Bytes>,
    redis: RedisSetting,
    /// The bundles in Redis, which are used if it is set.
    in_redis: BTreeMap<Digest, Bytes>,
    redis_trouble: Option<Condition>,
    /// Whether bundles are opened when they are assigned.
    opens: bool,
    held: BTreeMap<InstanceId, Assignment>,
    observations: Vec<Observation>,
    /// The seed of the next pause; `None` for no pauses.
    delays: Option<u64>,
}

impl Default for FakeMetadata {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeMetadata {
    /// Online, holding nothing.
    pub fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                online: true,
                ..State::default()
            })),
            changed: watch::Sender::new(0),
        }
    }

    /// Restarts the service: it loses the tunnel and, with `keep_disk` false, everything it holds.
    pub fn restart(&self, keep_disk: bool) {
        {
            let mut state = lock(&self.state);
            state.process += 1;
            state.tunnel = None;
            state.redis = RedisSetting::default();
            state.observations.clear();
            if !keep_disk {
                state.bundles.clear();
                state.held.clear();
            }
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Goes online or offline.
    pub fn set_online(&self, online: bool) {
        lock(&self.state).online = online;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Lets the service hang, like a stopped process: requests stay unanswered until it goes on.
    pub fn set_hanging(&self, hanging: bool) {
        lock(&self.state).hanging = hanging;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Returns once the service does not hang.
    async fn goes_on(&self) {
        let mut changes = self.changed.subscribe();
        while lock(&self.state).hanging {
            // The sender lives as long as this service.
            let _changed = changes.changed().await;
        }
    }

    /// Delays the processing of requests, and their answers, by up to a few milliseconds each. The pauses are derived
    /// from the seed.
    pub fn set_delays(&self, seed: u64) {
        lock(&self.state).delays = Some(seed);
    }

    /// The stored bundles.
    pub fn bundles(&self) -> BTreeSet<Digest> {
        lock(&self.state).bundles.keys().copied().collect()
    }

    /// The Redis that it was told to use.
    pub fn redis(&self) -> Option<RedisAccess> {
        lock(&self.state).redis.access.clone()
    }

    /// Puts a bundle into Redis.
    pub fn put_in_redis(&self, bundle: Digest, bytes: Bytes) {
        lock(&self.state).in_redis.insert(bundle, bytes);
    }

    /// Removes all bundles from Redis.
    pub fn empty_redis(&self) {
        lock(&self.state).in_redis.clear();
    }

    /// Sets what is wrong with Redis.
    pub fn set_redis_trouble(&self, trouble: Option<Condition>) {
        lock(&self.state).redis_trouble = trouble;
    }

    /// Lets the service open bundles when they are assigned, as the real one does. Otherwise any bytes are accepted.
    pub fn open_bundles(&self) {
        lock(&self.state).opens = true;
    }

    /// The documents that a guest reads, opened with the key of its assignment; `None` without an assignment.
    pub fn documents(&self, id: InstanceId) -> Option<Result<Documents, String>> {
        let (bytes, bundle) = {
            let state = lock(&self.state);
            let bundle = state.held.get(&id)?.bundle.clone();
            (state.bundles.get(&bundle.digest).cloned(), bundle)
        };
        let bytes = bytes.ok_or_else(|| "the bundle is missing".to_owned());
        Some(bytes.and_then(|bytes| {
            let opened = waifud_cloudinit::open(&bytes, bundle.digest, &bundle.key);
            opened.map_err(|error| error.to_string())
        }))
    }

    /// The assignments.
    pub fn held(&self) -> BTreeMap<InstanceId, Assignment> {
        lock(&self.state).held.clone()
    }

    /// Whether a guest would be answered: it is assigned, its bundle is stored, and the tunnel is set.
    pub fn would_serve(&self, id: InstanceId) -> bool {
        let state = lock(&self.state);
        state.online
            && state.tunnel.is_some()
            && state
                .held
                .get(&id)
                .is_some_and(|held| state.bundles.contains_key(&held.bundle.digest))
    }

    /// Adds an observation of a guest.
    pub fn observe(&self, instance: InstanceId, at: Timestamp, what: Observed) {
        {
            let mut state = lock(&self.state);
            let number = u64::try_from(state.observations.len()).unwrap_or(0) + 1;
            state.observations.push(Observation {
                number,
                at,
                instance,
                what,
            });
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Processes a request to its end even if the sender goes away, like the real service.
    async fn request<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut State) -> Result<T, MetadataError> + Send + 'static,
    ) -> Result<T, MetadataError> {
        self.goes_on().await;
        let Some((before, after)) = lock(&self.state).pauses() else {
            return run(&mut *self.online()?);
        };
        let fake = self.clone();
        let work = tokio::spawn(async move {
            tokio::time::sleep(before).await;
            let outcome = fake.online().and_then(|mut state| run(&mut state));
            tokio::time::sleep(after).await;
            outcome
        });
        work.await.map_err(|error| MetadataError::Failed {
            message: error.to_string(),
        })?
    }

    fn online(&self) -> Result<MutexGuard<'_, State>, MetadataError> {
        super::online(&self.state, "metadata service", |state| state.online)
            .map_err(|message| MetadataError::Unreachable { message })
    }
}

impl State {
    /// The pauses before and after the next request (splitmix64).
    fn pauses(&mut self) -> Option<(Duration, Duration)> {
        let seed = self.delays?.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.delays = Some(seed);
        let mut mixed = seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let micros = |bits: u64| Duration::from_micros(bits % 4000);
        Some((micros(mixed >> 32), micros(mixed & 0xffff_ffff)))
    }

    /// Refuses an assignment whose bundle is missing, or, if bundles are opened, of another instance or unreadable.
    fn require_bundle(
        &mut self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadataError> {
        let bundle = &assignment.bundle;
        if self.redis.access.is_some()
            && let Some(bytes) = self.in_redis.get(&bundle.digest)
        {
            let bytes = bytes.clone();
            self.bundles.entry(bundle.digest).or_insert(bytes);
        }
        let bytes = self.bundles.get(&bundle.digest);
        let bytes = bytes.ok_or(MetadataError::BundleMissing)?;
        if !self.opens {
            return Ok(());
        }
        let refused = |message| MetadataError::Refused { message };
        let documents = waifud_cloudinit::open(bytes, bundle.digest, &bundle.key)
            .map_err(|error| refused(error.to_string()))?;
        if documents.instance() == instance {
            return Ok(());
        }
        Err(refused("the bundle belongs to another instance".to_owned()))
    }

    /// Drops the bundle of a former assignment if no other uses it.
    fn drop_unused(&mut self, former: Option<Assignment>) {
        if let Some(former) = former {
            let digest = former.bundle.digest;
            if self.held.values().all(|held| held.bundle.digest != digest) {
                self.bundles.remove(&digest);
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            process: self.process.to_string(),
            public_key: "c2VydmVy".to_owned(),
            endpoint: SocketAddr::from(([127, 0, 0, 1], 51821)),
            node_public_key: self.tunnel.as_ref().map(|t| t.node_public_key.clone()),
            unserved: Vec::new(),
            redis: self.redis_trouble.clone(),
            unused_bundles: self
                .bundles
                .keys()
                .filter(|bundle| {
                    self.held
                        .values()
                        .all(|held| held.bundle.digest != **bundle)
                })
                .copied()
                .collect(),
            instances: self
                .held
                .iter()
                .map(|(id, held)| Held {
                    id: *id,
                    address: held.address,
                    bundle: held.bundle.digest,
                })
                .collect(),
        }
    }
}

#[async_trait]
impl MetadataService for FakeMetadata {
    async fn status(&self) -> Result<Status, MetadataError> {
        self.request(|state| Ok(state.status())).await
    }

    async fn set_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadataError> {
        let tunnel = tunnel.clone();
        self.request(|state| {
            state.tunnel = Some(tunnel);
            Ok(state.status())
        })
        .await
    }

    async fn set_redis(&self, setting: &RedisSetting) -> Result<(), MetadataError> {
        let setting = setting.clone();
        self.request(move |state| {
            state.redis = setting;
            Ok(())
        })
        .await
    }

    async fn bundle(&self, bundle: Digest) -> Result<Option<Bytes>, MetadataError> {
        self.request(move |state| Ok(state.bundles.get(&bundle).cloned()))
            .await
    }

    async fn put_bundle(&self, bundle: Digest, bytes: Bytes) -> Result<(), MetadataError> {
        self.request(move |state| {
            let found = waifud_cloudinit::digest_of(&bytes);
            if state.opens && found != bundle {
                return Err(MetadataError::Refused {
                    message: format!("the bundle {bundle} has the digest {found}"),
                });
            }
            state.bundles.insert(bundle, bytes);
            Ok(())
        })
        .await
    }

    async fn drop_bundle(&self, bundle: Digest) -> Result<(), MetadataError> {
        self.request(move |state| {
            if state.held.values().all(|held| held.bundle.digest != bundle) {
                state.bundles.remove(&bundle);
            }
            Ok(())
        })
        .await
    }

    async fn assign(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadataError> {
        let assignment = assignment.clone();
        self.request(move |state| {
            state.require_bundle(instance, &assignment)?;
            let address = assignment.address;
            let holder = state.held.iter().find(|(_, held)| held.address == address);
            if let Some((holder, _)) = holder.filter(|(holder, _)| **holder != instance) {
                return Err(MetadataError::Refused {
                    message: format!("the address {address} belongs to instance {holder}"),
                });
            }
            let former = state.held.insert(instance, assignment);
            state.drop_unused(former);
            Ok(())
        })
        .await
    }

    async fn release(&self, instance: InstanceId) -> Result<(), MetadataError> {
        self.request(move |state| {
            let former = state.held.remove(&instance);
            state.drop_unused(former);
            Ok(())
        })
        .await
    }

    async fn observations(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<Observations, MetadataError> {
        self.goes_on().await;
        let mut changes = self.changed.subscribe();
        let process = self.online()?.process;
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            {
                let state = self.online()?;
                let last = u64::try_from(state.observations.len()).unwrap_or(0);
                let items: Vec<_> = state
                    .observations
                    .iter()
                    .filter(|o| o.number > after)
                    .cloned()
                    .collect();
                if state.process != process {
                    return Err(MetadataError::Unreachable {
                        message: "the metadata service was restarted".to_owned(),
                    });
                }
                if !items.is_empty() || last < after {
                    return Ok(Observations { last, items });
                }
            }
            if tokio::time::timeout_at(deadline, changes.changed())
                .await
                .is_err()
            {
                return Ok(Observations {
                    last: after,
                    items: Vec::new(),
                });
            }
        }
    }
}

/// A tunnel that is up once it was asked for. Clones share one state.
#[derive(Clone, Default)]
pub struct FakeTunnel {
    up: Arc<Mutex<Option<(String, SocketAddr)>>>,
}

impl FakeTunnel {
    /// The link goes away, as when its process ends.
    pub fn lose(&self) {
        *lock(&self.up) = None;
    }
}

#[async_trait]
impl MetadataTunnel for FakeTunnel {
    async fn ensure(
        &self,
        server_public_key: &str,
        server_endpoint: SocketAddr,
    ) -> Result<TunnelUp, MetadataError> {
        let wanted = (server_public_key.to_owned(), server_endpoint);
        let mut up = lock(&self.up);
        let fresh = up.as_ref() != Some(&wanted);
        *up = Some(wanted);
        Ok(TunnelUp {
            // 32 bytes, as a real metadatad wants to see.
            public_key: "bm9kZW5vZGVub2Rlbm9kZW5vZGVub2Rlbm9kZW5vZGU=".to_owned(),
            endpoint: SocketAddr::from(([127, 0, 0, 1], 51822)),
            fresh,
        })
    }
}
