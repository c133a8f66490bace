//! Addresses that belong to another instance, a gateway or a network.

use super::*;

#[tokio::test]
async fn an_address_of_another_instance_and_a_range_that_contains_it_are_refused() {
    let (server, alder, _birch) = home().await;
    let given = json!([{"network": "lan", "address": "192.168.1.50/24", "gateway": "192.168.1.1",
        "allow_addresses": ["192.168.1.64/26", "192.168.1.200"]}]);
    server.create(&on("web", &given)).await.expect(201);
    let by_dhcp = json!([{"network": "lan"}]);
    let ha = server.create(&on("ha", &by_dhcp)).await.expect(201);
    let mut report = common::report(ha.instance().id, InstanceState::Running);
    report.addresses = vec![seen("192.168.1.140", "lan")];
    alder.send_report(report).await;
    let before = server.footprint().await;
    let of = |address: &str, allowed: &[&str]| {
        let mut nic = json!({"network": "lan", "allow_addresses": allowed});
        if !address.is_empty() {
            nic["address"] = json!(address);
        }
        on("other", &json!([nic]))
    };
    for (address, allowed, field, words) in [
        (
            "192.168.1.50/24",
            &[][..],
            "address",
            "192.168.1.50 belongs to web",
        ),
        (
            "192.168.1.1/24",
            &[],
            "address",
            "192.168.1.1 is the router of web",
        ),
        (
            "192.168.1.140/24",
            &[],
            "address",
            "192.168.1.140 belongs to ha",
        ),
        (
            "192.168.1.70/24",
            &[],
            "address",
            "192.168.1.64/26, which belongs to web",
        ),
        (
            "192.168.1.200/24",
            &[],
            "address",
            "192.168.1.200 belongs to web",
        ),
        (
            "",
            &["192.168.1.50"],
            "allow_addresses",
            "192.168.1.50/32 belongs to web",
        ),
        (
            "",
            &["192.168.1.48/29"],
            "allow_addresses",
            "192.168.1.50/32 belongs to web",
        ),
        (
            "",
            &["192.168.1.0/30"],
            "allow_addresses",
            "192.168.1.1/32 is the router of web",
        ),
        (
            "",
            &["192.168.1.128/27"],
            "allow_addresses",
            "192.168.1.140/32 belongs to ha",
        ),
        (
            "",
            &["192.168.1.96/28"],
            "allow_addresses",
            "192.168.1.64/26 belongs to web",
        ),
    ] {
        let problem = server.create(&of(address, allowed)).await.problem();
        let context = format!("{address} {allowed:?}: {problem:?}");
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (409, "address-taken"),
            "{context}"
        );
        let named = format!("spec.nics[0].{field}");
        assert_eq!(problem.field.as_deref(), Some(named.as_str()), "{context}");
        assert!(problem.title.contains(words), "{context}");
    }
    // A nic on default gets a route for its range, so a range there takes addresses of every network.
    let routed = json!([{"network": "default", "allow_addresses": ["192.168.1.48/29"]}]);
    let problem = server.create(&on("other", &routed)).await.problem();
    assert!(
        problem.title.contains("192.168.1.50/32 belongs to web"),
        "{problem:?}"
    );
    let own_router = json!([{"network": "lan", "address": "192.168.1.60/24", "gateway": "192.168.1.2",
        "allow_addresses": ["192.168.1.2"]}]);
    let problem = server.create(&on("other", &own_router)).await.problem();
    assert!(
        problem.title.contains("the gateway of the instance itself"),
        "{problem:?}"
    );
    assert_eq!(
        server.footprint().await,
        before,
        "a refusal left something behind"
    );
    // A single allowed address may be shared, and unused addresses are free.
    server
        .create(&of(
            "192.168.1.51/24",
            &["192.168.1.200", "192.168.1.208/28"],
        ))
        .await
        .expect(201);
}
