//! The lifecycle of an instance, with an agent driven by a test.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod common;

use std::time::Duration;

use axum::http::Method;
use common::{DEADLINE, Server, report};
use serde_json::json;
use waifud_api::agent::{AgentReport, SliceObject, WatchFrame};
use waifud_types::status::{ReadyBy, StepStatus};
use waifud_types::{ByteSize, Generation, InstanceState, Timestamp};

/// The user-data in the sealed documents.
fn user_data(documents: &waifud_cloudinit::Documents) -> serde_json::Value {
    serde_json::to_value(documents).unwrap()["user_data"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_created_started_ready_and_deleted() {
    let server = Server::start().await;
    let image = server.template().await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    agent.watch(None).await;
    let slice = agent.until_sync().await;
    assert!(
        matches!(&slice[..], [WatchFrame::Put { object: SliceObject::Node(node), .. }]
            if node.subnet.to_string() == "10.144.1.0/24" && node.gateway.to_string() == "10.144.1.1"),
        "{slice:?}"
    );

    let created = server
        .create(&json!({"name": "web", "template": "debian-12", "user_data": "#cloud-config\n{}", "memory_bytes": 1u64 << 30}))
        .await
        .expect(201);
    assert_eq!(created.headers.get("etag").unwrap(), "\"1\"");
    let created = created.instance();
    assert_eq!(created.status.node.as_ref().unwrap().as_str(), "alder");
    assert_eq!(
        created.status.addresses[0].address.to_string(),
        "10.144.1.2"
    );

    let put = agent.put().await;
    assert_eq!(
        (put.id, put.spec.image, put.generation),
        (created.id, image, Generation::FIRST)
    );
    let bundle = agent
        .get(&format!("/v1/agent/bundles/{}", put.bundle.digest))
        .await
        .expect(200);
    assert_eq!(bundle.bytes.len() as u64, put.bundle.size_bytes);
    let documents =
        waifud_cloudinit::open(&bundle.bytes, put.bundle.digest, &put.bundle.key).unwrap();
    assert_eq!(documents.instance(), created.id);
    assert_eq!(user_data(&documents), "#cloud-config\n{}");
    let bits = agent
        .get(&format!("/v1/agent/images/{image}"))
        .await
        .expect(200);
    assert_eq!(common::digest(&bits.bytes), image);

    let waiting = {
        let control = server.control.clone();
        tokio::spawn(async move {
            use waifud_control::instances::read::Goal;
            control.wait_for(created.id, Goal::Ready, DEADLINE).await
        })
    };
    for state in [
        InstanceState::Preparing,
        InstanceState::Starting,
        InstanceState::Running,
    ] {
        agent.send_report(report(created.id, state)).await;
    }
    let mut ready = report(created.id, InstanceState::Running);
    ready.ready = true;
    ready.ready_by = Some(ReadyBy::PhoneHome);
    agent.send_report(ready).await;
    let outcome = waiting.await.unwrap().unwrap();
    assert!(
        matches!(outcome, waifud_control::instances::read::Waited::Reached(i) if i.status.ready)
    );

    let deleted = server
        .delete("/v1/instances/web")
        .await
        .expect(202)
        .instance();
    assert_eq!(deleted.status.state, InstanceState::Deleting);
    server
        .create(&json!({"name": "web", "template": "debian-12"}))
        .await
        .expect(409);
    let tombstone = agent.tombstone().await;
    assert_eq!(tombstone.instance, created.id);
    server.delete("/v1/instances/web").await.expect(202);
    agent.destroyed(tombstone).await;
    server.get("/v1/instances/web").await.expect(404);
    server.create_instance("web").await;
    let again = agent.put().await;
    assert_eq!(
        again.spec.nics[0].address.unwrap().to_string(),
        "10.144.1.2",
        "the address is free again"
    );

    assert_eq!(
        server.kinds(&created.id.to_string()).await,
        [
            "instance.created",
            "instance.placed",
            "instance.preparing",
            "instance.starting",
            "instance.started",
            "instance.ready",
            "instance.deleting",
            "instance.deleted",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_shown_and_never_stored() {
    let (server, agent) = Server::with_node().await;
    let id = server.create_instance("web").await.id;
    agent
        .send_report(report(id, InstanceState::Preparing))
        .await;
    let before = server.control.store().revision();
    for percent in [10, 50, 90] {
        let mut at_work = report(id, InstanceState::Preparing);
        at_work.step = Some(StepStatus {
            name: "image".into(),
            percent: Some(percent),
            since: Timestamp::now(),
            waiting_for: None,
        });
        agent.send_report(at_work).await;
        let shown = server.get("/v1/instances/web").await.expect(200).instance();
        assert_eq!(shown.status.step.unwrap().percent, Some(percent));
    }
    agent.report(&AgentReport::default()).await;
    assert_eq!(server.control.store().revision(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_and_refuses_another_incarnation() {
    let (server, mut agent) = Server::with_node().await;
    for name in ["a", "b", "c"] {
        server
            .create(&json!({"name": name, "template": "debian-12"}))
            .await
            .expect(201);
    }
    agent.watch(None).await;
    let all = agent.until_sync().await;
    assert_eq!(all.len(), 4);
    for (index, frame) in all.iter().enumerate() {
        let (WatchFrame::Put { revision, .. } | WatchFrame::Tombstone { revision, .. }) = frame
        else {
            panic!("{frame:?}");
        };
        agent.watch(Some(&revision.to_string())).await;
        assert_eq!(agent.until_sync().await, all[index + 1..]);
    }
    for other in ["000000ff.1", "0000000a.999999"] {
        let answer = agent
            .get(&format!("/v1/agent/watch?since={other}"))
            .await
            .expect(410);
        assert_eq!(answer.problem().code, "revision-gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unplaced_instance_has_a_reason_and_is_placed_when_capacity_is_free() {
    let server = Server::start().await;
    server.template().await;
    let waiting = server.create_instance("first").await;
    assert_eq!(waiting.status.state, InstanceState::Pending);
    assert!(waiting.status.reason.unwrap().contains("none has joined"));

    let mut agent = server.join("alder", ByteSize::gib(4)).await;
    let placed = server.get("/v1/instances/first").await.instance();
    assert_eq!(placed.status.node.unwrap().as_str(), "alder");

    server
        .create(&json!({"name": "big", "template": "debian-12", "memory_bytes": 4u64 << 30}))
        .await
        .expect(201);
    let why = server.get("/v1/instances/big/why").await.expect(200).json();
    assert!(
        why["summary"]
            .as_str()
            .unwrap()
            .contains("waiting for: 4G memory on one node"),
        "{why}"
    );
    assert_eq!(why["placement"][0]["reason"], "3G free of 4G");
    assert!(
        why["hint"].as_str().unwrap().contains("--memory 3G"),
        "{why}"
    );

    agent.watch(None).await;
    agent.until_sync().await;
    server.delete("/v1/instances/first").await.expect(202);
    let tombstone = agent.tombstone().await;
    agent.destroyed(tombstone).await;
    assert_eq!(
        agent.put().await.name.as_str(),
        "big",
        "the room that was given back is used"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unplaced_instance_is_deleted_immediately() {
    let server = Server::start().await;
    let image = server.template().await;
    server.create_instance("web").await;
    server.delete("/v1/templates/debian-12").await.expect(204);
    server.get(&format!("/v1/images/{image}")).await.expect(200);
    server.delete("/v1/instances/web").await.expect(200);
    server.get("/v1/instances/web").await.expect(404);
    server.get(&format!("/v1/images/{image}")).await.expect(404);
    let (instances, images, _, files) = server.footprint().await;
    assert_eq!((instances, images, files.len()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_an_unreachable_node_are_unknown_until_its_next_contact() {
    let server = Server::with(|config| config.unreachable_after = Duration::from_millis(200)).await;
    server.template().await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    let id = server.create_instance("web").await.id;
    agent.send_report(report(id, InstanceState::Running)).await;
    let monitor = tokio::spawn({
        let control = server.control.clone();
        async move { control.run_background_tasks().await }
    });
    let unknown = tokio::time::timeout(DEADLINE, async {
        loop {
            let page = server
                .get("/v1/instances?state=unknown")
                .await
                .expect(200)
                .json();
            if page["items"].as_array().unwrap().len() == 1 {
                return server.get("/v1/instances/web").await.instance();
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(unknown.status.last_state, Some(InstanceState::Running));
    assert_eq!(
        server.get("/v1/nodes/alder").await.json()["state"],
        "unreachable"
    );

    // A delete is still accepted, and waits.
    server.delete("/v1/instances/web").await.expect(202);
    let why = server.get("/v1/instances/web/why").await.json();
    assert!(
        why["summary"]
            .as_str()
            .unwrap()
            .contains("which is unreachable"),
        "{why}"
    );

    agent.watch(None).await;
    assert!(agent.until_sync().await.iter().all(|frame| !matches!(
        frame,
        WatchFrame::Put {
            object: SliceObject::Instance(_),
            ..
        }
    )));
    let resumed = server.get("/v1/instances/web").await.instance();
    agent
        .destroyed(waifud_api::agent::Tombstone {
            instance: resumed.id,
            name: resumed.name,
            epoch: waifud_types::Epoch::FIRST,
        })
        .await;
    server.get("/v1/instances/web").await.expect(404);
    assert_eq!(
        server.kinds("alder").await,
        [
            "node.admitted",
            "node.joined",
            "node.unreachable",
            "node.ready"
        ]
    );
    server.control.stop_token().cancel();
    monitor.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_increments_the_generation_and_keeps_the_instance_id() {
    let (server, mut agent) = Server::with_watching_node().await;
    server
        .create(&json!({"name": "web", "template": "debian-12", "user_data": "#!/bin/sh\n"}))
        .await
        .expect(201);
    let first = agent.put().await;
    let open = |bytes: Vec<u8>, bundle: &waifud_api::agent::BundleRef| {
        waifud_cloudinit::open(&bytes, bundle.digest, &bundle.key).unwrap()
    };
    let before = open(
        agent
            .get(&format!("/v1/agent/bundles/{}", first.bundle.digest))
            .await
            .bytes,
        &first.bundle,
    );

    let answer = server
        .call(
            Method::PATCH,
            "/v1/instances/web",
            &[("if-match", "\"7\"")],
            json!({"run": false}).to_string(),
        )
        .await
        .expect(412);
    let problem = answer.problem();
    assert_eq!(
        (problem.code.as_str(), problem.field.as_deref()),
        ("stale-generation", Some("If-Match"))
    );

    let change = json!({"user_data": "#!/bin/sh\ntrue\n"});
    let answer = server
        .call(
            Method::PATCH,
            "/v1/instances/web",
            &[("if-match", "\"1\"")],
            change.to_string(),
        )
        .await
        .expect(200);
    assert_eq!(answer.headers.get("etag").unwrap(), "\"2\"");
    let second = agent.put().await;
    assert_eq!(second.generation, Generation(2));
    assert_ne!(second.bundle.digest, first.bundle.digest);
    let after = open(
        agent
            .get(&format!("/v1/agent/bundles/{}", second.bundle.digest))
            .await
            .bytes,
        &second.bundle,
    );
    assert_eq!(after.instance_id(), before.instance_id());
    assert_eq!(user_data(&after), "#!/bin/sh\ntrue\n");

    server.patch("/v1/instances/web", &change).await.expect(200);
    assert_eq!(
        server.get("/v1/instances/web").await.instance().generation,
        Generation(2),
        "no change, no generation"
    );

    server
        .patch("/v1/instances/web", &json!({"protected": true}))
        .await
        .expect(200);
    let problem = server
        .delete("/v1/instances/web")
        .await
        .expect(409)
        .problem();
    assert_eq!(problem.code, "protected");
    assert!(problem.hint.is_some());
    assert_eq!(
        server.get("/v1/instances/web/user-data").await.bytes,
        b"#!/bin/sh\ntrue\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejoined_machine_keeps_its_node_and_each_node_has_its_own_subnet() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(1)).await;
    let birch = server.join("birch", ByteSize::gib(1)).await;
    assert_eq!(server.join("alder", ByteSize::gib(1)).await.id, alder.id);
    assert_ne!(alder.id, birch.id);
    let nodes = server.get("/v1/nodes").await.json();
    assert_eq!(nodes["items"][0]["subnets"], json!(["10.144.1.0/24"]));
    assert_eq!(nodes["items"][1]["subnets"], json!(["10.144.2.0/24"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_report_only_its_own_instances() {
    let (server, alder) = Server::with_node().await;
    let birch = server.join("birch", ByteSize::gib(1)).await;
    let instance = server
        .create(&json!({"name": "web", "template": "debian-12", "placement": {"node": "alder"}}))
        .await
        .expect(201)
        .instance();
    birch
        .send_report(report(instance.id, InstanceState::Failed))
        .await;
    assert_eq!(
        server
            .get("/v1/instances/web")
            .await
            .instance()
            .status
            .state,
        InstanceState::Pending
    );
    server.delete("/v1/instances/web").await.expect(202);
    let order = waifud_api::agent::Tombstone {
        instance: instance.id,
        name: instance.name,
        epoch: waifud_types::Epoch::FIRST,
    };
    birch.destroyed(order.clone()).await;
    server.get("/v1/instances/web").await.expect(200);
    alder.destroyed(order).await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_resumes_the_download_of_an_image() {
    let server = Server::start().await;
    let image = server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let path = format!("/v1/agent/images/{image}");
    // No instance on the node uses it yet.
    agent.get(&path).await.expect(404);
    server.create_instance("web").await;
    let whole = agent.get(&path).await.expect(200).bytes;
    let rest = agent.get_from(&path, 1000).await.expect(206);
    assert_eq!(
        rest.headers.get("content-range").unwrap(),
        "bytes 1000-4095/4096"
    );
    assert_eq!(rest.bytes, whole[1000..]);
    let problem = agent.get_from(&path, 4096).await.expect(416).problem();
    assert_eq!(problem.code, "range-not-satisfiable");
}
