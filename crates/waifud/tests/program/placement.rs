//! 100 creates at once, over HTTPS, to the real program with two nodes that have joined it.

use std::collections::BTreeMap;

use futures::future::join_all;
use tokio::time::timeout;
use waifud_api::CreateInstance;
use waifud_api::client::{ClientError, ListQuery};
use waifud_types::ByteSize;
use waifud_types::node::Resources;

use crate::joining::join_ready;
use crate::kit::{DEADLINE, Waifud, upload_template};

/// Joins a node with so much memory. It must be kept, since its directory holds the key.
async fn join(waifud: &Waifud, name: &str, memory: ByteSize) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let capacity = Resources {
        cpus: 8,
        memory_bytes: memory,
    };
    join_ready(waifud, name.parse().unwrap(), home.path(), capacity).await;
    home
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_at_once_over_https_never_overfill_a_node() {
    let waifud = Waifud::start();
    let local = waifud.client();
    upload_template(waifud.dir.path(), &local).await;
    let (alder, birch) = (ByteSize::gib(20), ByteSize::gib(33));
    let _nodes = [
        join(&waifud, "alder", alder).await,
        join(&waifud, "birch", birch).await,
    ];
    let secret = waifud.operator_token("laptop").await;
    let client = waifud.https_client(Some(secret));

    let requests = (0..100).map(|n| {
        let client = &client;
        async move {
            let body = format!(
                r#"{{"name": "i{n}", "template": "debian-12", "memory_bytes": {}}}"#,
                1_u64 << 30
            );
            let request: CreateInstance = serde_json::from_str(&body).unwrap();
            // waifud resets connections of an address that has 64 others which have not authenticated yet. The key makes
            // the repetition safe.
            loop {
                match client.create_instance(&request, &format!("key-{n}")).await {
                    Err(ClientError::Unreachable { .. }) => {}
                    created => return created.unwrap(),
                }
            }
        }
    });
    let created = timeout(DEADLINE, join_all(requests)).await.unwrap();

    let mut on: BTreeMap<_, u64> = BTreeMap::new();
    for instance in &created {
        let node = instance.status.node.as_ref().map(ToString::to_string);
        *on.entry(node).or_default() += 1;
    }
    let expected = [
        (None, 47),
        (Some("alder".to_owned()), 20),
        (Some("birch".to_owned()), 33),
    ];
    assert_eq!(on, BTreeMap::from(expected));
    let nodes = client.nodes(&ListQuery::default()).await.unwrap().items;
    let promised: Vec<_> = nodes
        .iter()
        .map(|node| node.promised.memory_bytes)
        .collect();
    assert_eq!(promised, [alder, birch]);
    let waiting = created.iter().find(|it| it.status.node.is_none()).unwrap();
    let reason = "waiting for: 1G of free memory on one node";
    assert_eq!(waiting.status.reason.as_deref(), Some(reason));
}
