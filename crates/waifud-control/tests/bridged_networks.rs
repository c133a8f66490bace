//! Networks on bridges of the nodes: added, listed, used, deleted.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod address_owners;
mod common;

use base64::Engine as _;
use common::{Agent, Server};
use serde_json::{Value, json};
use waifud_api::agent::{AgentInstance, AgentReport, Unmanaged};
use waifud_types::status::{AddressFamily, AddressSource, InstanceAddress};
use waifud_types::template::Datasource;
use waifud_types::{ByteSize, InstanceState};

/// The node reports its bridges and its unsuitable links.
async fn has_bridges(agent: &Agent, bridges: &[&str], unfit: &[(&str, &str)]) {
    let mut facts = common::facts(ByteSize::gib(64));
    facts.bridges = bridges.iter().map(|&name| name.to_owned()).collect();
    facts.unfit_bridges = unfit
        .iter()
        .map(|&(name, why)| (name.to_owned(), why.to_owned()))
        .collect();
    agent
        .report(&AgentReport {
            facts: Some(facts),
            ..AgentReport::default()
        })
        .await;
}

async fn add(server: &Server, name: &str, bridge: &str) -> common::Answer {
    let body = json!({"name": name, "bridge": bridge});
    server.post("/v1/networks", &body).await
}

async fn refused(server: &Server, body: &Value, status: u16, code: &str, field: &str) -> String {
    let before = (
        server.footprint().await,
        server.get("/v1/networks").await.json()["items"].clone(),
    );
    let problem = server.post("/v1/networks", body).await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (status, code),
        "{problem:?}"
    );
    assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
    let after = (
        server.footprint().await,
        server.get("/v1/networks").await.json()["items"].clone(),
    );
    assert_eq!(after, before, "{code} left something behind");
    format!("{} {}", problem.title, problem.hint.unwrap())
}

#[tokio::test]
async fn a_network_is_added_listed_and_deleted_and_default_is_permanent() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(64)).await;
    has_bridges(&alder, &["br0", "waifu0"], &[]).await;
    let added = add(&server, "lan", "br0").await.expect(201).json();
    assert_eq!(
        added["nodes"],
        json!([
            {"node": "alder", "usable": true, "reason": null},
            {"node": "birch", "usable": false, "reason": "has no bridge br0"},
        ])
    );
    assert_eq!(
        (&added["bridge"], &added["used_by"]),
        (&json!("br0"), &json!(0))
    );
    let list = server.get("/v1/networks").await.expect(200).json();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["name"].clone())
        .collect();
    assert_eq!(names, ["default", "lan"]);
    assert_eq!(list["items"][0]["bridge"], Value::Null);
    assert_eq!(list["items"][1], added);
    assert_eq!(
        server.get("/v1/networks/lan").await.expect(200).json(),
        added
    );
    // Page by page.
    let first = server.get("/v1/networks?limit=1").await.expect(200).json();
    let next = first["next"].as_str().unwrap();
    let second = server
        .get(&format!("/v1/networks?limit=1&cursor={next}"))
        .await
        .expect(200)
        .json();
    assert_eq!(second["items"][0]["name"], "lan");
    assert_eq!(second["next"], Value::Null);

    let problem = server.delete("/v1/networks/default").await.problem();
    assert_eq!(problem.code, "default-network");
    server.delete("/v1/networks/lan").await.expect(204);
    server.delete("/v1/networks/lan").await.expect(404);
    server.get("/v1/networks/lan").await.expect(404);
    assert_eq!(
        server.kinds("lan").await,
        ["network.created", "network.deleted"]
    );
}

#[tokio::test]
async fn an_invalid_network_is_refused_with_the_reason() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    let wireless = "has no way out but wlan0, which is wireless";
    has_bridges(&alder, &["br0", "brw"], &[("brw", wireless)]).await;
    add(&server, "lan", "br0").await.expect(201);
    for (name, bridge, status, code, field) in [
        ("lan", "br1", 409, "network-name-taken", "name"),
        ("default", "br1", 409, "network-name-taken", "name"),
        ("home", "br0", 409, "bridge-in-use", "bridge"),
        ("Home", "br1", 422, "invalid-name", "name"),
        ("home", "br 1", 422, "invalid-bridge", "bridge"),
        ("home", "", 422, "invalid-bridge", "bridge"),
        ("home", "wf-01234567", 422, "unsuitable-bridge", "bridge"),
        ("home", "brw", 422, "unsuitable-bridge", "bridge"),
    ] {
        let body = json!({"name": name, "bridge": bridge});
        let refusal = refused(&server, &body, status, code, field).await;
        match bridge {
            "br0" => assert!(
                refusal.contains("network lan already uses bridge br0"),
                "{refusal}"
            ),
            "brw" => assert!(
                refusal.contains("alder") && refusal.contains("wireless"),
                "{refusal}"
            ),
            _ => {}
        }
    }
    refused(
        &server,
        &json!({"name": "home"}),
        422,
        "invalid-field",
        "bridge",
    )
    .await;
    // A bridge may be unsuitable on one node and usable on another.
    let birch = server.join("birch", ByteSize::gib(64)).await;
    has_bridges(&birch, &["brw"], &[]).await;
    let added = add(&server, "home", "brw").await.expect(201).json();
    assert_eq!(
        added["nodes"][0]["reason"],
        format!("cannot use brw, which {wireless}")
    );
}

#[tokio::test]
async fn default_counts_its_users_until_they_are_destroyed() {
    let server = Server::start().await;
    server.template().await;
    let mut agent = server.join("alder", ByteSize::gib(64)).await;
    let used = async || server.get("/v1/networks/default").await.json()["used_by"].clone();
    assert_eq!(used().await, 0);
    server.create_instance("web").await;
    assert_eq!(used().await, 1);
    agent.watch(None).await;
    agent.until_sync().await;
    server.delete("/v1/instances/web").await.expect(202);
    assert_eq!(used().await, 1, "its node has not confirmed");
    let tombstone = agent.tombstone().await;
    agent.destroyed(tombstone).await;
    assert_eq!(used().await, 0);
}

/// A server with the template, alder with br0, birch without, and the network lan.
async fn home() -> (Server, Agent, Agent) {
    let server = Server::start().await;
    server.template().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    let birch = server.join("birch", ByteSize::gib(128)).await;
    has_bridges(&alder, &["br0"], &[]).await;
    add(&server, "lan", "br0").await.expect(201);
    (server, alder, birch)
}

fn on(name: &str, nics: &Value) -> Value {
    json!({"name": name, "template": "debian-12", "nics": nics})
}

fn seen(address: &str, network: &str) -> InstanceAddress {
    let address: std::net::IpAddr = address.parse().unwrap();
    InstanceAddress {
        address,
        family: if address.is_ipv4() {
            AddressFamily::Ipv4
        } else {
            AddressFamily::Ipv6
        },
        network: network.parse().unwrap(),
        source: AddressSource::Observed,
        primary: false,
    }
}

/// The network configuration on the guest's disk, as its node reads it.
async fn network_config(agent: &Agent, put: &AgentInstance) -> Option<Value> {
    let path = format!("/v1/agent/bundles/{}", put.bundle.digest);
    let bytes = agent.get(&path).await.expect(200).bytes;
    let documents = waifud_cloudinit::open(&bytes, put.bundle.digest, &put.bundle.key).unwrap();
    let tokens = waifud_cloudinit::Tokens::new(&[1; 32]);
    let request = waifud_cloudinit::GuestRequest::get("/nocloud/network-config");
    let answer = documents.answer(&request, &tokens, 1_800_000_000);
    serde_json::from_str(&answer.body).ok()
}

#[tokio::test]
async fn an_instance_on_a_bridge_is_placed_by_it_and_shows_observed_addresses() {
    let (server, mut alder, _birch) = home().await;
    alder.watch(None).await;
    alder.until_sync().await;
    let ha = server
        .create(&on("ha", &json!([{"network": "lan"}])))
        .await
        .expect(201)
        .instance();
    assert_eq!(ha.status.node.unwrap().as_str(), "alder");
    assert_eq!(
        (ha.spec.nics[0].address, ha.status.addresses.len()),
        (None, 0)
    );
    let put = alder.put().await;
    let bridges: Vec<_> = put
        .bridges
        .iter()
        .map(|(name, bridge)| format!("{name}={bridge}"))
        .collect();
    assert_eq!(bridges, ["lan=br0"]);
    assert_eq!(put.datasource, Datasource::Openstack);
    assert_eq!(
        network_config(&alder, &put).await,
        None,
        "DHCP on its only nic needs no words"
    );

    let mut report = common::report(ha.id, InstanceState::Running);
    report.addresses = ["fd00::7", "192.168.1.40", "10.9.9.9"]
        .map(|address| {
            seen(
                address,
                if address == "10.9.9.9" {
                    "elsewhere"
                } else {
                    "lan"
                },
            )
        })
        .to_vec();
    alder.send_report(report.clone()).await;
    let shown = server
        .get("/v1/instances/ha")
        .await
        .instance()
        .status
        .addresses;
    let shown: Vec<_> = shown
        .iter()
        .map(|a| (a.address.to_string(), a.primary, a.source))
        .collect();
    let observed = AddressSource::Observed;
    assert_eq!(
        shown,
        [
            ("fd00::7".to_owned(), false, observed),
            ("192.168.1.40".to_owned(), true, observed)
        ]
    );
    let kinds = server.kinds("ha").await;
    assert!(kinds.contains(&"instance.address".to_owned()), "{kinds:?}");
    let before = server.footprint().await;
    alder.send_report(report).await;
    assert_eq!(
        server.footprint().await,
        before,
        "the same report is no news"
    );

    // It is in use until its node has confirmed the destruction.
    let problem = server.delete("/v1/networks/lan").await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (409, "network-in-use")
    );
    assert!(problem.title.contains("used by ha"), "{problem:?}");
    server.delete("/v1/instances/ha").await.expect(202);
    server.delete("/v1/networks/lan").await.expect(409);
    let tombstone = alder.tombstone().await;
    alder.destroyed(tombstone).await;
    server.delete("/v1/networks/lan").await.expect(204);
}

#[tokio::test]
async fn a_guest_waits_for_a_node_with_the_bridge_and_why_names_those_without() {
    let (server, _alder, birch) = home().await;
    add(&server, "dmz", "br1").await.expect(201);
    let web = server
        .create(&on("web", &json!([{"network": "dmz"}])))
        .await
        .expect(201)
        .instance();
    assert_eq!(web.status.node, None);
    assert_eq!(
        web.status.reason.as_deref(),
        Some("waiting for: a node with bridge br1")
    );
    let why = server.get("/v1/instances/web/why").await.expect(200).json();
    for verdict in why["placement"].as_array().unwrap() {
        assert_eq!(verdict["reason"], "has no bridge br1");
    }
    assert!(
        why["hint"].as_str().unwrap().contains("docs/guides/lan.md"),
        "{why}"
    );
    has_bridges(&birch, &["br1"], &[("br1", "has no way out but wlan0")]).await;
    assert_eq!(
        server.get("/v1/instances/web").await.instance().status.node,
        None
    );
    has_bridges(&birch, &["br1"], &[]).await;
    let web = server.get("/v1/instances/web").await.instance();
    assert_eq!(web.status.node.unwrap().as_str(), "birch");
}

#[tokio::test]
async fn several_nics_use_a_seed_disk_and_the_first_has_the_default_route() {
    let (server, mut alder, _birch) = home().await;
    alder.watch(None).await;
    alder.until_sync().await;
    let nics = json!([{"network": "lan"}, {}]);
    let two = server
        .create(&on("two", &nics))
        .await
        .expect(201)
        .instance();
    let names: Vec<_> = two.spec.nics.iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1"]);
    assert_ne!(two.spec.nics[0].mac, two.spec.nics[1].mac);
    let [address] = two.status.addresses.as_slice() else {
        panic!("{two:?}")
    };
    assert_eq!(
        (address.address.to_string().as_str(), address.primary),
        ("10.144.1.2", false)
    );
    let put = alder.put().await;
    assert_eq!(put.datasource, Datasource::Cidata);
    let config = network_config(&alder, &put).await.unwrap();
    let (first, second) = (&config["ethernets"]["eth0"], &config["ethernets"]["eth1"]);
    assert_eq!(first["match"]["macaddress"], json!(two.spec.nics[0].mac));
    assert_eq!(first["dhcp4-overrides"], Value::Null);
    assert_eq!(second["dhcp4-overrides"]["use-routes"], false);
    assert_eq!(second["dhcp4-overrides"]["use-dns"], false);
    // The next instance gets another address.
    let next = server
        .create(&on("next", &json!([{}, {"network": "lan"}])))
        .await
        .expect(201)
        .instance();
    assert_eq!(next.status.addresses[0].address.to_string(), "10.144.1.3");
    assert!(next.status.addresses[0].primary);
}

#[tokio::test]
async fn an_address_on_a_bridge_belongs_to_one_instance() {
    let (server, mut alder, _birch) = home().await;
    alder.watch(None).await;
    alder.until_sync().await;
    let nic = json!([{"network": "lan", "address": "192.168.1.50/24", "gateway": "192.168.1.1",
        "allow_addresses": ["192.168.1.200", "fd00::/64"], "mac": "52:54:00:00:00:50"}]);
    let ha = server.create(&on("ha", &nic)).await.expect(201).instance();
    let shown = &ha.status.addresses[0];
    assert_eq!(
        (shown.address.to_string().as_str(), shown.primary),
        ("192.168.1.50", true)
    );
    assert_eq!(shown.source, AddressSource::Assigned);
    let put = alder.put().await;
    assert_eq!(put.datasource, Datasource::Cidata);
    let config = network_config(&alder, &put).await.unwrap();
    assert_eq!(
        config["ethernets"]["eth0"],
        json!({"match": {"macaddress": "52:54:00:00:00:50"}, "set-name": "eth0", "dhcp4": false,
            "addresses": ["192.168.1.50/24"], "routes": [{"to": "0.0.0.0/0", "via": "192.168.1.1"}],
            "nameservers": {"addresses": ["192.168.1.1"]}})
    );
    // Its description equals the request.
    let described = server
        .get("/v1/instances/ha/description")
        .await
        .expect(200)
        .json();
    assert_eq!(
        described["nics"],
        json!([{"network": "lan", "address": "192.168.1.50/24", "gateway": "192.168.1.1",
            "allow_addresses": ["192.168.1.200/32", "fd00::/64"], "mac": "52:54:00:00:00:50"}])
    );
    assert_eq!(described["mac"], Value::Null);

    let lan = |more: Value| {
        let mut nic = json!({"network": "lan"});
        nic.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!([nic])
    };
    let before = server.footprint().await;
    for (nics, status, code, field) in [
        (
            json!([{"network": "lan", "address": "192.168.1.50/16"}]),
            409,
            "address-taken",
            "spec.nics[0].address",
        ),
        (
            lan(json!({"address": "10.144.7.7/24"})),
            422,
            "address-in-guest-range",
            "spec.nics[0].address",
        ),
        (
            lan(json!({"address": "192.168.1.51"})),
            422,
            "invalid-address",
            "spec.nics[0].address",
        ),
        (
            lan(json!({"allow_addresses": ["10.144.1.9"]})),
            422,
            "address-in-guest-range",
            "spec.nics[0].allow_addresses",
        ),
        (
            lan(json!({"allow_addresses": ["0.0.0.0/0"]})),
            422,
            "address-reserved",
            "spec.nics[0].allow_addresses[0]",
        ),
        (
            json!([{}, {"network": "wan"}]),
            422,
            "unknown-network",
            "spec.nics[1].network",
        ),
        (
            json!([{}, {}]),
            422,
            "duplicate-default-network",
            "spec.nics[1].network",
        ),
        (
            json!([{}, {"network": "lan", "address": "192.168.1.9/24", "gateway": "192.168.1.1"}]),
            422,
            "gateway-not-on-first-nic",
            "spec.nics[1].gateway",
        ),
    ] {
        let problem = server.create(&on("no", &nics)).await.problem();
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (status, code),
            "{nics} {problem:?}"
        );
        assert_eq!(problem.field.as_deref(), Some(field), "{nics}");
        assert!(problem.hint.is_some(), "{nics}");
    }
    let mut published = on("no", &json!([{"network": "lan"}, {}]));
    published["publish"] = json!([{"port": 80}]);
    let problem = server.create(&published).await.problem();
    assert_eq!(
        (problem.code.as_str(), problem.field.as_deref()),
        ("publish-needs-default-network", Some("spec.publish"))
    );
    let problem = server
        .patch("/v1/instances/ha", &json!({"publish": [{"port": 80}]}))
        .await
        .problem();
    assert_eq!(problem.code, "publish-needs-default-network");
    assert_eq!(
        server.footprint().await,
        before,
        "what was refused left nothing behind"
    );
}

#[tokio::test]
async fn an_unmanaged_instance_on_a_bridge_is_adopted_with_its_network() {
    let (server, mut alder, _birch) = home().await;
    alder.watch(None).await;
    alder.until_sync().await;
    server
        .create(&on("ha", &json!([{"network": "lan"}])))
        .await
        .expect(201);
    let record = alder.put().await;
    let bundle = alder
        .get(&format!("/v1/agent/bundles/{}", record.bundle.digest))
        .await
        .expect(200)
        .bytes;
    server.delete("/v1/instances/ha").await.expect(202);
    let tombstone = alder.tombstone().await;
    alder.destroyed(tombstone).await;
    server.delete("/v1/networks/lan").await.expect(204);
    // As a restored database would find it.
    let unmanaged = Unmanaged {
        kind: "domain".to_owned(),
        instance: record.id,
        name: Some("ha".to_owned()),
        volume: None,
        running: true,
        addresses: Vec::new(),
        record: Some(Box::new(record)),
        bundle: Some(base64::engine::general_purpose::STANDARD.encode(bundle)),
    };
    alder
        .report(&AgentReport {
            unmanaged: Some(vec![unmanaged]),
            ..AgentReport::default()
        })
        .await;
    let adopt = async || {
        server
            .post("/v1/nodes/alder/unmanaged/ha/adopt", &json!({}))
            .await
    };
    let problem = adopt().await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (409, "adopt-conflict")
    );
    assert!(
        problem
            .hint
            .unwrap()
            .contains("waifuctl network add lan --bridge br0")
    );
    add(&server, "lan", "br7").await.expect(201);
    let problem = adopt().await.problem();
    assert!(
        problem.title.contains("now has another bridge"),
        "{problem:?}"
    );
    server.delete("/v1/networks/lan").await.expect(204);
    add(&server, "lan", "br0").await.expect(201);
    adopt().await.expect(201);
    assert_eq!(server.get("/v1/networks/lan").await.json()["used_by"], 1);
}
