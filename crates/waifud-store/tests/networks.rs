//! Networks: unique names and bridges, and no deletion while in use.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use waifud_store::{Mode, Store, StoreError, Taken};
use waifud_types::{Incarnation, InstanceId, Name, Timestamp};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn store(dir: &tempfile::TempDir) -> Store {
    let path = dir.path().join("waifud.db");
    Store::open(&path, Mode::Inline, Incarnation(7)).unwrap()
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
async fn the_database_refuses_to_delete_used_networks() {
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
