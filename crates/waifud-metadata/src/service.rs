//! The service as the agent uses it: each verb applies a change durably before it answers.
//!
//! Changes are applied one at a time. Each is checked, written to the store, and then put into the registry, so a crash
//! leaves the state before or after the change. Guests' requests do not wait for changes.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex as SyncMutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use waifud_api::agent::BundleRef;
use waifud_api::metadatad::{Assignment, Observations, RedisSetting, Status, Tunnel};
use waifud_cloudinit::{BundleError, Tokens, digest_of, open};
use waifud_kit::sync::lock;
use waifud_types::{Digest, InstanceId, Timestamp};
use waifud_wireguard::{KeyError, PeerConfig, WireguardError};

use crate::{
    BundleStore, GuestLimits, RedisBundles, StateStore, StoreError, TunnelEnd, failpoints,
    limits::RateLimiter,
    observations::ObservationLog,
    registry::{Entry, Registry},
};

/// The longest time that a caller may wait for observations.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// The parts of the service.
pub struct Parts {
    /// The store of bundles.
    pub bundles: Arc<dyn BundleStore>,
    /// The store of assignments.
    pub state: Arc<dyn StateStore>,
    /// Bundles from Redis.
    pub redis: Arc<RedisBundles>,
    /// This end of the tunnel.
    pub tunnel: Arc<dyn TunnelEnd>,
    /// Seals EC2's session tokens.
    pub tokens: Tokens,
    /// Limits for guests.
    pub limits: GuestLimits,
    /// The clock.
    pub clock: fn() -> Timestamp,
    /// Canceled when the service stops; ends pending waits.
    pub stop: CancellationToken,
}

/// The machine's clock.
pub fn system_clock() -> Timestamp {
    Timestamp::now()
}

/// Why a request of the agent failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The bytes do not have the announced digest.
    #[error("the bundle has the digest {found} instead of {wanted}")]
    DigestMismatch {
        /// The digest in the path.
        wanted: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The bundle is neither stored nor in Redis. It must be put first.
    #[error("the bundle {digest} is not stored here")]
    BundleMissing {
        /// Which one.
        digest: Digest,
    },
    /// The bundle cannot be opened.
    #[error("the bundle {digest} cannot be opened")]
    BundleUnreadable {
        /// Which one.
        digest: Digest,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// The bundle belongs to another instance.
    #[error("the bundle {digest} belongs to instance {owner}")]
    BundleOfAnother {
        /// Which one.
        digest: Digest,
        /// The instance that it belongs to.
        owner: InstanceId,
    },
    /// Another instance has the address.
    #[error("the address {address} belongs to instance {holder}")]
    AddressTaken {
        /// The address.
        address: std::net::Ipv4Addr,
        /// The instance that has it.
        holder: InstanceId,
    },
    /// The node's key is invalid.
    #[error("the node's public key is not a valid WireGuard key")]
    NodeKey(#[source] KeyError),
    /// The tunnel refused the node.
    #[error("cannot configure the tunnel")]
    Tunnel(#[source] WireguardError),
    /// The store failed.
    #[error("the change could not be stored")]
    Store(#[from] StoreError),
}

/// The service, which serves guests and the agent.
pub struct MetadataService {
    pub(crate) registry: Registry,
    pub(crate) log: ObservationLog,
    pub(crate) limiter: RateLimiter,
    pub(crate) limits: GuestLimits,
    pub(crate) tokens: Tokens,
    pub(crate) clock: fn() -> Timestamp,
    bundles: Arc<dyn BundleStore>,
    state: Arc<dyn StateStore>,
    redis: Arc<RedisBundles>,
    tunnel: Arc<dyn TunnelEnd>,
    process: String,
    stop: CancellationToken,
    /// Bundles on disk without an assignment: to be assigned soon, or left over.
    unused: SyncMutex<BTreeSet<Digest>>,
    /// Assignments on disk that could not be loaded.
    unserved: SyncMutex<BTreeSet<InstanceId>>,
    /// The node's end of the tunnel, once known. Locked during changes.
    changing: Mutex<Option<Tunnel>>,
}

impl MetadataService {
    /// Starts with the contents of the store, so guests are served before the agent reconnects. Unreadable entries are
    /// logged and left out; only a store that cannot be listed is an error.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let service = Self {
            registry: Registry::default(),
            log: ObservationLog::default(),
            limiter: RateLimiter::new(&parts.limits),
            limits: parts.limits,
            tokens: parts.tokens,
            clock: parts.clock,
            bundles: parts.bundles,
            state: parts.state,
            redis: parts.redis,
            tunnel: parts.tunnel,
            process: random_name(),
            stop: parts.stop,
            unused: SyncMutex::default(),
            unserved: SyncMutex::default(),
            changing: Mutex::new(None),
        };
        service.load().await?;
        Ok(Arc::new(service))
    }

    async fn load(&self) -> Result<(), StoreError> {
        let mut assigned = HashSet::new();
        for (instance, assignment) in self.state.assignments().await? {
            assigned.insert(assignment.bundle.digest);
            let loaded = match self.opened(instance, assignment).await {
                Ok(entry) => self.registry_put(entry),
                Err(error) => Err(error),
            };
            if let Err(error) = loaded {
                tracing::warn!(%instance, %error, "cannot serve a stored instance until the agent assigns it again");
                set(&self.unserved).insert(instance);
            }
        }
        for digest in self.bundles.bundles().await? {
            // Unreadable bundles are kept, because waifud may be unreachable.
            if !assigned.contains(&digest) {
                self.drop_unused(digest).await;
            }
        }
        if let Some(tunnel) = self.state.tunnel().await? {
            match self.set_peer(&tunnel) {
                Ok(()) => *self.changing.lock().await = Some(tunnel),
                Err(error) => tracing::warn!(%error, "cannot use the stored tunnel"),
            }
        }
        tracing::info!(instances = self.registry.held().len(), "loaded");
        Ok(())
    }

    /// The process and what it stores.
    pub async fn status(&self) -> Status {
        let tunnel = self.changing.lock().await.clone();
        self.status_with(tunnel.as_ref())
    }

    fn status_with(&self, tunnel: Option<&Tunnel>) -> Status {
        Status {
            process: self.process.clone(),
            public_key: self.tunnel.public_key().to_string(),
            endpoint: self.tunnel.endpoint(),
            node_public_key: tunnel.map(|tunnel| tunnel.node_public_key.clone()),
            instances: self.registry.held(),
            unserved: set(&self.unserved).iter().copied().collect(),
            unused_bundles: set(&self.unused).iter().copied().collect(),
            redis: self.redis.trouble(),
        }
    }

    /// Accepts this node's end of the tunnel and no other.
    pub async fn put_tunnel(&self, tunnel: Tunnel) -> Result<Status, ControlError> {
        let mut current = self.changing.lock().await;
        // Also without a change, because a restarted node waits for a handshake.
        self.set_peer(&tunnel)?;
        if current.as_ref() != Some(&tunnel) {
            failpoints::TUNNEL_SAVE
                .around(self.state.put_tunnel(&tunnel))
                .await?;
            tracing::info!(node = %tunnel.node_public_key, subnet = %tunnel.subnet, "configured the tunnel for the node");
            *current = Some(tunnel);
        }
        Ok(self.status_with(current.as_ref()))
    }

    fn set_peer(&self, tunnel: &Tunnel) -> Result<(), ControlError> {
        let public_key = tunnel
            .node_public_key
            .parse()
            .map_err(ControlError::NodeKey)?;
        self.tunnel
            .set_peer(PeerConfig {
                public_key,
                endpoint: Some(tunnel.node_endpoint),
                allowed: [tunnel.subnet]
                    .into_iter()
                    .chain(tunnel.identities)
                    .chain(tunnel.moved.iter().map(|address| (*address).into()))
                    .collect(),
            })
            .map_err(ControlError::Tunnel)
    }

    /// Reads bundles from this Redis from now on, or from none.
    pub fn put_redis(&self, setting: RedisSetting) {
        self.redis.configure(setting.access);
    }

    /// The stored bundle. `None` if there is none, or a damaged one.
    pub async fn bundle(&self, digest: Digest) -> Result<Option<Bytes>, ControlError> {
        let stored = self.bundles.bundle(digest).await?;
        Ok(stored.filter(|bytes| digest_of(bytes) == digest))
    }

    /// Stores the bundle.
    pub async fn put_bundle(&self, wanted: Digest, ciphertext: Bytes) -> Result<(), ControlError> {
        let found = digest_of(&ciphertext);
        if found != wanted {
            return Err(ControlError::DigestMismatch { wanted, found });
        }
        let _changing = self.changing.lock().await;
        failpoints::BUNDLE_SAVE
            .around(self.bundles.put_bundle(wanted, ciphertext))
            .await?;
        if !self.registry.uses(wanted) {
            set(&self.unused).insert(wanted);
        }
        Ok(())
    }

    /// Removes the bundle, unless an assignment uses it.
    pub async fn delete_bundle(&self, digest: Digest) -> Result<(), ControlError> {
        let _changing = self.changing.lock().await;
        if !self.registry.uses(digest) {
            failpoints::BUNDLE_DROP
                .around(self.bundles.delete_bundle(digest))
                .await?;
        }
        set(&self.unused).remove(&digest);
        Ok(())
    }

    /// Serves these documents to the instance at this address, and at no other.
    pub async fn put_instance(
        &self,
        instance: InstanceId,
        assignment: Assignment,
    ) -> Result<(), ControlError> {
        let _changing = self.changing.lock().await;
        let former = self.registry.get(instance);
        if former
            .as_ref()
            .is_some_and(|former| former.assignment == assignment)
        {
            return Ok(());
        }
        let address = assignment.address;
        if let Some(holder) = self.registry.at(address)
            && holder.instance != instance
        {
            let holder = holder.instance;
            return Err(ControlError::AddressTaken { address, holder });
        }
        let entry = self.opened(instance, assignment).await?;
        failpoints::ASSIGNMENT_SAVE
            .around(self.state.put_assignment(instance, &entry.assignment))
            .await?;
        tracing::info!(%instance, name = %entry.assignment.name, %address, bundle = %entry.assignment.bundle.digest.short(), "assigned");
        self.registry_put(entry)?;
        set(&self.unserved).remove(&instance);
        if let Some(former) = former {
            self.drop_unused(former.assignment.bundle.digest).await;
        }
        Ok(())
    }

    /// Removes the assignment and the documents of the instance.
    pub async fn delete_instance(&self, instance: InstanceId) -> Result<(), ControlError> {
        let _changing = self.changing.lock().await;
        let former = self.registry.remove(instance);
        self.log.forget(instance);
        failpoints::ASSIGNMENT_DROP
            .around(self.state.delete_assignment(instance))
            .await?;
        set(&self.unserved).remove(&instance);
        if let Some(former) = former {
            tracing::info!(%instance, name = %former.assignment.name, "removed");
            self.drop_unused(former.assignment.bundle.digest).await;
        }
        Ok(())
    }

    /// Observations after number `after`. Waits for the first one, at most `wait` and at most a minute.
    pub async fn observations(&self, after: u64, wait: Duration) -> Observations {
        tokio::select! {
            found = self.log.after(after, wait.min(WAIT_MAX)) => found,
            () = self.stop.cancelled() => self.log.after(after, Duration::ZERO).await,
        }
    }

    /// The bundle from the store, else from Redis, which is then stored. A damaged one is treated as missing; putting it again
    /// repairs it.
    async fn stored_or_cached(&self, bundle: &BundleRef) -> Result<Bytes, ControlError> {
        let digest = bundle.digest;
        if let Some(stored) = self.bundle(digest).await? {
            return Ok(stored);
        }
        let cached = self.redis.bundle(digest, bundle.size_bytes).await;
        let cached = cached.ok_or(ControlError::BundleMissing { digest })?;
        failpoints::BUNDLE_SAVE
            .around(self.bundles.put_bundle(digest, cached.clone()))
            .await?;
        tracing::info!(bundle = %digest.short(), "read a bundle from Redis");
        if !self.registry.uses(digest) {
            set(&self.unused).insert(digest);
        }
        Ok(cached)
    }

    /// Reads the documents of an assignment and checks them.
    async fn opened(
        &self,
        instance: InstanceId,
        assignment: Assignment,
    ) -> Result<Entry, ControlError> {
        let digest = assignment.bundle.digest;
        let ciphertext = self.stored_or_cached(&assignment.bundle).await?;
        let documents = open(&ciphertext, digest, &assignment.bundle.key)
            .map_err(|source| ControlError::BundleUnreadable { digest, source })?;
        if documents.instance() != instance {
            let owner = documents.instance();
            return Err(ControlError::BundleOfAnother { digest, owner });
        }
        Ok(Entry {
            instance,
            assignment,
            documents,
        })
    }

    fn registry_put(&self, entry: Entry) -> Result<(), ControlError> {
        let address = entry.assignment.address;
        let digest = entry.assignment.bundle.digest;
        self.registry
            .put(entry)
            .map_err(|holder| ControlError::AddressTaken { address, holder })?;
        set(&self.unused).remove(&digest);
        Ok(())
    }

    /// Removes a bundle that is not used. A failure is only logged: the agent sees the bundle, and the next start retries.
    async fn drop_unused(&self, digest: Digest) {
        if !self.registry.uses(digest)
            && let Err(error) = failpoints::BUNDLE_DROP
                .around(self.bundles.delete_bundle(digest))
                .await
        {
            tracing::warn!(%error, "cannot remove an unused bundle");
            set(&self.unused).insert(digest);
        }
    }
}

fn set<T>(shared: &SyncMutex<BTreeSet<T>>) -> MutexGuard<'_, BTreeSet<T>> {
    lock(shared)
}

/// A random id of 128 bits as text.
fn random_name() -> String {
    let mut bytes = [0; 16];
    // Without randomness the agent could miss a restart, but the process would have failed earlier.
    let _ = SystemRandom::new().fill(&mut bytes);
    waifud_kit::sha256::hex(&bytes)
}
