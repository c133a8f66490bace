//! Nodes that die in the middle of a move: silent for long, with their watch ended, and back with a new one. What follows
//! the return is what the move would have done without it, and the other node is ordered nothing else meanwhile.

use std::fs;
use std::path::Path;

use waifud_api::agent::{SliceObject, WatchFrame};
use waifud_types::{Epoch, InstanceState, OwnershipRole, ReceiveState};

use super::super::common::Agent;
use super::{Cluster, all_off, incoming};

use OwnershipRole::{Owner, Receiving, Released, Releasing};

/// The node is back: what its new watch says about the instance.
async fn orders(agent: &mut Agent) -> Vec<String> {
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    let orders = frames.iter().filter_map(|frame| match frame {
        WatchFrame::Put { object, .. } => match object {
            SliceObject::Instance(instance) => Some(format!("put {}", instance.epoch.0)),
            SliceObject::Incoming(incoming) => Some(format!(
                "receive {} copy={}",
                incoming.epoch.0, incoming.copy
            )),
            _ => None,
        },
        WatchFrame::Release { release, .. } => Some(format!("release {}", release.epoch.0)),
        WatchFrame::Tombstone { tombstone, .. } => Some(format!("destroy {}", tombstone.epoch.0)),
        _ => None,
    });
    orders.collect()
}

/// The node is back, and deletes what it is ordered to.
async fn destroys(agent: &mut Agent) {
    agent.watch(None).await;
    let frames = agent.until_sync().await;
    let tombstone = frames.into_iter().find_map(|frame| match frame {
        WatchFrame::Tombstone { tombstone, .. } => Some(tombstone),
        _ => None,
    });
    agent.destroyed(tombstone.unwrap()).await;
}

impl Cluster {
    /// Time passes, and waifud looks at the move, while the nodes are off.
    async fn nothing_happens(&self, state: &str) {
        let parts = self.parts().await;
        for _ in 0..3 {
            all_off(self).await;
            self.server.control.advance_moves().await.unwrap();
        }
        assert_eq!(self.state().await, state);
        assert_eq!(self.parts().await, parts, "{state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_node_that_dies_while_preparing_or_stopping_is_waited_for_and_ordered_to_release() {
    for (state, parts) in [
        ("preparing", [("alder", Owner, 1), ("birch", Receiving, 1)]),
        (
            "stopping",
            [("alder", Releasing, 1), ("birch", Receiving, 1)],
        ),
    ] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        it.alder.hang_up();
        it.nothing_happens(state).await;
        assert_eq!(it.parts().await, parts);
        // birch goes on as far as it can.
        it.receives(ReceiveState::Prepared).await;
        it.receives(ReceiveState::Received).await;
        it.nothing_happens("stopping").await;
        assert_eq!(it.shown().await.status.node.unwrap().as_str(), "alder");
        assert_eq!(orders(&mut it.alder).await, ["release 1"], "{state}");
        it.releases(true).await;
        assert_eq!(it.parts().await[1], ("birch", Owner, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_node_that_dies_while_copying_is_waited_for_and_still_released() {
    let mut it = Cluster::new().await;
    it.advance_to("copying").await;
    it.alder.hang_up();
    it.receives(ReceiveState::Copying).await;
    it.nothing_happens("copying").await;
    assert_eq!(orders(&mut it.alder).await, ["release 1"]);
    // It reports again what it has recorded.
    it.releases(true).await;
    assert_eq!(it.state().await, "copying");
    it.receives(ReceiveState::Received).await;
    assert_eq!(
        it.parts().await,
        [("alder", Released, 1), ("birch", Owner, 2)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_that_dies_before_the_handover_continues_when_it_is_back() {
    for (state, again, next) in [
        ("preparing", "receive 1 copy=false", "stopping"),
        ("stopping", "receive 1 copy=false", "stopping"),
        ("copying", "receive 1 copy=true", "starting"),
    ] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        it.birch.hang_up();
        it.nothing_happens(state).await;
        assert_eq!(orders(&mut it.birch).await, [again], "{state}");
        let reached = if state == "copying" {
            ReceiveState::Received
        } else {
            ReceiveState::Prepared
        };
        it.receives(reached).await;
        assert_eq!(it.state().await, next, "{state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_that_dies_while_starting_has_the_instance_when_it_is_back() {
    let mut it = Cluster::new().await;
    it.advance_to("starting").await;
    it.birch.hang_up();
    it.nothing_happens("starting").await;
    let shown = it.shown().await;
    assert_eq!(shown.status.node.unwrap().as_str(), "birch");
    // alder keeps its disks, and is ordered neither to start the guest nor to delete them.
    assert_eq!(orders(&mut it.alder).await, ["release 1"]);
    assert_eq!(orders(&mut it.birch).await, ["put 2"]);
    it.runs_on_birch(InstanceState::Running).await;
    assert_eq!(it.state().await, "removing");
    let both = ["release 1", "destroy 1"];
    assert_eq!(orders(&mut it.alder).await, both);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_node_that_dies_while_removing_deletes_its_copy_when_it_is_back() {
    let mut it = Cluster::new().await;
    it.advance_to("removing").await;
    it.alder.hang_up();
    it.nothing_happens("removing").await;
    it.runs_on_birch(InstanceState::Running).await;
    let shown = it.shown().await.status;
    assert_eq!(
        (shown.state, shown.node.unwrap().as_str()),
        (InstanceState::Running, "birch")
    );
    let both = ["release 1", "destroy 1"];
    assert_eq!(orders(&mut it.alder).await, both);
    destroys(&mut it.alder).await;
    assert_eq!(it.state().await, "");
    assert_eq!(it.parts().await, [("birch", Owner, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_canceled_while_either_node_is_off() {
    for state in ["preparing", "stopping", "copying"] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        it.alder.hang_up();
        it.birch.hang_up();
        all_off(&it).await;
        it.cancel().await.expect(200);
        it.nothing_happens("canceling").await;
        let epoch = if state == "preparing" { 1 } else { 2 };
        let owner = [("alder", Owner, epoch), ("birch", Receiving, 1)];
        assert_eq!(it.parts().await, owner, "{state}");
        // The old node has the instance again, whether the new one is back or not.
        assert_eq!(orders(&mut it.alder).await, [format!("put {epoch}")]);
        assert_eq!(orders(&mut it.birch).await, ["destroy 1"], "{state}");
        it.receives(ReceiveState::Received).await;
        assert_eq!(it.parts().await, owner, "{state}");
        destroys(&mut it.birch).await;
        assert_eq!(it.state().await, "", "{state}");
        // And again: nothing of the canceled move is left.
        it.birch.watch_from_now().await;
        it.begin().await;
        assert_eq!(incoming(&mut it.birch).await.epoch, Epoch(epoch));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_that_dies_while_removing_is_the_owner_and_the_old_copy_is_deleted() {
    let mut it = Cluster::new().await;
    it.advance_to("removing").await;
    it.birch.hang_up();
    it.nothing_happens("removing").await;
    it.alder.confirm_deletion().await;
    assert_eq!(it.state().await, "");
    assert_eq!(it.parts().await, [("birch", Owner, 2)]);
    assert_eq!(orders(&mut it.birch).await, ["put 2"]);
}

/// The table of outcomes in `docs/reference/ownership.md` has a test for each row.
#[test]
fn each_row_of_the_table_of_outcomes_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/reference/ownership.md")).unwrap();
    let (_, table) = page.split_once("| what happens |").unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    let mut sources = String::new();
    read_sources(&root.join("crates"), &mut sources);
    for row in rows {
        let tests = row.rsplit(" | ").next().unwrap();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "a row without a test: {row}");
        for name in names {
            let exists = sources.contains(&format!("fn {name}("));
            assert!(exists, "there is no test {name}: {row}");
        }
    }
}

/// Appends all Rust files below a directory.
fn read_sources(directory: &Path, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|end| end == "rs") {
            sources.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
