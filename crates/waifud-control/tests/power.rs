//! Power operations and resizing over the API: changes, refusals and reservations.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

mod common;

use common::{Server, report};
use serde_json::json;
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, Generation, InstanceState};

async fn running(server: &Server, agent: &common::Agent, name: &str) -> waifud_api::Instance {
    let body = json!({"name": name, "template": "debian-12", "memory_bytes": 2_u64 << 30});
    let created = server.create(&body).await.expect(201).instance();
    agent
        .send_report(report(created.id, InstanceState::Running))
        .await;
    created
}

async fn promised(server: &Server) -> ByteSize {
    let node = server.get("/v1/nodes/alder").await.expect(200).json();
    ByteSize(node["promised"]["memory_bytes"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_and_a_forced_stop_reach_the_node_as_part_of_the_spec() {
    let (server, mut agent) = Server::with_node().await;
    let web = running(&server, &agent, "web").await;
    let path = "/v1/instances/web";
    agent.watch(None).await;
    agent.until_sync().await;
    let ordered = server
        .patch(path, &json!({"reboot": "clean"}))
        .await
        .expect(200)
        .instance();
    assert_eq!(ordered.generation, web.generation.next());
    let put = agent.put().await;
    assert_eq!(put.spec.power.reboots, 1);
    assert!(!put.spec.power.force_reboot && put.spec.run);
    server
        .patch(path, &json!({"run": false, "force": true}))
        .await
        .expect(200);
    assert!(agent.put().await.spec.power.force_off);
    let refused = server
        .patch(path, &json!({"reboot": "force"}))
        .await
        .expect(409)
        .problem();
    assert_eq!(
        (refused.code.as_str(), refused.field.as_deref()),
        ("not-running", Some("reboot"))
    );
    let refused = server
        .patch(path, &json!({"run": true, "force": true}))
        .await
        .expect(422)
        .problem();
    assert_eq!(refused.field.as_deref(), Some("force"));
    assert!(!server.get(path).await.expect(200).instance().spec.run);
    server
        .patch(path, &json!({"reboot": "sideways"}))
        .await
        .expect(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_reboot_ends_when_the_node_has_applied_it() {
    let (server, agent) = Server::with_node().await;
    let web = running(&server, &agent, "web").await;
    let at = |generation: Generation, state| {
        let mut status_report = report(web.id, state);
        status_report.observed_generation = generation;
        status_report
    };
    let path = "/v1/instances/web?wait=0s";
    let order = json!({"reboot": "clean"});
    // It runs, but with the previous generation.
    let answer = server.patch(path, &order).await.expect(202).instance();
    agent
        .send_report(at(answer.generation, InstanceState::Stopping))
        .await;
    server.patch(path, &json!({})).await.expect(202);
    agent
        .send_report(at(answer.generation, InstanceState::Running))
        .await;
    server.patch(path, &json!({})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_memory_is_reserved_with_the_change_or_refused() {
    let (server, agent) = Server::with_node().await;
    let web = running(&server, &agent, "web").await;
    running(&server, &agent, "db").await;
    assert_eq!(promised(&server).await, ByteSize::gib(4));
    let path = "/v1/instances/web";
    let memory = |gib: u64| json!({"memory_bytes": gib << 30});
    let refused = server.patch(path, &memory(7)).await.expect(409).problem();
    assert_eq!(refused.code, "insufficient-capacity");
    assert_eq!(refused.field.as_deref(), Some("spec.memory_bytes"));
    assert!(
        refused.to_string().contains("4G of 8G memory free"),
        "{refused}"
    );
    assert_eq!(promised(&server).await, ByteSize::gib(4));
    let bigger = server.patch(path, &memory(6)).await.expect(200).instance();
    assert_eq!(promised(&server).await, ByteSize::gib(8));
    // The running guest keeps the memory until its next start.
    let mut status_report = report(web.id, InstanceState::Running);
    status_report.observed_generation = bigger.generation;
    agent.send_report(status_report.clone()).await;
    let smaller = server.patch(path, &memory(1)).await.expect(200).instance();
    assert_eq!(promised(&server).await, ByteSize::gib(8));
    status_report.observed_generation = smaller.generation;
    status_report.restart_needed = vec!["memory_bytes".to_owned()];
    agent.send_report(status_report.clone()).await;
    assert_eq!(promised(&server).await, ByteSize::gib(8));
    let shown = server.get(path).await.expect(200).instance();
    assert_eq!(shown.status.restart_needed, ["memory_bytes"]);
    // Another instance waits for that memory.
    let waiting = json!({"name": "big", "template": "debian-12", "memory_bytes": 5_u64 << 30});
    let waiting = server.create(&waiting).await.expect(201).instance();
    assert_eq!(waiting.status.node, None);
    status_report.restart_needed.clear();
    agent.send_report(status_report).await;
    let placed = server.get("/v1/instances/big").await.expect(200).instance();
    assert!(placed.status.node.is_some());
    assert_eq!(promised(&server).await, ByteSize::gib(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_instance_is_placed_after_it_requests_less() {
    let (server, _agent) = Server::with_node().await;
    let big = json!({"name": "big", "template": "debian-12", "memory_bytes": 16_u64 << 30});
    let big = server.create(&big).await.expect(201).instance();
    assert_eq!(big.status.node, None);
    let change = json!({"memory_bytes": 4_u64 << 30});
    let placed = server
        .patch("/v1/instances/big", &change)
        .await
        .expect(200)
        .instance();
    assert!(placed.status.node.is_some());
    assert_eq!(promised(&server).await, ByteSize::gib(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_and_never_shrinks_and_invalid_sizes_change_nothing() {
    let (server, agent) = Server::with_node().await;
    let web = running(&server, &agent, "web").await;
    let path = "/v1/instances/web";
    let is = web.spec.disks[0].size_bytes.bytes();
    let refused = server
        .patch(path, &json!({"disk_bytes": is - 1, "cpus": 2}))
        .await
        .expect(422)
        .problem();
    assert_eq!(refused.code, "disk-shrink-unsupported");
    for (change, field) in [
        (json!({"cpus": 0}), "spec.cpus"),
        (json!({"cpus": 1000}), "spec.cpus"),
        (json!({"memory_bytes": 1}), "spec.memory_bytes"),
        (
            json!({"disk_bytes": u64::MAX / 2}),
            "spec.disks[0].size_bytes",
        ),
    ] {
        let refused = server.patch(path, &change).await.expect(422).problem();
        assert_eq!(refused.field.as_deref(), Some(field));
    }
    let now = server.get(path).await.expect(200).instance();
    assert_eq!((now.generation, &now.spec), (web.generation, &web.spec));
    let grown = server
        .patch(path, &json!({"disk_bytes": is + (1 << 30)}))
        .await
        .expect(200)
        .instance();
    assert_eq!(grown.spec.disks[0].size_bytes.bytes(), is + (1 << 30));
    let node = server.get("/v1/nodes/alder").await.expect(200).json();
    assert_eq!(node["pools"][0]["promised_bytes"], is + (1 << 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn why_names_a_shutdown_of_the_node() {
    let (server, agent) = Server::with_node().await;
    let web = running(&server, &agent, "web").await;
    let mut off = report(web.id, InstanceState::Stopped);
    off.stopped_by = Some(StoppedBy::Host);
    agent.send_report(off).await;
    let why = server.get("/v1/instances/web/why").await.expect(200).json();
    assert!(
        why["summary"]
            .as_str()
            .unwrap()
            .contains("when its node shut down")
    );
}
