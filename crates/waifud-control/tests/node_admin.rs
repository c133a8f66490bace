//! Administration of nodes: names, labels, removal; and reports out of bounds.

mod common;

use common::{Answer, Server, hello, report};
use serde_json::{Value, json};
use waifud_api::agent::{AgentReport, Tombstone};
use waifud_types::evidence::GuestEvidence;
use waifud_types::node::NodeFacts;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, Epoch, InstanceState, Timestamp};

async fn labels(server: &Server) -> Value {
    server.get("/v1/nodes/alder").await.expect(200).json()["labels"].clone()
}

#[tokio::test]
async fn labels_survive_reports_of_the_node_and_place_waiting_instances() {
    let server = Server::start().await;
    server.template().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    let request =
        json!({"name": "db", "template": "debian-12", "placement": {"require": {"disk": "ssd"}}});
    let db = server.create(&request).await.expect(201).instance();
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
    server.create_instance("web").await;
    let before = server.footprint().await;
    let problem = server.delete("/v1/nodes/alder").await.expect(409).problem();
    assert_eq!(
        (problem.code.as_str(), problem.title.as_str()),
        ("node-in-use", "alder still has instances: web")
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
    // Its key is not accepted any more.
    let again = alder
        .hello(&common::hello("alder", ByteSize::gib(64)))
        .await;
    assert_eq!(again.status, 403);

    // Its name is free, but its subnet stays reserved until it is purged.
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

fn facts(change: impl FnOnce(&mut NodeFacts)) -> AgentReport {
    let mut facts = common::facts(ByteSize::gib(8));
    change(&mut facts);
    AgentReport {
        facts: Some(facts),
        ..AgentReport::default()
    }
}

fn condition(kind: String, reason: &str) -> Condition {
    Condition {
        kind,
        ok: false,
        reason: reason.to_owned(),
        message: "it is not well".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }
}

fn is_out_of_bounds(answer: Answer, field: &str) {
    let problem = answer.expect(422).problem();
    let found = (problem.code.as_str(), problem.field.as_deref());
    assert_eq!(found, ("out-of-bounds", Some(field)));
}

#[tokio::test]
async fn values_out_of_bounds_are_refused_with_the_field() {
    let (server, alder) = Server::with_node().await;
    let before = server.footprint().await;
    let conditions = |facts: &mut NodeFacts| {
        let all = 0..40_000;
        facts.conditions = all.map(|n| condition(format!("c{n}"), "bad")).collect();
    };
    is_out_of_bounds(
        alder.try_send_report(&facts(conditions)).await,
        "facts.conditions",
    );
    let full = facts(|facts| facts.pools[0].used_bytes = ByteSize(u64::MAX));
    is_out_of_bounds(
        alder.try_send_report(&full).await,
        "facts.pools[0].used_bytes",
    );
    let mut loud = hello("alder", ByteSize::gib(8));
    loud.facts.cpu_model = "\u{1b}[2J".repeat(1 << 18);
    is_out_of_bounds(alder.hello(&loud).await, "facts.cpu_model");
    assert_eq!(server.footprint().await, before);
    assert!(server.get("/v1/nodes").await.bytes.len() < 10_000);
    let body = json!({"name": "web", "template": "debian-12"});
    server.create(&body).await.expect(201);
}

#[tokio::test]
async fn flapping_conditions_of_a_node_do_not_displace_the_history() {
    let (server, alder) = Server::with_node().await;
    let flap = |reason: &'static str| {
        facts(|facts| {
            let all = 0..64;
            facts.conditions = all.map(|n| condition(format!("c{n}"), reason)).collect();
        })
    };
    let mut refused = None;
    for round in 0..1000 {
        let status_report = flap(if round % 2 == 0 { "low" } else { "full" });
        let answer = alder.try_send_report(&status_report).await;
        if answer.status == 429 {
            refused = Some(answer.problem());
            break;
        }
        answer.expect(204);
    }
    assert_eq!(refused.unwrap().code, "too-many-changes");
    let (.., newest, _) = server.footprint().await;
    assert!(newest < 15_000, "{newest} events");
    // It counts as a contact, and a report without changes is accepted.
    alder.report(&AgentReport::default()).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    birch.report(&flap("low")).await;
    let body = json!({"name": "web", "template": "debian-12"});
    server.create(&body).await.expect(201);
}

#[tokio::test]
async fn an_administrators_name_for_a_node_overrides_its_own() {
    let server = Server::start().await;
    server.template().await;
    let ash = server.join("ash", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "placement": {"node": "oak"}});
    server.create(&body).await.expect(201);
    ash.hello(&hello("oak", ByteSize::gib(8))).await.expect(200);
    server.get("/v1/nodes/oak").await.expect(404);
    let web = server.get("/v1/instances/web").await.instance();
    assert_eq!(web.status.node, None);

    server.join("birch", ByteSize::gib(1)).await;
    let taken = json!({"name": "birch"});
    let taken = server.patch("/v1/nodes/ash", &taken).await;
    let problem = taken.expect(409).problem();
    assert_eq!(
        (problem.code.as_str(), problem.field.as_deref()),
        ("name-taken", Some("name"))
    );
    server
        .patch("/v1/nodes/ash", &json!({"name": "oak"}))
        .await
        .expect(200);
    let web = server.get("/v1/instances/web").await.instance();
    assert_eq!(web.status.node.unwrap().as_str(), "oak");
    ash.hello(&hello("ash", ByteSize::gib(8))).await.expect(200);
    assert_eq!(server.get("/v1/nodes/oak").await.json()["name"], "oak");
}

#[tokio::test]
async fn reports_about_instances_of_other_nodes_are_ignored() {
    let (server, alder) = Server::with_node().await;
    let body = json!({"name": "web", "template": "debian-12", "placement": {"node": "alder"}});
    let web = server.create(&body).await.expect(201).instance();
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let mut status_report = report(web.id, InstanceState::Running);
    status_report.evidence = Some(GuestEvidence {
        console: vec!["login:".to_owned()],
        ..GuestEvidence::default()
    });
    alder.send_report(status_report).await;
    birch
        .destroyed(Tombstone {
            instance: web.id,
            name: web.name,
            epoch: Epoch::FIRST,
        })
        .await;
    birch
        .send_report(report(web.id, InstanceState::Failed))
        .await;
    let why = server.get("/v1/instances/web/why").await.json();
    assert_eq!(why["evidence"]["console"], json!(["login:"]));
    assert_eq!(why["instance"]["status"]["state"], "running");
}

#[tokio::test]
async fn an_observed_generation_cannot_exceed_the_current_one() {
    let (server, alder) = Server::with_node().await;
    let body = json!({"name": "web", "template": "debian-12"});
    let web = server.create(&body).await.expect(201).instance();
    let mut status_report = report(web.id, InstanceState::Running);
    status_report.observed_generation = waifud_types::Generation(1 << 40);
    alder.send_report(status_report).await;
    let web = server.get("/v1/instances/web").await.json();
    assert_eq!(web["status"]["observed_generation"], 1);
}
