//! Clients of the fabric: what users get, what nodes receive, and what is refused.

use serde_json::{Value, json};
use waifud_api::Problem;
use waifud_api::agent::{MeshClients, SliceObject, WatchFrame};
use waifud_types::node::{NodeFacts, feature};
use waifud_types::{ByteSize, MeshFacts};

use crate::common::{Agent, Answer, Server, facts};

const KEY: &str = "bmV2ZXIgdXNlIHRoaXMga2V5IGZvciBhbnl0aGluZyE=";
const OTHER_KEY: &str = "YW5vdGhlciBrZXksIG5vdCBhIHJlYWwgb25lIGVpdGg=";
const KEY_OF_ALDER: &str = "a2V5IG9mIGEgbm9kZSwgbm90IGEgcmVhbCBvbmUhISE=";

/// The clients in the next frame with the node's own configuration.
async fn next_clients(agent: &mut Agent) -> Option<MeshClients> {
    loop {
        if let WatchFrame::Put {
            object: SliceObject::Node(node),
            ..
        } = agent.any_frame().await
        {
            return node.clients;
        }
    }
}

fn with_mesh(key: &str, features: &[&str]) -> NodeFacts {
    NodeFacts {
        mesh: Some(MeshFacts {
            public_key: key.to_owned(),
            endpoints: vec!["192.0.2.2:51820".parse().unwrap()],
        }),
        features: features.iter().map(|name| (*name).to_owned()).collect(),
        ..facts(ByteSize::gib(8))
    }
}

async fn add(server: &Server, name: &str, key: &str) -> Answer {
    let body = json!({"name": name, "public_key": key});
    server.post("/v1/fabric/clients", &body).await
}

/// A refusal that is not about a field.
fn refused(answer: &Answer, status: u16, code: &str) -> Problem {
    let problem = answer.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (status, code),
        "{problem:?}"
    );
    assert!(problem.hint.is_some(), "{problem:?} has no hint");
    problem
}

async fn names(server: &Server) -> Vec<Value> {
    let page = server.get("/v1/fabric/clients").await.expect(200).json();
    let items = page["items"].as_array().unwrap();
    items.iter().map(|item| item["name"].clone()).collect()
}

#[tokio::test]
async fn a_client_is_sent_to_every_node_until_it_is_removed() {
    let (server, mut alder) = Server::with_watching_node().await;
    server.set_fabric("wireguard").await.expect(200);
    assert_eq!(next_clients(&mut alder).await, None);
    alder
        .report_facts(with_mesh(KEY_OF_ALDER, &[feature::FABRIC_CLIENTS]))
        .await;
    let shown = add(&server, "laptop", KEY).await.expect(201).json();
    assert_eq!(shown["client"]["address"], "10.144.2.2");
    assert_eq!(shown["client"]["newer_nodes"], json!([]));
    assert_eq!(
        shown["peers"],
        json!([{
            "node": "alder", "public_key": KEY_OF_ALDER, "endpoints": ["192.0.2.2:51820"],
            "allowed": ["10.144.1.0/24"], "supports_clients": true,
        }])
    );
    let sent = next_clients(&mut alder).await.unwrap();
    assert_eq!(sent.subnet, "10.144.2.0/24".parse().unwrap());
    assert_eq!(sent.clients.len(), 1);
    assert_eq!(sent.clients[0].public_key, KEY);

    // A node that joins later does not get the clients' network for its guests. Its agent is of an earlier version.
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    birch.report_facts(with_mesh(OTHER_KEY, &[])).await;
    birch.watch(None).await;
    assert_eq!(next_clients(&mut birch).await, Some(sent));
    let shown = server
        .get("/v1/fabric/clients/laptop")
        .await
        .expect(200)
        .json();
    assert_eq!(shown["client"]["newer_nodes"], json!(["birch"]));
    assert_eq!(shown["peers"][1]["allowed"], json!(["10.144.3.0/24"]));
    assert_eq!(shown["peers"][1]["supports_clients"], false);

    add(
        &server,
        "phone",
        "cGhvbmUncyBrZXksIG5vdCBhIHJlYWwgb25lLCB0b28=",
    )
    .await
    .expect(201);
    assert_eq!(next_clients(&mut alder).await.unwrap().clients.len(), 2);
    assert_eq!(names(&server).await, ["laptop", "phone"]);
    server.delete("/v1/fabric/clients/laptop").await.expect(204);
    let left = next_clients(&mut alder).await.unwrap();
    assert_eq!(left.clients[0].name.as_str(), "phone");
    // The address is free again, and the network stays.
    let shown = add(&server, "laptop", KEY).await.expect(201).json();
    assert_eq!(shown["client"]["address"], "10.144.2.2");

    // Another fabric has no clients; they come back with the mesh.
    next_clients(&mut alder).await;
    server.set_fabric("static").await.expect(200);
    assert_eq!(next_clients(&mut alder).await, None);
    let answer = server.get("/v1/fabric/clients/phone").await;
    refused(&answer, 409, "no-mesh");
    server.set_fabric("wireguard").await.expect(200);
    assert_eq!(next_clients(&mut alder).await.unwrap().clients.len(), 2);
    let kinds = server.kinds("waifud").await;
    let of = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
    assert_eq!(
        (of("fabric.client-added"), of("fabric.client-removed")),
        (3, 1)
    );
}

#[tokio::test]
async fn clients_in_conflict_or_without_a_mesh_are_refused() {
    let (server, alder) = Server::with_watching_node().await;
    let answer = add(&server, "laptop", KEY).await;
    let problem = refused(&answer, 409, "no-mesh");
    assert!(
        format!("{problem:?}").contains("choose the fabric wireguard"),
        "{problem:?}"
    );
    server.set_fabric("wireguard").await.expect(200);
    alder.report_facts(with_mesh(KEY_OF_ALDER, &[])).await;
    add(&server, "laptop", KEY).await.expect(201);
    for (name, key, status, code, field) in [
        ("laptop", OTHER_KEY, 409, "name-taken", "name"),
        ("phone", KEY, 409, "key-taken", "public_key"),
        ("phone", KEY_OF_ALDER, 409, "key-taken", "public_key"),
        (
            "phone",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            409,
            "unsafe-key",
            "public_key",
        ),
        ("phone", "secret", 422, "invalid-key", "public_key"),
        ("phone", "c2hvcnQ=", 422, "invalid-key", "public_key"),
        ("Phone!", OTHER_KEY, 422, "invalid-name", "name"),
    ] {
        add(&server, name, key).await.refused(status, code, field);
    }
    server.get("/v1/fabric/clients/phone").await.expect(404);
    server.delete("/v1/fabric/clients/phone").await.expect(404);
    assert_eq!(names(&server).await, ["laptop"]);
}

#[tokio::test]
async fn a_range_without_a_free_network_or_address_is_an_error() {
    let (server, _alder) = Server::with_watching_node().await;
    let server = server
        .restart(|config| config.guest_range = "10.144.0.0/23".parse().unwrap())
        .await;
    server.set_fabric("wireguard").await.expect(200);
    let answer = add(&server, "laptop", KEY).await;
    refused(&answer, 409, "no-subnet");
}
