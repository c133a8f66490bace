//! Other nodes in the slice of a node: what is sent, what a resumed watch receives, and who is woken.

use std::time::Duration;

use serde_json::json;
use waifud_api::agent::{AgentReport, Peer, SliceKey, SliceObject, WatchFrame};
use waifud_store::Topic;
use waifud_types::{ByteSize, InstanceState, NodeId};

use crate::common::{Agent, Server, facts, hello, report};

/// Longer than waifud collects changes of peers.
const COLLECTED: Duration = Duration::from_millis(400);

/// The next frame, which must be about a peer: the peer, or the id of a deleted one. The node's own configuration, which
/// contains the fabric, is skipped.
async fn next_change(agent: &mut Agent) -> Result<Peer, NodeId> {
    loop {
        match agent.any_frame().await {
            WatchFrame::Put {
                object: SliceObject::Node(_),
                ..
            } => {}
            WatchFrame::Put {
                object: SliceObject::Peer(peer),
                ..
            } => return Ok(peer),
            WatchFrame::Delete {
                key: SliceKey::Peer(id),
                ..
            } => return Err(id),
            other => panic!("a peer was expected, not {other:?}"),
        }
    }
}

pub async fn next_peer(agent: &mut Agent) -> Peer {
    next_change(agent).await.unwrap()
}

pub async fn next_deletion(agent: &mut Agent) -> NodeId {
    next_change(agent).await.unwrap_err()
}

/// The peers and deletions before the next `sync`, and its revision.
async fn peers_until_sync(agent: &mut Agent) -> (Vec<Peer>, Vec<NodeId>, String) {
    let (mut peers, mut deleted) = (Vec::new(), Vec::new());
    loop {
        match agent.any_frame().await {
            WatchFrame::Put {
                object: SliceObject::Peer(peer),
                ..
            } => peers.push(peer),
            WatchFrame::Delete {
                key: SliceKey::Peer(id),
                ..
            } => deleted.push(id),
            WatchFrame::Sync { revision } => return (peers, deleted, revision.to_string()),
            _ => {}
        }
    }
}

fn names(peers: &[Peer]) -> Vec<&str> {
    let mut names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn each_node_receives_the_other_nodes_and_their_changes() {
    let (server, mut alder) = Server::with_watching_node().await;
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    let seen = next_peer(&mut alder).await;
    assert_eq!((seen.id, seen.name.as_str()), (birch.id, "birch"));
    let subnets: Vec<_> = seen.subnets.iter().map(ToString::to_string).collect();
    assert_eq!(subnets, ["10.144.2.0/24"]);
    assert!(seen.reachable && seen.endpoints.is_empty() && seen.public_key.is_none());

    birch.watch(None).await;
    let (peers, deleted, _) = peers_until_sync(&mut birch).await;
    assert_eq!((names(&peers), deleted), (vec!["alder"], Vec::new()));

    server
        .patch("/v1/nodes/birch", &json!({"name": "beech"}))
        .await
        .expect(200);
    assert_eq!(next_peer(&mut alder).await.name.as_str(), "beech");
    server.delete("/v1/nodes/beech").await.expect(204);
    assert_eq!(next_deletion(&mut alder).await, birch.id);

    // A watch from the beginning does not name what is gone.
    alder.watch(None).await;
    let (peers, deleted, _) = peers_until_sync(&mut alder).await;
    assert_eq!((peers, deleted), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_resumed_watch_receives_exactly_the_changed_and_deleted_peers() {
    let (server, mut alder) = Server::with_watching_node().await;
    let nodes = ["birch", "cedar", "maple", "oak"];
    let mut ids = Vec::new();
    for name in nodes {
        ids.push(server.join(name, ByteSize::gib(8)).await.id);
    }
    alder.watch(None).await;
    let (peers, _, since) = peers_until_sync(&mut alder).await;
    assert_eq!(names(&peers), nodes);
    alder.hang_up();

    server
        .patch("/v1/nodes/cedar", &json!({"name": "larch"}))
        .await
        .expect(200);
    for gone in ["maple", "oak"] {
        server
            .delete(&format!("/v1/nodes/{gone}"))
            .await
            .expect(204);
    }
    // What is remembered of removed nodes does not depend on their subnets.
    server.delete("/v1/nodes/oak?purge=true").await.expect(204);
    server.join("rowan", ByteSize::gib(8)).await;

    alder.watch(Some(&since)).await;
    let (peers, deleted, now) = peers_until_sync(&mut alder).await;
    assert_eq!(names(&peers), ["larch", "rowan"]);
    assert_eq!(deleted, [ids[2], ids[3]]);
    alder.watch(Some(&now)).await;
    let (peers, deleted, _) = peers_until_sync(&mut alder).await;
    assert_eq!((peers, deleted), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_node_is_told_when_a_peer_becomes_unreachable_or_reachable() {
    let (server, clock) = Server::with_manual_clock().await;
    let mut alder = server.join("alder", ByteSize::gib(8)).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    alder.watch_from_now().await;
    clock.forward(Duration::from_mins(10));
    alder.report(&AgentReport::default()).await;
    server.control.check_contacts().await.unwrap();
    let lost = next_peer(&mut alder).await;
    assert_eq!((lost.id, lost.reachable), (birch.id, false));
    birch
        .hello(&hello("birch", ByteSize::gib(8)))
        .await
        .expect(200);
    let found = next_peer(&mut alder).await;
    assert_eq!((found.id, found.reachable), (birch.id, true));
}

#[tokio::test]
async fn reports_and_instances_of_one_node_do_not_wake_another() {
    let (server, mut alder) = Server::with_watching_node().await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(next_peer(&mut alder).await.id, birch.id);
    let store = server.control.store();
    let own = store.subscribe_topic(Topic::Node(alder.id));
    let cluster = store.subscribe_topic(Topic::Cluster);
    let of_birch = store.subscribe_topic(Topic::Node(birch.id));

    let pinned = json!({"name": "web", "template": "debian-12", "placement": {"node": "birch"}});
    let web = server.created(&pinned).await;
    birch
        .report_instance(report(web.id, InstanceState::Running))
        .await;
    birch.report_facts(facts(ByteSize::gib(16))).await;
    birch.report(&AgentReport::default()).await;
    let same = hello("birch", ByteSize::gib(16));
    birch.hello(&same).await.expect(200);
    server
        .patch("/v1/nodes/birch", &json!({"labels": {"disk": "ssd"}}))
        .await
        .expect(200);

    assert!(
        of_birch.has_changed().unwrap(),
        "birch received its instance"
    );
    assert!(!own.has_changed().unwrap());
    assert!(!cluster.has_changed().unwrap());
    let frame = tokio::time::timeout(COLLECTED, alder.any_frame()).await;
    assert!(frame.is_err(), "{frame:?}");
}

#[tokio::test]
async fn a_change_for_a_node_itself_is_not_delayed_by_collected_changes_of_peers() {
    let (server, mut alder) = Server::with_watching_node().await;
    server.set_fabric("none").await;
    server.join("birch", ByteSize::gib(8)).await;
    let pinned = json!({"name": "web", "template": "debian-12", "placement": {"node": "alder"}});
    server.created(&pinned).await;
    let mut frames = vec![alder.any_frame().await, alder.any_frame().await];
    let is_instance = |frame: &WatchFrame| {
        matches!(
            frame,
            WatchFrame::Put {
                object: SliceObject::Instance(_),
                ..
            }
        )
    };
    assert!(is_instance(&frames.remove(1)), "{frames:?}");
    assert!(!is_instance(&frames[0]), "in the order of their revisions");
}

#[tokio::test]
async fn a_watch_that_ends_after_any_frame_resumes_without_losing_an_object() {
    // The second node changes two objects of the first one by one event: a peer, and the fabric in its configuration.
    let (server, mut alder) = Server::with_node(ByteSize::gib(8)).await;
    alder.watch(None).await;
    let known = everything(&mut alder).await.len();
    let joined = server.join("birch", ByteSize::gib(8)).await;
    server.create_instance("web").await;
    let objects = |frames: &[WatchFrame]| {
        let object = |frame: &WatchFrame| match frame {
            WatchFrame::Put { object, .. } => {
                Some(serde_json::to_value(object).unwrap()["id"].clone())
            }
            _ => None,
        };
        frames.iter().filter_map(object).collect::<Vec<_>>()
    };
    alder.watch(None).await;
    let all = everything(&mut alder).await;
    assert!(all.len() > known, "{all:?}");
    assert!(objects(&all).contains(&json!(joined.id)));
    for (received, frame) in (1..).zip(&all) {
        let revision = frame.clone().revision_mut().unwrap().to_string();
        alder.watch(Some(&revision)).await;
        let rest = objects(&everything(&mut alder).await);
        for missing in objects(&all[received..]) {
            assert!(rest.contains(&missing), "after {received} frames: {all:?}");
        }
    }
}

/// All frames before the next `sync`.
async fn everything(agent: &mut Agent) -> Vec<WatchFrame> {
    let mut frames = Vec::new();
    loop {
        match agent.any_frame().await {
            WatchFrame::Sync { .. } => return frames,
            frame => frames.push(frame),
        }
    }
}
