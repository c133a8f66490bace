//! The agent's state directory on a real filesystem that fills up: guests keep running, the durable copy stays intact, the
//! node reports the problem, and continues once there is space.
//!
//! The filesystem is ext4 on a loop device, in a mount namespace that ends with the test.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use waifud_hypervisor::DomainState;
use waifud_kit::testing::new_filesystem::NewFilesystem;
use waifud_kit::testing::skip_if;
use waifud_storage::fake::FakePool;
use waifud_types::status::Condition;
use waifud_types::{InstanceState, ReceiveState};

use crate::receive::{copy, elsewhere};
use crate::test_node::TestNode;

/// Runs the test called `name` again in a process with a new filesystem. In that process, returns its path.
fn inside(name: &str) -> Option<PathBuf> {
    let disk = NewFilesystem::ext4(16 << 20);
    if skip_if(disk.obstacle()) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    disk.run_again(name, directory.path()).unwrap()
}

/// Fills every block.
fn fill(at: &Path) {
    let mut filler = File::create(at.join("filler")).unwrap();
    for size in [1 << 20, 4096] {
        let block = vec![0; size];
        while filler
            .write_all(&block)
            .and_then(|()| filler.sync_data())
            .is_ok()
        {}
    }
}

fn make_room(at: &Path) {
    fs::remove_file(at.join("filler")).unwrap();
}

fn state_dir(node: &TestNode) -> Option<Condition> {
    let conditions = node.waifud.facts()?.conditions;
    conditions.into_iter().find(|it| it.kind == "state-dir")
}

/// The names of the record files. Each file is complete JSON.
fn records(node: &TestNode) -> Vec<String> {
    let entries = fs::read_dir(node.settings.state_dir.join("records")).unwrap();
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    names
}

#[tokio::test]
async fn a_full_state_directory_stops_no_guest_loses_nothing_and_is_reported() {
    let name = "disk_full::a_full_state_directory_stops_no_guest_loses_nothing_and_is_reported";
    let Some(at) = inside(name) else { return };
    let mut node = TestNode::new();
    node.settings.state_dir = at.join("state");
    fs::create_dir(&node.settings.state_dir).unwrap();
    node.start();
    let web = node.run_one("web").await;
    let before = records(&node);
    let starts = node.hypervisor.starts();

    fill(&at);
    let db = node.instance("db");
    let db_id = db.id;
    node.waifud.put(db);
    node.until("the node reports that it is full", async || {
        state_dir(&node).is_some_and(|it| it.reason == "full" && !it.message.contains("almost"))
    })
    .await;
    let condition = state_dir(&node).unwrap();
    assert!(
        condition
            .message
            .contains(node.settings.state_dir.to_str().unwrap()),
        "{condition:?}"
    );
    assert_eq!(
        records(&node),
        before,
        "no partial file is left, and nothing is lost"
    );
    assert_eq!(
        node.domain(db_id).await,
        None,
        "a change that is not durable is not acted on"
    );
    assert_eq!(node.domain(web).await, Some(DomainState::Running));

    // A restarted agent has the same records, and no guest is affected.
    node.restart().await;
    node.until("it is reported again", async || {
        state_dir(&node).is_some_and(|it| it.reason == "full")
    })
    .await;
    assert_eq!(records(&node), before);
    assert_eq!(node.domain(web).await, Some(DomainState::Running));
    assert_eq!(
        node.hypervisor.starts(),
        starts,
        "the guest was not started again"
    );

    make_room(&at);
    node.until_ready(db_id).await;
    node.until_state(web, InstanceState::Running).await;
    node.until("the condition changes", async || {
        // The filesystem is small, so the best possible state is low.
        state_dir(&node).is_some_and(|it| it.reason == "low" || it.message.contains("almost"))
    })
    .await;
    assert_eq!(records(&node).len(), before.len() + 1);
    assert_eq!(node.domain(web).await, Some(DomainState::Running));
}

#[tokio::test]
async fn a_release_waits_for_space_and_the_guest_runs_until_it_is_recorded() {
    let name = "disk_full::a_release_waits_for_space_and_the_guest_runs_until_it_is_recorded";
    let Some(at) = inside(name) else { return };
    let mut node = TestNode::new();
    node.settings.state_dir = at.join("state");
    fs::create_dir(&node.settings.state_dir).unwrap();
    node.start();
    let id = node.run_one("web").await;
    fill(&at);
    node.release(id, true);
    node.until("the node reports that it is full", async || {
        state_dir(&node).is_some_and(|it| it.reason == "full" && !it.message.contains("almost"))
    })
    .await;
    node.until_observed_again().await;
    assert!(node.waifud.released().is_empty());
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    // It still owns the instance.
    node.restart().await;
    node.until_observed_again().await;
    assert!(node.waifud.released().is_empty());
    assert_eq!(node.domain(id).await, Some(DomainState::Running));
    make_room(&at);
    node.until("released", async || {
        node.waifud.released().iter().any(|released| released.off)
    })
    .await;
    assert_eq!((node.hypervisor.starts(), node.volumes().await), (1, 1));
}

#[tokio::test]
async fn a_pool_that_fills_up_while_a_disk_arrives_is_named_and_the_copy_continues() {
    let name =
        "disk_full::a_pool_that_fills_up_while_a_disk_arrives_is_named_and_the_copy_continues";
    let Some(at) = inside(name) else { return };
    let mut node = TestNode::new();
    let pool = at.join("pool");
    fs::create_dir(&pool).unwrap();
    node.pool = FakePool::new("main".parse().unwrap(), pool);
    node.start();
    let (_, incoming) = elsewhere(&node);
    node.waifud.put_incoming(incoming.clone());
    node.until_receiving(incoming.id, ReceiveState::Prepared)
        .await;
    fill(&at);
    node.waifud.put_incoming(copy(&incoming));
    node.until_hindered(
        incoming.id,
        "pool main is full; free space on its filesystem",
    )
    .await;
    assert!(node.pool.volume_facts().is_empty());
    make_room(&at);
    node.until_receiving(incoming.id, ReceiveState::Received)
        .await;
    let receiving = node.waifud.receiving(incoming.id).unwrap();
    assert_eq!(receiving.reason, None);
}
