//! Domains edited by hand, on a node of fakes: a condition reports it across restarts and resizes.

use waifud_api::agent::InstanceReport;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, InstanceState};

use crate::test_node::TestNode;

fn drift(status: &InstanceReport) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.kind == "drift")
}

fn says(status: &InstanceReport, what: &str) -> bool {
    drift(status).is_some_and(|c| !c.ok && c.reason == "edited-by-hand" && c.message.contains(what))
}

#[tokio::test]
async fn a_domain_edited_by_hand_is_reported_as_drift_across_a_resize_and_a_restarted_agent() {
    const DEVICE: &str = "a device that waifud did not add: hostdev pci 0000:03:00.0";
    let (node, id) = TestNode::with_instance("web").await;
    assert_eq!(drift(&node.waifud.status(id).unwrap()), None);
    let memory = node.hypervisor.spec(id).unwrap().memory;
    node.hypervisor.set_memory(id, ByteSize(memory.bytes() * 2));
    node.hypervisor.add_device(id, "hostdev pci 0000:03:00.0");
    let wrong = format!("and should be {memory}");
    node.until_status(id, "shown as drift", |s| {
        says(s, DEVICE) && says(s, &wrong) && s.state == InstanceState::Running
    })
    .await;

    // After a resize with a restart, the memory follows the spec again, and the device stays.
    let starts = node.hypervisor.starts();
    let resized = ByteSize(memory.bytes() * 3);
    node.waifud.edit(id, |i| {
        i.spec.memory_bytes = resized;
        i.spec.power.reboots += 1;
    });
    node.until_status(id, "restarted with its device", |s| {
        node.hypervisor.starts() == starts + 1
            && s.state == InstanceState::Running
            && says(s, DEVICE)
            && !says(s, "memory")
    })
    .await;
    assert_eq!(node.hypervisor.spec(id).unwrap().memory, resized);

    node.restart().await;
    node.until_ready(id).await;
    node.until_status(id, "shown by the next agent, too", |s| says(s, DEVICE))
        .await;
    node.hypervisor.remove_devices(id);
    node.until_status(id, "without drift", |s| drift(s).is_none())
        .await;
}
