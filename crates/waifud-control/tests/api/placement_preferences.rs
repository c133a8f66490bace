//! Preferences of placement that depend on other instances and on what nodes report, and the placement of a dry run.

use axum::http::Method;
use serde_json::{Value, json};
use waifud_api::DryRun;
use waifud_types::{ByteSize, Digest};

use crate::common::{Agent, Server, facts, node_name, tombstone};

/// 1 GiB of memory, near another instance.
fn near(name: &str, other: &str) -> Value {
    json!({"name": name, "template": "debian-12", "placement": {"near": other}})
}

impl Server {
    /// The answer to a dry run of a valid request.
    async fn dry_run(&self, body: &Value) -> DryRun {
        let path = "/v1/instances?dry_run=true";
        let answer = self.call(Method::POST, path, &[], body.to_string()).await;
        serde_json::from_value(answer.expect(200).json()).unwrap()
    }

    /// Two nodes, and the instance `db` on the one that is otherwise not preferred.
    async fn with_db_on_birch() -> (Self, Agent, Agent) {
        let (server, alder) = Server::with_node(ByteSize::gib(64)).await;
        let birch = server.join("birch", ByteSize::gib(8)).await;
        let db = json!({"name": "db", "template": "debian-12", "placement": {"node": "birch"}});
        server.create(&db).await.expect(201);
        (server, alder, birch)
    }
}

#[tokio::test]
async fn an_instance_is_placed_near_another_one_while_that_node_is_suitable() {
    let (server, ..) = Server::with_db_on_birch().await;
    let web = server.created(&near("web", "db")).await;
    assert_eq!(node_name(&web).as_deref(), Some("birch"));
    let shown = server.get("/v1/instances/web").await.json();
    assert_eq!(shown["spec"]["placement"]["near"], "db");
    let why = server.why("web").await;
    assert_eq!(why["placement"][0]["reason"], "7G free of 8G, next to db");
    assert_eq!(why["placement"][0]["fields"]["near"], "db");
    let mut large = near("large", "db");
    large["memory_bytes"] = ByteSize::gib(7).bytes().into();
    let large = server.created(&large).await;
    assert_eq!(node_name(&large).as_deref(), Some("alder"));
}

#[tokio::test]
async fn near_an_unknown_or_deleted_instance_or_itself_is_refused_with_the_field() {
    let (server, _, birch) = Server::with_db_on_birch().await;
    let field = "spec.placement.near";
    let refused = |answer: crate::common::Answer, code: &str| {
        let problem = answer.refused(422, code, field);
        assert!(problem.hint.is_some(), "{problem:?}");
    };
    let unknown = near("web", "nowhere");
    refused(server.create(&unknown).await, "unknown-instance");
    let dry = "/v1/instances?dry_run=true";
    let answer = server.call(Method::POST, dry, &[], unknown.to_string());
    refused(answer.await, "unknown-instance");
    refused(server.create(&near("web", "web")).await, "near-itself");
    let bad = server.create(&near("web", "No Name")).await;
    assert_eq!(bad.expect(422).problem().field.as_deref(), Some(field));
    server.get("/v1/instances/web").await.expect(404);

    server.created(&near("web", "db")).await;
    let itself = json!({"placement": {"near": "web"}});
    let answer = server.patch("/v1/instances/web", &itself).await;
    refused(answer, "near-itself");
    let answer = json!({"placement": {"near": "nowhere"}});
    let answer = server.patch("/v1/instances/web", &answer).await;
    refused(answer, "unknown-instance");

    // While it is being deleted, it counts no longer; what refers to it can still be changed.
    let db = server.instance("db").await;
    server.delete("/v1/instances/db").await.expect(202);
    refused(
        server.create(&near("cache", "db")).await,
        "unknown-instance",
    );
    birch.destroyed(tombstone(&db)).await;
    let other = json!({"placement": {"near": "db", "require": {"disk": "ssd"}}});
    server.patched("web", &other).await;
    let none = json!({"placement": {}});
    let web = server.patched("web", &none).await;
    assert_eq!(web.spec.placement.near, None);
    let again = json!({"placement": {"near": "db"}});
    let answer = server.patch("/v1/instances/web", &again).await;
    refused(answer, "unknown-instance");
}

#[tokio::test]
async fn near_a_deleted_or_waiting_instance_is_no_preference() {
    let (server, ..) = Server::with_db_on_birch().await;
    let mut waits = near("web", "db");
    waits["placement"]["require"] = json!({"disk": "ssd"});
    assert_eq!(node_name(&server.created(&waits).await), None);
    let web = server.created(&near("cache", "web")).await;
    assert_eq!(node_name(&web).as_deref(), Some("alder"), "web has no node");
    let other = near("other", "db");
    assert_eq!(server.dry_run(&other).await.node.unwrap().as_str(), "birch");
    server.delete("/v1/instances/db").await.expect(202);
    let label = json!({"labels": {"disk": "ssd"}});
    server.patch("/v1/nodes/alder", &label).await.expect(200);
    assert_eq!(server.node_of("web").await.as_deref(), Some("alder"));
}

#[tokio::test]
async fn a_node_that_reports_the_image_is_preferred_and_the_report_is_no_event() {
    let (server, _alder) = Server::with_node(ByteSize::gib(64)).await;
    let birch = server.join("birch", ByteSize::gib(64)).await;
    let body = |name: &str| json!({"name": name, "template": "debian-12"});
    let first = server.created(&body("first")).await;
    assert_eq!(node_name(&first).as_deref(), Some("alder"));
    let kinds = async || server.kinds("birch").await;
    let before = kinds().await;
    let mut known = facts(ByteSize::gib(64));
    known.pools[0].images = Some(vec![first.spec.image]);
    birch.report_facts(known.clone()).await;
    let images = &server.node("birch").await["pools"][0]["images"];
    assert_eq!(images[0], first.spec.image.to_string());
    assert_eq!(
        server.node("alder").await["pools"][0]["images"],
        Value::Null
    );
    for n in 0..3 {
        let next = server.created(&body(&format!("next{n}"))).await;
        assert_eq!(node_name(&next).as_deref(), Some("birch"));
    }
    known.pools[0].images = Some(vec![Digest::of(b"another image")]);
    birch.report_facts(known).await;
    let last = server.created(&body("last")).await;
    assert_eq!(node_name(&last).as_deref(), Some("alder"));
    assert_eq!(kinds().await, before);
}

#[tokio::test]
async fn instances_wait_for_free_space_in_a_full_pool_and_are_placed_when_there_is_some() {
    let (server, alder) = Server::with_node(ByteSize::gib(64)).await;
    let mut full = facts(ByteSize::gib(64));
    // Less than the tolerance below which a changed load is not stored.
    full.pools[0].used_bytes = ByteSize::gib(480);
    alder.report_facts(full.clone()).await;
    full.pools[0].used_bytes = ByteSize(ByteSize::gib(499).bytes() + 1);
    alder.report_facts(full.clone()).await;
    let web = json!({"name": "web", "template": "debian-12"});
    let web = server.created(&web).await;
    let reason = "waiting for: free space in pool main of alder";
    assert_eq!(web.status.reason.as_deref(), Some(reason));
    let why = server.why("web").await;
    assert_eq!(why["placement"][0]["code"], "pool-full");
    let hint = why["hint"].as_str().unwrap();
    assert!(hint.contains("free space in pool main of alder"), "{hint}");
    full.pools[0].used_bytes = ByteSize::gib(498);
    alder.report_facts(full).await;
    assert_eq!(server.node_of("web").await.as_deref(), Some("alder"));
}

#[tokio::test]
async fn a_dry_run_shows_the_placement_that_the_create_then_gets() {
    let (server, _alder) = Server::with_node(ByteSize::gib(8)).await;
    server.join("birch", ByteSize::gib(64)).await;
    let body = json!({"name": "web", "template": "debian-12", "publish": [{"port": 80}]});
    let before = server.footprint().await;
    let dry = server.dry_run(&body).await;
    assert_eq!(dry.node.as_ref().unwrap().as_str(), "birch");
    assert_eq!((&dry.reason, &dry.cause), (&None, &None));
    assert_eq!(server.footprint().await, before);
    let web = server.created(&body).await;
    assert_eq!(node_name(&web).as_deref(), Some("birch"));
    let stored = server.why("web").await["placement"].clone();
    assert_eq!(serde_json::to_value(&dry.placement).unwrap(), stored);

    // The port is taken on the better node.
    let mut second = body.clone();
    second["name"] = "second".into();
    let dry = server.dry_run(&second).await;
    assert_eq!(dry.node.unwrap().as_str(), "alder");
    assert_eq!(
        dry.placement[1].reason,
        "port 80/tcp is already published to web"
    );
    second["memory_bytes"] = ByteSize::gib(9).bytes().into();
    let dry = server.dry_run(&second).await;
    assert_eq!(dry.node, None);
    let waits = server.created(&second).await;
    assert_eq!(dry.reason, waits.status.reason);
    assert_eq!(dry.cause, waits.status.cause);
}
