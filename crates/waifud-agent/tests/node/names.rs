//! Names of other nodes' instances: what guests of this node resolve.

use std::net::Ipv4Addr;

use waifud_api::agent::Peer;
use waifud_types::NodeId;

use crate::test_node::TestNode;

const WEB: (&str, Ipv4Addr) = ("shop", Ipv4Addr::new(10, 144, 2, 7));
const DB: (&str, Ipv4Addr) = ("db", Ipv4Addr::new(10, 144, 2, 8));

fn birch() -> Peer {
    Peer {
        id: NodeId::generate(),
        name: "birch".parse().unwrap(),
        subnets: vec!["10.144.2.0/24".parse().unwrap()],
        extra: Vec::new(),
        public_key: None,
        endpoints: Vec::new(),
        reachable: true,
    }
}

async fn until_names(node: &TestNode, expected: &[&str]) {
    node.until("the network has the names", async || {
        let state = node.network.state();
        let names = state.iter().flat_map(|state| state.remote_names.iter());
        let names: Vec<_> = names
            .map(|it| format!("{} {}", it.name, it.address))
            .collect();
        names == expected
    })
    .await;
}

#[tokio::test]
async fn names_of_other_nodes_are_applied_and_follow_changes() {
    let (node, id) = TestNode::with_instance("web").await;
    let birch = birch();
    node.waifud.put_names(birch.id, &[WEB]);
    // The names of a node may arrive before the node.
    node.waifud.put_peer(birch.clone());
    until_names(&node, &["shop 10.144.2.7"]).await;
    node.waifud.put_names(birch.id, &[WEB, DB]);
    until_names(&node, &["db 10.144.2.8", "shop 10.144.2.7"]).await;
    // An instance of this node is found by its own name only.
    node.waifud.put_names(birch.id, &[("web", WEB.1), DB]);
    until_names(&node, &["db 10.144.2.8"]).await;
    node.waifud.remove_peer(birch.id);
    until_names(&node, &[]).await;
    node.until_ready(id).await;
}

#[tokio::test]
async fn an_agent_that_starts_without_waifud_knows_the_names() {
    let (node, _) = TestNode::with_instance("web").await;
    let birch = birch();
    node.waifud.put_peer(birch.clone());
    node.waifud.put_names(birch.id, &[WEB]);
    until_names(&node, &["shop 10.144.2.7"]).await;
    node.waifud.set_online(false);
    node.kill().await;
    node.network.cause_drift("the host has restarted");
    node.start();
    until_names(&node, &["shop 10.144.2.7"]).await;
}

#[tokio::test]
async fn changes_while_the_agent_was_offline_are_received_afterwards() {
    let (node, _) = TestNode::with_instance("web").await;
    let birch = birch();
    node.waifud.put_peer(birch.clone());
    node.waifud.put_names(birch.id, &[WEB]);
    until_names(&node, &["shop 10.144.2.7"]).await;
    node.kill().await;
    node.waifud.put_names(birch.id, &[DB]);
    node.start();
    until_names(&node, &["db 10.144.2.8"]).await;
}
