//! The fabric: what is chosen, what nodes receive, and what they report for it.

use std::time::Duration;

use serde_json::json;
use waifud_api::agent::{AgentReport, SliceObject, WatchFrame};
use waifud_types::node::NodeFacts;
use waifud_types::{ByteSize, FabricKind, MeshBackend, MeshFacts};

use crate::common::{Agent, Server, facts, hello};
use crate::peers::{next_deletion, next_peer};

const KEY: &str = "a2V5IG9mIGEgbm9kZSwgbm90IGEgcmVhbCBvbmUhISE=";
const OTHER_KEY: &str = "YW5vdGhlciBrZXksIG5vdCBhIHJlYWwgb25lIGVpdGg=";

/// The fabric of the next frame with the node's own configuration.
async fn next_fabric(agent: &mut Agent) -> FabricKind {
    loop {
        if let WatchFrame::Put {
            object: SliceObject::Node(node),
            ..
        } = agent.any_frame().await
        {
            return node.fabric;
        }
    }
}

fn with_mesh(key: &str, endpoint: &str) -> NodeFacts {
    NodeFacts {
        mesh: Some(MeshFacts {
            public_key: key.to_owned(),
            endpoints: vec![endpoint.parse().unwrap()],
        }),
        ..facts(ByteSize::gib(8))
    }
}

async fn fabric(server: &Server) -> (String, serde_json::Value) {
    let shown = server.get("/v1/fabric").await.expect(200).json();
    (
        shown["kind"].as_str().unwrap().to_owned(),
        shown["configured"].clone(),
    )
}

#[tokio::test]
async fn the_default_is_a_mesh_while_there_are_several_nodes() {
    let (server, mut alder) = Server::with_watching_node().await;
    assert_eq!(fabric(&server).await, ("none".to_owned(), json!(null)));
    server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(next_fabric(&mut alder).await, FabricKind::Wireguard);
    assert_eq!(fabric(&server).await, ("wireguard".to_owned(), json!(null)));
    server.delete("/v1/nodes/birch").await.expect(204);
    assert_eq!(next_fabric(&mut alder).await, FabricKind::None);
}

#[tokio::test]
async fn a_chosen_fabric_is_kept_whatever_the_number_of_nodes() {
    let (server, mut alder) = Server::with_watching_node().await;
    let shown = server.set_fabric("static").await.expect(200).json();
    assert_eq!(
        (&shown["kind"], &shown["configured"]),
        (&json!("static"), &json!("static"))
    );
    assert_eq!(next_fabric(&mut alder).await, FabricKind::Static);
    let server = server.restart(|_| {}).await;
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    birch.watch(None).await;
    assert_eq!(next_fabric(&mut birch).await, FabricKind::Static);
    server.set_fabric("none").await.expect(200);
    assert_eq!(next_fabric(&mut birch).await, FabricKind::None);
    assert_eq!(fabric(&server).await, ("none".to_owned(), json!("none")));
    let kinds = server.kinds("waifud").await;
    let changes = kinds.iter().filter(|kind| *kind == "fabric.changed");
    assert_eq!(changes.count(), 2);
    // The same again is no change.
    server.set_fabric("none").await.expect(200);
    assert_eq!(server.kinds("waifud").await, kinds);
}

#[tokio::test]
async fn an_unknown_fabric_is_refused() {
    let server = Server::start().await;
    let problem = server.set_fabric("tailscale").await;
    let problem = problem.refused(422, "unknown-fabric", "kind");
    assert!(
        format!("{problem:?}").contains("wireguard, static or none"),
        "{problem:?}"
    );
}

#[tokio::test]
async fn nodes_receive_the_keys_and_endpoints_of_others_whenever_they_change() {
    let (server, mut alder) = Server::with_watching_node().await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let seen = next_peer(&mut alder).await;
    assert_eq!((seen.public_key, seen.endpoints), (None, Vec::new()));

    birch.report_facts(with_mesh(KEY, "192.0.2.2:51820")).await;
    let seen = next_peer(&mut alder).await;
    assert_eq!(seen.public_key.as_deref(), Some(KEY));
    assert_eq!(seen.endpoints, ["192.0.2.2:51820".parse().unwrap()]);
    assert!(seen.extra.is_empty());

    // The key is replaced, then the node moves to another address.
    birch
        .report_facts(with_mesh(OTHER_KEY, "192.0.2.2:51820"))
        .await;
    assert_eq!(
        next_peer(&mut alder).await.public_key.as_deref(),
        Some(OTHER_KEY)
    );
    birch
        .report_facts(with_mesh(OTHER_KEY, "192.0.2.9:51820"))
        .await;
    assert_eq!(
        next_peer(&mut alder).await.endpoints,
        ["192.0.2.9:51820".parse().unwrap()]
    );

    // A node that has just started reports nothing before it knows its address.
    let started = NodeFacts {
        mesh_backend: Some(MeshBackend::Kernel),
        ..facts(ByteSize::gib(8))
    };
    birch.report_facts(started).await;

    let shown = server.get("/v1/fabric").await.expect(200).json();
    assert_eq!(shown["nodes"][1]["public_key"], OTHER_KEY);
    assert_eq!(shown["nodes"][0]["mesh_backend"], json!(null));
    assert_eq!(shown["nodes"][1]["mesh_backend"], "kernel");
    let node = server.get("/v1/nodes/birch").await.expect(200).json();
    assert_eq!(node["mesh_backend"], "kernel");
    let routes = json!([{"destination": "10.144.2.0/24", "via": "192.0.2.9", "node": "birch"}]);
    assert_eq!(shown["routes"], routes);

    server.delete("/v1/nodes/birch").await.expect(204);
    assert_eq!(next_deletion(&mut alder).await, birch.id);
}

#[tokio::test]
async fn a_node_that_is_off_stays_a_peer_with_its_key() {
    let (server, clock) = Server::with_manual_clock().await;
    let mut alder = server.join("alder", ByteSize::gib(8)).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    birch.report_facts(with_mesh(KEY, "192.0.2.2:51820")).await;
    alder.watch_from_now().await;
    clock.forward(Duration::from_mins(10));
    alder.report(&AgentReport::default()).await;
    server.control.check_contacts().await.unwrap();
    let off = next_peer(&mut alder).await;
    assert!(!off.reachable);
    assert_eq!(off.public_key.as_deref(), Some(KEY));
    // A node that comes back with the same key is the same peer.
    let mut same = hello("birch", ByteSize::gib(8));
    same.facts = with_mesh(KEY, "192.0.2.2:51820");
    birch.hello(&same).await.expect(200);
    let on = next_peer(&mut alder).await;
    assert_eq!((on.reachable, on.public_key.as_deref()), (true, Some(KEY)));
}

#[tokio::test]
async fn a_key_that_is_too_long_is_refused() {
    let (_server, alder) = Server::with_watching_node().await;
    let long = with_mesh(&"A".repeat(100), "192.0.2.2:51820");
    let answer = alder
        .try_to_report(&AgentReport {
            facts: Some(long),
            ..AgentReport::default()
        })
        .await;
    let problem = answer.problem();
    assert!(
        format!("{problem:?}").contains("facts.mesh.public_key"),
        "{problem:?}"
    );
}
