//! Networks that are bridges of the hosts: managed by name, used by instances, and deleted when unused.

mod address_owners;
mod vlans;

use crate::common::{Agent, Server, assert_contains};
use serde_json::{Value, json};
use waifud_api::agent::AgentInstance;
use waifud_api::hint::{HintAction, HintKind};
use waifud_types::status::{AddressSource, InstanceAddress};
use waifud_types::template::Datasource;
use waifud_types::{ByteSize, InstanceState, WaitReason};

/// Reports the bridges of a node, and those that guests cannot use, with the reason.
async fn report_bridges(agent: &Agent, bridges: &[&str], unfit: &[(&str, &str)]) {
    let mut facts = crate::common::facts(ByteSize::gib(64));
    facts.bridges = bridges.iter().map(|&name| name.to_owned()).collect();
    facts.unfit_bridges = unfit
        .iter()
        .map(|&(name, why)| (name.to_owned(), why.to_owned()))
        .collect();
    agent.report_facts(facts).await;
}

async fn add(server: &Server, name: &str, bridge: &str) -> crate::common::Answer {
    let body = json!({"name": name, "bridge": bridge});
    server.post("/v1/networks", &body).await
}

/// Tries to add a network, which must be refused with this status, code and field, and must leave nothing behind.
/// Returns the title and the hint.
async fn refused(server: &Server, body: &Value, status: u16, code: &str, field: &str) -> String {
    let state = async || (server.footprint().await, server.items("/v1/networks").await);
    let before = state().await;
    let problem = server.post("/v1/networks", body).await;
    let problem = problem.refused(status, code, field);
    assert_eq!(state().await, before, "{code} left something behind");
    format!("{} {}", problem.title, problem.hint.unwrap())
}

#[tokio::test]
async fn networks_can_be_added_listed_and_deleted_except_default() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(64)).await;
    report_bridges(&alder, &["br0", "waifu0"], &[]).await;
    let added = add(&server, "lan", "br0").await.expect(201).json();
    assert_eq!(
        added["nodes"],
        json!([
            {"node": "alder", "usable": true, "reason": null, "cause": null},
            {"node": "birch", "usable": false, "reason": "has no bridge br0",
             "cause": {"code": "no-bridge", "fields": {"bridge": "br0"}}},
        ])
    );
    assert_eq!(
        (&added["bridge"], &added["used_by"]),
        (&json!("br0"), &json!(0))
    );
    let networks = server.items("/v1/networks").await;
    let names: Vec<_> = networks.iter().map(|network| &network["name"]).collect();
    assert_eq!(names, ["default", "lan"]);
    assert_eq!(networks[0]["bridge"], Value::Null);
    assert_eq!(networks[1], added);
    assert_eq!(
        server.get("/v1/networks/lan").await.expect(200).json(),
        added
    );
    // One network a page.
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
async fn invalid_networks_are_refused_with_the_reason() {
    let server = Server::start().await;
    let alder = server.join("alder", ByteSize::gib(64)).await;
    let wireless = "has no way out but wlan0, which is wireless";
    report_bridges(&alder, &["br0", "brw"], &[("brw", wireless)]).await;
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
        let text = refused(&server, &body, status, code, field).await;
        match bridge {
            "br0" => assert!(
                text.contains("network lan already uses bridge br0"),
                "{text}"
            ),
            "brw" => assert!(
                text.contains("alder") && text.contains("wireless"),
                "{text}"
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
    // A bridge that one node cannot use may be suitable on another.
    let birch = server.join("birch", ByteSize::gib(64)).await;
    report_bridges(&birch, &["brw"], &[]).await;
    let added = add(&server, "home", "brw").await.expect(201).json();
    assert_eq!(
        added["nodes"][0]["reason"],
        format!("cannot use brw, which {wireless}")
    );
    let cause = &added["nodes"][0]["cause"];
    assert_eq!(cause["code"], "unsuitable-bridge");
    assert_eq!(cause["fields"]["bridge"], "brw");
}

#[tokio::test]
async fn the_default_network_counts_instances_until_their_deletion_is_confirmed() {
    let (server, mut agent) = Server::with_node(ByteSize::gib(64)).await;
    let used = async || server.get("/v1/networks/default").await.json()["used_by"].clone();
    assert_eq!(used().await, 0);
    server.create_instance("web").await;
    assert_eq!(used().await, 1);
    agent.watch_from_now().await;
    server.delete("/v1/instances/web").await.expect(202);
    assert_eq!(used().await, 1, "its node has not confirmed the deletion");
    agent.confirm_deletion().await;
    assert_eq!(used().await, 0);
}

/// A server with the nodes alder, which has the bridge br0, and birch, which has not, and the network `lan` on br0.
async fn with_lan() -> (Server, Agent, Agent) {
    let (server, alder) = Server::with_node(ByteSize::gib(64)).await;
    let birch = server.join("birch", ByteSize::gib(128)).await;
    report_bridges(&alder, &["br0"], &[]).await;
    add(&server, "lan", "br0").await.expect(201);
    (server, alder, birch)
}

fn with_nics(name: &str, nics: &Value) -> Value {
    json!({"name": name, "template": "debian-12", "nics": nics})
}

fn observed(address: &str, network: &str) -> InstanceAddress {
    InstanceAddress::observed(address.parse().unwrap(), network.parse().unwrap())
}

/// The network configuration that the guest finds on its disk.
async fn network_config(agent: &Agent, put: &AgentInstance) -> Option<Value> {
    let documents = agent.documents(&put.bundle).await;
    let tokens = waifud_cloudinit::Tokens::new(&[1; 32]);
    let request = waifud_cloudinit::GuestRequest::get("/nocloud/network-config");
    let answer = documents.answer(&request, &tokens, 1_800_000_000);
    serde_json::from_str(&answer.body).ok()
}

#[tokio::test]
async fn an_instance_is_placed_where_its_bridge_is_and_shows_its_observed_address() {
    let (server, mut alder, _birch) = with_lan().await;
    alder.watch_from_now().await;
    let ha = server
        .created(&with_nics("ha", &json!([{"network": "lan"}])))
        .await;
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
        "a single NIC with DHCP needs no network configuration"
    );

    let mut report = crate::common::report(ha.id, InstanceState::Running);
    report.addresses = ["fd00::7", "192.168.1.40", "10.9.9.9"]
        .map(|address| {
            observed(
                address,
                if address == "10.9.9.9" {
                    "elsewhere"
                } else {
                    "lan"
                },
            )
        })
        .to_vec();
    alder.report_instance(report.clone()).await;
    let shown = server.instance("ha").await.status.addresses;
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
    alder.report_instance(report).await;
    assert_eq!(
        server.footprint().await,
        before,
        "an unchanged report changes nothing"
    );

    // The network is in use until the node has confirmed the deletion of the instance.
    let problem = server.delete("/v1/networks/lan").await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (409, "network-in-use")
    );
    assert!(problem.title.contains("used by ha"), "{problem:?}");
    server.delete("/v1/instances/ha").await.expect(202);
    server.delete("/v1/networks/lan").await.expect(409);
    alder.confirm_deletion().await;
    server.delete("/v1/networks/lan").await.expect(204);
}

#[tokio::test]
async fn an_instance_waits_for_a_node_with_its_bridge() {
    let (server, _alder, birch) = with_lan().await;
    add(&server, "dmz", "br1").await.expect(201);
    let web = server
        .created(&with_nics("web", &json!([{"network": "dmz"}])))
        .await;
    assert_eq!(web.status.node, None);
    let bridge = "br1".to_owned();
    assert_eq!(
        web.status.wait_reason(),
        Some(WaitReason::NoBridge { bridge })
    );
    let why = server.why("web").await;
    let verdicts = why["placement"].as_array().unwrap();
    for verdict in verdicts {
        assert_eq!(verdict["code"], "no-bridge", "{verdict}");
        assert_eq!(verdict["reason"], "has no bridge br1");
    }
    assert_eq!(verdicts.len(), 2);
    assert_contains(&why["hint"], "docs/guides/lan.md");
    let hint = &why["hints"][0];
    assert_eq!(hint["action"], "create-bridge", "{why}");
    assert_eq!(hint["arguments"], json!({"bridge": "br1"}));
    assert_eq!(hint["object"], json!({"type": "node", "name": "alder"}));
    report_bridges(&birch, &["br1"], &[("br1", "has no way out but wlan0")]).await;
    assert_eq!(server.instance("web").await.status.node, None);
    report_bridges(&birch, &["br1"], &[]).await;
    let web = server.instance("web").await;
    assert_eq!(web.status.node.unwrap().as_str(), "birch");
}

#[tokio::test]
async fn the_first_of_several_nics_has_the_default_route() {
    let (server, mut alder, _birch) = with_lan().await;
    alder.watch_from_now().await;
    let nics = json!([{"network": "lan"}, {}]);
    let two = server.created(&with_nics("two", &nics)).await;
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
    // The address of the second NIC is reserved, so the next instance gets another one.
    let next = server
        .created(&with_nics("next", &json!([{}, {"network": "lan"}])))
        .await;
    assert_eq!(next.status.addresses[0].address.to_string(), "10.144.1.3");
    assert!(next.status.addresses[0].primary);
}

#[tokio::test]
async fn a_static_address_on_a_bridge_is_configured_and_conflicts_are_refused() {
    let (server, mut alder, _birch) = with_lan().await;
    alder.watch_from_now().await;
    let nic = json!([{"network": "lan", "address": "192.168.1.50/24", "gateway": "192.168.1.1",
        "allow_addresses": ["192.168.1.200", "fd00::/64"], "mac": "52:54:00:00:00:50"}]);
    let ha = server.created(&with_nics("ha", &nic)).await;
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
    // The description contains the NIC as it was requested.
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
        let answer = server.create(&with_nics("no", &nics)).await;
        answer.refused(status, code, field);
    }
    let mut published = with_nics("no", &json!([{"network": "lan"}, {}]));
    published["publish"] = json!([{"port": 80}]);
    let problem = server.create(&published).await.problem();
    assert_eq!(
        (problem.code.as_str(), problem.field.as_deref()),
        ("publish-needs-default-network", Some("spec.publish"))
    );
    let problem = server
        .patch_instance("ha", &json!({"publish": [{"port": 80}]}))
        .await
        .problem();
    assert_eq!(problem.code, "publish-needs-default-network");
    assert_eq!(
        server.footprint().await,
        before,
        "a refused request left something behind"
    );
}

#[tokio::test]
async fn an_unmanaged_instance_on_a_bridge_is_adopted_only_when_its_network_exists() {
    let (server, mut alder, _birch) = with_lan().await;
    alder.watch_from_now().await;
    server
        .create(&with_nics("ha", &json!([{"network": "lan"}])))
        .await
        .expect(201);
    let record = alder.put().await;
    let unmanaged = alder.unmanaged(&record).await;
    server.delete("/v1/instances/ha").await.expect(202);
    alder.confirm_deletion().await;
    server.delete("/v1/networks/lan").await.expect(204);
    // The instance is still on the node, as after the restore of an old backup.
    alder.report_unmanaged(vec![unmanaged]).await;
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
    let bridge = Some("br0".to_owned());
    let add_network = HintAction::AddNetwork { bridge };
    assert!(problem.hints[0].is(&add_network, HintKind::Network, "lan"));
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
