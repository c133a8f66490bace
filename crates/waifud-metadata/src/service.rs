//! The service as the agent sees it: verbs that make true what they are told, durably, and only then answer.
//!
//! Changes are taken one at a time. Each is checked, written to the store, and then swapped into the registry, so that a
//! crash between leaves what was before or what was asked for. Guests' reads wait for none of it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use waifud_api::metadatad::{Assignment, Observations, Status, Tunnel};
use waifud_cloudinit::{BundleError, Tokens, digest_of, open};
use waifud_types::{Digest, InstanceId, Timestamp};
use waifud_wireguard::{KeyError, PeerConfig, WireguardError};

use crate::{
    BundleStore, GuestLimits, StateStore, StoreError, TunnelEnd, failpoints,
    limits::RateLimiter,
    observations::ObservationLog,
    registry::{Entry, Registry},
};

/// Seconds that somebody may wait for observations at most.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// What the service is made of.
pub struct Parts {
    /// Where bundles are.
    pub bundles: Arc<dyn BundleStore>,
    /// Where assignments are.
    pub state: Arc<dyn StateStore>,
    /// This end of the tunnel.
    pub tunnel: Arc<dyn TunnelEnd>,
    /// Seals EC2's session tokens.
    pub tokens: Tokens,
    /// Bounds of the guests' side.
    pub limits: GuestLimits,
    /// Tells the time.
    pub clock: fn() -> Timestamp,
    /// Ends what waits.
    pub stop: CancellationToken,
}

/// The machine's clock.
pub fn system_clock() -> Timestamp {
    Timestamp::now()
}

/// Why something that the agent asked for was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The bytes are not the ones that were announced.
    #[error("the bytes have the digest {found}, not {wanted}")]
    DigestMismatch {
        /// As in the path.
        wanted: Digest,
        /// As computed.
        found: Digest,
    },
    /// The bundle has to be put first.
    #[error("the bundle {digest} is not here")]
    BundleMissing {
        /// Which one.
        digest: Digest,
    },
    /// The bundle does not open.
    #[error("the bundle {digest} can't be read")]
    BundleUnreadable {
        /// Which one.
        digest: Digest,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// The bundle was made for somebody else.
    #[error("the bundle {digest} is instance {owner}'s")]
    BundleOfAnother {
        /// Which one.
        digest: Digest,
        /// Whose it is.
        owner: InstanceId,
    },
    /// One address, one owner.
    #[error("the address {address} is instance {holder}'s")]
    AddressTaken {
        /// The address.
        address: std::net::Ipv4Addr,
        /// Who has it.
        holder: InstanceId,
    },
    /// The node's key is no key.
    #[error("the node's public key can't be read")]
    NodeKey(#[source] KeyError),
    /// The tunnel does not take the node.
    #[error("the tunnel refused the node's end")]
    Tunnel(#[source] WireguardError),
    /// The disk failed.
    #[error("it could not be made durable")]
    Store(#[from] StoreError),
}

/// One service, shared by its guests' and its agent's side.
pub struct MetadataService {
    pub(crate) registry: Registry,
    pub(crate) log: ObservationLog,
    pub(crate) limiter: RateLimiter,
    pub(crate) limits: GuestLimits,
    pub(crate) tokens: Tokens,
    pub(crate) clock: fn() -> Timestamp,
    bundles: Arc<dyn BundleStore>,
    state: Arc<dyn StateStore>,
    tunnel: Arc<dyn TunnelEnd>,
    process: String,
    stop: CancellationToken,
    /// Bundles on disk that no assignment uses: to be assigned soon, or left over.
    unused: SyncMutex<BTreeSet<Digest>>,
    /// Assignments on disk that could not be loaded.
    unserved: SyncMutex<BTreeSet<InstanceId>>,
    /// Held while something changes; the node's end, once said.
    changing: Mutex<Option<Tunnel>>,
}

impl MetadataService {
    /// Starts with what the store has: guests are answered before the agent comes back. What can't be read is left out
    /// and logged; only a store that can't be listed is an error.
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
                tracing::warn!(%instance, %error, "not served until the agent assigns it again");
                set(&self.unserved).insert(instance);
            }
        }
        for digest in self.bundles.bundles().await? {
            // Also what could not be read just now stays: waifud, who has it too, may be away.
            if !assigned.contains(&digest) {
                self.drop_unused(digest).await;
            }
        }
        if let Some(tunnel) = self.state.tunnel().await? {
            match self.set_peer(&tunnel) {
                Ok(()) => *self.changing.lock().await = Some(tunnel),
                Err(error) => tracing::warn!(%error, "the stored tunnel is not used"),
            }
        }
        tracing::info!(instances = self.registry.held().len(), "loaded");
        Ok(())
    }

    /// Which process answers, and what it holds.
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
        }
    }

    /// Ensures that the node's end, and no other, is accepted.
    pub async fn put_tunnel(&self, tunnel: Tunnel) -> Result<Status, ControlError> {
        let mut current = self.changing.lock().await;
        // Also when nothing changed: the node may have been restarted, and waits for a greeting.
        self.set_peer(&tunnel)?;
        if current.as_ref() != Some(&tunnel) {
            failpoints::TUNNEL_SAVE
                .around(self.state.put_tunnel(&tunnel))
                .await?;
            tracing::info!(node = %tunnel.node_public_key, subnet = %tunnel.subnet, "the node's end is accepted");
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
                    .collect(),
            })
            .map_err(ControlError::Tunnel)
    }

    /// Ensures that the bundle is held.
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

    /// Ensures that the bundle is not kept, unless an instance is served it.
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

    /// Ensures that the instance is served these documents at this address, and nothing else anywhere.
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
        tracing::info!(%instance, name = %entry.assignment.name, %address, bundle = %entry.assignment.bundle.digest.short(), "served");
        self.registry_put(entry)?;
        set(&self.unserved).remove(&instance);
        if let Some(former) = former {
            self.drop_unused(former.assignment.bundle.digest).await;
        }
        Ok(())
    }

    /// Ensures that nothing of the instance is served or held.
    pub async fn delete_instance(&self, instance: InstanceId) -> Result<(), ControlError> {
        let _changing = self.changing.lock().await;
        let former = self.registry.remove(instance);
        self.log.forget(instance);
        failpoints::ASSIGNMENT_DROP
            .around(self.state.delete_assignment(instance))
            .await?;
        set(&self.unserved).remove(&instance);
        if let Some(former) = former {
            tracing::info!(%instance, name = %former.assignment.name, "forgotten");
            self.drop_unused(former.assignment.bundle.digest).await;
        }
        Ok(())
    }

    /// What guests did after number `after`; waits until there is something, at most `wait` and at most a minute.
    pub async fn observations(&self, after: u64, wait: Duration) -> Observations {
        tokio::select! {
            found = self.log.after(after, wait.min(WAIT_MAX)) => found,
            () = self.stop.cancelled() => self.log.after(after, Duration::ZERO).await,
        }
    }

    /// The assignment with its documents, read from the store and checked.
    async fn opened(
        &self,
        instance: InstanceId,
        assignment: Assignment,
    ) -> Result<Entry, ControlError> {
        let digest = assignment.bundle.digest;
        let missing = ControlError::BundleMissing { digest };
        let Some(ciphertext) = self.bundles.bundle(digest).await? else {
            return Err(missing);
        };
        let documents = match open(&ciphertext, digest, &assignment.bundle.key) {
            Ok(documents) => documents,
            // Damaged on the way or on disk: as good as not there, and mended by putting it again.
            Err(BundleError::WrongDigest { .. }) => return Err(missing),
            Err(source) => return Err(ControlError::BundleUnreadable { digest, source }),
        };
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

    /// Garbage is no reason to fail: the agent is told of it, and it is tried again at the next start.
    async fn drop_unused(&self, digest: Digest) {
        if !self.registry.uses(digest)
            && let Err(error) = failpoints::BUNDLE_DROP
                .around(self.bundles.delete_bundle(digest))
                .await
        {
            tracing::warn!(%error, "a bundle that no assignment uses stays on disk");
            set(&self.unused).insert(digest);
        }
    }
}

fn set<T>(shared: &SyncMutex<BTreeSet<T>>) -> MutexGuard<'_, BTreeSet<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 128 random bits as text.
fn random_name() -> String {
    let mut bytes = [0; 16];
    // Without randomness the agent would at worst not notice a restart; the process would not have come this far.
    let _ = SystemRandom::new().fill(&mut bytes);
    waifud_kit::sha256::hex(&bytes)
}
