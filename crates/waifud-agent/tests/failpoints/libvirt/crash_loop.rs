//! A QEMU that is killed repeatedly.

use std::sync::PoisonError;
use std::time::Duration;

use axum::http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::MACHINE;
use super::node::Node;
use crate::cluster::Cluster;
use crate::verbs::InitialState;

fn is_in_a_loop(web: &Value) -> bool {
    let conditions = web["status"]["conditions"].as_array().into_iter().flatten();
    let mut reasons = conditions.map(|condition| &condition["reason"]);
    reasons.any(|reason| reason == "crash-loop")
}

async fn until_web(cluster: &Cluster, what: &str, is_so: impl Fn(&Value) -> bool) {
    let seen = async |cluster: &Cluster| cluster.web().await.is_some_and(|web| is_so(&web));
    cluster.until(what, seen).await;
}

/// It is off, and its reason names how often it crashed and when the next start is attempted.
async fn until_put_off(cluster: &Cluster, crashes: u32) -> Timestamp {
    let when = |web: &Value| -> Option<Timestamp> {
        let reason = web["status"]["reason"].as_str()?;
        let begin =
            format!("it crashed, {crashes} times in a row; the next start is attempted at ");
        reason.strip_prefix(&begin)?.parse().ok()
    };
    until_web(cluster, "put off", |web| {
        let status = &web["status"];
        status["state"] == "stopped" && status["stopped_by"] == "crash" && when(web).is_some()
    })
    .await;
    when(&cluster.web().await.unwrap()).unwrap()
}

async fn until_ready(cluster: &Cluster, node: &Node, ended: &[i32]) {
    until_web(cluster, "ready", |web| {
        let status = &web["status"];
        let another = matches!(node.qemus()[..], [pid] if !ended.contains(&pid));
        another && status["state"] == "running" && status["ready"] == true
    })
    .await;
}

#[test]
fn a_qemu_that_keeps_being_killed_is_restarted_with_back_off_until_a_user_starts_it() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(node) = Node::up() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::prepared(InitialState::Running, node.clone()).await;
        let mut ended = Vec::new();
        for crashes in 1..=3 {
            until_ready(&cluster, &node, &ended).await;
            ended.push(node.crash_qemu());
            if crashes > 1 {
                until_web(&cluster, "in a loop", is_in_a_loop).await;
            }
        }
        until_ready(&cluster, &node, &ended).await;

        // Both the count and the condition survive the agent. From here on the pauses are too long to wait for.
        let hour = Duration::from_hours(1);
        cluster.restart_agent(hour).await;
        until_ready(&cluster, &node, &ended).await;
        ended.push(node.crash_qemu());
        let next = until_put_off(&cluster, 4).await;
        // The fourth pause is eight times the first one, minus up to a quarter of jitter.
        assert!(next > Timestamp::now() + 5 * hour, "{next}");
        assert!(is_in_a_loop(&cluster.web().await.unwrap()));
        assert!(node.qemus().is_empty());

        let start = json!({"run": true}).to_string();
        let path = "/v1/instances/web";
        let answer = cluster.waifud.request(Method::PATCH, path, start).await;
        answer.expect(200);
        until_ready(&cluster, &node, &ended).await;
        until_web(&cluster, "well again", |web| !is_in_a_loop(web)).await;
        cluster.end().await;
    });
}
