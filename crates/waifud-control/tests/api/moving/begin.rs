//! Requests to move an instance that are refused, and what a move may wait for.

use serde_json::{Value, json};
use waifud_api::agent::Unmanaged;
use waifud_types::node::NodeFacts;
use waifud_types::{ByteSize, InstanceState, PoolKind};

use super::super::common::facts;
use super::{Cluster, MOVE, all_off, incoming, to_birch};

/// The move is refused with this code and field, and nothing has changed.
async fn refused(it: &Cluster, body: &Value, status: u16, code: &str, field: &str) -> String {
    let before = it.server.control.store().revision();
    let problem = it
        .server
        .post(MOVE, body)
        .await
        .refused(status, code, field);
    assert_eq!(it.server.control.store().revision(), before, "{code}");
    assert_eq!(it.parts().await.len(), 1, "{code}");
    format!("{} {}", problem.title, problem.hint.unwrap_or_default())
}

fn with_facts(change: impl FnOnce(&mut NodeFacts)) -> NodeFacts {
    let mut facts = facts(ByteSize::gib(8));
    change(&mut facts);
    facts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_a_node_that_cannot_have_the_instance_is_refused_with_the_reason() {
    let it = Cluster::new().await;
    let to = |node: &str| json!({"to": node, "new_address": true});
    refused(&it, &to("oak"), 422, "unknown-node", "to").await;
    refused(&it, &to("alder"), 409, "already-there", "to").await;

    for (change, part) in [
        (
            with_facts(|facts| facts.capacity.memory_bytes = ByteSize::mib(512)),
            "memory",
        ),
        (with_facts(|facts| facts.arch = "aarch64".into()), "aarch64"),
        (with_facts(|facts| facts.pools.clear()), "main"),
    ] {
        it.birch.report_facts(change).await;
        let text = refused(&it, &to_birch(), 409, "cannot-move", "to").await;
        assert!(text.contains(part), "{text}");
        let text = refused(&it, &json!({"new_address": true}), 409, "cannot-move", "to").await;
        assert!(text.contains("other node"), "{text}");
    }
    it.birch
        .report_facts(with_facts(|facts| facts.features.retain(|f| f != "move")))
        .await;
    let problem = it
        .server
        .post(MOVE, &to_birch())
        .await
        .expect(409)
        .problem();
    assert_eq!(problem.code, "agent-too-old");
    it.birch.report_facts(with_facts(|_| ())).await;

    it.server
        .patch("/v1/nodes/birch", &json!({"cordoned": true}))
        .await
        .expect(200);
    let text = refused(&it, &to_birch(), 409, "cannot-move", "to").await;
    assert!(text.contains("cordoned"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_another_kind_is_no_obstacle_for_a_move_or_for_a_drain() {
    let reflink = || with_facts(|facts| facts.pools[0].kind = PoolKind::Reflink);
    for request in [to_birch(), json!({"new_address": true})] {
        let mut it = Cluster::new().await;
        it.birch.report_facts(reflink()).await;
        let moved = it.server.post(MOVE, &request).await.expect(200).instance();
        assert_eq!(moved.moving.unwrap().to.as_str(), "birch");
        incoming(&mut it.birch).await;
    }
    let it = Cluster::new().await;
    it.birch.report_facts(reflink()).await;
    let drain = json!({"new_address": true});
    let drained = it.server.post("/v1/nodes/alder/drain", &drain).await;
    drained.expect(200);
    assert_eq!(it.state().await, "preparing");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_has_no_disks_here_or_is_in_rescue_or_pinned_is_not_moved() {
    let mut it = Cluster::new().await;
    let pinned = json!({"name": "db", "template": "debian-12", "placement": {"node": "alder"}});
    let db = it.server.created(&pinned).await;
    let path = "/v1/instances/db/move";
    let problem = it.server.post(path, &to_birch()).await;
    let problem = problem.refused(409, "cannot-move", "name");
    assert!(problem.title.contains("still prepares it"), "{problem:?}");
    it.alder
        .report_instance(super::report(db.id, InstanceState::Running))
        .await;
    let anywhere = json!({"new_address": true});
    it.server
        .post(path, &anywhere)
        .await
        .refused(409, "cannot-move", "to");
    it.server.post(path, &to_birch()).await.expect(200);

    let large = json!({"name": "large", "template": "debian-12", "memory_bytes": 64_u64 << 30});
    it.server.created(&large).await;
    let path = "/v1/instances/large/move";
    let problem = it.server.post(path, &to_birch()).await;
    problem.refused(409, "cannot-move", "name");

    // The node has a copy that waifud's database does not explain.
    let unmanaged = Unmanaged {
        kind: "volume".to_owned(),
        instance: it.web.id,
        name: None,
        volume: None,
        running: false,
        addresses: Vec::new(),
        record: None,
        bundle: None,
    };
    it.birch.report_unmanaged(vec![unmanaged]).await;
    refused(&it, &to_birch(), 409, "copy-exists", "name").await;
    it.birch.report_unmanaged(Vec::new()).await;
    it.server.post(MOVE, &to_birch()).await.expect(200);
    let _order = incoming(&mut it.birch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_without_a_node_goes_to_the_best_other_one() {
    let mut it = Cluster::new().await;
    let moved = it.server.post(MOVE, &json!({"new_address": true})).await;
    let moving = moved.expect(200).instance().moving.unwrap();
    assert_eq!(moving.to.as_str(), "birch");
    incoming(&mut it.birch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_changes_nothing_and_another_one_is_refused() {
    let it = Cluster::new().await;
    it.server.join("cedar", ByteSize::gib(8)).await;
    it.begin().await;
    let before = it.server.control.store().revision();
    it.begin().await;
    it.server.post(MOVE, &json!({})).await.expect(200);
    let elsewhere = json!({"to": "cedar", "new_address": true});
    let problem = it.server.post(MOVE, &elsewhere).await;
    problem.refused(409, "moving", "name");
    assert_eq!(it.server.control.store().revision(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_or_from_a_node_that_is_off_waits_for_it() {
    let mut it = Cluster::new().await;
    all_off(&it).await;
    let begun = it.begin().await;
    assert_eq!(begun.status.state, InstanceState::Unknown);
    assert_eq!(it.state().await, "preparing");
    assert!(incoming(&mut it.birch).await.was_on, "as last seen");
    it.receives(super::ReceiveState::Prepared).await;
    assert_eq!(it.state().await, "stopping");
    it.releases(true).await;
    assert_eq!(it.state().await, "copying");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_new_node_would_miss_is_not_changed_during_a_move_and_other_changes_arrive_with_it()
 {
    let mut it = Cluster::new().await;
    it.advance_to("copying").await;
    for body in [
        json!({"memory_bytes": 2_u64 << 30}),
        json!({"disk_bytes": 30_u64 << 30}),
        json!({"publish": [{"port": 8080}]}),
    ] {
        let answer = it.server.patch_instance("web", &body).await;
        answer.refused(409, "moving", "name");
    }
    let change = json!({"user_data": "#!/bin/sh\necho new\n", "labels": {"tier": "front"}});
    it.server.patched("web", &change).await;
    it.receives(super::ReceiveState::Received).await;
    let record = it.birch.put().await;
    let documents = it.birch.documents(&record.bundle).await;
    assert_eq!(documents.user_data(), Some("#!/bin/sh\necho new\n"));
    it.server
        .patched("web", &json!({"memory_bytes": 2_u64 << 30}))
        .await;
}
