//! An in-memory store for tests. Clones share their contents, as a restarted process shares its disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::metadatad::{Assignment, Tunnel};
use waifud_kit::sync::lock;
use waifud_types::{Digest, InstanceId};

use super::{BundleStore, StateStore, StoreError};

/// The fake store; see the module documentation.
#[derive(Clone, Debug, Default)]
pub struct FakeStore(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    bundles: BTreeMap<Digest, Bytes>,
    assignments: BTreeMap<InstanceId, Assignment>,
    tunnel: Option<Tunnel>,
}

impl FakeStore {
    fn with<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut lock(&self.0))
    }
}

#[async_trait]
impl BundleStore for FakeStore {
    async fn put_bundle(&self, digest: Digest, ciphertext: Bytes) -> Result<(), StoreError> {
        self.with(|held| held.bundles.insert(digest, ciphertext));
        Ok(())
    }

    async fn bundle(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.with(|held| held.bundles.get(&digest).cloned()))
    }

    async fn delete_bundle(&self, digest: Digest) -> Result<(), StoreError> {
        self.with(|held| held.bundles.remove(&digest));
        Ok(())
    }

    async fn bundles(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.with(|held| held.bundles.keys().copied().collect()))
    }
}

#[async_trait]
impl StateStore for FakeStore {
    async fn put_assignment(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), StoreError> {
        self.with(|held| held.assignments.insert(instance, assignment.clone()));
        Ok(())
    }

    async fn delete_assignment(&self, instance: InstanceId) -> Result<(), StoreError> {
        self.with(|held| held.assignments.remove(&instance));
        Ok(())
    }

    async fn assignments(&self) -> Result<Vec<(InstanceId, Assignment)>, StoreError> {
        Ok(self.with(|held| held.assignments.clone().into_iter().collect()))
    }

    async fn put_tunnel(&self, tunnel: &Tunnel) -> Result<(), StoreError> {
        self.with(|held| held.tunnel = Some(tunnel.clone()));
        Ok(())
    }

    async fn tunnel(&self) -> Result<Option<Tunnel>, StoreError> {
        Ok(self.with(|held| held.tunnel.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test]
    async fn the_fake_store_passes_the_conformance_tests() {
        conformance::bundles(&FakeStore::default()).await.unwrap();
        conformance::state(&FakeStore::default()).await.unwrap();
    }
}
