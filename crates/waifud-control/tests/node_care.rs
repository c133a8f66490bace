//! Labels that operators give nodes, and nodes that are removed.

mod common;

use common::Server;
use serde_json::{Value, json};
use waifud_api::agent::AgentReport;
use waifud_types::ByteSize;

async fn labels(server: &Server) -> Value {
    server.get("/v1/nodes/alder").await.expect(200).json()["labels"].clone()
}

#[tokio::test]
async fn labels_outlast_what_the_node_reports_and_place_who_waits_for_them() {
    let server = Server::start().await;
    server.template().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    let wish =
        json!({"name": "db", "template": "debian-12", "placement": {"require": {"disk": "ssd"}}});
    let db = server.create(&wish).await.expect(201).instance();
    assert_eq!(db.status.node, None);
    let set = json!({"labels": {"disk": "ssd", "room": "cellar"}});
    let answer = server
        .patch("/v1/nodes/alder", &set)
        .await
        .expect(200)
        .json();
    assert_eq!(answer["labels"], json!({"disk": "ssd", "room": "cellar"}));
    let db = server.get("/v1/instances/db").await.instance();
    assert_eq!(db.status.node.unwrap().as_str(), "alder");

    let mut facts = common::facts(ByteSize::gib(32));
    facts.labels = [("disk", "hdd"), ("cpu", "fast")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    alder
        .report(&AgentReport {
            facts: Some(facts),
            ..AgentReport::default()
        })
        .await;
    assert_eq!(
        labels(&server).await,
        json!({"cpu": "fast", "disk": "ssd", "room": "cellar"})
    );
    let before = server.footprint().await;
    server
        .patch("/v1/nodes/alder", &json!({"labels": {"disk": "ssd"}}))
        .await
        .expect(200);
    for bad in [
        json!({"labels": {"": "x"}}),
        json!({"labels": {"a b": "x"}}),
        json!({"label": {}}),
    ] {
        let problem = server
            .patch("/v1/nodes/alder", &bad)
            .await
            .expect(422)
            .problem();
        assert!(problem.field.is_some(), "{problem:?}");
    }
    assert_eq!(server.footprint().await, before, "nothing changed");
    let unset = json!({"labels": {"room": null, "disk": null}});
    server.patch("/v1/nodes/alder", &unset).await.expect(200);
    assert_eq!(labels(&server).await, json!({"cpu": "fast", "disk": "hdd"}));
    server.patch("/v1/nodes/birch", &set).await.expect(404);
}

#[tokio::test]
async fn a_node_is_removed_when_its_instances_are_deleted_and_its_subnet_stays_reserved() {
    let server = Server::start().await;
    server.template().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    server
        .create(&json!({"name": "web", "template": "debian-12"}))
        .await
        .expect(201);
    let before = server.footprint().await;
    let problem = server.delete("/v1/nodes/alder").await.expect(409).problem();
    assert_eq!(
        (problem.code.as_str(), problem.title.as_str()),
        ("node-in-use", "alder has web")
    );
    assert!(problem.hint.unwrap().contains("waifuctl delete web"));
    assert_eq!(server.footprint().await, before, "nothing changed");

    server.delete("/v1/instances/web").await.expect(202);
    server.delete("/v1/nodes/alder").await.expect(204);
    server.get("/v1/nodes/alder").await.expect(404);
    server.get("/v1/instances/web").await.expect(404);
    assert_eq!(
        server.kinds("web").await.last().unwrap(),
        "instance.deleted"
    );
    assert_eq!(server.kinds("alder").await.last().unwrap(), "node.removed");
    // Its key is worth nothing any more.
    let again = alder
        .hello(&common::hello("alder", ByteSize::gib(64)))
        .await;
    assert_eq!(again.status, 403);

    // Its name is free, its subnet is not, before it is purged.
    server.join("alder", ByteSize::gib(64)).await;
    let subnet = async |name: &str| {
        server.get(&format!("/v1/nodes/{name}")).await.json()["subnets"][0].clone()
    };
    assert_eq!(subnet("alder").await, "10.144.2.0/24");
    server
        .delete("/v1/nodes/alder?purge=true")
        .await
        .expect(204);
    server.delete("/v1/nodes/alder").await.expect(404);
    server.join("birch", ByteSize::gib(64)).await;
    assert_eq!(subnet("birch").await, "10.144.1.0/24");
}
