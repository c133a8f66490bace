//! Durable storage of bundles, which anyone may hold because of their digest and key, and of assignments, which have the keys.

mod disk;
mod fake;

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::metadatad::{Assignment, Tunnel};
use waifud_types::{Digest, InstanceId};

pub use disk::DiskStore;
pub use fake::FakeStore;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[error("the metadata store cannot {action}")]
pub struct StoreError {
    /// The action, as text with the name of the file.
    pub action: String,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

impl StoreError {
    /// Whether the filesystem is full.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        )
    }
}

/// Encrypted bundles by digest. Trusted for availability only.
#[async_trait]
pub trait BundleStore: Send + Sync + 'static {
    /// Stores the bundle durably. The caller has checked the digest.
    async fn put_bundle(&self, digest: Digest, ciphertext: Bytes) -> Result<(), StoreError>;

    /// The bundle, if it is stored. The caller must verify the digest.
    async fn bundle(&self, digest: Digest) -> Result<Option<Bytes>, StoreError>;

    /// Removes the bundle, if it is stored.
    async fn delete_bundle(&self, digest: Digest) -> Result<(), StoreError>;

    /// All stored bundles.
    async fn bundles(&self) -> Result<Vec<Digest>, StoreError>;
}

/// Assignments with their keys, and the tunnel's other end.
#[async_trait]
pub trait StateStore: Send + Sync + 'static {
    /// Stores the assignment durably, and replaces an earlier one.
    async fn put_assignment(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), StoreError>;

    /// Removes the assignment durably, if there is one.
    async fn delete_assignment(&self, instance: InstanceId) -> Result<(), StoreError>;

    /// All readable assignments. Others are logged and left out; the agent sends them again.
    async fn assignments(&self) -> Result<Vec<(InstanceId, Assignment)>, StoreError>;

    /// Stores the node's end of the tunnel durably.
    async fn put_tunnel(&self, tunnel: &Tunnel) -> Result<(), StoreError>;

    /// The node's end of the tunnel, if it was stored.
    async fn tunnel(&self) -> Result<Option<Tunnel>, StoreError>;
}

/// Tests that every store must pass, from an empty store.
#[doc(hidden)]
pub mod conformance {
    use waifud_api::agent::BundleRef;
    use waifud_types::Secret;

    use super::{
        Assignment, BundleStore, Bytes, Digest, InstanceId, StateStore, StoreError, Tunnel,
    };

    /// A minimal assignment, which differs by `last`.
    pub fn assignment(last: u8) -> Assignment {
        Assignment {
            #[expect(clippy::unwrap_used, reason = "a name of this file")]
            name: "web".parse().unwrap(),
            address: [10, 0, 0, last].into(),
            bundle: BundleRef {
                digest: Digest::from_bytes([last; 32]),
                key: Secret::new("key".to_owned()),
                size_bytes: 3,
            },
        }
    }

    /// Bundles: put, read, list, delete, each twice.
    pub async fn bundles(store: &impl BundleStore) -> Result<(), StoreError> {
        let digest = Digest::from_bytes([1; 32]);
        let bytes = Bytes::from_static(b"ciphertext");
        assert_eq!(store.bundle(digest).await?, None);
        store.put_bundle(digest, bytes.clone()).await?;
        store.put_bundle(digest, bytes.clone()).await?;
        assert_eq!(store.bundle(digest).await?, Some(bytes));
        assert_eq!(store.bundles().await?, [digest]);
        store.delete_bundle(digest).await?;
        store.delete_bundle(digest).await?;
        assert_eq!(store.bundle(digest).await?, None);
        assert!(store.bundles().await?.is_empty());
        Ok(())
    }

    /// State: put, replace, list, delete, each idempotent.
    pub async fn state(store: &impl StateStore) -> Result<(), StoreError> {
        let (a, b) = (InstanceId::generate(), InstanceId::generate());
        assert!(store.assignments().await?.is_empty());
        store.put_assignment(a, &assignment(1)).await?;
        store.put_assignment(b, &assignment(2)).await?;
        store.put_assignment(a, &assignment(3)).await?;
        let mut all = store.assignments().await?;
        all.sort_by_key(|(instance, _)| *instance != a);
        assert_eq!(all, [(a, assignment(3)), (b, assignment(2))]);
        store.delete_assignment(a).await?;
        store.delete_assignment(a).await?;
        assert_eq!(store.assignments().await?, [(b, assignment(2))]);
        assert_eq!(store.tunnel().await?, None);
        #[expect(clippy::unwrap_used, reason = "a subnet of this file")]
        let tunnel = Tunnel {
            node_public_key: "key".to_owned(),
            node_endpoint: ([127, 0, 0, 1], 51822).into(),
            subnet: "10.0.0.0/24".parse().unwrap(),
            identities: None,
            moved: vec![[10, 1, 0, 7].into()],
        };
        store.put_tunnel(&tunnel).await?;
        store.put_tunnel(&tunnel).await?;
        assert_eq!(store.tunnel().await?, Some(tunnel));
        Ok(())
    }
}
