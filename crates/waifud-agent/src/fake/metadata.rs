//! A metadatad in memory, and a tunnel that is only said to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use waifud_api::metadatad::{
    Assignment, Held, Observation, Observations, Observed, Status, Tunnel,
};
use waifud_types::{Digest, InstanceId, Timestamp};

use super::lock;
use crate::seam::{MetadataError, MetadataService, MetadataTunnel, TunnelUp};

/// The fake service. Clones share one world.
#[derive(Clone)]
pub struct FakeMetadata {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct World {
    process: u64,
    online: bool,
    tunnel: Option<Tunnel>,
    bundles: BTreeSet<Digest>,
    held: BTreeMap<InstanceId, Assignment>,
    observations: Vec<Observation>,
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
            world: Arc::new(Mutex::new(World {
                online: true,
                ..World::default()
            })),
            changed: watch::Sender::new(0),
        }
    }

    /// Another process: it was told nothing and, with `keep_disk` false, holds nothing.
    pub fn restart(&self, keep_disk: bool) {
        {
            let mut world = lock(&self.world);
            world.process += 1;
            world.tunnel = None;
            world.observations.clear();
            if !keep_disk {
                world.bundles.clear();
                world.held.clear();
            }
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Comes and goes.
    pub fn set_online(&self, online: bool) {
        lock(&self.world).online = online;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Who is served.
    pub fn held(&self) -> BTreeMap<InstanceId, Assignment> {
        lock(&self.world).held.clone()
    }

    /// Whether a guest would be answered: it is assigned, its bundle is there, and the tunnel is set.
    pub fn would_serve(&self, id: InstanceId) -> bool {
        let world = lock(&self.world);
        world.online
            && world.tunnel.is_some()
            && world
                .held
                .get(&id)
                .is_some_and(|held| world.bundles.contains(&held.bundle.digest))
    }

    /// A guest does something.
    pub fn observe(&self, instance: InstanceId, at: Timestamp, what: Observed) {
        {
            let mut world = lock(&self.world);
            let number = u64::try_from(world.observations.len()).unwrap_or(0) + 1;
            world.observations.push(Observation {
                number,
                at,
                instance,
                what,
            });
        }
        self.changed.send_modify(|n| *n += 1);
    }

    fn online(&self) -> Result<MutexGuard<'_, World>, MetadataError> {
        let world = lock(&self.world);
        if world.online {
            Ok(world)
        } else {
            Err(MetadataError::Unreachable {
                message: "the metadata service can't be reached: the fake was told so".to_owned(),
            })
        }
    }
}

impl World {
    fn status(&self) -> Status {
        Status {
            process: self.process.to_string(),
            public_key: "c2VydmVy".to_owned(),
            endpoint: SocketAddr::from(([127, 0, 0, 1], 51821)),
            node_public_key: self.tunnel.as_ref().map(|t| t.node_public_key.clone()),
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
        Ok(self.online()?.status())
    }

    async fn set_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadataError> {
        let mut world = self.online()?;
        world.tunnel = Some(tunnel.clone());
        Ok(world.status())
    }

    async fn put_bundle(&self, bundle: Digest, _bytes: Bytes) -> Result<(), MetadataError> {
        self.online()?.bundles.insert(bundle);
        Ok(())
    }

    async fn assign(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadataError> {
        let mut world = self.online()?;
        if !world.bundles.contains(&assignment.bundle.digest) {
            return Err(MetadataError::BundleMissing);
        }
        world.held.insert(instance, assignment.clone());
        Ok(())
    }

    async fn release(&self, instance: InstanceId) -> Result<(), MetadataError> {
        self.online()?.held.remove(&instance);
        Ok(())
    }

    async fn observations(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<Observations, MetadataError> {
        let mut changes = self.changed.subscribe();
        let process = self.online()?.process;
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            {
                let world = self.online()?;
                let last = u64::try_from(world.observations.len()).unwrap_or(0);
                let items: Vec<_> = world
                    .observations
                    .iter()
                    .filter(|o| o.number > after)
                    .cloned()
                    .collect();
                if world.process != process {
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

/// A tunnel that is up once it was asked for. Clones share one world.
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
