//! Names of instances in the watches of other nodes.

use std::collections::BTreeMap;

use serde_json::json;
use waifud_api::agent::{InstanceName, NodeNames, WatchFrame};
use waifud_types::{ByteSize, NodeId, ReceiveState};

use crate::common::{Agent, Server};
use crate::moving::Cluster;

/// The next names.
async fn next_names(agent: &mut Agent) -> Vec<NodeNames> {
    loop {
        if let WatchFrame::Names { nodes } = agent.any_frame().await {
            return nodes;
        }
    }
}

fn shown(names: &NodeNames) -> Vec<String> {
    let names = names.names.iter();
    names
        .map(|InstanceName { name, addresses }| {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("{name} {}", addresses.join(" "))
        })
        .collect()
}

/// Reads names until those of a node are these, and returns their revision.
async fn until(agent: &mut Agent, node: NodeId, expected: &[&str]) -> String {
    let mut seen = BTreeMap::new();
    loop {
        for names in next_names(agent).await {
            assert_ne!(names.node, agent.id, "a node's own names");
            let revision = names.revision.to_string();
            seen.insert(names.node, (shown(&names), revision));
        }
        if let Some((names, revision)) = seen.get(&node)
            && names == expected
        {
            return revision.clone();
        }
    }
}

#[tokio::test]
async fn names_of_other_nodes_follow_created_and_deleted_instances() {
    let (server, mut alder) = Server::with_node(ByteSize::gib(64)).await;
    let birch = server.join("birch", ByteSize::gib(64)).await;
    alder.watch_names("all").await;
    until(&mut alder, birch.id, &[]).await;

    let at = |name: &str, address: &str| json!({"name": name, "template": "debian-12", "nics": [{"address": address}]});
    server.created(&at("own", "10.144.1.7")).await;
    server.created(&at("web", "10.144.2.7")).await;
    until(&mut alder, birch.id, &["web 10.144.2.7"]).await;
    server.created(&at("db", "10.144.2.8")).await;
    let both = ["db 10.144.2.8", "web 10.144.2.7"];
    until(&mut alder, birch.id, &both).await;
    // Without a contact with birch: the name is free at once, the address is not.
    server.delete("/v1/instances/web").await.expect(202);
    until(&mut alder, birch.id, &["db 10.144.2.8"]).await;
}

#[tokio::test]
async fn a_resumed_watch_receives_the_names_of_nodes_that_have_changed() {
    let (server, mut alder) = Server::with_node(ByteSize::gib(64)).await;
    let birch = server.join("birch", ByteSize::gib(64)).await;
    let cedar = server.join("cedar", ByteSize::gib(64)).await;
    alder.watch_names("all").await;
    let since = until(&mut alder, cedar.id, &[]).await;
    let pinned = |name: &str, node: &str| json!({"name": name, "template": "debian-12", "placement": {"node": node}});
    server.created(&pinned("web", "birch")).await;
    alder.watch_names(&since).await;
    let names = next_names(&mut alder).await;
    let nodes: Vec<_> = names.iter().map(|names| names.node).collect();
    assert_eq!(nodes, [birch.id]);
    let last = names[0].revision.to_string();

    // A node that has left and come back is another one, and no revision is used again.
    server.delete("/v1/nodes/cedar").await.expect(204);
    server.created(&pinned("db", "birch")).await;
    alder.watch_names(&last).await;
    let names = next_names(&mut alder).await;
    assert_eq!((names.len(), names[0].node), (1, birch.id));
    assert!(shown(&names[0])[0].starts_with("db 10.144.2."));

    // Names of another incarnation are no names of this one.
    alder.watch_names("00000001.7").await;
    let all = shown(&names[0]);
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    until(&mut alder, birch.id, &all).await;
}

#[tokio::test]
async fn an_agent_that_does_not_ask_for_names_receives_none() {
    let (server, mut alder) = Server::with_node(ByteSize::gib(64)).await;
    let birch = server.join("birch", ByteSize::gib(64)).await;
    let mut cedar = server.join("cedar", ByteSize::gib(64)).await;
    alder.watch_from_now().await;
    cedar.watch_names("all").await;
    let at = |address: &str| json!({"name": format!("at-{}", address.replace('.', "-")), "template": "debian-12", "nics": [{"address": address}]});
    let mut expected = Vec::new();
    for host in [7, 8] {
        let address = format!("10.144.2.{host}");
        server.created(&at(&address)).await;
        expected.push(format!("at-10-144-2-{host} {address}"));
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        until(&mut cedar, birch.id, &expected).await;
    }
    server.created(&at("10.144.1.7")).await;
    let frame = alder.frame().await;
    assert!(matches!(frame, WatchFrame::Put { .. }), "{frame:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_moved_instance_leads_to_its_new_node() {
    let mut it = Cluster::new().await;
    let mut cedar = it.server.join("cedar", ByteSize::gib(1)).await;
    cedar.watch_names("all").await;
    let before = format!("web {}", it.web.spec.nics[0].address.unwrap());
    until(&mut cedar, it.alder.id, &[&before]).await;
    it.advance_to("copying").await;
    it.receives(ReceiveState::Received).await;
    let record = it.birch.put().await;
    let after = format!("web {}", record.spec.nics[0].address.unwrap());
    assert_ne!(before, after);

    let mut seen = BTreeMap::new();
    while seen.len() < 2 {
        for names in next_names(&mut cedar).await {
            seen.insert(names.node, shown(&names));
        }
    }
    assert!(seen[&it.alder.id].is_empty(), "{seen:?}");
    assert_eq!(seen[&it.birch.id], [after]);
}
