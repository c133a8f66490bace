//! After waifud's database was restored from a backup: nothing is destroyed before an administrator has confirmed it.

use waifud_api::agent::Tombstone;
use waifud_hypervisor::DomainState;
use waifud_storage::fake::Op as PoolOp;
use waifud_types::{Incarnation, InstanceState};

use crate::test_node::TestNode;

#[tokio::test]
async fn after_a_restored_backup_nothing_is_destroyed_until_an_administrator_confirms() {
    let (node, id) = TestNode::with_instance("web").await;
    node.waifud.restore(0xbeef);
    node.until_deletions_are_held().await;
    node.waifud.delete(id);
    let status = node.until_state(id, InstanceState::Deleting).await;
    assert!(status.reason.unwrap().contains("confirm"));
    node.restart().await;
    node.until_more_reports(3).await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert_eq!(node.volumes().await, 1);
    node.kill().await;
    node.start_confirming(Incarnation(0xbeef));
    node.until_destroyed(id).await;
}

#[tokio::test]
async fn a_database_that_is_restored_between_the_hello_and_the_watch_is_told_everything_and_confirmed()
 {
    let (node, id) = TestNode::with_instance("web").await;
    node.waifud.restore_before_watch(0xcafe);
    node.waifud.restore(0xbeef);
    node.until_deletions_are_held().await;
    node.waifud.confirm();
    node.waifud.delete(id);
    node.until_destroyed(id).await;
}

#[tokio::test]
async fn an_instance_that_exists_in_a_restored_backup_is_kept() {
    let (node, id) = TestNode::with_instance("web").await;
    let instance = {
        let mut instance = node.instance("web");
        instance.id = id;
        instance.spec.nics[0].address = Some([10, 144, 1, 77].into());
        instance
    };
    node.kill().await;
    node.waifud.delete(id);
    node.waifud.restore(0xbeef);
    // The restored database still contains it.
    node.waifud.put(instance);
    let before = node.waifud.status_history(id).len();
    node.start();
    node.until("reported again", async || {
        node.waifud.status_history(id).len() > before
    })
    .await;
    node.until_ready(id).await;
    node.until_more_reports(3).await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    assert_eq!(node.hypervisor.starts(), 1, "it was created again");
    assert_eq!(node.pool.calls(PoolOp::EnsureVolumeAbsent), 0);
    assert!(node.waifud.destroyed().is_empty());
}

/// waifud takes over the epoch from this report.
#[tokio::test]
async fn a_node_reports_its_newer_copy_to_a_restored_waifud_and_follows_it_in_that_epoch() {
    let (node, id) = TestNode::with_instance("web").await;
    let old = node.waifud.instance(id).unwrap();
    let mut newer = old.clone();
    newer.epoch = old.epoch.next();
    node.waifud
        .edit(id, |instance| instance.epoch = newer.epoch);
    node.until_status(id, "in the next epoch", |s| s.epoch == newer.epoch)
        .await;
    node.kill().await;
    node.waifud.restore(0xbeef);
    let mut restored = old.clone();
    restored.spec.run = false;
    node.waifud.put(restored.clone());
    let before = node.waifud.status_history(id).len();
    node.start();
    node.until("reported again", async || {
        node.waifud.status_history(id).len() > before
    })
    .await;
    node.until_more_reports(3).await;
    let status = node.waifud.status(id).unwrap();
    assert_eq!(status.epoch, newer.epoch, "the older epoch was followed");
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    restored.epoch = newer.epoch;
    node.waifud.put(restored);
    node.until_state(id, InstanceState::Stopped).await;
}

#[tokio::test]
async fn instances_deleted_after_the_backup_are_not_created_again_before_a_confirmation() {
    let (node, living) = TestNode::with_instance("web").await;
    let mut gone = node.instance("old");
    gone.restored = true;
    let id = gone.id;
    node.waifud.restore(0xbeef);
    node.waifud.put(gone);
    let status = node.until_state(id, InstanceState::Failed).await;
    assert!(status.reason.unwrap().contains("deleted after the backup"));
    assert_eq!(node.domain(id).await, None);
    // Instances created after the restore are not affected.
    node.run_one("new").await;
    assert_eq!(node.domain(living).await, Some(DomainState::Running));
    node.waifud.confirm();
    node.until_status(id, "created again", |s| s.state == InstanceState::Running)
        .await;
}

#[tokio::test]
async fn confirming_the_node_in_waifud_executes_held_deletions() {
    let node = TestNode::started_after(|node| {
        // A long period, so that the test passes only if the report is sent immediately.
        node.settings.timing.facts = std::time::Duration::from_mins(10);
    });
    let id = node.run_one("web").await;
    node.waifud.restore(0xbeef);
    node.until_deletions_are_held().await;
    node.waifud.delete(id);
    node.until_state(id, InstanceState::Deleting).await;
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    let conditions = || node.waifud.facts().unwrap().conditions;
    let held = conditions()
        .into_iter()
        .find(|c| c.kind == "destruction-held");
    let held = held.unwrap();
    assert!(!held.ok, "{held:?}");
    assert_eq!(held.reason, "incarnation-changed");
    node.waifud.confirm();
    node.until_destroyed(id).await;
    node.until("the condition is over", async || {
        conditions().iter().all(|c| c.kind != "destruction-held")
    })
    .await;
}

#[tokio::test]
async fn an_unmanaged_instance_is_reported_with_everything_needed_to_adopt_it() {
    let (node, id) = TestNode::with_instance("web").await;
    node.waifud.remove_from_slice(id);
    node.until("reported", async || {
        node.waifud.unmanaged().iter().any(|u| {
            u.instance == id && u.record.is_some() && u.bundle.is_some() && !u.addresses.is_empty()
        })
    })
    .await;
    // Only one of its entries contains the record, regardless of the number of disks.
    let unmanaged = node.waifud.unmanaged();
    assert_eq!(unmanaged.iter().filter(|u| u.record.is_some()).count(), 1);
}

/// Until they are reported, waifud gives their addresses to no other instance.
#[tokio::test]
async fn an_instance_whose_deletion_a_restored_database_does_not_contain_is_reported_as_unmanaged()
{
    let (node, id) = TestNode::with_instance("web").await;
    let instance = node.waifud.instance(id).unwrap();
    // The deletion has arrived and is not complete.
    node.pool.hang(PoolOp::EnsureVolumeAbsent);
    node.waifud.delete(id);
    node.until("the deletion is under way", async || {
        node.domain(id).await.is_none()
    })
    .await;
    node.waifud.lose_tombstones();
    node.waifud.restore(0xbeef);
    node.until("its addresses are reported", async || {
        let unmanaged = node.waifud.unmanaged();
        let addresses = unmanaged.iter().flat_map(|one| one.addresses.clone());
        let address = instance.spec.nics[0].address.unwrap();
        addresses.collect::<Vec<_>>().contains(&address)
    })
    .await;
    node.pool.release(PoolOp::EnsureVolumeAbsent);
    node.until_deletions_are_held().await;
}

#[tokio::test]
async fn an_unmanaged_instance_is_reported_until_its_ordered_deletion_is_executed() {
    let (node, id) = TestNode::with_instance("web").await;
    let instance = node.waifud.instance(id).unwrap();
    node.waifud.remove_from_slice(id);
    node.waifud.restore(0xbeef);
    node.until_deletions_are_held().await;
    let is_reported = || node.waifud.unmanaged().iter().any(|one| one.instance == id);
    node.until("it is reported", async || is_reported()).await;
    node.waifud.add_tombstone(Tombstone {
        instance: id,
        name: instance.name.clone(),
        epoch: instance.epoch,
    });
    node.until_state(id, InstanceState::Deleting).await;
    node.until_more_reports(3).await;
    assert!(is_reported(), "its address is in use");
    node.waifud.confirm();
    node.until("it is gone", async || !is_reported()).await;
    assert_eq!(node.domain(id).await, None);
}
