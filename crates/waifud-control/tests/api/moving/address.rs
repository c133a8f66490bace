//! Instances that keep their address when they move: what their node, its peers and the user are told.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::json;
use waifud_api::agent::{AgentInstance, Peer};
use waifud_types::{ByteSize, InstanceState, NodeId};

use super::super::common::{Agent, facts};
use super::{Cluster, MOVE, all_off};

const HOME: &str = "10.144.1.0/24";

/// The same, and the instance keeps its address.
async fn keeping() -> Cluster {
    let mut it = Cluster::new().await;
    it.request = json!({"to": "birch"});
    it
}

fn address(it: &Cluster) -> Ipv4Addr {
    it.web.spec.nics[0].address.unwrap()
}

/// What other nodes are told of a node now.
async fn peer(it: &Cluster, node: &Agent) -> Peer {
    let id = node.id;
    let rows = it
        .server
        .control
        .store()
        .read(move |tx| tx.peers(NodeId::generate(), 0));
    let rows = rows.await.unwrap().into_iter();
    rows.map(|row| row.peer).find(|peer| peer.id == id).unwrap()
}

/// When each node's peer changed last.
async fn peer_revisions(it: &Cluster) -> Vec<u64> {
    let rows = it.server.control.store();
    let rows = rows.read(|tx| tx.peers(NodeId::generate(), 0)).await;
    rows.unwrap().iter().map(|row| row.peer_revision).collect()
}

/// The destinations of the routes to guests, with the node that each leads to.
async fn routes(it: &Cluster) -> Vec<(String, String)> {
    let fabric = it.server.get("/v1/fabric").await.expect(200).json();
    let routes = fabric["routes"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    routes
        .map(|route| (text(&route["destination"]), text(&route["node"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_keeps_its_address_and_all_nodes_learn_where_it_is() {
    let mut it = keeping().await;
    let own = address(&it);
    it.advance_to("copying").await;
    assert_eq!(peer(&it, &it.birch).await.extra, [], "alder still has it");
    it.receives(waifud_types::ReceiveState::Received).await;

    let put: AgentInstance = it.birch.put().await;
    assert_eq!(put.spec.nics[0].address, Some(own));
    assert_eq!(put.home, Some(HOME.parse().unwrap()));
    let documents = it.birch.documents(&put.bundle).await;
    let request = waifud_cloudinit::GuestRequest::get("/openstack/latest/network_data.json");
    let tokens = waifud_cloudinit::Tokens::new(&[7; 32]);
    let answer = documents.answer(&request, &tokens, 1_800_000_000);
    assert!(
        answer.body.contains("\"10.144.1.1\""),
        "its resolver: {}",
        answer.body
    );
    let its = Ipv4Net::from(own);
    assert_eq!(peer(&it, &it.birch).await.extra, [its]);
    assert_eq!(peer(&it, &it.alder).await.extra, []);
    let there = (its.to_string(), "birch".to_owned());
    // The nodes of these tests have no address; a route needs one.
    let mut with_mesh = facts(ByteSize::gib(8));
    with_mesh.mesh = Some(waifud_types::MeshFacts {
        public_key: "key".to_owned(),
        endpoints: vec!["192.0.2.2:51820".parse().unwrap()],
    });
    it.birch.report_facts(with_mesh).await;
    assert!(routes(&it).await.contains(&there));
    assert_eq!(it.shown().await.spec.nics[0].address, Some(own));
    it.runs_on_birch(InstanceState::Running).await;

    // No other instance of alder gets the address meanwhile.
    let db = it.server.create_instance("db").await;
    assert_ne!(db.spec.nics[0].address, Some(own));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_a_moved_instance_is_free_everywhere_once_it_is_deleted() {
    let mut it = keeping().await;
    it.advance_to("removing").await;
    it.server.delete("/v1/instances/web").await.expect(202);
    let own = Ipv4Net::from(address(&it));
    assert_eq!(
        peer(&it, &it.birch).await.extra,
        [own],
        "it may still be on"
    );
    for agent in [&mut it.alder, &mut it.birch] {
        agent.confirm_deletion().await;
    }
    it.server.get("/v1/instances/web").await.expect(404);
    assert_eq!(peer(&it, &it.birch).await.extra, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_sends_packets_to_a_node_that_has_destroyed_its_copy_while_another_copy_is_left() {
    let mut it = keeping().await;
    it.advance_to("removing").await;
    it.server.delete("/v1/instances/web").await.expect(202);
    let own = Ipv4Net::from(address(&it));
    assert_eq!(peer(&it, &it.birch).await.extra, [own]);
    let before = peer_revisions(&it).await;

    it.birch.confirm_deletion().await;
    it.server.get("/v1/instances/web").await.expect(200);
    for node in [&it.alder, &it.birch] {
        assert_eq!(peer(&it, node).await.extra, []);
    }
    let after = peer_revisions(&it).await;
    let changed = before.iter().zip(&after).filter(|(old, new)| old < new);
    assert_eq!(changed.count(), 2, "{before:?} {after:?}");

    it.alder.confirm_deletion().await;
    it.server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_does_not_end_a_deletion_that_another_node_has_not_confirmed() {
    let mut it = keeping().await;
    it.advance_to("removing").await;
    it.server.delete("/v1/instances/web").await.expect(202);
    it.server.delete("/v1/nodes/birch").await.expect(204);
    it.server.get("/v1/instances/web").await.expect(200);
    assert_eq!(peer(&it, &it.alder).await.extra, []);
    it.alder.confirm_deletion().await;
    it.server.get("/v1/instances/web").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_moves_back_to_the_node_of_its_address_is_native_again() {
    let mut it = keeping().await;
    it.advance_to("removing").await;
    it.alder.confirm_deletion().await;
    assert_eq!(it.state().await, "");
    // No fabric is needed for the way back.
    it.server.set_fabric("none").await.expect(200);
    let back = json!({"to": "alder"});
    it.server.post(MOVE, &back).await.expect(200);
    for (agent, report) in [
        (
            &it.alder,
            super::receiving(it.web.id, 2, waifud_types::ReceiveState::Prepared),
        ),
        (&it.birch, super::released(it.web.id, 2, true)),
        (
            &it.alder,
            super::receiving(it.web.id, 2, waifud_types::ReceiveState::Received),
        ),
    ] {
        agent.report(&report).await;
    }
    assert_eq!(it.state().await, "starting");
    let shown = it.shown().await;
    assert_eq!(shown.spec.nics[0].address, Some(address(&it)));
    assert_eq!(shown.status.node.unwrap().as_str(), "alder");
    for node in [&it.alder, &it.birch] {
        assert_eq!(peer(&it, node).await.extra, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_without_a_way_to_keep_the_address_needs_consent() {
    let mut it = keeping().await;
    it.server.set_fabric("none").await.expect(200);
    for request in [json!({"to": "birch"}), json!({})] {
        let refused = it.server.post(MOVE, &request).await;
        let refused = refused.refused(409, "new-address-needed", "new_address");
        assert!(
            refused.title.contains("another address on birch"),
            "{refused:?}"
        );
    }
    it.server.set_fabric("wireguard").await.expect(200);
    // The node of the subnet drops packets of an address that is elsewhere, unless its agent knows better.
    let mut earlier = facts(ByteSize::gib(8));
    earlier.features.retain(|known| known != "keep-address");
    for agent in [&it.alder, &it.birch] {
        agent.report_facts(earlier.clone()).await;
        let refused = it.server.post(MOVE, &json!({"to": "birch"})).await;
        refused.refused(409, "new-address-needed", "new_address");
        agent.report_facts(facts(ByteSize::gib(8))).await;
    }
    it.request = json!({"to": "birch", "new_address": true});
    for agent in [&mut it.alder, &mut it.birch] {
        agent.watch_from_now().await;
    }
    let before = peer_revisions(&it).await;
    it.advance_to("starting").await;
    assert_eq!(peer_revisions(&it).await, before, "no node need know");
    let shown = it.shown().await;
    let address = shown.spec.nics[0].address.unwrap();
    assert_eq!(address.octets()[..3], [10, 144, 2]);
    assert_eq!(peer(&it, &it.birch).await.extra, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_returns_because_its_new_node_was_removed_has_its_address_there() {
    let mut it = keeping().await;
    it.advance_to("starting").await;
    all_off(&it).await;
    let path = "/v1/nodes/birch?force=true&confirm_off=true";
    it.server.delete(path).await.expect(204);
    let back = it.alder.put().await;
    assert_eq!(
        (back.spec.nics[0].address, back.home),
        (Some(address(&it)), None)
    );
    assert_eq!(peer(&it, &it.alder).await.extra, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_stays_reserved_while_an_instance_elsewhere_has_an_address_of_it() {
    let mut it = keeping().await;
    it.advance_to("removing").await;
    it.alder.confirm_deletion().await;
    it.server.delete("/v1/nodes/alder").await.expect(204);
    it.server
        .delete("/v1/nodes/alder?purge=true")
        .await
        .expect(204);
    let cedar = it.server.join("cedar", ByteSize::gib(8)).await;
    let subnet = &it.server.node("cedar").await["subnets"][0];
    assert_eq!(subnet, "10.144.3.0/24");
    drop(cedar);

    // It has no home any more, and moves on.
    it.server
        .post(MOVE, &json!({"to": "cedar"}))
        .await
        .expect(200);
}
