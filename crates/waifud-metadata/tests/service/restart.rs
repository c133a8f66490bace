//! Acknowledged data is available after a restart, before the agent has connected.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::metadatad::Tunnel;
use waifud_metadata::{
    BundleStore, ControlError, DiskStore, FakeStore, GuestLimits, MetadataService, StoreError,
};
use waifud_types::Digest;
use waifud_wireguard::PrivateKey;

use crate::fixture::{A, B, Fixture, Guest, admit, parts};

const USER_DATA: &str = "/openstack/latest/user_data";

#[tokio::test]
async fn a_restarted_service_serves_the_stored_assignments() {
    let store = FakeStore::default();
    let (a, b) = (Guest::new("a", A), Guest::new("b", B));
    let before = Fixture::on(store.clone(), GuestLimits::default()).await;
    before.admit(&a).await;
    before.admit(&b).await;
    let tunnel = Tunnel {
        node_public_key: PrivateKey::generate().public_key().to_string(),
        node_endpoint: ([127, 0, 0, 1], 51822).into(),
        subnet: "10.144.3.0/24".parse().unwrap(),
        identities: None,
        moved: Vec::new(),
    };
    let reported = before.service.put_tunnel(tunnel.clone()).await.unwrap();
    drop(before);
    let after = Fixture::on(store, GuestLimits::default()).await;
    assert!(after.get(A, USER_DATA).await.1.contains(&a.secret()));
    assert!(after.get(B, USER_DATA).await.1.contains(&b.secret()));
    let status = after.service.status().await;
    assert_ne!(status.process, reported.process);
    assert_eq!(status.instances, reported.instances);
    assert_eq!(
        status.node_public_key.as_ref(),
        Some(&tunnel.node_public_key)
    );
    // The server starts the handshake with the node immediately instead of waiting for a timer.
    let peer = after.tunnel.peer().unwrap();
    assert_eq!(peer.endpoint, Some(tunnel.node_endpoint));
    assert_eq!(peer.allowed, [tunnel.subnet]);
}

#[tokio::test]
async fn deleted_instances_stay_deleted_and_unused_bundles_are_removed() {
    let store = FakeStore::default();
    let (before, a) = Fixture::with_guest(&store).await;
    let stray = Guest::new("stray", B);
    let ciphertext = stray.sealed.ciphertext.clone().into();
    before
        .service
        .put_bundle(stray.sealed.digest, ciphertext)
        .await
        .unwrap();
    assert_eq!(store.bundles().await.unwrap().len(), 2);
    drop(before);
    let after = Fixture::on(store.clone(), GuestLimits::default()).await;
    assert_eq!(store.bundles().await.unwrap(), [a.sealed.digest]);
    after.service.delete_instance(a.id).await.unwrap();
    assert!(store.bundles().await.unwrap().is_empty());
    drop(after);
    let last = Fixture::on(store, GuestLimits::default()).await;
    assert_eq!(last.get(A, USER_DATA).await.0, 404);
}

#[tokio::test]
async fn edited_user_data_is_served_at_the_next_request_and_the_old_bundle_removed() {
    let store = FakeStore::default();
    let (fixture, first) = Fixture::with_guest(&store).await;
    let second = Guest::with_user_data(first.id, "a", A, "second");
    fixture.admit(&second).await;
    assert!(fixture.get(A, USER_DATA).await.1.contains("second"));
    assert_eq!(store.bundles().await.unwrap(), [second.sealed.digest]);
}

async fn on_disk(root: &std::path::Path) -> Arc<MetadataService> {
    let store = DiskStore::open(root).unwrap();
    MetadataService::start(parts(store.clone(), store))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_damaged_bundle_is_not_served_and_putting_it_again_repairs_it() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (Guest::new("a", A), Guest::new("b", B));
    let service = on_disk(root.path()).await;
    for guest in [&a, &b] {
        admit(&service, guest).await;
    }
    drop(service);
    let file = root.path().join("bundles").join(a.sealed.digest.hex());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let service = on_disk(root.path()).await;
    let held = service.status().await.instances;
    assert_eq!(held.iter().map(|held| held.id).collect::<Vec<_>>(), [b.id]);
    let again = service.put_instance(a.id, a.assignment.clone()).await;
    assert!(matches!(again, Err(ControlError::BundleMissing { .. })));
    admit(&service, &a).await;
    assert_eq!(service.status().await.instances.len(), 2);
    let seen = service.observations(0, Duration::ZERO).await;
    assert!(seen.items.is_empty());
}

/// A store whose disk temporarily cannot read bundles.
struct Unreadable(FakeStore);

#[async_trait]
impl BundleStore for Unreadable {
    async fn put_bundle(&self, digest: Digest, ciphertext: Bytes) -> Result<(), StoreError> {
        self.0.put_bundle(digest, ciphertext).await
    }

    async fn bundle(&self, _: Digest) -> Result<Option<Bytes>, StoreError> {
        Err(StoreError {
            action: "read".to_owned(),
            source: std::io::Error::other("not now"),
        })
    }

    async fn delete_bundle(&self, digest: Digest) -> Result<(), StoreError> {
        self.0.delete_bundle(digest).await
    }

    async fn bundles(&self) -> Result<Vec<Digest>, StoreError> {
        self.0.bundles().await
    }
}

#[tokio::test]
async fn a_bundle_that_was_unreadable_at_one_start_is_served_after_the_next() {
    let store = FakeStore::default();
    let (before, a) = Fixture::with_guest(&store).await;
    drop(before);
    let parts = parts(Unreadable(store.clone()), store.clone());
    let blind = MetadataService::start(parts).await.unwrap();
    assert!(blind.status().await.instances.is_empty());
    drop(blind);
    let after = Fixture::on(store, GuestLimits::default()).await;
    assert!(after.get(A, USER_DATA).await.1.contains(&a.secret()));
}
