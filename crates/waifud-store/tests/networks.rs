//! Networks: unique names and bridges, and no deletion while in use.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

#[expect(dead_code, reason = "one test uses few of the helpers of the others")]
mod common;

use std::collections::BTreeMap;

use serde_json::json;
use waifud_store::{ImageRow, ImageTraits, Mode, NewInstance, Store, StoreError, Taken, WriteTx};
use waifud_types::spec::InstanceSpec;
use waifud_types::status::InstanceStatus;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Digest, Incarnation, InstanceId, Name, Timestamp};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn store(dir: &tempfile::TempDir) -> Store {
    let path = dir.path().join("waifud.db");
    Store::open(&path, Mode::Inline, Incarnation(7)).unwrap()
}

fn insert_instance(tx: &mut WriteTx<'_>, id: InstanceId) -> Result<(), StoreError> {
    let image = Digest::from_bytes([7; 32]);
    tx.insert_image(&ImageRow {
        digest: image,
        size: ByteSize(1),
        virtual_size: ByteSize(1),
        created_at: Timestamp::UNIX_EPOCH,
    })?;
    let spec: InstanceSpec = serde_json::from_value(json!({
        "template": "small", "image": image, "cpus": 1, "memory_bytes": 1 << 30, "run": true, "restart": "always",
        "priority": 0, "protected": false, "nics": [], "publish": [], "placement": {}, "disks": [],
    }))
    .unwrap();
    let revision = tx.emit(&common::event("created"))?;
    let new = NewInstance {
        id,
        name: name("web"),
        labels: BTreeMap::new(),
        spec,
        status: InstanceStatus::pending(None),
        traits: ImageTraits {
            arch: "x86_64".to_owned(),
            datasource: Datasource::default(),
            firmware: Firmware::default(),
        },
        ssh_keys: Vec::new(),
        cloud_id: String::new(),
        user_data: None,
        at: Timestamp::UNIX_EPOCH,
    };
    tx.insert_instance(&new, revision)
}

#[tokio::test]
async fn names_and_bridges_are_unique() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let add = async |network: &str, bridge: &str| {
        let (network, bridge) = (name(network), bridge.to_owned());
        let added =
            store.write(move |tx| tx.insert_network(&network, &bridge, Timestamp::UNIX_EPOCH));
        added.await
    };
    add("lan", "br0").await.unwrap();
    let taken = |result| match result {
        Err(StoreError::Taken(what)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(taken(add("lan", "br1").await), Taken::NetworkName);
    assert_eq!(taken(add("default", "br1").await), Taken::NetworkName);
    assert_eq!(taken(add("home", "br0").await), Taken::Bridge);
    let rows = store.read(|tx| tx.networks("", 10)).await.unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|r| (r.name.as_str(), r.bridge.as_deref()))
        .collect();
    assert_eq!(shown, [("default", None), ("lan", Some("br0"))]);
    let bridges = store.read(|tx| tx.bridges()).await.unwrap();
    assert_eq!(
        bridges.into_iter().collect::<Vec<_>>(),
        [(name("lan"), "br0".to_owned())]
    );
}

#[tokio::test]
async fn references_between_instances_and_networks_are_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    // For an instance that does not exist, and for a network that does not exist.
    for network in ["default", "nowhere"] {
        let network = name(network);
        let used = store
            .write(move |tx| tx.use_network(&network, InstanceId::generate()))
            .await;
        assert!(matches!(used, Err(StoreError::Sql(_))), "{used:?}");
    }
    assert_eq!(
        store
            .read(|tx| tx.network("default"))
            .await
            .unwrap()
            .unwrap()
            .used_by,
        0
    );
}

#[tokio::test]
async fn the_database_refuses_to_delete_a_network_while_an_instance_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let web = InstanceId::generate();
    let added = store.write(move |tx| {
        insert_instance(tx, web)?;
        tx.insert_network(&name("lan"), "br0", Timestamp::UNIX_EPOCH)?;
        tx.use_network(&name("lan"), web)
    });
    added.await.unwrap();
    let used_by = async || {
        let row = store.read(|tx| tx.network("lan")).await.unwrap();
        row.map(|row| row.used_by)
    };
    let refused = store.write(|tx| tx.remove_network(&name("lan"))).await;
    assert!(matches!(refused, Err(StoreError::Sql(_))), "{refused:?}");
    assert_eq!(used_by().await, Some(1));
    store
        .write(move |tx| tx.remove_instance(web))
        .await
        .unwrap();
    assert_eq!(used_by().await, Some(0));
    store
        .write(|tx| tx.remove_network(&name("lan")))
        .await
        .unwrap();
    assert_eq!(used_by().await, None);
}
