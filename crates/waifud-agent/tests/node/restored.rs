//! After waifud's database was restored from a backup: nothing is taken for granted before an operator has confirmed.

use waifud_hypervisor::DomainState;
use waifud_types::{Incarnation, InstanceState};

use crate::world::World;

#[tokio::test]
async fn after_a_restored_backup_nothing_is_destroyed_until_an_operator_confirms() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.restore(0xbeef);
    world
        .until("told", async || {
            world.waifud.facts().is_some_and(|facts| {
                facts
                    .conditions
                    .iter()
                    .any(|c| c.kind == "destruction-held")
            })
        })
        .await;
    world.waifud.delete(id);
    let status = world.until_state(id, InstanceState::Deleting).await;
    assert!(status.reason.unwrap().contains("confirm"));
    world.restart().await;
    let reports = world.waifud.reports();
    world
        .until("a few more reports", async || {
            world.waifud.reports() > reports + 3
        })
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
    assert_eq!(world.volumes().await, 1);
    world.kill().await;
    world.start_confirming(Incarnation(0xbeef));
    world.until_destroyed(id).await;
}

#[tokio::test]
async fn an_instance_that_exists_in_a_restored_backup_is_kept() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    let instance = {
        let mut instance = world.instance("web");
        instance.id = id;
        instance.spec.nics[0].address = Some([10, 144, 1, 77].into());
        instance
    };
    world.kill().await;
    world.waifud.delete(id);
    world.waifud.restore(0xbeef);
    // The restored database still has it.
    world.waifud.put(instance);
    world.start();
    world
        .until_status(id, "running", |s| s.state == InstanceState::Running)
        .await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
}

#[tokio::test]
async fn instances_deleted_after_the_backup_are_not_created_again_before_a_confirmation() {
    let world = World::new();
    world.start();
    let living = world.run_one("web").await;
    let mut gone = world.instance("old");
    gone.restored = true;
    let id = gone.id;
    world.waifud.restore(0xbeef);
    world.waifud.put(gone);
    let status = world.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("deleted after the backup"));
    assert_eq!(world.domain(id).await, None);
    // What is new in the restored database is made.
    world.run_one("new").await;
    assert_eq!(world.domain(living).await, Some(DomainState::Running));
    world.waifud.confirm();
    world
        .until_status(id, "made anew", |s| s.state == InstanceState::Running)
        .await;
}

#[tokio::test]
async fn confirming_through_waifud_applies_held_deletions() {
    let mut world = World::new();
    // What is told at once was not waited for by the period.
    world.settings.timing.facts = std::time::Duration::from_mins(10);
    world.start();
    let id = world.run_one("web").await;
    world.waifud.restore(0xbeef);
    world
        .until("welcomed by the other database", async || {
            world.waifud.facts().is_some_and(|facts| {
                facts
                    .conditions
                    .iter()
                    .any(|c| c.kind == "destruction-held")
            })
        })
        .await;
    world.waifud.delete(id);
    world.until_state(id, InstanceState::Deleting).await;
    assert_eq!(world.domain(id).await, Some(DomainState::Running));
    let unhealthy = || world.waifud.facts().unwrap().conditions;
    let held = unhealthy()
        .into_iter()
        .find(|c| c.kind == "destruction-held");
    let said = held.unwrap().message;
    assert!(said.contains("waifuctl node confirm alder"), "{said}");
    world.waifud.confirm();
    world.until_destroyed(id).await;
    world
        .until("the condition is over", async || {
            unhealthy().iter().all(|c| c.kind != "destruction-held")
        })
        .await;
}

#[tokio::test]
async fn an_unmanaged_instance_is_reported_with_everything_needed_to_adopt_it() {
    let world = World::new();
    world.start();
    let id = world.run_one("web").await;
    world.waifud.remove_from_slice(id);
    world
        .until("told", async || {
            world.waifud.unmanaged().iter().any(|u| {
                u.instance == id
                    && u.record.is_some()
                    && u.bundle.is_some()
                    && !u.addresses.is_empty()
            })
        })
        .await;
    // Once, however many disks it has.
    let unmanaged = world.waifud.unmanaged();
    assert_eq!(unmanaged.iter().filter(|u| u.record.is_some()).count(), 1);
}
