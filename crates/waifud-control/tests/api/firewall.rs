//! Firewalls of instances: rules, the addresses that they stand for, and the nodes that get them.

use serde_json::{Value, json};
use waifud_api::agent::{AgentInstance, SliceObject, WatchFrame};
use waifud_types::evidence::{FirewallCounts, GuestEvidence, RuleCount};
use waifud_types::{ByteSize, InstanceState};

use crate::common::{Agent, Server, facts, report};

const WEB: &str = "/v1/instances/web";

fn allow(peer: &str) -> Value {
    json!({"direction": "in", "action": "allow", "protocol": "tcp", "ports": ["22"], "peer": peer})
}

fn closed(peers: &[&str]) -> Value {
    let rules: Vec<_> = peers.iter().map(|peer| allow(peer)).collect();
    json!({"firewall": {"in": "deny", "rules": rules}})
}

/// The addresses of the named peers of an instance.
fn peers(instance: &AgentInstance) -> Vec<(String, Vec<String>)> {
    let entry = |entry: &waifud_api::PeerAddresses| {
        let addresses = entry.addresses.iter().map(ToString::to_string).collect();
        (entry.peer.clone(), addresses)
    };
    instance.firewall_peers.iter().map(entry).collect()
}

/// The next version of `web` that the node gets; others are skipped.
async fn next_web(agent: &mut Agent) -> AgentInstance {
    loop {
        if let WatchFrame::Put {
            object: SliceObject::Instance(instance),
            ..
        } = agent.frame().await
            && instance.name.as_str() == "web"
        {
            return *instance;
        }
    }
}

fn of(peer: &str, addresses: &[&str]) -> Vec<(String, Vec<String>)> {
    let addresses = addresses.iter().map(|text| (*text).to_owned()).collect();
    vec![(peer.to_owned(), addresses)]
}

#[tokio::test]
async fn a_firewall_is_part_of_the_spec_of_its_generation_and_of_the_description() {
    let (server, mut agent) = Server::with_watching_node().await;
    let web = server.create_instance("web").await;
    agent.put().await;
    let changed = server
        .patch(WEB, &closed(&["10.0.0.0/8"]))
        .await
        .expect(200)
        .instance();
    assert!(changed.generation > web.generation);
    let expected = json!({
        "in": "deny", "out": "allow",
        "rules": [{"direction": "in", "action": "allow", "protocol": "tcp", "ports": ["22"], "peer": "10.0.0.0/8"}],
    });
    assert_eq!(
        serde_json::to_value(&changed.spec.firewall).unwrap(),
        expected
    );
    let on_node = agent.put().await;
    assert_eq!(on_node.generation, changed.generation);
    assert_eq!(on_node.spec.firewall, changed.spec.firewall);
    // The same firewall is no change.
    let same = server
        .patch(WEB, &closed(&["10.0.0.0/8"]))
        .await
        .expect(200)
        .instance();
    assert_eq!(same.generation, changed.generation);
    // An outdated condition changes nothing.
    let events = server.get("/v1/events").await.expect(200).json();
    let text = events.to_string();
    assert!(
        text.contains("in by default: deny, added `allow in tcp 22 from 10.0.0.0/8`"),
        "{text}"
    );

    let description = server
        .get("/v1/instances/web/description")
        .await
        .expect(200)
        .json();
    assert_eq!(description["firewall"], expected);
    let mut again = description.clone();
    again["name"] = json!("again");
    again["mac"] = Value::Null;
    let again = server.created(&again).await;
    assert_eq!(again.spec.firewall, changed.spec.firewall);
}

#[tokio::test]
async fn invalid_firewalls_are_refused_and_change_nothing() {
    let (server, _agent, web) = Server::with_placed_instance().await;
    let rule = |change: fn(&mut Value)| {
        let mut rule = allow("10.0.0.1");
        change(&mut rule);
        json!({"rules": [allow("10.0.0.2"), rule]})
    };
    let field = |name: &str| format!("spec.firewall.rules[1].{name}");
    let cases = [
        (
            rule(|r| r["ports"] = json!(["0"])),
            "invalid-port",
            field("ports[0]"),
        ),
        (
            rule(|r| r["ports"] = json!(["90-80"])),
            "invalid-port",
            field("ports[0]"),
        ),
        (
            rule(|r| r["protocol"] = json!("icmp")),
            "ports-without-protocol",
            field("protocol"),
        ),
        (
            rule(|r| r["protocol"] = Value::Null),
            "ports-without-protocol",
            field("protocol"),
        ),
        (
            rule(|r| r["peer"] = json!("db")),
            "invalid-peer",
            field("peer"),
        ),
        (
            rule(|r| r["peer"] = json!("fd00::1")),
            "invalid-peer",
            field("peer"),
        ),
        (
            rule(|r| r["peer"] = json!("instance:missing")),
            "unknown-peer",
            field("peer"),
        ),
        (
            rule(|r| r["action"] = json!("reject")),
            "invalid-field",
            field("action"),
        ),
        (
            rule(|r| r["port"] = json!(22)),
            "invalid-field",
            field("port"),
        ),
        (
            rule(|r| *r = allow("10.0.0.2")),
            "duplicate-rule",
            "spec.firewall.rules[1]".to_owned(),
        ),
        (
            json!({"rules": vec![allow("10.0.0.1"); 65]}),
            "too-many",
            "spec.firewall.rules".to_owned(),
        ),
    ];
    for (firewall, code, field) in cases {
        let body = json!({"firewall": firewall});
        let problem = server.patch(WEB, &body).await.expect(422).problem();
        assert_eq!(
            (problem.code.as_str(), problem.field.as_deref()),
            (code, Some(field.as_str())),
            "{body}"
        );
        assert!(problem.hint.is_some(), "{problem:?}");
        let mut create = json!({"name": "new", "template": "debian-12"});
        create["firewall"] = body["firewall"].clone();
        assert_eq!(
            server.create(&create).await.expect(422).problem().code,
            code
        );
    }
    let now = server.get(WEB).await.expect(200).instance();
    assert_eq!((now.generation, now.spec), (web.generation, web.spec));
}

#[tokio::test]
async fn a_nic_on_a_bridge_has_no_firewall() {
    let (server, agent) = Server::with_node(ByteSize::gib(64)).await;
    let mut with_bridge = facts(ByteSize::gib(64));
    with_bridge.bridges = vec!["br0".to_owned()];
    agent.report_facts(with_bridge).await;
    server
        .post("/v1/networks", &json!({"name": "lan", "bridge": "br0"}))
        .await
        .expect(201);
    let nics = json!([{"network": "default"}, {"network": "lan"}]);
    let mut body =
        json!({"name": "web", "template": "debian-12", "nics": nics, "firewall": {"in": "deny"}});
    let code = "firewall-needs-default-network";
    let text = server
        .create_refused(&body, 422, code, "spec.firewall")
        .await;
    assert!(text.contains("nic eth1 is on the network lan"), "{text}");
    body["firewall"] = json!({});
    server.created(&body).await;
    let problem = server.patch(WEB, &closed(&[])).await.expect(422).problem();
    assert_eq!(problem.code, code);
}

#[tokio::test]
async fn a_peer_stands_for_the_addresses_that_the_instance_may_use_and_follows_it() {
    let (server, mut agent) = Server::with_watching_node().await;
    server.create_instance("web").await;
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    birch.watch_from_now().await;
    let db = json!({
        "name": "db", "template": "debian-12", "placement": {"node": "birch"},
        "nics": [{"allow_addresses": ["10.99.0.0/24"]}],
    });
    server.created(&db).await;
    birch.put().await;
    server
        .patch(WEB, &closed(&["instance:db"]))
        .await
        .expect(200);
    let on_node = loop {
        let web = next_web(&mut agent).await;
        if !web.firewall_peers.is_empty() {
            break web;
        }
    };
    assert_eq!(
        peers(&on_node),
        of("instance:db", &["10.99.0.0/24", "10.144.2.2/32"])
    );

    // While the node may still run it, its addresses stay.
    server.delete("/v1/instances/db").await.expect(202);
    birch.confirm_deletion().await;
    let later = next_web(&mut agent).await;
    assert_eq!(later.generation, on_node.generation, "the spec is the same");
    assert_eq!(peers(&later), of("instance:db", &[]));
    // Other changes remain possible, and another instance of this name is meant, too.
    server.patch(WEB, &json!({"priority": 3})).await.expect(200);
    assert_eq!(peers(&next_web(&mut agent).await), of("instance:db", &[]));
    server
        .created(&json!({"name": "db", "template": "debian-12", "placement": {"node": "birch"}}))
        .await;
    assert_eq!(
        peers(&next_web(&mut agent).await),
        of("instance:db", &["10.144.2.2/32"])
    );
}

#[tokio::test]
async fn a_label_stands_for_all_instances_that_have_it() {
    let (server, mut agent) = Server::with_watching_node().await;
    server.create_instance("web").await;
    let label = "label:tier=front";
    server.patch(WEB, &closed(&[label])).await.expect(200);
    let front =
        |name: &str| json!({"name": name, "template": "debian-12", "labels": {"tier": "front"}});
    server.created(&front("a")).await;
    server.created(&front("b")).await;
    loop {
        let web = next_web(&mut agent).await;
        if peers(&web) == of(label, &["10.144.1.3/32", "10.144.1.4/32"])
            || peers(&web) == of(label, &["10.144.1.3/32", "10.144.1.4/31"])
        {
            break;
        }
    }
    // Relabelled.
    server
        .patch("/v1/instances/a", &json!({"labels": {"tier": "back"}}))
        .await
        .expect(200);
    assert_eq!(
        peers(&next_web(&mut agent).await),
        of(label, &["10.144.1.4/32"])
    );
    server
        .patch("/v1/instances/b", &json!({"labels": {"tier": null}}))
        .await
        .expect(200);
    assert_eq!(peers(&next_web(&mut agent).await), of(label, &[]));
}

#[tokio::test]
async fn a_watch_that_resumes_gets_addresses_that_changed_meanwhile() {
    let (server, mut agent) = Server::with_watching_node().await;
    server.create_instance("web").await;
    server
        .patch(WEB, &closed(&["label:tier=front"]))
        .await
        .expect(200);
    next_web(&mut agent).await;
    agent.hang_up();
    let front = json!({"name": "a", "template": "debian-12", "labels": {"tier": "front"}});
    server.created(&front).await;
    let now = server.control.store().revision().to_string();
    agent.watch(Some(&now)).await;
    let frames = agent.until_sync().await;
    let web = frames.into_iter().find_map(|frame| match frame {
        WatchFrame::Put {
            revision,
            object: SliceObject::Instance(instance),
        } => Some((revision, *instance)),
        _ => None,
    });
    let (revision, web) = web.unwrap();
    assert_eq!(
        revision.to_string(),
        now,
        "resuming from it repeats nothing"
    );
    assert_eq!(peers(&web), of("label:tier=front", &["10.144.1.3/32"]));
}

#[tokio::test]
async fn nodes_whose_agents_ignore_firewalls_get_none() {
    let (server, agent, _web) = Server::with_placed_instance().await;
    let mut old = facts(ByteSize::gib(64));
    old.features.retain(|feature| feature != "firewall");
    agent.report_facts(old.clone()).await;
    let problem = server.patch(WEB, &closed(&[])).await.expect(409).problem();
    assert_eq!(problem.code, "agent-too-old");
    assert_eq!(problem.field.as_deref(), Some("spec.firewall"));
    assert!(problem.title.contains("alder"), "{problem:?}");
    // A new instance waits for another node.
    let db = json!({"name": "db", "template": "debian-12", "firewall": {"out": "deny"}});
    let db = server.created(&db).await;
    assert_eq!(db.status.state, InstanceState::Pending);
    let why = server.get("/v1/instances/db/why").await.expect(200).json();
    assert_eq!(why["placement"][0]["code"], "no-firewall");
    // Removing rules is always possible.
    server
        .patch(WEB, &json!({"firewall": {}}))
        .await
        .expect(200);
    agent.report_facts(facts(ByteSize::gib(64))).await;
    let db = server.get("/v1/instances/db").await.expect(200).instance();
    assert_eq!(db.status.node.unwrap().as_str(), "alder");
}

#[tokio::test]
async fn rules_are_shown_with_their_addresses_and_packets() {
    let (server, agent, web) = Server::with_placed_instance().await;
    server.create_instance("db").await;
    server
        .patch(WEB, &closed(&["instance:db", "10.0.0.1"]))
        .await
        .expect(200);
    let path = "/v1/instances/web/firewall";
    let before = server.get(path).await.expect(200).json();
    assert_eq!(before["in"], json!({"action": "deny", "packets": null}));
    assert_eq!(before["rules"][0]["addresses"], json!(["10.144.1.3/32"]));
    assert_eq!(before["rules"][1]["addresses"], Value::Null);
    assert_eq!(before["rules"][1]["packets"], Value::Null);
    let id = before["rules"][1]["id"].as_str().unwrap().to_owned();

    let mut running = report(web.id, InstanceState::Running);
    let counts = FirewallCounts {
        incoming: 7,
        outgoing: 8,
        rules: vec![RuleCount { id, packets: 9 }],
    };
    running.evidence = Some(GuestEvidence {
        firewall: Some(counts.clone()),
        ..GuestEvidence::default()
    });
    agent.report_instance(running).await;
    let after = server.get(path).await.expect(200).json();
    assert_eq!(after["in"], json!({"action": "deny", "packets": 7}));
    assert_eq!(after["out"], json!({"action": "allow", "packets": null}));
    assert_eq!(after["rules"][1]["packets"], json!(9));
    let why = server.get("/v1/instances/web/why").await.expect(200).json();
    assert_eq!(
        why["evidence"]["firewall"],
        serde_json::to_value(counts).unwrap()
    );
    server
        .get("/v1/instances/missing/firewall")
        .await
        .expect(404);
}
