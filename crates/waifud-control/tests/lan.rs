//! Networks that are bridges of the hosts: named, listed, used, and forgotten when nobody uses them.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod common;

use common::{Agent, Server};
use serde_json::{Value, json};
use waifud_api::agent::AgentReport;
use waifud_types::ByteSize;

/// The node tells which bridges it has, and which links are none for guests.
async fn has_bridges(agent: &Agent, bridges: &[&str], unfit: &[(&str, &str)]) {
    let mut facts = common::facts(ByteSize::gib(64));
    facts.bridges = bridges.iter().map(|&name| name.to_owned()).collect();
    facts.unfit_bridges = unfit
        .iter()
        .map(|&(name, why)| (name.to_owned(), why.to_owned()))
        .collect();
    agent
        .report(&AgentReport {
            facts: Some(facts),
            ..AgentReport::default()
        })
        .await;
}

async fn add(server: &Server, name: &str, bridge: &str) -> common::Answer {
    let body = json!({"name": name, "bridge": bridge});
    server.post("/v1/networks", &body).await
}

async fn refused(server: &Server, body: &Value, status: u16, code: &str, field: &str) -> String {
    let before = (
        server.footprint().await,
        server.get("/v1/networks").await.json()["items"].clone(),
    );
    let problem = server.post("/v1/networks", body).await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (status, code),
        "{problem:?}"
    );
    assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
    let after = (
        server.footprint().await,
        server.get("/v1/networks").await.json()["items"].clone(),
    );
    assert_eq!(after, before, "{code} left something behind");
    format!("{} {}", problem.title, problem.hint.unwrap())
}

#[tokio::test]
async fn a_network_is_added_listed_and_deleted_and_default_stays() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(64)).await;
    has_bridges(&alder, &["br0", "waifu0"], &[]).await;
    let added = add(&server, "lan", "br0").await.expect(201).json();
    assert_eq!(
        added["nodes"],
        json!([
            {"node": "alder", "usable": true, "reason": null},
            {"node": "birch", "usable": false, "reason": "has no bridge br0"},
        ])
    );
    assert_eq!(
        (&added["bridge"], &added["used_by"]),
        (&json!("br0"), &json!(0))
    );
    let list = server.get("/v1/networks").await.expect(200).json();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["name"].clone())
        .collect();
    assert_eq!(names, ["default", "lan"]);
    assert_eq!(list["items"][0]["bridge"], Value::Null);
    assert_eq!(list["items"][1], added);
    assert_eq!(
        server.get("/v1/networks/lan").await.expect(200).json(),
        added
    );
    // Page by page.
    let first = server.get("/v1/networks?limit=1").await.expect(200).json();
    let next = first["next"].as_str().unwrap();
    let second = server
        .get(&format!("/v1/networks?limit=1&cursor={next}"))
        .await
        .expect(200)
        .json();
    assert_eq!(second["items"][0]["name"], "lan");
    assert_eq!(second["next"], Value::Null);

    let problem = server.delete("/v1/networks/default").await.problem();
    assert_eq!(problem.code, "network-default");
    server.delete("/v1/networks/lan").await.expect(204);
    server.delete("/v1/networks/lan").await.expect(404);
    server.get("/v1/networks/lan").await.expect(404);
    assert_eq!(
        server.kinds("lan").await,
        ["network.created", "network.deleted"]
    );
}

#[tokio::test]
async fn a_network_that_cant_be_is_refused_with_the_reason() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    let wireless = "has no way out but wlan0, which is wireless";
    has_bridges(&alder, &["br0", "brw"], &[("brw", wireless)]).await;
    add(&server, "lan", "br0").await.expect(201);
    for (name, bridge, status, code, field) in [
        ("lan", "br1", 409, "network-name-taken", "name"),
        ("default", "br1", 409, "network-name-taken", "name"),
        ("home", "br0", 409, "bridge-taken", "bridge"),
        ("Home", "br1", 422, "bad-name", "name"),
        ("home", "br 1", 422, "bad-bridge", "bridge"),
        ("home", "", 422, "bad-bridge", "bridge"),
        ("home", "wf-01234567", 422, "bridge-unfit", "bridge"),
        ("home", "brw", 422, "bridge-unfit", "bridge"),
    ] {
        let body = json!({"name": name, "bridge": bridge});
        let said = refused(&server, &body, status, code, field).await;
        match bridge {
            "br0" => assert!(said.contains("is network lan"), "{said}"),
            "brw" => assert!(
                said.contains("alder") && said.contains("wireless"),
                "{said}"
            ),
            _ => {}
        }
    }
    refused(
        &server,
        &json!({"name": "home"}),
        422,
        "bad-field",
        "bridge",
    )
    .await;
    // What one node can't use, another may.
    let birch = server.join("birch", ByteSize::gib(64)).await;
    has_bridges(&birch, &["brw"], &[]).await;
    let added = add(&server, "home", "brw").await.expect(201).json();
    assert_eq!(
        added["nodes"][0]["reason"],
        format!("can't use brw, which {wireless}")
    );
}

#[tokio::test]
async fn default_counts_its_users_until_they_are_gone() {
    let server = Server::start().await;
    server.template().await;
    let mut agent = server.join("alder", ByteSize::gib(64)).await;
    let used = async || server.get("/v1/networks/default").await.json()["used_by"].clone();
    assert_eq!(used().await, 0);
    server
        .create(&json!({"name": "web", "template": "debian-12"}))
        .await
        .expect(201);
    assert_eq!(used().await, 1);
    agent.watch(None).await;
    agent.until_sync().await;
    server.delete("/v1/instances/web").await.expect(202);
    assert_eq!(used().await, 1, "its node has not confirmed");
    let tombstone = agent.tombstone().await;
    agent.destroyed(tombstone).await;
    assert_eq!(used().await, 0);
}
