//! Nics that are added to instances and removed from them.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use waifud_api::Instance;
use waifud_api::agent::{AgentInstance, InstanceReport};
use waifud_types::node::feature;
use waifud_types::status::{NicState, NicStatus};
use waifud_types::template::Datasource;
use waifud_types::{ByteSize, InstanceState, NodeId};

use crate::common::{Agent, Answer, Server, facts, report};

/// A server with alder, which has the bridge br0 of the network `lan`, and a running `web` there.
async fn with_lan() -> (Server, Agent, Instance) {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    prepared(server, agent).await
}

async fn prepared(server: Server, agent: Agent) -> (Server, Agent, Instance) {
    report_bridges(&agent, &["br0"]).await;
    for (name, bridge) in [("lan", "br0"), ("dmz", "br1")] {
        let body = json!({"name": name, "bridge": bridge});
        server.post("/v1/networks", &body).await.expect(201);
    }
    let web = server.create_instance("web").await;
    has(&agent, &web, &[]).await;
    (server, agent, web)
}

async fn report_bridges(agent: &Agent, bridges: &[&str]) {
    let mut facts = facts(ByteSize::gib(8));
    facts.bridges = bridges.iter().map(|&name| name.to_owned()).collect();
    agent.report_facts(facts).await;
}

/// Reports that the node has this generation, with the nics of the spec and further ones.
async fn has(agent: &Agent, instance: &Instance, further: &[&str]) {
    let status = |name: &str, state| NicStatus {
        name: name.parse().unwrap(),
        network: "lan".parse().unwrap(),
        mac: waifud_types::MacAddr::of_guest([0, 0, 1]),
        state,
        reason: None,
    };
    let nics = instance.spec.nics.iter();
    let nics = nics.map(|nic| status(nic.name.as_str(), NicState::Attached));
    let further = further.iter().map(|name| status(name, NicState::Removing));
    agent
        .report_instance(InstanceReport {
            observed_generation: instance.generation,
            nics: Some(nics.chain(further).collect()),
            ..report(instance.id, InstanceState::Running)
        })
        .await;
}

async fn add(server: &Server, name: &str, body: &Value) -> Answer {
    server
        .post(&format!("/v1/instances/{name}/nics"), body)
        .await
}

async fn added(server: &Server, name: &str, body: &Value) -> Instance {
    add(server, name, body).await.expect(200).instance()
}

async fn remove(server: &Server, name: &str, nic: &str) -> Answer {
    server
        .delete(&format!("/v1/instances/{name}/nics/{nic}"))
        .await
}

async fn removed(server: &Server, name: &str, nic: &str) -> Instance {
    remove(server, name, nic).await.expect(200).instance()
}

fn names(instance: &Instance) -> Vec<&str> {
    let nics = instance.spec.nics.iter();
    nics.map(|nic| nic.name.as_str()).collect()
}

fn on(network: &str) -> Value {
    json!({"network": network})
}

/// The number of instances that use the network.
async fn users(server: &Server, network: &str) -> Value {
    let path = format!("/v1/networks/{network}");
    server.get(&path).await.expect(200).json()["used_by"].clone()
}

/// The instance-id of cloud-init, and the network part of the documents.
async fn documents(agent: &Agent, put: &AgentInstance) -> (String, String) {
    let documents = agent.documents(&put.bundle).await;
    let request = waifud_cloudinit::GuestRequest::get("/openstack/latest/network_data.json");
    let tokens = waifud_cloudinit::Tokens::new(&[1; 32]);
    let answer = documents.answer(&request, &tokens, 1_800_000_000);
    (documents.instance_id().to_owned(), answer.body.to_string())
}

#[tokio::test]
async fn an_added_nic_reaches_the_node_and_the_documents_and_a_removed_one_leaves_them() {
    let (server, mut agent, web) = with_lan().await;
    agent.watch_from_now().await;
    let with = added(&server, "web", &on("lan")).await;
    assert_eq!(names(&with), ["eth0", "eth1"]);
    assert_eq!(with.generation, web.generation.next());
    let put = agent.put().await;
    assert_eq!(put.spec.nics, with.spec.nics);
    let lan = "lan".parse().unwrap();
    assert_eq!(put.bridges.get(&lan).map(String::as_str), Some("br0"));
    let (id, described) = documents(&agent, &put).await;
    let mac = with.spec.nics[1].mac.to_string();
    assert!(described.contains(&mac), "{described}");
    // A guest that has booted finds its documents where it found them before.
    assert_ne!(put.datasource, Datasource::Cidata);

    let without = removed(&server, "web", "eth1").await;
    assert_eq!(names(&without), ["eth0"]);
    let put = agent.put().await;
    assert_eq!(put.spec.nics, web.spec.nics);
    let (same_id, described) = documents(&agent, &put).await;
    assert!(!described.contains(&mac), "{described}");
    assert_eq!(same_id, id);
    let events = server.get("/v1/events?object=web").await.expect(200).json();
    let events = events.to_string();
    for message in ["nic eth1 added on lan", "nic eth1 on lan removed"] {
        assert!(events.contains(message), "{events}");
    }
}

#[tokio::test]
async fn a_removed_nic_stays_reserved_until_its_node_reports_that_it_is_gone() {
    let (server, agent, _) = with_lan().await;
    let mac = "52:54:00:aa:00:01";
    let body = json!({"network": "lan", "mac": mac, "address": "192.168.1.50/24"});
    let with = added(&server, "web", &body).await;
    has(&agent, &with, &[]).await;
    let without = removed(&server, "web", mac).await;
    let again = removed(&server, "web", "eth1").await;
    assert_eq!(again.generation, without.generation, "removed twice");

    let other =
        |nic: Value| json!({"template": "debian-12", "nics": [{"network": "default"}, nic]});
    let same_mac = other(json!({"network": "lan", "mac": mac}));
    let same_address = other(json!({"network": "lan", "address": "192.168.1.50/24"}));
    // Neither an old report, nor one of an older agent, nor one that still has it frees the nic.
    has(&agent, &with, &[]).await;
    let old_agent = InstanceReport {
        observed_generation: without.generation,
        ..report(without.id, InstanceState::Running)
    };
    agent.report_instance(old_agent).await;
    has(&agent, &without, &["eth1"]).await;
    server
        .create_refused(&same_mac, 409, "mac-taken", "mac")
        .await;
    let field = "spec.nics[1].address";
    server
        .create_refused(&same_address, 409, "address-taken", field)
        .await;
    assert_eq!(users(&server, "lan").await, 1);
    // Its number is not given to another nic.
    let third = added(&server, "web", &on("lan")).await;
    assert_eq!(names(&third), ["eth0", "eth2"]);
    removed(&server, "web", "eth2").await;

    let now = server.instance("web").await;
    assert_eq!(now.status.nics.last().unwrap().state, NicState::Removing);
    has(&agent, &now, &["eth2"]).await;
    assert_eq!(users(&server, "lan").await, 1, "eth2 is still there");
    has(&agent, &now, &[]).await;
    assert_eq!(users(&server, "lan").await, 0);
    server.created(&other(body)).await;
}

#[tokio::test]
async fn a_removal_is_taken_back_by_adding_the_nic_again() {
    let (server, agent, _) = with_lan().await;
    let with = added(&server, "web", &on("lan")).await;
    has(&agent, &with, &[]).await;
    let second = added(&server, "web", &on("lan")).await;
    removed(&server, "web", "eth1").await;
    let body = json!({"network": "lan", "mac": with.spec.nics[1].mac});
    let back = added(&server, "web", &body).await;
    assert_eq!(back.spec.nics, second.spec.nics, "in the same order");
    has(&agent, &back, &[]).await;
    assert_eq!(server.instance("web").await.spec.nics, second.spec.nics);
    assert_eq!(users(&server, "lan").await, 1);
    // With its MAC address on another network, it is not the same nic.
    removed(&server, "web", "eth1").await;
    report_bridges(&agent, &["br0", "br1"]).await;
    let other = json!({"network": "dmz", "mac": with.spec.nics[1].mac});
    let problem = add(&server, "web", &other).await;
    problem.refused(409, "mac-taken", "spec.nics[2].mac");
}

#[tokio::test]
async fn a_nic_on_default_gets_an_address_of_the_node_and_keeps_it_until_it_is_gone() {
    let (server, agent, _) = with_lan().await;
    let body = json!({"name": "ha", "template": "debian-12", "nics": [{"network": "lan"}]});
    let ha = server.created(&body).await;
    let with = added(&server, "ha", &json!({})).await;
    let address = with.spec.nics[1].address.unwrap();
    assert_eq!(address.to_string(), "10.144.1.3");
    let problem = add(&server, "ha", &json!({})).await;
    problem.refused(422, "duplicate-default-network", "spec.nics[2].network");
    has(&agent, &with, &[]).await;
    removed(&server, "ha", "eth1").await;
    assert!(server.instance("ha").await.status.addresses.is_empty());
    // The same address again, as long as it is not free.
    let back = added(&server, "ha", &json!({})).await;
    assert_eq!(back.spec.nics, with.spec.nics);
    let gone = removed(&server, "ha", "eth1").await;
    let other = json!({"address": "10.144.1.9"});
    let problem = add(&server, "ha", &other).await;
    problem.refused(409, "nic-being-removed", "spec.nics[1].network");
    let taken = json!({"template": "debian-12", "nics": [{"address": address}]});
    server
        .create_refused(&taken, 409, "address-taken", "spec.nics[0].address")
        .await;
    has(&agent, &gone, &[]).await;
    server.created(&taken).await;
    let other = added(&server, "ha", &other).await;
    assert_eq!(
        other.spec.nics[1].address.unwrap().to_string(),
        "10.144.1.9"
    );
    assert_eq!(ha.spec.nics[0], other.spec.nics[0]);
}

#[tokio::test]
async fn invalid_requests_name_the_field_and_change_nothing() {
    let (server, _agent, web) = with_lan().await;
    let own = web.spec.nics[0].mac;
    let field = |part: &str| format!("spec.nics[1].{part}");
    for (body, status, code, part) in [
        (on("home"), 422, "unknown-network", "network"),
        (on("default"), 422, "duplicate-default-network", "network"),
        (on("dmz"), 409, "network-not-on-node", "network"),
        (
            json!({"network": "lan", "mac": own}),
            409,
            "mac-taken",
            "mac",
        ),
        (
            json!({"network": "lan", "address": "192.168.1.5"}),
            422,
            "invalid-address",
            "address",
        ),
        (
            json!({"network": "lan", "address": "192.168.1.5/24", "gateway": "192.168.1.1"}),
            422,
            "gateway-not-on-first-nic",
            "gateway",
        ),
        (
            json!({"network": "lan", "allow_addresses": ["10.144.7.0/24"]}),
            422,
            "address-in-guest-range",
            "allow_addresses",
        ),
    ] {
        let before = server.footprint().await;
        let problem = add(&server, "web", &body).await.problem();
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (status, code),
            "{body}"
        );
        assert!(
            problem.field.as_deref().unwrap().starts_with(&field(part)),
            "{problem:?}"
        );
        assert!(problem.hint.is_some(), "{problem:?}");
        assert_eq!(server.footprint().await, before, "{body}");
    }
    let path = "/v1/instances/web/nics";
    let body = json!({"network": "lan", "speed": 10});
    server.post(path, &body).await.expect(422);
    let stale = [("if-match", "\"99\"")];
    let body = on("lan").to_string();
    server
        .call(Method::POST, path, &stale, body)
        .await
        .expect(412);
    let path = format!("{path}/eth0");
    server
        .call(Method::DELETE, &path, &stale, Body::empty())
        .await
        .expect(412);
    let problem = remove(&server, "web", "eth0").await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "first-nic"));
    let problem = remove(&server, "web", "eth1").await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (404, "not-found"));
    remove(&server, "db", "eth1").await.expect(404);
    assert_eq!(server.instance("web").await.spec, web.spec);
    for _ in 1..8 {
        added(&server, "web", &on("lan")).await;
    }
    let problem = add(&server, "web", &on("lan")).await;
    problem.refused(422, "too-many", "spec.nics");
}

#[tokio::test]
async fn an_instance_without_a_node_changes_at_once_and_may_be_placed_by_it() {
    let server = Server::with_template().await;
    let body = json!({"name": "lan", "bridge": "br0"});
    server.post("/v1/networks", &body).await.expect(201);
    let web = server.create_instance("web").await;
    assert_eq!(web.status.node, None);
    let with = added(&server, "web", &on("lan")).await;
    removed(&server, "web", "eth1").await;
    assert_eq!(users(&server, "lan").await, 0, "no node has it");
    let body = json!({"network": "lan", "mac": with.spec.nics[1].mac});
    added(&server, "web", &body).await;
    server.join("alder", ByteSize::gib(8)).await;
    let waits = server.instance("web").await;
    assert_eq!(waits.status.node, None, "alder has no bridge br0");
    let placed = removed(&server, "web", "eth1").await;
    assert_eq!(placed.status.node.unwrap().as_str(), "alder");
    assert_eq!(
        placed.spec.nics[0].address.unwrap().to_string(),
        "10.144.1.2"
    );
}

#[tokio::test]
async fn a_node_with_an_older_agent_and_an_instance_that_moves_are_refused() {
    let (server, agent, _) = with_lan().await;
    let mut old = facts(ByteSize::gib(8));
    old.bridges = vec!["br0".to_owned()];
    old.features.retain(|name| name != feature::NICS);
    agent.report_facts(old).await;
    let problem = add(&server, "web", &on("lan")).await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (409, "agent-too-old")
    );
    assert!(problem.title.contains("alder"), "{problem:?}");
}

#[tokio::test]
async fn the_addresses_of_a_lost_instances_nics_are_free() {
    let (server, clock) = Server::with_manual_clock().await;
    server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    let (server, agent, _) = prepared(server, agent).await;
    let with = added(&server, "web", &on("lan")).await;
    has(&agent, &with, &[]).await;
    removed(&server, "web", "eth1").await;
    assert_eq!(users(&server, "lan").await, 1);
    clock.forward(Duration::from_mins(10));
    server.control.check_contacts().await.unwrap();
    let path = "/v1/nodes/alder?force=true&confirm_off=true";
    server.delete(path).await.expect(204);
    assert_eq!(users(&server, "lan").await, 0);
}

#[tokio::test]
async fn an_instance_with_rules_gets_no_nic_on_a_bridge() {
    let (server, _agent, _) = with_lan().await;
    let closed = json!({"firewall": {"in": "deny"}});
    server.patched("web", &closed).await;
    let before = server.footprint().await;
    let refused = add(&server, "web", &on("lan")).await;
    refused.refused(422, "firewall-needs-default-network", "spec.firewall");
    assert_eq!(server.footprint().await, before);
}

/// What other nodes are told of the addresses of a node's guests, and when that changed last.
async fn told(server: &Server, node: NodeId) -> (Vec<ipnet::Ipv4Net>, u64) {
    let rows = server.control.store();
    let rows = rows.read(|tx| tx.peers(NodeId::generate(), 0)).await;
    let mut rows = rows.unwrap().into_iter();
    let row = rows.find(|row| row.peer.id == node).unwrap();
    (row.peer.extra, row.peer_revision)
}

#[tokio::test]
async fn the_address_that_a_removed_nic_had_kept_after_a_move_is_free_on_all_nodes() {
    let (server, agent, _) = with_lan().await;
    let body = json!({"name": "db", "template": "debian-12", "nics": [{"network": "lan"}, {"network": "default"}]});
    let db = server.created(&body).await;
    has(&agent, &db, &[]).await;
    // As after a move from another node, to which the subnet belongs.
    let (id, node) = (db.id, agent.id);
    let revision = server.control.store().revision();
    let moved = server.control.store().write(move |tx| {
        tx.set_home(
            id,
            Some("10.144.1.0/24".parse().unwrap()),
            &[node],
            revision,
        )
    });
    moved.await.unwrap();
    let address = db.spec.nics[1].address.unwrap();
    let (extra, before) = told(&server, agent.id).await;
    assert_eq!(extra, [ipnet::Ipv4Net::from(address)]);

    let removed = removed(&server, "db", "eth1").await;
    let (extra, _) = told(&server, agent.id).await;
    assert_eq!(
        extra,
        [ipnet::Ipv4Net::from(address)],
        "the guest may have it"
    );
    has(&agent, &removed, &[]).await;
    let (extra, after) = told(&server, agent.id).await;
    assert_eq!(extra, []);
    assert!(after > before, "every watch sends the peer again");
}
