//! The fabric: applied from what waifud sends, before the guests' network that depends on it, and reported.

use waifud_api::agent::{MeshClient, MeshClients, Peer};
use waifud_network::fabric::conformance;
use waifud_types::{FabricKind, NodeId};

use crate::test_node::TestNode;

/// Node number `index`, as waifud sends it.
fn peer(index: u8) -> Peer {
    let peer = conformance::peer(index);
    Peer {
        id: NodeId::generate(),
        name: peer.node,
        subnets: peer.subnets,
        extra: Vec::new(),
        public_key: peer.public_key,
        endpoints: peer.endpoints,
        reachable: true,
    }
}

/// The subnets of other nodes in the guests' network, each with its interface.
fn remote(node: &TestNode) -> Vec<String> {
    let state = node.network.state();
    let subnets = state.into_iter().flat_map(|state| state.remote_subnets);
    let shown = subnets.map(|remote| {
        let fabric = remote.fabric.unwrap_or_else(|| "-".to_owned());
        format!("{} {fabric}", remote.subnet)
    });
    shown.collect()
}

async fn until_remote(node: &TestNode, expected: &[&str]) {
    node.until("the network has the paths of the fabric", async || {
        remote(node) == expected
    })
    .await;
}

/// The reason and the message of a condition, once it is reported.
async fn until_condition(node: &TestNode, kind: &str, reason: &str) -> String {
    let find = || {
        let facts = node.waifud.facts().unwrap();
        let mut conditions = facts.conditions.into_iter();
        conditions.find(|c| c.kind == kind && c.reason == reason)
    };
    node.until("the condition is reported", async || find().is_some())
        .await;
    find().unwrap().message
}

async fn until_no_condition(node: &TestNode, kind: &str) {
    node.until("the condition has ended", async || {
        let facts = node.waifud.facts().unwrap();
        facts.conditions.iter().all(|c| c.kind != kind)
    })
    .await;
}

#[tokio::test]
async fn the_guests_network_gets_the_paths_of_the_fabric_that_waifud_has_chosen() {
    let (node, _) = TestNode::with_instance("web").await;
    let two = peer(2);
    node.waifud.put_peer(two.clone());
    until_remote(&node, &["10.144.2.0/24 -"]).await;
    for (kind, interface) in [
        (FabricKind::Wireguard, "wfmesh0"),
        (FabricKind::Static, "eth0"),
        (FabricKind::None, "-"),
        (FabricKind::Wireguard, "wfmesh0"),
    ] {
        node.waifud.set_fabric(kind);
        until_remote(&node, &[&format!("10.144.2.0/24 {interface}")]).await;
    }
    // A peer that moves to another address or gets another key is applied, too.
    let mut moved = two;
    moved.endpoints = vec!["192.0.2.99:51820".parse().unwrap()];
    moved.public_key = Some(conformance::key(99));
    node.waifud.put_peer(moved.clone());
    node.until("the fabric has the new address and key", async || {
        let state = node.fabric.state().unwrap();
        state.peers[0].endpoints == moved.endpoints && state.peers[0].public_key == moved.public_key
    })
    .await;
    node.waifud.remove_peer(moved.id);
    until_remote(&node, &[]).await;
    assert_eq!(node.ports(), 1);
}

#[tokio::test]
async fn clients_are_let_in_by_the_mesh_and_their_network_by_the_rules() {
    let (node, _) = TestNode::with_instance("web").await;
    node.waifud.set_fabric(FabricKind::Wireguard);
    let clients = |addresses: &[[u8; 4]]| {
        let clients = (9..).zip(addresses);
        Some(MeshClients {
            subnet: "10.144.9.0/24".parse().unwrap(),
            clients: clients
                .map(|(index, address)| MeshClient {
                    name: format!("client-{index}").parse().unwrap(),
                    address: (*address).into(),
                    public_key: conformance::key(index),
                })
                .collect(),
        })
    };
    node.waifud
        .set_clients(clients(&[[10, 144, 9, 2], [10, 144, 9, 3]]));
    until_remote(&node, &["10.144.9.0/24 wfmesh0"]).await;
    let applied = node.fabric.state().unwrap().clients;
    let addresses: Vec<_> = applied.iter().map(|client| client.address).collect();
    assert_eq!(
        addresses,
        [[10, 144, 9, 2], [10, 144, 9, 3]].map(std::net::Ipv4Addr::from)
    );
    assert_eq!(applied[1].public_key, conformance::key(10));

    // They are kept while waifud is away.
    node.waifud.set_online(false);
    node.kill().await;
    let ensured = node.network.ensured();
    node.start();
    node.until(
        "the network is applied again with the clients",
        async || node.network.ensured() > ensured && remote(&node) == ["10.144.9.0/24 wfmesh0"],
    )
    .await;
    node.waifud.set_online(true);
    node.waifud.set_clients(clients(&[[10, 144, 9, 3]]));
    node.until("the client is removed", async || {
        node.fabric
            .state()
            .is_some_and(|state| state.clients.len() == 1)
    })
    .await;
    node.waifud.set_clients(None);
    until_remote(&node, &[]).await;
}

#[tokio::test]
async fn an_agent_that_starts_without_waifud_applies_the_fabric() {
    let (node, _) = TestNode::with_instance("web").await;
    node.waifud.put_peer(peer(2));
    node.waifud.set_fabric(FabricKind::Wireguard);
    until_remote(&node, &["10.144.2.0/24 wfmesh0"]).await;
    node.waifud.set_online(false);
    node.kill().await;
    let ensured = node.network.ensured();
    node.start();
    node.until("the network is applied again with the path", async || {
        node.network.ensured() > ensured && remote(&node) == ["10.144.2.0/24 wfmesh0"]
    })
    .await;
}

#[tokio::test]
async fn the_node_reports_its_key_and_the_address_by_which_it_reaches_waifud() {
    let (node, _) = TestNode::with_instance("web").await;
    node.until("the mesh is reported", async || {
        node.waifud
            .facts()
            .is_some_and(|facts| facts.mesh.is_some())
    })
    .await;
    let mesh = node.waifud.facts().unwrap().mesh.unwrap();
    assert_eq!(mesh.public_key, conformance::key(1));
    assert_eq!(mesh.endpoints, ["192.0.2.1:51820".parse().unwrap()]);
}

#[tokio::test]
async fn a_taken_port_and_unusable_peers_are_conditions_while_they_last() {
    let (node, id) = TestNode::with_instance("web").await;
    node.fabric.take_port(true);
    node.waifud.put_peer(peer(2));
    node.waifud.set_fabric(FabricKind::Wireguard);
    let message = until_condition(&node, "fabric", "port-taken").await;
    assert!(message.contains("mesh_port"), "{message}");
    assert_eq!(remote(&node), ["10.144.2.0/24 -"]);
    node.fabric.take_port(false);
    until_no_condition(&node, "fabric").await;
    until_remote(&node, &["10.144.2.0/24 wfmesh0"]).await;

    let mut copied = peer(3);
    copied.public_key = Some(conformance::key(2));
    node.waifud.put_peer(copied.clone());
    let message = until_condition(&node, "fabric", "unusable-peers").await;
    assert!(
        message.contains("node-3: its WireGuard key is that of another"),
        "{message}"
    );
    until_remote(&node, &["10.144.2.0/24 wfmesh0", "10.144.3.0/24 -"]).await;
    node.waifud.remove_peer(copied.id);
    until_no_condition(&node, "fabric").await;
    node.until_ready(id).await;
}

#[tokio::test]
async fn a_fabric_that_this_version_does_not_know_changes_nothing_and_is_reported() {
    let (node, _) = TestNode::with_instance("web").await;
    node.waifud.put_peer(peer(2));
    node.waifud.set_fabric(FabricKind::Static);
    until_remote(&node, &["10.144.2.0/24 eth0"]).await;
    node.waifud.set_fabric(FabricKind::Other);
    let message = until_condition(&node, "fabric", "failed").await;
    assert!(message.contains("update it"), "{message}");
    assert_eq!(remote(&node), ["10.144.2.0/24 eth0"]);
}
