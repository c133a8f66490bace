//! The capacities that the writer caches stay equal to those of the database, whatever happens between two creates.
//! Builds with debug assertions compare both at every create; these tests cause what could make them differ.

use crate::common::{Server, hello};
use serde_json::{Value, json};
use waifud_types::ByteSize;

async fn create(server: &Server, name: &str, memory: u64) -> Value {
    let body = json!({"name": name, "template": "debian-12", "memory_bytes": memory << 30});
    server.create(&body).await.expect(201).json()
}

#[tokio::test]
async fn capacity_is_neither_reserved_twice_nor_lost_between_creates() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let placed = |made: &Value| made["status"]["node"] == "alder";
    assert!(placed(&create(&server, "one", 3).await));
    assert!(placed(&create(&server, "two", 3).await));
    assert!(!placed(&create(&server, "three", 3).await));
    // A create that is refused after placement releases its reservation.
    let taken = json!({"name": "one", "template": "debian-12", "memory_bytes": 1 << 30});
    server.create(&taken).await.expect(409);
    assert!(placed(&create(&server, "four", 2).await));
    assert!(!placed(&create(&server, "five", 1).await));
    // The node reports more memory. Waiting instances are placed, and the next create takes that into account.
    alder
        .hello(&hello("alder", ByteSize::gib(16)))
        .await
        .expect(200);
    for name in ["three", "five"] {
        assert_eq!(server.node_of(name).await.as_deref(), Some("alder"));
    }
    assert!(!placed(&create(&server, "six", 5).await));
    assert!(placed(&create(&server, "seven", 4).await));
    // Another node joins, with memory for the waiting instance.
    server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(server.node_of("six").await.as_deref(), Some("birch"));
    let eight = create(&server, "eight", 3).await;
    assert_eq!(eight["status"]["node"], "birch");
    let nine = create(&server, "nine", 1).await;
    assert_eq!(nine["status"]["node"], Value::Null, "{nine}");
}

#[tokio::test]
async fn concurrent_creates_fill_the_nodes_exactly() {
    let server = Server::with_template().await;
    for name in ["alder", "birch", "cedar"] {
        server.join(name, ByteSize::gib(8)).await;
    }
    let names: Vec<String> = (0..30).map(|number| format!("guest{number}")).collect();
    let made = futures::future::join_all(names.iter().map(|name| create(&server, name, 1))).await;
    let on = |node: &str| {
        made.iter()
            .filter(|made| made["status"]["node"] == node)
            .count()
    };
    assert_eq!([on("alder"), on("birch"), on("cedar")], [8, 8, 8]);
}
