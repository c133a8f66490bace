//! What the agent has stored about an instance at each point of a creation.

use serde_json::{Value, json};
use waifud_hypervisor::fake::Op;
use waifud_types::{InstanceId, InstanceState};

use crate::test_node::TestNode;

/// What the record on disk says of an instance's disks and of its run; `None` without a record.
fn saved(node: &TestNode, id: InstanceId) -> Option<(Value, Value)> {
    let path = node.settings.state_dir.join(format!("records/{id}.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(path).ok()?).unwrap();
    let memory = &record["memory"];
    Some((memory["disks"].clone(), memory["run"].clone()))
}

#[tokio::test]
async fn the_disks_are_recorded_before_the_guest_can_write_to_them() {
    let node = TestNode::started();
    node.hypervisor.hang(Op::EnsureStarted);
    let id = node.put("web");
    node.until("it is being started", async || {
        node.hypervisor.calls(Op::EnsureStarted) > 0
    })
    .await;
    let starting = (json!(["root"]), json!("starting"));
    assert_eq!(saved(&node, id), Some(starting));
    node.hypervisor.release(Op::EnsureStarted);
    node.until_state(id, InstanceState::Running).await;
    let started = (json!(["root"]), json!("started"));
    node.until("the run is recorded", async || {
        saved(&node, id).as_ref() == Some(&started)
    })
    .await;
}

#[tokio::test]
async fn the_disks_of_an_instance_that_is_not_started_are_recorded() {
    let node = TestNode::started();
    let mut web = node.instance("web");
    web.spec.run = false;
    let id = web.id;
    node.waifud.put(web);
    let stopped = (json!(["root"]), json!("free"));
    node.until("its disks are recorded", async || {
        saved(&node, id).as_ref() == Some(&stopped)
    })
    .await;
}
