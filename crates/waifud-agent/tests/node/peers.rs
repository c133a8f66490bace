//! Other nodes of the cluster: their guest subnets are part of this node's network.

use std::time::Duration;

use waifud_api::agent::Peer;
use waifud_network::HostNetworkFacts;
use waifud_types::NodeId;

use crate::test_node::TestNode;

fn peer(name: &str, subnet: &str) -> Peer {
    Peer {
        id: NodeId::generate(),
        name: name.parse().unwrap(),
        subnets: vec![subnet.parse().unwrap()],
        extra: Vec::new(),
        public_key: None,
        endpoints: Vec::new(),
        reachable: true,
    }
}

/// The remote subnets that are applied, each with its node.
fn remote(node: &TestNode) -> Vec<String> {
    let state = node.network.state();
    let subnets = state.into_iter().flat_map(|state| state.remote_subnets);
    let mut all: Vec<_> = subnets
        .map(|r| format!("{} {}", r.node, r.subnet))
        .collect();
    all.sort();
    all
}

async fn until_remote(node: &TestNode, expected: &[&str]) {
    node.until("the network has the subnets of the peers", async || {
        remote(node) == expected
    })
    .await;
}

#[tokio::test]
async fn the_subnets_of_peers_are_applied_while_they_are_in_the_cluster() {
    let (node, id) = TestNode::with_instance("web").await;
    let birch = peer("birch", "10.144.2.0/24");
    node.waifud.put_peer(birch.clone());
    until_remote(&node, &["birch 10.144.2.0/24"]).await;
    node.waifud.put_peer(peer("cedar", "10.144.3.0/24"));
    until_remote(&node, &["birch 10.144.2.0/24", "cedar 10.144.3.0/24"]).await;
    node.waifud.remove_peer(birch.id);
    until_remote(&node, &["cedar 10.144.3.0/24"]).await;
    assert_eq!(node.ports(), 1, "the guest keeps its port");
    node.until_ready(id).await;
}

#[tokio::test]
async fn whether_a_peer_is_reachable_does_not_change_the_network() {
    let node = TestNode::started_after(|node| {
        // Only a change makes the agent check the network.
        node.settings.timing.network = Duration::from_hours(1);
    });
    node.run_one("web").await;
    let mut birch = peer("birch", "10.144.2.0/24");
    node.waifud.put_peer(birch.clone());
    until_remote(&node, &["birch 10.144.2.0/24"]).await;
    let saved = async |reachable: bool| {
        let file = node.settings.state_dir.join("records/peers.json");
        let expected = serde_json::json!(reachable);
        node.until("the peer is saved", async || {
            let saved = std::fs::read(&file).unwrap();
            let saved: serde_json::Value = serde_json::from_slice(&saved).unwrap();
            saved["peers"][0]["peer"]["reachable"] == expected
        })
        .await;
    };
    saved(true).await;
    let ensured = node.network.ensured();
    birch.reachable = false;
    node.waifud.put_peer(birch.clone());
    saved(false).await;
    node.until_more_reports(3).await;
    assert_eq!(remote(&node), ["birch 10.144.2.0/24"]);
    assert_eq!(node.network.ensured(), ensured, "the network was checked");
    birch.subnets = vec!["10.144.4.0/24".parse().unwrap()];
    node.waifud.put_peer(birch);
    until_remote(&node, &["birch 10.144.4.0/24"]).await;
}

#[tokio::test]
async fn an_overlap_of_the_own_subnet_is_reported_when_it_appears_and_when_it_ends() {
    let node = TestNode::started_after(|node| {
        // Only drift and failures make the agent gather its facts again.
        node.settings.timing.facts = Duration::from_hours(1);
    });
    let id = node.run_one("web").await;
    let conditions = || {
        let facts = node.waifud.facts().unwrap();
        let kinds = facts.conditions.into_iter().map(|condition| condition.kind);
        kinds.collect::<Vec<_>>()
    };
    let routes = |routes: &[&str]| {
        node.network.set_facts(HostNetworkFacts {
            routes: routes.iter().map(|net| net.parse().unwrap()).collect(),
            ..HostNetworkFacts::default()
        });
        node.network.cause_drift("the routes have changed");
    };
    routes(&["10.144.0.0/16"]);
    node.until("the overlap is reported", async || {
        conditions().contains(&"subnet".to_owned())
    })
    .await;
    routes(&[]);
    node.until("it has ended", async || {
        !conditions().contains(&"subnet".to_owned())
    })
    .await;
    node.until_ready(id).await;
}

#[tokio::test]
async fn an_agent_that_starts_without_waifud_knows_the_peers() {
    let (node, _) = TestNode::with_instance("web").await;
    node.waifud.put_peer(peer("birch", "10.144.2.0/24"));
    until_remote(&node, &["birch 10.144.2.0/24"]).await;
    node.waifud.set_online(false);
    node.kill().await;
    node.network.cause_drift("the host has restarted");
    node.start();
    until_remote(&node, &["birch 10.144.2.0/24"]).await;
}

#[tokio::test]
async fn a_peer_that_was_removed_while_the_agent_was_offline_is_forgotten() {
    let (node, _) = TestNode::with_instance("web").await;
    let birch = peer("birch", "10.144.2.0/24");
    node.waifud.put_peer(birch.clone());
    node.waifud.put_peer(peer("cedar", "10.144.3.0/24"));
    until_remote(&node, &["birch 10.144.2.0/24", "cedar 10.144.3.0/24"]).await;
    node.kill().await;
    node.waifud.remove_peer(birch.id);
    node.start();
    until_remote(&node, &["cedar 10.144.3.0/24"]).await;
}

#[tokio::test]
async fn a_subnet_that_overlaps_a_route_is_no_problem_while_no_fabric_carries_it() {
    let (node, _) = TestNode::with_instance("web").await;
    node.network.set_facts(HostNetworkFacts {
        routes: vec!["10.144.2.0/23".parse().unwrap()],
        ..HostNetworkFacts::default()
    });
    node.waifud.put_peer(peer("birch", "10.144.2.0/24"));
    until_remote(&node, &["birch 10.144.2.0/24"]).await;
    node.run_one("other").await;
    assert_eq!(node.ports(), 2);
    let facts = node.waifud.facts().unwrap();
    assert!(facts.conditions.iter().all(|c| c.kind != "remote-subnets"));
}
