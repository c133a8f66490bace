//! Unmanaged instances, for example after an old backup was restored: they can be adopted or deleted, and none is lost.

use crate::common::{Agent, Server, hello};
use serde_json::json;
use waifud_api::agent::{AgentInstance, Hello, SliceObject, Unmanaged, WatchFrame};
use waifud_api::hint::{HintAction, HintKind};
use waifud_control::{Cause, ControlConfig};
use waifud_kit::testing::temp_path;
use waifud_store::backup;
use waifud_types::{ByteSize, Epoch, Incarnation, InstanceState, Timestamp, WaitReason};

const USER_DATA: &str = "#cloud-config\nhostname: swordfish\n";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUP7dMLzDzGLqrnXjvMqXPZ2jkFMhPk1rjYxbTZtGbq test";

/// A server whose database was restored from a backup of `of`, with a new incarnation.
pub(crate) async fn restored(of: &Server) -> Server {
    let (dir, db) = temp_path("waifud.db");
    backup::snapshot(&of.dir.path().join("waifud.db"), &db).unwrap();
    let before =
        backup::prepare_restored(&db, Incarnation(0xb), Timestamp::now(), Epoch(0)).unwrap();
    assert_eq!(before.revision.incarnation, Incarnation(0xa));
    let config = ControlConfig::new(dir.path().to_owned());
    Server::with_config(dir, config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_newer_than_the_backup_is_adopted_unchanged() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    let today = restored(&yesterday).await;

    yesterday
        .create(&json!({"name": "web", "template": "debian-12", "user_data": USER_DATA, "ssh_keys": [KEY],
                        "memory_bytes": 512 << 20}))
        .await
        .expect(201);
    let record = agent.put().await;
    let report = agent.unmanaged(&record).await;

    // The restored waifud does not know the instance. It places nothing on the node before the node has reported its
    // instances.
    let agent = today.agent_again(&agent).await;
    let other = today.create_instance("other").await;
    assert_eq!(other.status.state, InstanceState::Pending);
    let node = "alder".parse().unwrap();
    assert_eq!(
        other.status.wait_reason(),
        Some(WaitReason::NodeNotReported { node })
    );
    agent.report_unmanaged(vec![report]).await;
    let other = today.instance("other").await;
    let address = record.spec.nics[0].address.unwrap();
    assert!(
        other.spec.nics[0].address.is_some_and(|a| a != address),
        "the address of the unmanaged instance is not given to another"
    );

    let node = today.node("alder").await;
    assert_eq!(node["unmanaged"][0]["adoptable"], true);
    assert_eq!(node["unmanaged"][0]["addresses"][0], address.to_string());
    assert!(
        !node
            .to_string()
            .contains(record.bundle.key.expose().as_str()),
        "the key of the bundle is not shown"
    );

    let path = "/v1/nodes/alder/unmanaged/web/adopt";
    let adopted = today.post(path, &json!({})).await.expect(201).instance();
    assert_eq!(adopted.id, record.id);
    // Only the database was restored, so the file of the image is missing.
    let image = format!("/v1/images/{}", adopted.spec.image);
    let shown = today.get(&image).await.expect(200).json();
    assert_eq!(shown["available"], false);
    let body = json!({"name": "from-it", "image": adopted.spec.image});
    today.post("/v1/templates", &body).await.expect(422);
    agent.image(adopted.spec.image).await.expect(503);
    assert_eq!(adopted.spec.nics[0].address, Some(address));
    assert_eq!(adopted.spec.memory_bytes, ByteSize::mib(512));
    let text = today.get("/v1/instances/web/user-data").await.expect(200);
    assert_eq!(String::from_utf8(text.bytes).unwrap(), USER_DATA);
    today.post(path, &json!({})).await.expect(409);
    let promised = today.node("alder").await;
    assert_eq!(
        promised["promised"]["memory_bytes"],
        (512 << 20) + (1_u64 << 30)
    );

    // The node gets the instance that it has, in the epoch that it has.
    let mut agent = agent;
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    let given = frames.into_iter().find_map(|frame| match frame {
        WatchFrame::Put {
            object: SliceObject::Instance(i),
            ..
        } if i.id == record.id => Some(*i),
        _ => None,
    });
    assert_eq!(given, Some(record));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_instance_keeps_its_epoch_and_one_that_is_being_deleted_is_not_adopted() {
    let (server, mut agent, copies) = with_unmanaged_copies(&["web", "db"]).await;
    let adopt = |name: &str| format!("/v1/nodes/alder/unmanaged/{name}/adopt");
    server.post(&adopt("web"), &json!({})).await.expect(201);
    let put = agent.put().await;
    let (web, db) = (&copies[0], &copies[1]);
    let epoch = web.record.as_ref().unwrap().epoch;
    assert_eq!((put.id, put.epoch), (web.instance, epoch));
    server
        .delete("/v1/nodes/alder/unmanaged/db")
        .await
        .expect(202);
    let problem = server.post(&adopt("db"), &json!({})).await.expect(409);
    assert_eq!(problem.problem().code, "deleting");
    assert_eq!(agent.tombstone().await.instance, db.instance);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_not_adopted_while_another_node_has_a_newer_one() {
    let (server, _agent, copies) = with_unmanaged_copies(&["web"]).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let mut newer = copies[0].clone();
    let record = newer.record.as_mut().unwrap();
    record.epoch = record.epoch.next();
    birch.report_unmanaged(vec![newer]).await;
    let adopt = async |node: &str| {
        let path = format!("/v1/nodes/{node}/unmanaged/web/adopt");
        server.post(&path, &json!({})).await
    };
    let problem = adopt("alder").await.expect(409).problem();
    assert_eq!(problem.code, "newer-copy");
    assert!(problem.title.starts_with("birch has"), "{}", problem.title);
    adopt("birch").await.expect(201);
}

/// A server that knows none of the instances that its watching node `alder` reports.
async fn with_unmanaged_copies(names: &[&str]) -> (Server, Agent, Vec<Unmanaged>) {
    let (before, mut agent) = Server::with_watching_node().await;
    let mut copies = Vec::new();
    for name in names {
        before.create_instance(name).await;
        let copy = agent.put().await;
        copies.push(agent.unmanaged(&copy).await);
    }
    let (server, mut agent) = Server::with_watching_node().await;
    agent.report_unmanaged(copies.clone()).await;
    agent.watch_from_now().await;
    (server, agent, copies)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_no_handover_begins_before_every_node_is_confirmed_and_has_reported() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    let web = yesterday.create_instance("web").await;
    agent.put().await;
    let today = restored(&yesterday).await;
    let agent = today.agent_again(&agent).await;
    let refused = async |part: &str| {
        let release = today.control.begin_release(web.id, true, Cause::system());
        let error = release.await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused("alder is not confirmed").await;
    confirm(&today).await;
    refused("alder has not reported its instances").await;
    // A node that the backup does not contain has a newer copy.
    let birch = today.join("birch", ByteSize::gib(8)).await;
    let mut newer = agent_record(&today, &agent).await;
    newer.epoch = newer.epoch.next();
    let report = agent.unmanaged(&newer).await;
    agent.report_unmanaged(Vec::new()).await;
    birch.report_unmanaged(vec![report]).await;
    refused("birch has a newer copy").await;
    birch.report_unmanaged(Vec::new()).await;

    let release = today.control.begin_release(web.id, true, Cause::system());
    release.await.unwrap();
    let withdraw = today.control.withdraw_release(web.id, Cause::system());
    withdraw.await.unwrap();
    let again = agent_record(&today, &agent).await;
    assert!(again.epoch > Epoch(1_700_000_000), "{}", again.epoch);
}

/// The only instance of the node's slice.
async fn agent_record(server: &Server, agent: &Agent) -> AgentInstance {
    let mut agent = server.agent_again(agent).await;
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    let found = frames.into_iter().find_map(|frame| match frame {
        WatchFrame::Put {
            object: SliceObject::Instance(instance),
            ..
        } => Some(*instance),
        _ => None,
    });
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_instances_are_marked_until_an_administrator_confirms_the_node() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    yesterday.create_instance("web").await;
    assert!(!agent.put().await.restored);
    let today = restored(&yesterday).await;
    let mut agent = today.agent_again(&agent).await;
    assert_eq!(marks(&mut agent).await, (None, Some(true)));
    confirm(&today).await;
    assert_eq!(
        marks(&mut agent).await,
        (Some(Incarnation(0xb)), Some(false))
    );
    assert!(
        today
            .kinds("alder")
            .await
            .contains(&"node.confirmed".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_on_an_unconfirmed_node_has_the_hint_to_confirm_it() {
    let (yesterday, mut agent) = Server::with_watching_node().await;
    yesterday.create_instance("web").await;
    agent.put().await;
    let today = restored(&yesterday).await;
    let _agent = today.agent_again(&agent).await;
    today.delete("/v1/instances/web").await.expect(202);
    let hint = async || {
        let why = today.why("web").await;
        (why["hint"].clone(), why["hints"].clone())
    };
    let (text, held) = hint().await;
    assert_eq!(text, "confirm node alder");
    assert_eq!(held[0]["action"], "confirm", "{held}");
    let alder = json!({"type": "node", "name": "alder"});
    assert_eq!(held[0]["object"], alder, "{held}");
    confirm(&today).await;
    let (text, none) = hint().await;
    assert!(text.is_null() && none == json!([]), "{none}");
}

async fn confirm(server: &Server) {
    let path = "/v1/nodes/alder/confirm";
    server.post(path, &json!({})).await.expect(200);
}

/// For which incarnation the node is confirmed, and whether its instance is marked as restored.
async fn marks(agent: &mut Agent) -> (Option<Incarnation>, Option<bool>) {
    let mut found = (None, None);
    agent.watch(None).await;
    for frame in agent.until_sync().await {
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
async fn unmanaged_instances_can_be_deleted_and_conflicting_adoptions_are_refused() {
    let (server, mut agent) = Server::with_watching_node().await;
    server.create_instance("web").await;
    let mut record = agent.put().await;
    let mut report = agent.unmanaged(&record).await;
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
    agent
        .report_unmanaged(vec![report.clone(), forgotten.clone()])
        .await;
    // Its name is taken, and under another name its MAC is.
    let path = format!("/v1/nodes/alder/unmanaged/{}/adopt", record.id);
    let refused = async |path: &str, body: serde_json::Value| {
        let problem = server.post(path, &body).await.problem();
        (problem.status, problem.code)
    };
    let named = async |name: &str| refused(&path, json!({"name": name})).await;
    let conflict = |code: &str| (409, code.to_owned());
    assert_eq!(refused(&path, json!({})).await, conflict("name-taken"));
    assert_eq!(named("web-2").await, conflict("adopt-conflict"));
    server.get("/v1/instances/web-2").await.expect(404);
    let old = "/v1/nodes/alder/unmanaged/old/adopt";
    assert_eq!(refused(old, json!({})).await, conflict("not-adoptable"));
    server
        .post("/v1/nodes/alder/unmanaged/nothing/adopt", &json!({}))
        .await
        .expect(404);
    let namesake = Unmanaged {
        instance: waifud_types::InstanceId::generate(),
        ..forgotten.clone()
    };
    agent
        .report_unmanaged(vec![report.clone(), forgotten.clone(), namesake])
        .await;
    let problem = server.post(old, &json!({})).await.expect(409).problem();
    assert_eq!(problem.code, "ambiguous-name");
    let node = (HintAction::Show, HintKind::Node);
    let mut hints = problem.hints.iter();
    assert!(hints.any(|hint| hint.is(&node.0, node.1, "alder")));
    agent.report_unmanaged(vec![report, forgotten]).await;
    // A name in the form of an ID could be mistaken for another instance.
    let other = waifud_types::InstanceId::generate().to_string();
    assert_eq!(named(&other).await, (422, "invalid-name".to_owned()));
    // An object that does not exist cannot be deleted.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_a_restored_database_does_not_contain_reports_before_it_is_given_instances() {
    let yesterday = Server::with_template().await;
    let agent = yesterday.admit("alder").await;
    let today = restored(&yesterday).await;
    // Since the backup, the node was in contact and got instances.
    let hello = Hello {
        incarnation: Some(Incarnation(0xa)),
        ..hello("alder", ByteSize::gib(8))
    };
    let mut agent = today.agent_of(&agent);
    agent.hello(&hello).await.expect(200);
    let web = today.create_instance("web").await;
    let node = "alder".parse().unwrap();
    assert_eq!(
        web.status.wait_reason(),
        Some(WaitReason::NodeNotReported { node })
    );
    agent.report_unmanaged(Vec::new()).await;
    let web = today.instance("web").await;
    assert_eq!(web.status.node, "alder".parse().ok());
    assert_eq!(marks(&mut agent).await.0, None, "not confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_needs_no_confirmation_of_a_restore() {
    let server = Server::with_template().await;
    let mut agent = server.admit("alder").await;
    let present = server.control.store().incarnation();
    let hello = Hello {
        incarnation: Some(Incarnation(present.0 + 1)),
        ..hello("alder", ByteSize::gib(8))
    };
    agent.hello(&hello).await.expect(200);
    assert_eq!(marks(&mut agent).await.0, Some(present));
    // Guests of the other cluster may run there, so their addresses are not given to instances.
    let web = server.create_instance("web").await;
    let node = "alder".parse().unwrap();
    assert_eq!(
        web.status.wait_reason(),
        Some(WaitReason::NodeNotReported { node })
    );
    agent.report_unmanaged(Vec::new()).await;
    let web = server.instance("web").await;
    assert_eq!(web.status.node, "alder".parse().ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_deletion_of_an_unmanaged_instance_is_not_ordered_again() {
    let (server, mut agent, _copies) = with_unmanaged_copies(&["web", "db"]).await;
    let delete = "/v1/nodes/alder/unmanaged/web";
    server.delete(delete).await.expect(202);
    server.delete(delete).await.expect(202);
    agent.confirm_deletion().await;
    // The node has not reported its list without the instance yet.
    server.delete(delete).await.expect(404);
    let kinds = server.kinds("web").await;
    let orders = kinds.iter().filter(|kind| *kind == "instance.deleting");
    assert_eq!(orders.count(), 1, "{kinds:?}");
    let shown = server.node("alder").await["unmanaged"].clone();
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
}
