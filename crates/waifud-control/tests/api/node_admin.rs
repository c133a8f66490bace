//! Administration of nodes: names, labels and removal, and the limits of what a node may report.

use crate::common::{Server, hello, report, tombstone};
use serde_json::{Value, json};
use waifud_api::agent::AgentReport;
use waifud_api::hint::{HintAction, HintKind};
use waifud_types::evidence::GuestEvidence;
use waifud_types::node::NodeFacts;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, InstanceState, Timestamp};

async fn labels(server: &Server) -> Value {
    server.node("alder").await["labels"].clone()
}

#[tokio::test]
async fn labels_of_administrators_override_reported_ones_and_place_waiting_instances() {
    let (server, alder) = Server::with_node(ByteSize::gib(64)).await;
    let body =
        json!({"name": "db", "template": "debian-12", "placement": {"require": {"disk": "ssd"}}});
    let db = server.created(&body).await;
    assert_eq!(db.status.node, None);
    let set = json!({"labels": {"disk": "ssd", "room": "cellar"}});
    let answer = server
        .patch("/v1/nodes/alder", &set)
        .await
        .expect(200)
        .json();
    assert_eq!(answer["labels"], json!({"disk": "ssd", "room": "cellar"}));
    assert_eq!(server.node_of("db").await.as_deref(), Some("alder"));

    let mut facts = crate::common::facts(ByteSize::gib(32));
    facts.labels = [("disk", "hdd"), ("cpu", "fast")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    alder.report_facts(facts).await;
    assert_eq!(
        labels(&server).await,
        json!({"cpu": "fast", "disk": "ssd", "room": "cellar"})
    );
    let before = server.footprint().await;
    server
        .patch("/v1/nodes/alder", &json!({"labels": {"disk": "ssd"}}))
        .await
        .expect(200);
    for (bad, code) in [
        (json!({"labels": {"": "x"}}), "invalid-label"),
        (json!({"labels": {"a b": "x"}}), "invalid-label"),
        (json!({"label": {}}), "invalid-field"),
    ] {
        let answer = server.patch("/v1/nodes/alder", &bad).await;
        let problem = answer.expect(422).problem();
        assert_eq!(problem.code, code, "{bad}");
        let field = problem.field.unwrap();
        assert!(field.starts_with("label"), "{bad}: {field}");
    }
    assert_eq!(
        server.footprint().await,
        before,
        "a refused change changed something"
    );
    let unset = json!({"labels": {"room": null, "disk": null}});
    server.patch("/v1/nodes/alder", &unset).await.expect(200);
    assert_eq!(labels(&server).await, json!({"cpu": "fast", "disk": "hdd"}));
    server.patch("/v1/nodes/birch", &set).await.expect(404);
}

#[tokio::test]
async fn a_node_is_removed_when_its_instances_are_deleted_and_its_subnet_stays_reserved() {
    let (server, alder) = Server::with_node(ByteSize::gib(64)).await;
    server.create_instance("web").await;
    let before = server.footprint().await;
    let problem = server.delete("/v1/nodes/alder").await.expect(409).problem();
    assert_eq!(
        (problem.code.as_str(), problem.title.as_str()),
        ("node-in-use", "alder still has instances: web")
    );
    let delete = HintAction::Delete { unmanaged: false };
    let mut hints = problem.hints.iter();
    assert!(hints.any(|hint| hint.is(&delete, HintKind::Instance, "web")));
    assert_eq!(
        server.footprint().await,
        before,
        "a refused change changed something"
    );

    server.delete("/v1/instances/web").await.expect(202);
    server.delete("/v1/nodes/alder").await.expect(204);
    server.get("/v1/nodes/alder").await.expect(404);
    server.get("/v1/instances/web").await.expect(404);
    assert_eq!(
        server.kinds("web").await.last().unwrap(),
        "instance.deleted"
    );
    assert_eq!(server.kinds("alder").await.last().unwrap(), "node.removed");
    // Its key is not accepted anymore.
    let again = alder
        .hello(&crate::common::hello("alder", ByteSize::gib(64)))
        .await;
    assert_eq!(again.status, 403);

    // Its subnet stays reserved until the node is purged.
    let subnet = async |name: &str| {
        server.get(&format!("/v1/nodes/{name}")).await.json()["subnets"][0].clone()
    };
    server.join("birch", ByteSize::gib(64)).await;
    assert_eq!(subnet("birch").await, "10.144.2.0/24");
    server.delete("/v1/nodes/alder").await.expect(404);
    server
        .delete("/v1/nodes/alder?purge=true")
        .await
        .expect(204);
    // Its name is available again.
    server.join("cedar", ByteSize::gib(64)).await;
    assert_eq!(subnet("cedar").await, "10.144.1.0/24");
    server.join("alder", ByteSize::gib(64)).await;
    assert_eq!(subnet("alder").await, "10.144.3.0/24");
}

fn facts(change: impl FnOnce(&mut NodeFacts)) -> AgentReport {
    let mut facts = crate::common::facts(ByteSize::gib(8));
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
        message: "not in order".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn oversized_and_invalid_facts_are_refused_by_field_and_change_nothing() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let before = server.footprint().await;
    let conditions = |facts: &mut NodeFacts| {
        let all = 0..40_000;
        facts.conditions = all.map(|n| condition(format!("c{n}"), "bad")).collect();
    };
    let (status, code) = (422, "out-of-bounds");
    let answer = alder.try_to_report(&facts(conditions)).await;
    answer.refused(status, code, "facts.conditions");
    let full = facts(|facts| facts.pools[0].used_bytes = ByteSize(u64::MAX));
    let answer = alder.try_to_report(&full).await;
    answer.refused(status, code, "facts.pools[0].used_bytes");
    let mut long = hello("alder", ByteSize::gib(8));
    long.facts.cpu_model = "\u{1b}[2J".repeat(1 << 18);
    let answer = alder.hello(&long).await;
    answer.refused(status, code, "facts.cpu_model");
    assert_eq!(server.footprint().await, before);
    assert!(server.get("/v1/nodes").await.bytes.len() < 10_000);
    let body = json!({"name": "web", "template": "debian-12"});
    server.create(&body).await.expect(201);
}

#[tokio::test]
async fn flapping_conditions_of_a_node_are_rate_limited() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let flap = |reason: &'static str| {
        facts(|facts| {
            let all = 0..64;
            facts.conditions = all.map(|n| condition(format!("c{n}"), reason)).collect();
        })
    };
    let mut refused = None;
    for round in 0..1000 {
        let report = flap(if round % 2 == 0 { "low" } else { "full" });
        let answer = alder.try_to_report(&report).await;
        if answer.status == 429 {
            refused = Some(answer.problem());
            break;
        }
        answer.expect(204);
    }
    assert_eq!(refused.unwrap().code, "too-many-changes");
    let (.., newest, _) = server.footprint().await;
    assert!(newest < 15_000, "{newest} events");
    // The node still counts as reachable, and reports without changes are accepted.
    alder.report(&AgentReport::default()).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    birch.report(&flap("low")).await;
    let body = json!({"name": "web", "template": "debian-12"});
    server.create(&body).await.expect(201);
}

#[tokio::test]
async fn only_an_administrator_can_rename_a_node() {
    let server = Server::with_template().await;
    let ash = server.join("ash", ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "placement": {"node": "oak"}});
    server.create(&body).await.expect(201);
    ash.hello(&hello("oak", ByteSize::gib(8))).await.expect(200);
    server.get("/v1/nodes/oak").await.expect(404);
    assert_eq!(server.node_of("web").await, None);

    server.join("birch", ByteSize::gib(1)).await;
    server
        .patch("/v1/nodes/ash", &json!({"name": "birch"}))
        .await
        .refused(409, "name-taken", "name");
    server
        .patch("/v1/nodes/ash", &json!({"name": "oak"}))
        .await
        .expect(200);
    assert_eq!(server.node_of("web").await.as_deref(), Some("oak"));
    ash.hello(&hello("ash", ByteSize::gib(8))).await.expect(200);
    assert_eq!(server.node("oak").await["name"], "oak");
}

#[tokio::test]
async fn a_node_cannot_report_or_destroy_instances_of_another_node() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12", "placement": {"node": "alder"}});
    let web = server.created(&body).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let mut running = report(web.id, InstanceState::Running);
    running.evidence = Some(GuestEvidence {
        console: vec!["login:".to_owned()],
        ..GuestEvidence::default()
    });
    alder.report_instance(running).await;
    birch.destroyed(tombstone(&web)).await;
    birch
        .report_instance(report(web.id, InstanceState::Failed))
        .await;
    let why = server.why("web").await;
    assert_eq!(why["evidence"]["console"], json!(["login:"]));
    assert_eq!(why["instance"]["status"]["state"], "running");
}

#[tokio::test]
async fn an_observed_generation_is_limited_to_the_current_one() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let body = json!({"name": "web", "template": "debian-12"});
    let web = server.created(&body).await;
    let mut running = report(web.id, InstanceState::Running);
    running.observed_generation = waifud_types::Generation(1 << 40);
    alder.report_instance(running).await;
    let web = server.get("/v1/instances/web").await.json();
    assert_eq!(web["status"]["observed_generation"], 1);
}
