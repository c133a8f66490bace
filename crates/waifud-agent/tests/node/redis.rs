//! Redis: the agent hands it to metadatad, uses what metadatad found there, and reports what is wrong with it.

use bytes::Bytes;
use waifud_agent::interfaces::ControlLink;
use waifud_api::agent::{AgentInstance, RedisAccess};
use waifud_kit::testing::captured_log::CapturedLog;
use waifud_types::Secret;
use waifud_types::status::Condition;

use crate::datasource::bundle;
use crate::test_node::TestNode;

fn access(password: &str) -> RedisAccess {
    RedisAccess {
        url: "rediss://cache.lan:6380".to_owned(),
        ca: None,
        username: Some("waifud-node".to_owned()),
        password: Some(Secret::new(password.to_owned())),
        prefix: "waifud".to_owned(),
    }
}

/// An instance whose bundle waifud has, and the bundle's bytes.
async fn sealed(node: &TestNode, name: &str) -> (AgentInstance, Bytes) {
    let mut instance = node.instance(name);
    instance.bundle = bundle(node, instance.id, "#!/bin/sh\n");
    let bytes = node.waifud.fetch_bundle(instance.bundle.digest).await;
    (instance, bytes.unwrap())
}

/// Adds an instance whose bundle only Redis has, and waits until its guest is ready.
async fn run_from_redis(node: &TestNode, name: &str) -> AgentInstance {
    let (instance, bytes) = sealed(node, name).await;
    node.waifud.remove_bundle(instance.bundle.digest);
    node.metadata.put_in_redis(instance.bundle.digest, bytes);
    node.run(instance.clone()).await;
    instance
}

async fn until_redis(node: &TestNode, wanted: Option<RedisAccess>) {
    node.until("metadatad knows the Redis", async || {
        node.metadata.redis() == wanted
    })
    .await;
}

#[tokio::test]
async fn metadatad_always_has_the_present_setting_and_it_is_not_logged() {
    let log = CapturedLog::begin();
    let node = TestNode::started();
    node.waifud.set_redis(Some(access("hunter2")));
    until_redis(&node, Some(access("hunter2"))).await;
    node.metadata.restart(true);
    assert_eq!(node.metadata.redis(), None);
    until_redis(&node, Some(access("hunter2"))).await;
    node.waifud.set_redis(Some(access("tr0ub4dor")));
    until_redis(&node, Some(access("tr0ub4dor"))).await;
    // Also without waifud, after a restart of the machine.
    node.kill().await;
    node.waifud.set_online(false);
    node.metadata.restart(true);
    node.start();
    until_redis(&node, Some(access("tr0ub4dor"))).await;
    node.waifud.set_online(true);
    node.waifud.set_redis(None);
    until_redis(&node, None).await;
    let log = log.text();
    assert!(
        !log.contains("hunter2") && !log.contains("tr0ub4dor"),
        "{log}"
    );
}

#[tokio::test]
async fn a_bundle_in_redis_is_not_fetched_from_waifud_and_the_node_keeps_a_copy() {
    let node = TestNode::started();
    node.metadata.open_bundles();
    node.waifud.set_redis(Some(access("hunter2")));
    until_redis(&node, Some(access("hunter2"))).await;
    let instance = run_from_redis(&node, "web").await;
    let copy = node.settings.state_dir.join("bundles");
    let copy = copy.join(instance.bundle.digest.hex());
    node.until("a copy on the node", async || copy.is_file())
        .await;
    // With it, the guest starts again without waifud, Redis, and what metadatad had.
    node.waifud.set_online(false);
    node.metadata.restart(false);
    node.metadata.empty_redis();
    node.until("served again", async || {
        node.metadata.would_serve(instance.id)
    })
    .await;
}

#[tokio::test]
async fn a_bundle_that_is_not_in_redis_comes_from_waifud() {
    let node = TestNode::started();
    node.waifud.set_redis(Some(access("hunter2")));
    until_redis(&node, Some(access("hunter2"))).await;
    let (instance, _) = sealed(&node, "web").await;
    let id = node.run(instance).await;
    assert!(node.metadata.would_serve(id));
}

#[tokio::test]
async fn what_is_wrong_with_redis_is_a_condition_of_the_node_until_it_ends() {
    let node = TestNode::started();
    let trouble = Condition {
        kind: "redis".to_owned(),
        ok: false,
        reason: "wrong-credentials".to_owned(),
        message: "Redis refused the password".to_owned(),
        since: waifud_types::Timestamp::UNIX_EPOCH,
    };
    let reported = async || {
        let conditions = node.waifud.facts().map(|facts| facts.conditions);
        let mut redis = conditions.into_iter().flatten();
        redis.find(|condition| condition.kind == "redis")
    };
    node.metadata.set_redis_trouble(Some(trouble.clone()));
    node.until("a condition", async || reported().await.is_some())
        .await;
    let condition = reported().await.unwrap();
    assert_eq!(condition.reason, trouble.reason);
    node.metadata.set_redis_trouble(None);
    node.until("no condition", async || reported().await.is_none())
        .await;
}
