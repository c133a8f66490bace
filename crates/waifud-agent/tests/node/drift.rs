//! Domains that somebody edits by hand, on a node of fakes: a condition says so, through restarts and resizes.

use waifud_api::agent::InstanceReport;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, InstanceState};

use crate::world::World;

fn drift(status: &InstanceReport) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.kind == "drift")
}

fn says(status: &InstanceReport, what: &str) -> bool {
    drift(status).is_some_and(|c| !c.ok && c.reason == "edited-by-hand" && c.message.contains(what))
}

#[tokio::test]
async fn a_domain_edited_by_hand_is_reported_as_drift_across_a_resize_and_a_restarted_agent() {
    const DEVICE: &str = "a device that waifud did not add: hostdev pci 0000:03:00.0";
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    assert_eq!(drift(&world.waifud.status(id).unwrap()), None);
    let memory = world.hypervisor.spec(id).unwrap().memory;
    world
        .hypervisor
        .set_memory(id, ByteSize(memory.bytes() * 2));
    world.hypervisor.add_device(id, "hostdev pci 0000:03:00.0");
    let wrong = format!("and should be {memory}");
    world
        .until_status(id, "shown as drift", |s| {
            says(s, DEVICE) && says(s, &wrong) && s.state == InstanceState::Running
        })
        .await;

    // A resize with a restart: the memory is the spec's again, the device stays.
    let starts = world.hypervisor.starts();
    let resized = ByteSize(memory.bytes() * 3);
    world.waifud.edit(id, |i| {
        i.spec.memory_bytes = resized;
        i.spec.power.reboots += 1;
    });
    world
        .until_status(id, "restarted with its device", |s| {
            world.hypervisor.starts() == starts + 1
                && s.state == InstanceState::Running
                && says(s, DEVICE)
                && !says(s, "memory")
        })
        .await;
    assert_eq!(world.hypervisor.spec(id).unwrap().memory, resized);

    world.restart().await;
    world.until_ready(id).await;
    world
        .until_status(id, "shown by the next agent, too", |s| says(s, DEVICE))
        .await;
    world.hypervisor.take_devices(id);
    world
        .until_status(id, "without drift", |s| drift(s).is_none())
        .await;
}
