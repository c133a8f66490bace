//! Dead machines: cordons, forced removal, instances that are recreated elsewhere, and machines that come back after all.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use waifud_api::Instance;
use waifud_api::agent::{
    AgentInstance, Release, SliceKey, SliceObject, Tombstone, Unmanaged, WatchFrame,
};
use waifud_api::hint::{HintAction, HintKind};
use waifud_types::{ByteSize, InstanceState, OwnershipRole, WaitReason};

use crate::common::{Agent, ManualClock, Server, assert_contains, hello};
use crate::unmanaged::restored;

const FORCED: &str = "/v1/nodes/alder?force=true&confirm_off=true";
const RECREATE: &str = "/v1/instances/web/recreate";

/// A server with the instance `web` on `alder`, and what the node knows of it. No other node has joined.
async fn with_web_on_alder() -> (Server, Arc<ManualClock>, AgentInstance, Unmanaged) {
    let (server, clock) = Server::with_manual_clock().await;
    server.template().await;
    let mut alder = server.join("alder", ByteSize::gib(8)).await;
    alder.watch_from_now().await;
    let body = json!({"name": "web", "template": "debian-12", "labels": {"tier": "front"},
        "user_data": "#!/bin/sh\n", "placement": {"node": "alder"}});
    server.created(&body).await;
    let record = alder.put().await;
    let unmanaged = alder.unmanaged(&record).await;
    (server, clock, record, unmanaged)
}

/// Marks every node as unreachable.
async fn all_off(server: &Server, clock: &ManualClock) {
    clock.forward(Duration::from_mins(10));
    server.control.check_contacts().await.unwrap();
}

/// The same server after `alder` was removed by force.
async fn with_lost_web() -> (Server, AgentInstance, Unmanaged) {
    let (server, clock, record, unmanaged) = with_web_on_alder().await;
    all_off(&server, &clock).await;
    server.delete(FORCED).await.expect(204);
    (server, record, unmanaged)
}

async fn recreate(server: &Server, body: &Value) -> Instance {
    server.post(RECREATE, body).await.expect(200).instance()
}

async fn parts(server: &Server, web: &Instance) -> Vec<(OwnershipRole, u64)> {
    let id = web.id;
    let parts = server.control.store().read(move |tx| tx.ownership(id));
    let parts = parts.await.unwrap().into_iter();
    parts.map(|part| (part.role, part.epoch.0)).collect()
}

#[tokio::test]
async fn a_cordoned_node_gets_no_new_instance_and_keeps_those_that_it_has() {
    let (server, _alder, web) = Server::with_placed_instance().await;
    let cordon = |cordoned: bool| json!({ "cordoned": cordoned });
    let node = server.patch("/v1/nodes/alder", &cordon(true)).await;
    let node = node.expect(200).json();
    assert_eq!(
        (&node["state"], &node["cordoned"]),
        (&json!("cordoned"), &json!(true))
    );
    let before = server.control.store().revision();
    server
        .patch("/v1/nodes/alder", &cordon(true))
        .await
        .expect(200);
    assert_eq!(server.control.store().revision(), before, "nothing changed");

    let db = server.create_instance("db").await;
    assert_eq!(db.status.wait_reason(), Some(WaitReason::AllCordoned));
    assert_eq!(server.instance("web").await.status.node, web.status.node);
    let why = server.why("db").await;
    let uncordon = json!({"type": "node", "name": "alder"});
    let hints = why["hints"].as_array().unwrap();
    assert!(
        hints
            .iter()
            .any(|hint| hint["action"] == "uncordon" && hint["object"] == uncordon),
        "{hints:?}"
    );

    server
        .patch("/v1/nodes/alder", &cordon(false))
        .await
        .expect(200);
    assert_eq!(server.node_of("db").await.as_deref(), Some("alder"));
    let kinds = server.kinds("alder").await;
    assert_eq!(
        kinds[kinds.len() - 2..],
        ["node.cordoned", "node.uncordoned"]
    );
}

#[tokio::test]
async fn a_cordon_of_a_node_that_is_off_is_kept_until_it_returns() {
    let (server, clock) = Server::with_manual_clock().await;
    server.template().await;
    let alder = server.join("alder", ByteSize::gib(8)).await;
    all_off(&server, &clock).await;
    let body = json!({"cordoned": true});
    server.patch("/v1/nodes/alder", &body).await.expect(200);
    let node = server.node("alder").await;
    assert_eq!(
        (&node["state"], &node["cordoned"]),
        (&json!("unreachable"), &json!(true))
    );
    let welcome = alder.hello(&hello("alder", ByteSize::gib(8))).await;
    welcome.expect(200);
    assert_eq!(server.node("alder").await["state"], "cordoned");
    assert_eq!(server.create_instance("web").await.status.node, None);
}

#[tokio::test]
async fn a_node_with_instances_is_removed_only_if_it_is_off_and_that_is_confirmed() {
    let (server, clock, ..) = with_web_on_alder().await;
    let before = server.footprint().await;
    let refused = server.delete("/v1/nodes/alder?force=true").await;
    refused.refused(409, "off-not-confirmed", "confirm_off");
    server
        .delete(FORCED)
        .await
        .refused(409, "node-reachable", "force");
    assert_eq!(server.footprint().await, before);

    all_off(&server, &clock).await;
    let problem = server.delete("/v1/nodes/alder").await;
    let problem = problem.refused(409, "node-in-use", "name");
    let mut hints = problem.hints.iter();
    assert!(hints.any(|hint| hint.is(&HintAction::RemoveForced, HintKind::Node, "alder")));
    // Neither is an instance recreated whose node may come back.
    let problem = server.post(RECREATE, &json!({})).await;
    let problem = problem.refused(409, "not-lost", "name");
    assert!(
        problem.title.contains("alder, which is unreachable"),
        "{}",
        problem.title
    );

    server.delete(FORCED).await.expect(204);
    server.get("/v1/nodes/alder").await.expect(404);
    let web = server.instance("web").await;
    assert_eq!(
        (web.status.state, &web.status.node),
        (InstanceState::Failed, &None)
    );
    assert_eq!(
        web.status.reason.as_deref(),
        Some("node alder, which has its disks, was removed")
    );
    assert_eq!(server.kinds("web").await.last().unwrap(), "instance.lost");
    assert!(
        server.why("web").await["hint"]
            .as_str()
            .unwrap()
            .contains("recreate instance web")
    );
}

#[tokio::test]
async fn a_node_can_ask_whether_it_is_still_admitted() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let own = "/v1/agent/node";
    let answer = alder.get(own).await.expect(200).json();
    assert_eq!(answer["node"], alder.id.to_string());
    server.delete("/v1/nodes/alder").await.expect(204);
    let problem = alder.get(own).await.expect(403).problem();
    assert_eq!(problem.code, "not-admitted");
    // Joined again with another key.
    let again = server.join("alder", ByteSize::gib(8)).await;
    again.get(own).await.expect(200);
    alder.get(own).await.expect(403);
}

#[tokio::test]
async fn an_instance_of_a_removed_node_is_created_again_only_on_request() {
    let (server, record, _) = with_lost_web().await;
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    server.control.retry_waiting(true).await.unwrap();
    let label = json!({"labels": {"x": "y"}});
    server.patch("/v1/nodes/birch", &label).await.expect(200);
    // Neither does a change of what decides about its placement.
    let change = json!({"memory_bytes": 3_u64 << 30, "publish": [{"port": 8080}], "placement": {"node": "birch"}});
    server.patched("web", &change).await;
    let web = server.instance("web").await;
    assert_eq!(
        (web.status.state, &web.status.node),
        (InstanceState::Failed, &None)
    );

    let before = server.footprint().await;
    let nowhere = json!({"node": "cedar"});
    let refused = server.post(RECREATE, &nowhere).await;
    refused.refused(422, "unknown-node", "node");
    assert_eq!(server.footprint().await, before);

    birch.watch_from_now().await;
    let again = recreate(&server, &json!({})).await;
    assert_eq!(again.spec.memory_bytes, ByteSize::gib(3));
    assert_eq!(server.node_of("web").await.as_deref(), Some("birch"));
    let put = birch.put().await;
    assert_eq!((put.id, put.name.as_str()), (record.id, "web"));
    assert!(put.epoch > record.epoch);
    assert_eq!(put.spec.nics[0].mac, record.spec.nics[0].mac);
    assert_eq!(put.spec.nics[0].address, record.spec.nics[0].address);
    assert_eq!(put.home.unwrap().to_string(), "10.144.1.0/24");
    assert_eq!(again.labels["tier"], "front");
    let documents = birch.documents(&put.bundle).await;
    assert_eq!(documents.user_data(), Some("#!/bin/sh\n"));
    let problem = server.post(RECREATE, &json!({})).await;
    problem.refused(409, "not-lost", "name");
    assert_eq!(
        server.node("birch").await["promised"]["memory_bytes"],
        put.spec.memory_bytes.bytes()
    );
}

#[tokio::test]
async fn a_recreated_instance_gets_another_address_where_its_own_is_not_carried() {
    for before_the_loss in [true, false] {
        let (server, clock, record, _) = with_web_on_alder().await;
        if before_the_loss {
            server.set_fabric("none").await.expect(200);
        }
        all_off(&server, &clock).await;
        server.delete(FORCED).await.expect(204);
        let mut birch = server.join("birch", ByteSize::gib(8)).await;
        server.set_fabric("none").await.expect(200);
        birch.watch_from_now().await;
        recreate(&server, &json!({})).await;
        let put = birch.put().await;
        let address = put.spec.nics[0].address.unwrap();
        assert!(address.to_string().starts_with("10.144.2."), "{address}");
        assert_eq!((put.id, put.home), (record.id, None));
    }
}

#[tokio::test]
async fn a_recreated_instance_waits_if_no_node_can_run_it_and_can_be_deleted() {
    let (server, ..) = with_lost_web().await;
    let web = recreate(&server, &json!({})).await;
    // It was pinned to a node that does not exist any more.
    assert_eq!(web.spec.placement.node, None);
    assert_eq!(web.status.state, InstanceState::Pending);
    assert_eq!(web.status.wait_reason(), Some(WaitReason::NoNodes));
    server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(server.node_of("web").await.as_deref(), Some("birch"));

    let (server, ..) = with_lost_web().await;
    server.delete("/v1/instances/web").await.expect(200);
    server.get("/v1/instances/web").await.expect(404);
}

/// Sends a report of unmanaged objects from `alder`, which has joined again.
async fn returned(server: &Server, unmanaged: &Unmanaged) -> Agent {
    let mut alder = server.join("alder", ByteSize::gib(8)).await;
    alder.watch_from_now().await;
    alder.report_unmanaged(vec![unmanaged.clone()]).await;
    alder
}

#[tokio::test]
async fn a_machine_that_returns_gets_its_subnet_back_and_its_instances_are_adopted() {
    let (server, record, unmanaged) = with_lost_web().await;
    let mut alder = server.join("alder", ByteSize::gib(8)).await;
    assert_eq!(server.node("alder").await["subnets"][0], "10.144.1.0/24");
    // Its addresses are not known yet.
    let db = server.create_instance("db").await;
    let node = "alder".parse().unwrap();
    assert_eq!(
        db.status.wait_reason(),
        Some(WaitReason::NodeNotReported { node })
    );
    alder.report_unmanaged(vec![unmanaged]).await;
    let address = record.spec.nics[0].address;
    let db = server.instance("db").await;
    assert!(
        db.spec.nics[0]
            .address
            .is_some_and(|other| Some(other) != address)
    );

    // New disks are not made while a node has the old ones.
    let problem = server.post(RECREATE, &json!({})).await;
    let problem = problem.refused(409, "copy-exists", "name");
    let adopt = HintAction::Adopt { rename: false };
    let mut hints = problem.hints.iter();
    assert!(hints.any(|hint| hint.is(&adopt, HintKind::Instance, "web")));

    alder.watch_from_now().await;
    let path = "/v1/nodes/alder/unmanaged/web/adopt";
    let web = server.post(path, &json!({})).await.expect(201).instance();
    assert_eq!((web.id, web.spec.nics[0].address), (record.id, address));
    assert_eq!(web.labels["tier"], "front");
    let put = alder.put().await;
    // Another epoch than before: the node may have recorded a release of the old one.
    assert_eq!(put.id, record.id);
    assert!(put.epoch > record.epoch);
    assert!(put.generation >= record.generation);
}

#[tokio::test]
async fn a_node_of_another_name_does_not_get_the_subnet_of_a_removed_one() {
    let (server, ..) = with_lost_web().await;
    server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(server.node("birch").await["subnets"][0], "10.144.2.0/24");
}

#[tokio::test]
async fn the_older_copy_of_a_recreated_instance_is_shut_down_kept_and_deleted_on_request() {
    let (server, record, mut unmanaged) = with_lost_web().await;
    server.join("birch", ByteSize::gib(8)).await;
    let web = recreate(&server, &json!({})).await;
    let mut alder = returned(&server, &unmanaged).await;
    let order = Release {
        instance: record.id,
        epoch: record.epoch,
        stop: true,
    };
    match alder.frame().await {
        WatchFrame::Release { release, .. } => assert_eq!(release, order),
        other => panic!("a release was expected, not {other:?}"),
    }
    assert!(
        server
            .kinds("web")
            .await
            .contains(&"instance.older-copy".to_owned())
    );
    let shown = async || server.node("alder").await["unmanaged"].clone();
    let delete = "/v1/nodes/alder/unmanaged/web";
    // While its guest may run, the copy is not destroyed, and its address is not free.
    server.delete(delete).await.expect(409);
    alder.report_unmanaged(Vec::new()).await;
    assert_eq!(shown().await[0]["running"], true);
    let address = unmanaged.addresses[0];
    let body = json!({"name": "db", "template": "debian-12", "placement": {"node": "alder"}});
    let db = server.created(&body).await;
    assert!(
        db.spec.nics[0]
            .address
            .is_some_and(|other| other != address)
    );
    alder.put().await;

    alder.report_released(record.id, record.epoch).await;
    // It leaves the slice, so the node reports it again.
    match alder.frame().await {
        WatchFrame::Delete { key, .. } => assert_eq!(key, SliceKey::Instance(record.id)),
        other => panic!("a deletion from the slice was expected, not {other:?}"),
    }
    let owner = (OwnershipRole::Owner, web_epoch(&server, &web).await);
    assert_eq!(parts(&server, &web).await, [owner]);
    unmanaged.running = false;
    alder.report_unmanaged(vec![unmanaged]).await;
    let kept = shown().await;
    assert_eq!(kept.as_array().unwrap().len(), 1, "{kept}");
    assert_eq!(
        (&kept[0]["instance"], &kept[0]["running"]),
        (&json!(record.id), &json!(false))
    );
    assert_eq!(kept[0]["adoptable"], false, "web is on birch");
    assert_eq!(server.node_of("web").await.as_deref(), Some("birch"));
    // One that is off needs no order.
    assert_eq!(parts(&server, &web).await, [owner]);

    server.delete(delete).await.expect(202);
    let tombstone = alder.tombstone().await;
    assert_eq!(
        (tombstone.instance, tombstone.epoch),
        (record.id, record.epoch)
    );
}

/// A server on which `web` runs on `birch`, and `alder` has an older copy of it, which it shuts down.
async fn with_older_copy() -> (Server, Arc<ManualClock>, Agent, Instance, Unmanaged) {
    let (server, clock, _record, unmanaged) = with_web_on_alder().await;
    all_off(&server, &clock).await;
    server.delete(FORCED).await.expect(204);
    server.join("birch", ByteSize::gib(8)).await;
    let web = recreate(&server, &json!({})).await;
    let mut alder = returned(&server, &unmanaged).await;
    let order = alder.frame().await;
    assert!(matches!(order, WatchFrame::Release { .. }), "{order:?}");
    assert_eq!(parts(&server, &web).await.len(), 2);
    (server, clock, alder, web, unmanaged)
}

/// Receives frames until an instance has left the slice.
async fn leaves_the_slice(agent: &mut Agent) {
    loop {
        if let WatchFrame::Delete {
            key: SliceKey::Instance(_),
            ..
        } = agent.any_frame().await
        {
            return;
        }
    }
}

#[tokio::test]
async fn deleting_a_recreated_instance_leaves_its_older_copy_on_its_node() {
    let (server, clock, mut alder, web, mut unmanaged) = with_older_copy().await;
    server.delete("/v1/instances/web").await.expect(202);
    leaves_the_slice(&mut alder).await;
    assert_eq!(
        parts(&server, &web).await.len(),
        1,
        "birch destroys its own"
    );
    unmanaged.running = false;
    let released = unmanaged.record.as_ref().unwrap().epoch;
    alder.report_unmanaged(vec![unmanaged]).await;
    let adoptable = async || server.node("alder").await["unmanaged"][0]["adoptable"].clone();
    assert_eq!(adoptable().await, false, "birch still has the new copy");

    // When the new copy is gone, the old one is adopted, in an epoch that the node has not released.
    all_off(&server, &clock).await;
    let forced = "/v1/nodes/birch?force=true&confirm_off=true";
    server.delete(forced).await.expect(204);
    server.get("/v1/instances/web").await.expect(404);
    assert_eq!(adoptable().await, true);
    let path = "/v1/nodes/alder/unmanaged/web/adopt";
    let adopted = server.post(path, &json!({})).await.expect(201).instance();
    assert_eq!(adopted.id, web.id);
    assert_eq!(web_epoch(&server, &web).await, released.0 + 1);
}

#[tokio::test]
async fn a_dead_node_is_removed_although_another_one_has_an_older_copy_and_that_is_adopted() {
    let (server, clock, mut alder, web, mut unmanaged) = with_older_copy().await;
    all_off(&server, &clock).await;
    let forced = "/v1/nodes/birch?force=true&confirm_off=true";
    server.delete(forced).await.expect(204);
    assert_eq!(server.node_of("web").await, None);
    assert_eq!(parts(&server, &web).await, []);
    leaves_the_slice(&mut alder).await;
    unmanaged.running = false;
    let old = unmanaged.record.clone().unwrap();
    alder.report_unmanaged(vec![unmanaged]).await;
    let refused = server.post(RECREATE, &json!({})).await;
    refused.refused(409, "copy-exists", "name");
    let path = "/v1/nodes/alder/unmanaged/web/adopt";
    let adopted = server.post(path, &json!({})).await.expect(201).instance();
    assert_eq!(adopted.id, web.id);
    // Newer than both copies, so that the node takes it although it has recorded a release.
    assert!(web_epoch(&server, &web).await > old.epoch.0 + 1);
    assert!(adopted.generation > web.generation);
}

#[tokio::test]
async fn a_recreated_instance_waits_while_a_machine_that_has_returned_has_its_disks() {
    let (server, record, unmanaged) = with_lost_web().await;
    let web = recreate(&server, &json!({})).await;
    assert_eq!(web.status.wait_reason(), Some(WaitReason::NoNodes));
    let alder = returned(&server, &unmanaged).await;
    let node = "alder".parse().unwrap();
    let waits = server.instance("web").await.status.wait_reason();
    assert_eq!(waits, Some(WaitReason::CopyExists { node }));
    assert_eq!(parts(&server, &web).await, []);
    server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(server.node_of("web").await, None, "also not elsewhere");
    let why = server.why("web").await;
    assert_contains(&why["hint"], "adopt instance web");

    // Without the copy, it is placed.
    server
        .delete("/v1/nodes/alder/unmanaged/web")
        .await
        .expect(202);
    let destroyed = Tombstone {
        instance: record.id,
        name: record.name.clone(),
        epoch: record.epoch,
    };
    alder.destroyed(destroyed).await;
    assert!(server.node_of("web").await.is_some());
}

#[tokio::test]
async fn nothing_is_recreated_before_a_restored_database_is_confirmed() {
    let (server, ..) = with_lost_web().await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let today = restored(&server).await;
    let refused = today.post(RECREATE, &json!({})).await;
    refused.refused(409, "restore-unconfirmed", "name");
    today.agent_again(&birch).await;
    let confirm = "/v1/nodes/birch/confirm";
    today.post(confirm, &json!({})).await.expect(200);
    recreate(&today, &json!({})).await;
}

#[tokio::test]
async fn no_copy_is_shut_down_before_a_restored_database_is_confirmed() {
    let (server, _record, unmanaged) = with_lost_web().await;
    server.join("birch", ByteSize::gib(8)).await;
    let cedar = server.join("cedar", ByteSize::gib(8)).await;
    recreate(&server, &json!({"node": "birch"})).await;
    let today = restored(&server).await;
    let cedar = today.agent_again(&cedar).await;
    cedar.report_unmanaged(vec![unmanaged]).await;
    let web = today.instance("web").await;
    assert_eq!(parts(&today, &web).await.len(), 1);
    let confirm = "/v1/nodes/cedar/confirm";
    today.post(confirm, &json!({})).await.expect(200);
    assert_eq!(parts(&today, &web).await.len(), 2);
}

async fn web_epoch(server: &Server, web: &Instance) -> u64 {
    let id = web.id;
    let row = server.control.store().read(move |tx| tx.instance(id));
    row.await.unwrap().unwrap().epoch.0
}

#[tokio::test]
async fn an_unmanaged_copy_of_the_present_epoch_gets_no_release() {
    let (server, _clock, _record, unmanaged) = with_web_on_alder().await;
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    birch.watch_from_now().await;
    birch.report_unmanaged(vec![unmanaged]).await;
    let web = server.instance("web").await;
    assert_eq!(parts(&server, &web).await.len(), 1);
    // The watch sends nothing but the next instance.
    let body = json!({"name": "db", "template": "debian-12", "placement": {"node": "birch"}});
    server.created(&body).await;
    let next = birch.frame().await;
    assert!(
        matches!(&next, WatchFrame::Put { object: SliceObject::Instance(it), .. } if it.name.as_str() == "db"),
        "{next:?}"
    );
}
