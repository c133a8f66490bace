//! The life of an instance from its creation to its deletion, with an agent that the test drives.

use std::time::Duration;

use crate::common::{DEADLINE, Server, assert_contains, ready_report, report, step, tombstone};
use axum::http::Method;
use serde_json::json;
use waifud_api::agent::{AgentReport, SliceObject, WatchFrame};
use waifud_types::{ByteSize, Generation, InstanceState, WaitReason};

/// The user-data in the documents.
fn user_data(documents: &waifud_cloudinit::Documents) -> serde_json::Value {
    serde_json::to_value(documents).unwrap()["user_data"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_created_becomes_ready_and_is_deleted() {
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
    let bundle = agent.bundle(&put.bundle).await;
    assert_eq!(bundle.len() as u64, put.bundle.size_bytes);
    let documents = agent.documents(&put.bundle).await;
    assert_eq!(documents.instance(), created.id);
    assert_eq!(user_data(&documents), "#cloud-config\n{}");
    let bits = agent.image(image).await.expect(200);
    assert_eq!(crate::common::digest(&bits.bytes), image);

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
        agent.report_instance(report(created.id, state)).await;
    }
    agent.report_instance(ready_report(created.id)).await;
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
    let order = agent.tombstone().await;
    assert_eq!(order.instance, created.id);
    server.delete("/v1/instances/web").await.expect(202);
    agent.destroyed(order).await;
    server.get("/v1/instances/web").await.expect(404);
    server.create_instance("web").await;
    let again = agent.put().await;
    assert_eq!(
        again.spec.nics[0].address.unwrap().to_string(),
        "10.144.1.2",
        "the address is available again"
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
async fn progress_is_shown_and_not_stored() {
    let (server, agent, web) = Server::with_placed_instance().await;
    let id = web.id;
    agent
        .report_instance(report(id, InstanceState::Preparing))
        .await;
    let before = server.control.store().revision();
    for percent in [10, 50, 90] {
        let mut at_work = report(id, InstanceState::Preparing);
        at_work.step = Some(step("image", Some(percent)));
        agent.report_instance(at_work).await;
        let shown = server.instance("web").await;
        assert_eq!(shown.status.step.unwrap().percent, Some(percent));
    }
    agent.report(&AgentReport::default()).await;
    assert_eq!(server.control.store().revision(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_at_its_revision_and_refuses_another_incarnation() {
    let (server, mut agent) = Server::with_node(ByteSize::gib(8)).await;
    for name in ["a", "b", "c"] {
        server.create_instance(name).await;
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
async fn an_unplaced_instance_shows_the_reason_and_is_placed_once_there_is_capacity() {
    let server = Server::with_template().await;
    let waiting = server.create_instance("first").await;
    assert_eq!(waiting.status.state, InstanceState::Pending);
    assert_eq!(waiting.status.wait_reason(), Some(WaitReason::NoNodes));

    let mut agent = server.join("alder", ByteSize::gib(4)).await;
    let placed = server.instance("first").await;
    assert_eq!(placed.status.node.unwrap().as_str(), "alder");

    server
        .create(&json!({"name": "big", "template": "debian-12", "memory_bytes": 4u64 << 30}))
        .await
        .expect(201);
    let why = server.why("big").await;
    assert_contains(
        &why["summary"],
        "waiting for: 4G of free memory on one node",
    );
    let verdict = &why["placement"][0];
    assert_eq!(verdict["reason"], "3G free of 4G");
    assert_eq!(verdict["code"], "insufficient-memory");
    let (free, total) = (3u64 << 30, 4u64 << 30);
    assert_eq!(
        verdict["fields"],
        json!({"free_bytes": free, "total_bytes": total, "needed_bytes": total})
    );
    let hint = &why["hints"][0];
    assert_eq!(hint["action"], "resize", "{why}");
    assert_eq!(hint["object"], json!({"type": "instance", "name": "big"}));
    assert_eq!(hint["arguments"], json!({"memory_bytes": 3u64 << 30}));
    assert_contains(&why["hint"], "3G memory");

    agent.watch_from_now().await;
    server.delete("/v1/instances/first").await.expect(202);
    agent.confirm_deletion().await;
    assert_eq!(
        agent.put().await.name.as_str(),
        "big",
        "it gets the memory of the deleted instance"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_never_placed_is_deleted_at_once_with_its_image() {
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
async fn instances_of_an_unreachable_node_are_unknown_until_it_reconnects() {
    let server = Server::with(|config| config.unreachable_after = Duration::from_millis(200)).await;
    server.template().await;
    let mut agent = server.join("alder", ByteSize::gib(8)).await;
    let id = server.create_instance("web").await.id;
    agent
        .report_instance(report(id, InstanceState::Running))
        .await;
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
                return server.instance("web").await;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(unknown.status.last_state, Some(InstanceState::Running));
    assert_eq!(server.node("alder").await["state"], "unreachable");

    // The instance can be deleted. The deletion waits for the node.
    server.delete("/v1/instances/web").await.expect(202);
    let why = server.why("web").await;
    assert_contains(&why["summary"], "which is unreachable");

    agent.watch(None).await;
    assert!(agent.until_sync().await.iter().all(|frame| !matches!(
        frame,
        WatchFrame::Put {
            object: SliceObject::Instance(_),
            ..
        }
    )));
    let resumed = server.instance("web").await;
    assert_eq!(resumed.status.state, InstanceState::Deleting);
    agent.destroyed(tombstone(&resumed)).await;
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
async fn an_update_increases_the_generation_and_keeps_the_cloud_init_instance_id() {
    let (server, mut agent) = Server::with_user_data().await;
    let first = agent.put().await;
    let before = agent.documents(&first.bundle).await;

    let patch = async |generation: &str, change: &serde_json::Value| {
        let headers = [("if-match", generation)];
        server
            .call(
                Method::PATCH,
                "/v1/instances/web",
                &headers,
                change.to_string(),
            )
            .await
    };
    // Another generation, and an empty list.
    for condition in ["\"7\"", ""] {
        patch(condition, &json!({"run": false}))
            .await
            .refused(412, "stale-generation", "If-Match");
    }

    let change = json!({"user_data": "#!/bin/sh\ntrue\n"});
    let answer = patch("\"1\"", &change).await.expect(200);
    assert_eq!(answer.headers.get("etag").unwrap(), "\"2\"");
    let second = agent.put().await;
    assert_eq!(second.generation, Generation(2));
    assert_ne!(second.bundle.digest, first.bundle.digest);
    let after = agent.documents(&second.bundle).await;
    assert_eq!(after.instance_id(), before.instance_id());
    assert_eq!(user_data(&after), "#!/bin/sh\ntrue\n");

    server.patch_instance("web", &change).await.expect(200);
    assert_eq!(
        server.instance("web").await.generation,
        Generation(2),
        "an unchanged spec keeps its generation"
    );

    server
        .patch_instance("web", &json!({"protected": true}))
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
async fn a_node_that_joins_again_keeps_its_id_and_each_node_has_its_own_subnet() {
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
async fn reports_about_instances_of_another_node_are_ignored() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let birch = server.join("birch", ByteSize::gib(1)).await;
    let instance = server
        .created(&json!({"name": "web", "template": "debian-12", "placement": {"node": "alder"}}))
        .await;
    birch
        .report_instance(report(instance.id, InstanceState::Failed))
        .await;
    assert_eq!(
        server.instance("web").await.status.state,
        InstanceState::Pending
    );
    server.delete("/v1/instances/web").await.expect(202);
    let order = tombstone(&instance);
    birch.destroyed(order.clone()).await;
    server.get("/v1/instances/web").await.expect(200);
    alder.destroyed(order).await;
    server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_resume_the_download_of_an_image() {
    let server = Server::start().await;
    let image = server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let path = format!("/v1/agent/images/{image}");
    // No instance of the node uses the image yet.
    agent.get(&path).await.expect(404);
    server.create_instance("web").await;
    let image = agent.get(&path).await.expect(200).bytes;
    let rest = agent.get_from(&path, 1000).await.expect(206);
    assert_eq!(
        rest.headers.get("content-range").unwrap(),
        "bytes 1000-4095/4096"
    );
    assert_eq!(rest.bytes, image[1000..]);
    let problem = agent.get_from(&path, 4096).await.expect(416).problem();
    assert_eq!(problem.code, "range-not-satisfiable");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_report_to_the_port_of_reports_only_on_nodes_that_accept_them_there() {
    for (accepts, url) in [
        (true, "http://169.254.169.254:8169/waifud/"),
        (false, "http://169.254.169.254/waifud/"),
    ] {
        let (server, mut agent) = Server::with_watching_node().await;
        let mut facts = crate::common::facts(ByteSize::gib(8));
        facts
            .features
            .retain(|feature| accepts || feature != "report-port");
        agent.report_facts(facts).await;
        server.create_instance("web").await;
        let put = agent.put().await;
        let documents = agent.documents(&put.bundle).await;
        let text = serde_json::to_string(&documents).unwrap();
        for path in ["cloud-init", "phone-home"] {
            assert!(text.contains(&format!("{url}{path}")), "{url}: {text}");
        }
    }
}
