//! Nics in a VLAN of a bridge.

use super::*;
use waifud_types::node::feature;

/// Reports that the node has br0, whether it tells VLANs apart, and whether the agent knows VLANs.
async fn report_br0(agent: &Agent, is_aware: bool, features: &[&str]) {
    let mut facts = crate::common::facts(ByteSize::gib(64));
    facts.bridges = vec!["br0".to_owned()];
    facts.vlan_bridges = facts.bridges.clone();
    facts.vlan_bridges.retain(|_| is_aware);
    facts.features = features.iter().map(|&name| name.to_owned()).collect();
    agent.report_facts(facts).await;
}

fn older() -> Vec<&'static str> {
    let all = feature::ALL.into_iter();
    all.filter(|name| *name != feature::VLANS).collect()
}

async fn vendor_data(agent: &Agent, put: &AgentInstance) -> String {
    let documents = agent.documents(&put.bundle).await;
    let request = waifud_cloudinit::GuestRequest::get("/nocloud/vendor-data");
    let tokens = waifud_cloudinit::Tokens::new(&[1; 32]);
    let answer = documents.answer(&request, &tokens, 1_800_000_000);
    answer.body.to_string()
}

fn in_vlan(name: &str, vlan: u32) -> Value {
    with_nics(name, &json!([{"network": "lan", "vlan": vlan}]))
}

#[tokio::test]
async fn an_instance_in_a_vlan_is_placed_where_the_bridge_tells_vlans_apart() {
    let (server, mut alder, _birch) = with_lan().await;
    alder.watch_from_now().await;
    let web = server.created(&in_vlan("web", 20)).await;
    let bridge = "br0".to_owned();
    assert_eq!(
        web.status.wait_reason(),
        Some(WaitReason::BridgeWithoutVlans { bridge })
    );
    let why = server.why("web").await;
    let verdict = &why["placement"][0];
    assert_eq!(
        (&verdict["node"], &verdict["code"], &verdict["reason"]),
        (
            &json!("alder"),
            &json!("bridge-without-vlans"),
            &json!("its bridge br0 is not VLAN-aware")
        )
    );
    assert_eq!(why["placement"][1]["code"], "no-bridge");
    assert_contains(
        &why["hint"],
        "on alder, run: ip link set br0 type bridge vlan_filtering 1",
    );
    // Others are not affected.
    let plain = server
        .created(&with_nics("plain", &json!([{"network": "lan"}])))
        .await;
    assert_eq!(plain.status.node.unwrap().as_str(), "alder");
    assert_eq!(plain.spec.nics[0].vlan, None);
    let put = alder.put().await;
    let reports = vendor_data(&alder, &put).await;
    assert_contains(&json!(reports), "169.254.169.254");

    // An older agent would attach the nic without a VLAN, even if it reported such a bridge.
    report_br0(&alder, true, &older()).await;
    assert_eq!(server.instance("web").await.status.node, None);
    let why = server.why("web").await;
    assert_eq!(why["placement"][0]["code"], "no-vlans", "{why}");
    report_br0(&alder, true, &feature::ALL).await;
    let web = server.instance("web").await;
    assert_eq!(web.status.node.unwrap().as_str(), "alder");
    let put = alder.put().await;
    assert_eq!(put.spec.nics[0].vlan, Some(20.try_into().unwrap()));
    // The metadata service does not answer in the VLAN, so cloud-init does not report there either.
    assert_eq!(put.datasource, Datasource::Cidata);
    assert!(!vendor_data(&alder, &put).await.contains("169.254.169.254"));
    let described = server
        .get("/v1/instances/web/description")
        .await
        .expect(200);
    assert_eq!(described.json()["nics"][0]["vlan"], 20);
}

#[tokio::test]
async fn invalid_vlans_are_refused_and_leave_nothing_behind() {
    let (server, _alder, _birch) = with_lan().await;
    let before = server.footprint().await;
    for (network, vlan, code) in [
        ("lan", json!(0), "out-of-range"),
        ("lan", json!(4095), "out-of-range"),
        ("default", json!(20), "vlan-on-default"),
    ] {
        let body = with_nics("web", &json!([{"network": network, "vlan": vlan}]));
        let problem = server.create(&body).await;
        problem.refused(422, code, "spec.nics[0].vlan");
    }
    for vlan in [json!(65536), json!(-1), json!("20")] {
        let body = with_nics("web", &json!([{"network": "lan", "vlan": vlan}]));
        server.create(&body).await.expect(422);
    }
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn ranges_gateways_and_observed_addresses_belong_to_one_vlan() {
    let (server, alder, _birch) = with_lan().await;
    report_br0(&alder, true, &feature::ALL).await;
    let given = json!([{"network": "lan", "vlan": 20, "address": "192.168.1.50/24", "gateway": "192.168.1.1",
        "allow_addresses": ["192.168.1.64/26"]}]);
    server.create(&with_nics("web", &given)).await.expect(201);
    let ha = server.created(&in_vlan("ha", 20)).await;
    let mut report = crate::common::report(ha.id, InstanceState::Running);
    report.addresses = vec![observed("192.168.1.140", "lan")];
    alder.report_instance(report).await;
    let create = async |name: &str, vlan: Value, nic: Value| {
        let mut nic = nic;
        nic["network"] = json!("lan");
        nic["vlan"] = vlan;
        server.create(&with_nics(name, &json!([nic]))).await
    };
    for (number, (nic, field)) in [
        (json!({"address": "192.168.1.70/24"}), "address"),
        (json!({"address": "192.168.1.1/24"}), "address"),
        (json!({"address": "192.168.1.140/24"}), "address"),
        (
            json!({"allow_addresses": ["192.168.1.96/27"]}),
            "allow_addresses",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let field = format!("spec.nics[0].{field}");
        let same = create("other", json!(20), nic.clone()).await;
        same.refused(409, "address-taken", &field);
        let vlan = if number % 2 == 0 {
            json!(21)
        } else {
            Value::Null
        };
        create(&format!("other-{number}"), vlan, nic)
            .await
            .expect(201);
    }
}

#[tokio::test]
async fn a_nic_in_a_vlan_is_added_only_where_it_gets_there() {
    let (server, alder, _birch) = with_lan().await;
    let nics = json!([{"network": "lan"}]);
    let web = server.created(&with_nics("web", &nics)).await;
    assert_eq!(web.status.node.unwrap().as_str(), "alder");
    let path = "/v1/instances/web/nics";
    let wanted = json!({"network": "lan", "vlan": 20});
    let field = "spec.nics[1].vlan";
    let problem = server.post(path, &wanted).await;
    let problem = problem.refused(409, "network-not-on-node", field);
    assert!(problem.title.contains("not VLAN-aware"), "{problem:?}");
    let hint = problem.hint.unwrap();
    assert!(hint.contains("vlan_filtering 1"), "{hint}");
    report_br0(&alder, true, &older()).await;
    let before = server.footprint().await;
    let problem = server.post(path, &wanted).await;
    problem.refused(409, "agent-too-old", field);
    let bad = json!({"network": "lan", "vlan": 4095});
    server
        .post(path, &bad)
        .await
        .refused(422, "out-of-range", field);
    let bad = json!({"vlan": 20});
    let problem = server.post(path, &bad).await;
    problem.refused(422, "vlan-on-default", field);
    assert_eq!(server.footprint().await, before);
    report_br0(&alder, true, &feature::ALL).await;
    let with = server.post(path, &wanted).await.expect(200).instance();
    let nic = &with.spec.nics[1];
    assert_eq!(nic.vlan, Some(20.try_into().unwrap()));

    // While it is being removed, only a request for the same VLAN takes that back.
    let remove = format!("{path}/eth1");
    server.delete(&remove).await.expect(200);
    let again = json!({"network": "lan", "mac": nic.mac});
    let problem = server.post(path, &again).await.problem();
    assert_eq!(problem.code, "mac-taken");
    let again = json!({"network": "lan", "vlan": 20, "mac": nic.mac});
    let kept = server.post(path, &again).await.expect(200).instance();
    assert_eq!(kept.spec.nics, with.spec.nics);
}
