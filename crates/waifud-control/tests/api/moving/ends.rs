//! Moves that end early: canceled, with a deleted instance, with a removed node, after a restore.

use serde_json::json;
use waifud_api::hint::{Hint, HintAction};
use waifud_types::{Epoch, InstanceState, OwnershipRole, ReceiveState};

use super::super::unmanaged::restored;
use super::{Cluster, MOVE, all_off, incoming, released};

use OwnershipRole::{Owner, Receiving};

const BEFORE_HANDOVER: [&str; 3] = ["preparing", "stopping", "copying"];

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_move_leaves_the_instance_on_its_node_and_nothing_on_the_other() {
    for state in BEFORE_HANDOVER {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        let kept = it.cancel().await.expect(200).instance();
        assert_eq!(kept.status.node.unwrap().as_str(), "alder", "{state}");
        // A release that may be recorded ends in the next epoch.
        let epoch = if state == "preparing" { 1 } else { 2 };
        let parts = [("alder", Owner, epoch), ("birch", Receiving, 1)];
        assert_eq!(it.parts().await, parts, "{state}");
        if epoch == 2 {
            assert_eq!(it.alder.put().await.epoch, Epoch(2));
        }
        assert_eq!(it.state().await, "canceling");
        it.cancel().await.expect(200);
        let refused = it.server.post(MOVE, &super::to_birch()).await;
        let problem = refused.refused(409, "moving", "name");
        let cancel = HintAction::CancelMove;
        let is_repeated = |hint: &Hint| hint.known_action() == Some(cancel.clone());
        assert!(!problem.hints.iter().any(is_repeated), "{problem:?}");

        // What birch still reports does not matter any more.
        it.receives(ReceiveState::Received).await;
        it.alder.report(&released(it.web.id, 1, true)).await;
        assert_eq!(it.parts().await, parts, "{state}");

        let tombstone = it.birch.tombstone().await;
        assert_eq!(tombstone.epoch, Epoch(1));
        it.birch.destroyed(tombstone).await;
        assert_eq!(it.state().await, "", "{state}");
        assert_eq!(it.parts().await, [("alder", Owner, epoch)], "{state}");
        let birch = it.server.node("birch").await;
        assert_eq!(birch["promised"]["memory_bytes"], 0, "{state}");

        // And again.
        it.begin().await;
        assert_eq!(incoming(&mut it.birch).await.epoch, Epoch(epoch));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_move_leaves_the_published_ports_to_the_instance() {
    let mut it = Cluster::new().await;
    let patch = json!({"publish": [{"port": 8080}]});
    it.server.patched("web", &patch).await;
    it.server
        .post(
            "/v1/instances",
            &json!({"name": "db", "template": "debian-12", "placement": {"node": "alder"}}),
        )
        .await
        .expect(201);
    it.advance_to("preparing").await;
    let taken = it.server.patch_instance("db", &patch).await;
    taken.refused(409, "port-taken", "spec.publish");
    it.cancel().await.expect(200);
    let tombstone = it.birch.tombstone().await;
    it.birch.destroyed(tombstone).await;
    assert_eq!(it.state().await, "");
    let taken = it.server.patch_instance("db", &patch).await;
    taken.refused(409, "port-taken", "spec.publish");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_cannot_be_canceled_after_the_handover_nor_without_a_move() {
    for state in ["starting", "removing"] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        it.cancel().await.refused(409, "already-moved", "name");
        assert_eq!(it.state().await, state);
    }
    let it = Cluster::new().await;
    it.cancel().await.refused(409, "not-moving", "name");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_deleted_during_a_move_is_destroyed_on_both_nodes() {
    for state in ["preparing", "stopping", "copying", "starting", "removing"] {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        let ordered_before = state == "removing";
        if ordered_before {
            it.alder.tombstone().await;
        }
        it.server.delete("/v1/instances/web").await.expect(202);
        let again = it.server.post(MOVE, &super::to_birch()).await;
        assert_eq!(again.expect(409).problem().code, "deleting");
        for agent in [&mut it.alder, &mut it.birch] {
            agent.confirm_deletion().await;
        }
        it.server.get("/v1/instances/web").await.expect(404);
        for node in ["alder", "birch"] {
            let node = it.server.node(node).await;
            assert_eq!(node["promised"]["memory_bytes"], 0, "{state}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_removal_of_the_new_node_cancels_the_move() {
    for state in BEFORE_HANDOVER {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        all_off(&it).await;
        it.server
            .delete("/v1/nodes/birch?force=true&confirm_off=true")
            .await
            .expect(204);
        it.server.control.advance_moves().await.unwrap();
        assert_eq!(it.state().await, "", "{state}");
        let epoch = if state == "preparing" { 1 } else { 2 };
        assert_eq!(it.parts().await, [("alder", Owner, epoch)], "{state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_removal_of_the_new_node_after_the_handover_returns_the_instance_to_its_old_disks()
{
    let mut it = Cluster::new().await;
    it.advance_to("starting").await;
    all_off(&it).await;
    it.server
        .delete("/v1/nodes/birch?force=true&confirm_off=true")
        .await
        .expect(204);
    assert_eq!(it.parts().await, [("alder", Owner, 3)]);
    let back = it.alder.put().await;
    assert_eq!(back.epoch, Epoch(3));
    assert_eq!(back.spec.nics[0].address.unwrap().octets()[2], 1);
    let shown = it.shown().await;
    assert_eq!(shown.moving, None);
    assert_eq!(shown.status.node.unwrap().as_str(), "alder");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_node_is_not_removed_while_it_has_the_only_disks() {
    for state in BEFORE_HANDOVER {
        let mut it = Cluster::new().await;
        it.advance_to(state).await;
        all_off(&it).await;
        let forced = "/v1/nodes/alder?force=true&confirm_off=true";
        it.server.delete(forced).await.expect(409);
        it.cancel().await.expect(200);
        it.birch.confirm_deletion().await;
        all_off(&it).await;
        it.server.delete(forced).await.expect(204);
        assert_eq!(it.shown().await.status.state, InstanceState::Failed);
    }
    // Afterwards its copy does not matter.
    let mut it = Cluster::new().await;
    it.advance_to("removing").await;
    all_off(&it).await;
    let forced = "/v1/nodes/alder?force=true&confirm_off=true";
    it.server.delete(forced).await.expect(204);
    it.server.control.advance_moves().await.unwrap();
    assert_eq!(it.parts().await, [("birch", Owner, 2)]);
    assert_eq!(it.state().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_no_move_goes_on_before_every_node_is_confirmed() {
    let mut it = Cluster::new().await;
    it.advance_to("copying").await;
    it.server = restored(&it.server).await;
    it.alder = it.server.agent_again(&it.alder).await;
    it.birch = it.server.agent_again(&it.birch).await;
    it.alder.report_unmanaged(Vec::new()).await;
    it.birch.report_unmanaged(Vec::new()).await;
    it.releases(true).await;
    it.receives(ReceiveState::Received).await;
    assert_eq!(it.state().await, "copying");
    let why = it.shown().await.moving.unwrap().reason.unwrap();
    assert!(why.contains("not confirmed"), "{why}");
    let refused = it.cancel().await.expect(409).problem();
    assert_eq!(refused.code, "handover-refused");
    let all = json!({});
    for node in ["alder", "birch"] {
        let path = format!("/v1/nodes/{node}/confirm");
        it.server.post(&path, &all).await;
    }
    it.server.control.advance_moves().await.unwrap();
    assert_eq!(it.state().await, "starting");
}
