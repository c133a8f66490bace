//! Unmanaged instances after a restore of an older database: adopted or deleted, never lost.

mod common;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Agent, Server};
use serde_json::json;
use waifud_api::agent::{AgentInstance, AgentReport, Unmanaged, WatchFrame};
use waifud_control::ControlConfig;
use waifud_control::env::{SystemClock, SystemEntropy};
use waifud_store::{Mode, backup};
use waifud_types::{ByteSize, Incarnation, InstanceState};

const USER_DATA: &str = "#cloud-config\nhostname: swordfish\n";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUP7dMLzDzGLqrnXjvMqXPZ2jkFMhPk1rjYxbTZtGbq test";

/// The report of a node about an instance that left its slice.
async fn unmanaged(agent: &Agent, record: &AgentInstance) -> Unmanaged {
    let path = format!("/v1/agent/bundles/{}", record.bundle.digest);
    let bundle = agent.get(&path).await.expect(200).bytes;
    Unmanaged {
        kind: "domain".to_owned(),
        instance: record.id,
        name: Some(record.name.to_string()),
        volume: None,
        running: true,
        addresses: record
            .spec
            .nics
            .iter()
            .filter_map(|nic| nic.address)
            .collect(),
        record: Some(Box::new(record.clone())),
        bundle: Some(STANDARD.encode(bundle)),
    }
}

async fn say(agent: &Agent, unmanaged: Vec<Unmanaged>) {
    agent
        .report(&AgentReport {
            unmanaged: Some(unmanaged),
            ..AgentReport::default()
        })
        .await;
}

#[expect(
    clippy::unwrap_used,
    reason = "a test's helper may stop at the first surprise"
)]
/// A server with a copy of the database of `of`, made by `backup`, in a new incarnation.
async fn restored(of: &Server) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("waifud.db");
    backup::snapshot(&of.dir.path().join("waifud.db"), &db).unwrap();
    let before = backup::begin_again(&db, Incarnation(0xb)).unwrap();
    assert_eq!(before.revision.incarnation, Incarnation(0xa));
    let config = ControlConfig::new(dir.path().to_owned());
    Server::of(
        dir,
        config,
        Mode::Threads { readers: 1 },
        Arc::new(SystemClock),
        Arc::new(SystemEntropy),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_newer_than_the_backup_is_adopted_completely() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    let today = restored(&yesterday).await;

    yesterday
        .create(&json!({"name": "web", "template": "debian-12", "user_data": USER_DATA, "ssh_keys": [KEY],
                        "memory_bytes": 512 << 20}))
        .await
        .expect(201);
    let record = agent.put().await;
    let report = unmanaged(&agent, &record).await;

    // The restored waifud does not know the instance, and places nothing on the node before its report.
    let agent = today.agent_again(&agent).await;
    let other = today.create_instance("other").await;
    assert_eq!(other.status.state, InstanceState::Pending);
    assert!(other.status.reason.unwrap().contains("after the restore"));
    say(&agent, vec![report]).await;
    let other = today
        .get("/v1/instances/other")
        .await
        .expect(200)
        .instance();
    let address = record.spec.nics[0].address.unwrap();
    assert!(
        other.spec.nics[0].address.is_some_and(|a| a != address),
        "never one address with two owners"
    );

    let node = today.get("/v1/nodes/alder").await.expect(200).json();
    assert_eq!(node["unmanaged"][0]["adoptable"], true);
    assert_eq!(node["unmanaged"][0]["addresses"][0], address.to_string());
    assert!(
        !node
            .to_string()
            .contains(record.bundle.key.expose().as_str()),
        "keys are never shown"
    );

    let path = "/v1/nodes/alder/unmanaged/web/adopt";
    let adopted = today.post(path, &json!({})).await.expect(201).instance();
    assert_eq!(adopted.id, record.id);
    // Only the database was restored, so the image has a row but no file.
    let image = format!("/v1/images/{}", adopted.spec.image);
    let shown = today.get(&image).await.expect(200).json();
    assert_eq!(shown["available"], false);
    let body = json!({"name": "from-it", "image": adopted.spec.image});
    today.post("/v1/templates", &body).await.expect(422);
    agent
        .get(&format!("/v1/agent/images/{}", adopted.spec.image))
        .await
        .expect(503);
    assert_eq!(adopted.spec.nics[0].address, Some(address));
    assert_eq!(adopted.spec.memory_bytes, ByteSize::mib(512));
    let text = today.get("/v1/instances/web/user-data").await.expect(200);
    assert_eq!(String::from_utf8(text.bytes).unwrap(), USER_DATA);
    today.post(path, &json!({})).await.expect(409);
    let promised = today.get("/v1/nodes/alder").await.expect(200).json();
    assert_eq!(
        promised["promised"]["memory_bytes"],
        (512 << 20) + (1_u64 << 30)
    );

    // The node gets exactly what it already has.
    let mut agent = agent;
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    let given = frames.into_iter().find_map(|frame| match frame {
        WatchFrame::Put {
            object: waifud_api::agent::SliceObject::Instance(i),
            ..
        } if i.id == record.id => Some(*i),
        _ => None,
    });
    assert_eq!(given, Some(record));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_from_the_backup_are_marked_until_an_operator_confirms() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    yesterday.create_instance("web").await;
    assert!(!agent.put().await.restored);
    let today = restored(&yesterday).await;
    let mut agent = today.agent_again(&agent).await;
    agent.watch(None).await;
    let (confirmed, restored) = slice(agent.until_sync().await);
    assert_eq!((confirmed, restored), (None, Some(true)));
    today
        .post("/v1/nodes/alder/confirm", &json!({}))
        .await
        .expect(200);
    agent.watch(None).await;
    let (confirmed, restored) = slice(agent.until_sync().await);
    assert_eq!((confirmed, restored), (Some(Incarnation(0xb)), Some(false)));
    assert!(
        today
            .kinds("alder")
            .await
            .contains(&"node.confirmed".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_held_back_after_a_restore_names_the_confirm_command() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    yesterday.create_instance("web").await;
    agent.put().await;
    let today = restored(&yesterday).await;
    let _agent = today.agent_again(&agent).await;
    today.delete("/v1/instances/web").await.expect(202);
    let hint = async || {
        let why = today.get("/v1/instances/web/why").await.expect(200);
        why.json()["hint"].clone()
    };
    let held = hint().await;
    assert!(
        held.as_str()
            .unwrap()
            .contains("waifuctl node confirm alder"),
        "{held}"
    );
    today
        .post("/v1/nodes/alder/confirm", &json!({}))
        .await
        .expect(200);
    assert!(hint().await.is_null());
}

fn slice(frames: Vec<WatchFrame>) -> (Option<Incarnation>, Option<bool>) {
    use waifud_api::agent::SliceObject;
    let mut found = (None, None);
    for frame in frames {
        match frame {
            WatchFrame::Put {
                object: SliceObject::Node(node),
                ..
            } => found.0 = node.confirmed,
            WatchFrame::Put {
                object: SliceObject::Instance(i),
                ..
            } => found.1 = Some(i.restored),
            _ => {}
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmanaged_instance_is_destroyed_on_request_and_conflicts_are_refused() {
    let (server, mut agent) = Server::with_watching_node().await;
    server.create_instance("web").await;
    let mut record = agent.put().await;
    let mut report = unmanaged(&agent, &record).await;
    record.id = waifud_types::InstanceId::generate();
    report.instance = record.id;
    report.record = Some(Box::new(record.clone()));
    let forgotten = Unmanaged {
        instance: waifud_types::InstanceId::generate(),
        name: Some("old".to_owned()),
        record: None,
        bundle: None,
        ..report.clone()
    };
    say(&agent, vec![report, forgotten]).await;
    // Its name is taken, and with another name its MAC address.
    let path = format!("/v1/nodes/alder/unmanaged/{}/adopt", record.id);
    let problem = server.post(&path, &json!({})).await.expect(409).problem();
    assert_eq!(problem.code, "name-taken");
    let problem = server
        .post(&path, &json!({"name": "web-2"}))
        .await
        .expect(409)
        .problem();
    assert_eq!(problem.code, "adopt-conflict");
    server.get("/v1/instances/web-2").await.expect(404);
    let problem = server
        .post("/v1/nodes/alder/unmanaged/old/adopt", &json!({}))
        .await
        .expect(409)
        .problem();
    assert_eq!(problem.code, "not-adoptable");
    server
        .post("/v1/nodes/alder/unmanaged/nothing/adopt", &json!({}))
        .await
        .expect(404);
    // A name in the form of an id could address another instance.
    let other = waifud_types::InstanceId::generate().to_string();
    let problem = server
        .post(&path, &json!({"name": other}))
        .await
        .expect(422)
        .problem();
    assert_eq!(problem.code, "invalid-name");
    // Managed instances are not deleted with this route.
    server
        .delete("/v1/nodes/alder/unmanaged/nothing")
        .await
        .expect(404);
    server
        .delete(&format!("/v1/nodes/alder/unmanaged/{}", record.id))
        .await
        .expect(202);
    let order = agent.tombstone().await;
    assert_eq!((order.instance, order.epoch), (record.id, record.epoch));
    agent.destroyed(order).await;
}
