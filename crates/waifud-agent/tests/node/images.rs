//! Images in the pools of a node of fakes: imported once, and removed when nothing needs them any more.

use std::time::{Duration, Instant};

use waifud_storage::fake::Op as PoolOp;
use waifud_storage::{StorageError, StoragePool};

use crate::test_node::TestNode;

/// A node that removes an image 100 ms after the last use of it was seen.
fn node_with_a_short_grace_period() -> TestNode {
    TestNode::started_after(|node| {
        node.settings.timing.image_grace = Duration::from_millis(100);
        // Gathering facts lists the images, too, and `until_collected_again` counts that.
        node.settings.timing.facts = Duration::from_hours(1);
    })
}

/// Waits until the collector has run so often that the grace period of 100 ms is over: it runs every 50 ms.
async fn until_collected_again(node: &TestNode) {
    let runs = node.pool.calls(PoolOp::Images);
    node.until("several runs of the collector", async || {
        node.pool.calls(PoolOp::Images) > runs + 6
    })
    .await;
}

#[tokio::test]
async fn an_image_whose_import_failed_is_not_downloaded_again() {
    let node = TestNode::new();
    let passing = StorageError::Tool {
        tool: "qemu-img",
        message: "it is being upgraded".to_owned(),
    };
    node.pool.fail_next(PoolOp::ImportImage, passing);
    node.start();
    node.run_one("web").await;
    assert_eq!(node.pool.calls(PoolOp::ImportImage), 2);
    assert_eq!(node.waifud.fetches(), 1);
}

#[tokio::test]
async fn the_node_reports_the_images_in_its_pools() {
    let node = TestNode::started_after(|node| {
        node.settings.timing.facts = Duration::from_millis(20);
    });
    let reported = || {
        node.waifud
            .facts()
            .map(|facts| facts.pools[0].images.clone())
    };
    node.until("a pool without images", async || {
        reported() == Some(Some(Vec::new()))
    })
    .await;
    node.run_one("web").await;
    let image = node.instance("other").spec.image;
    node.until("the image is reported", async || {
        reported() == Some(Some(vec![image]))
    })
    .await;
}

#[tokio::test]
async fn an_imported_image_is_reported_at_once() {
    let node = TestNode::started_after(|node| {
        node.settings.timing.facts = Duration::from_hours(1);
    });
    node.run_one("web").await;
    let image = node.instance("other").spec.image;
    node.until("the image is reported", async || {
        let facts = node.waifud.facts();
        facts.is_some_and(|facts| facts.pools[0].images == Some(vec![image]))
    })
    .await;
}

#[tokio::test]
async fn an_image_is_removed_when_no_instance_needs_it_any_more() {
    let node = node_with_a_short_grace_period();
    let id = node.run_one("web").await;
    let image = node.instance("other").spec.image;
    node.restart().await;
    node.until_ready(id).await;
    until_collected_again(&node).await;
    assert!(node.pool.has_image(image).await.unwrap(), "web needs it");
    let removals = node.pool.calls(PoolOp::EnsureImageAbsent);
    assert_eq!(removals, 0, "not even tried");
    node.delete(id).await;
    node.until("the image is gone", async || {
        !node.pool.has_image(image).await.unwrap()
    })
    .await;
    // An instance that needs it later gets it again.
    let again = node.run_one("again").await;
    assert!(node.pool.has_image(image).await.unwrap());
    node.delete(again).await;
}

#[tokio::test]
async fn an_image_stays_while_an_unmanaged_instance_needs_it() {
    let node = node_with_a_short_grace_period();
    let id = node.run_one("web").await;
    let image = node.instance("other").spec.image;
    node.waifud.remove_from_slice(id);
    node.until("unmanaged", async || !node.waifud.unmanaged().is_empty())
        .await;
    until_collected_again(&node).await;
    assert!(node.pool.has_image(image).await.unwrap());
    let removals = node.pool.calls(PoolOp::EnsureImageAbsent);
    assert_eq!(removals, 0, "not even tried");

    // Without its record, the disk shows that the image is needed.
    node.kill().await;
    let records = node.settings.state_dir.join("records");
    std::fs::remove_file(records.join(format!("{id}.json"))).unwrap();
    node.start();
    node.until("a removal is tried", async || {
        node.pool.calls(PoolOp::EnsureImageAbsent) > removals
    })
    .await;
    until_collected_again(&node).await;
    assert!(node.pool.has_image(image).await.unwrap());

    // An administrator removes the rest of it.
    node.hypervisor.undefine(id);
    let volumes = node.pool.volumes().await.unwrap();
    assert_eq!(volumes.len(), 1);
    node.pool
        .ensure_volume_absent(&volumes[0].id)
        .await
        .unwrap();
    node.until("the image is gone", async || {
        !node.pool.has_image(image).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn the_grace_period_of_an_unused_image_begins_again_with_the_agent() {
    const GRACE: Duration = Duration::from_secs(1);
    let mut node = TestNode::started_after(|node| {
        // Long, so that this agent does not remove it.
        node.settings.timing.image_grace = Duration::from_hours(1);
    });
    let id = node.run_one("web").await;
    let image = node.instance("other").spec.image;
    node.delete(id).await;
    let unused = Instant::now();
    until_collected_again(&node).await;
    // It has been seen unused for longer than the grace period of the next agent.
    node.until("longer", async || unused.elapsed() > GRACE * 2)
        .await;
    node.kill().await;
    assert!(node.pool.has_image(image).await.unwrap());
    node.settings.timing.image_grace = GRACE;
    let restarted = Instant::now();
    node.start();
    node.until("the image is gone", async || {
        !node.pool.has_image(image).await.unwrap()
    })
    .await;
    let after = restarted.elapsed();
    assert!(after >= GRACE, "removed after {after:?}");
}
