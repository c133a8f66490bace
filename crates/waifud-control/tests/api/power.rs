//! Power and size of instances over the API: orders, refusals, and the capacity that is reserved.

use crate::common::{Server, report};
use serde_json::json;
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, Generation, InstanceState};

async fn running(
    server: &Server,
    agent: &crate::common::Agent,
    name: &str,
) -> waifud_api::Instance {
    let body = json!({"name": name, "template": "debian-12", "memory_bytes": 2_u64 << 30});
    let created = server.created(&body).await;
    agent
        .report_instance(report(created.id, InstanceState::Running))
        .await;
    created
}

async fn reserved_memory(server: &Server) -> ByteSize {
    let node = server.node("alder").await;
    ByteSize(node["promised"]["memory_bytes"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_and_a_forced_stop_reach_the_node_as_part_of_the_spec() {
    let (server, mut agent) = Server::with_node(ByteSize::gib(8)).await;
    let web = running(&server, &agent, "web").await;
    let path = "/v1/instances/web";
    agent.watch_from_now().await;
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
    server
        .patch(path, &json!({"reboot": "force"}))
        .await
        .refused(409, "not-running", "reboot");
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
async fn a_wait_for_a_reboot_ends_once_the_node_has_rebooted_the_instance() {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    let web = running(&server, &agent, "web").await;
    let at = |generation: Generation, state| {
        let mut report = report(web.id, state);
        report.observed_generation = generation;
        report
    };
    let path = "/v1/instances/web?wait=0s";
    let order = json!({"reboot": "clean"});
    // The instance is still running from before the reboot was requested.
    let answer = server.patch(path, &order).await.expect(202).instance();
    agent
        .report_instance(at(answer.generation, InstanceState::Stopping))
        .await;
    server.patch(path, &json!({})).await.expect(202);
    agent
        .report_instance(at(answer.generation, InstanceState::Running))
        .await;
    server.patch(path, &json!({})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn additional_memory_is_reserved_at_once_and_refused_without_capacity() {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    let web = running(&server, &agent, "web").await;
    running(&server, &agent, "db").await;
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(4));
    let path = "/v1/instances/web";
    let memory = |gib: u64| json!({"memory_bytes": gib << 30});
    let refused = server.patch(path, &memory(7)).await;
    let refused = refused.refused(409, "insufficient-capacity", "spec.memory_bytes");
    assert!(
        refused.to_string().contains("4G of 8G memory free"),
        "{refused}"
    );
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(4));
    let bigger = server.patch(path, &memory(6)).await.expect(200).instance();
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(8));
    // After a reduction the running guest still has the memory, until it was started with less.
    let mut running = report(web.id, InstanceState::Running);
    running.observed_generation = bigger.generation;
    agent.report_instance(running.clone()).await;
    let smaller = server.patch(path, &memory(1)).await.expect(200).instance();
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(8));
    running.observed_generation = smaller.generation;
    running.restart_needed = vec!["memory_bytes".to_owned()];
    agent.report_instance(running.clone()).await;
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(8));
    let shown = server.get(path).await.expect(200).instance();
    assert_eq!(shown.status.restart_needed, ["memory_bytes"]);
    // Another instance waits for that memory.
    let big = json!({"name": "big", "template": "debian-12", "memory_bytes": 5_u64 << 30});
    assert_eq!(server.created(&big).await.status.node, None);
    running.restart_needed.clear();
    agent.report_instance(running).await;
    assert_eq!(server.node_of("big").await.as_deref(), Some("alder"));
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_instance_is_placed_when_its_memory_is_reduced() {
    let (server, _agent) = Server::with_node(ByteSize::gib(8)).await;
    let big = json!({"name": "big", "template": "debian-12", "memory_bytes": 16_u64 << 30});
    let big = server.created(&big).await;
    assert_eq!(big.status.node, None);
    let change = json!({"memory_bytes": 4_u64 << 30});
    let placed = server.patched("big", &change).await;
    assert!(placed.status.node.is_some());
    assert_eq!(reserved_memory(&server).await, ByteSize::gib(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_but_never_shrinks_and_invalid_sizes_change_nothing() {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    let web = running(&server, &agent, "web").await;
    let path = "/v1/instances/web";
    let size = web.spec.disks[0].size_bytes.bytes();
    let refused = server
        .patch(path, &json!({"disk_bytes": size - 1, "cpus": 2}))
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
        .patch(path, &json!({"disk_bytes": size + (1 << 30)}))
        .await
        .expect(200)
        .instance();
    assert_eq!(grown.spec.disks[0].size_bytes.bytes(), size + (1 << 30));
    let node = server.node("alder").await;
    assert_eq!(node["pools"][0]["promised_bytes"], size + (1 << 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn why_explains_that_an_instance_stopped_with_its_host() {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    let web = running(&server, &agent, "web").await;
    let mut off = report(web.id, InstanceState::Stopped);
    off.stopped_by = Some(StoppedBy::Host);
    agent.report_instance(off).await;
    let why = server.why("web").await;
    assert!(
        why["summary"]
            .as_str()
            .unwrap()
            .contains("when its node shut down")
    );
}
