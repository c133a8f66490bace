//! Addresses and ranges that belong to another instance, a router or a subnet.

use super::*;

#[tokio::test]
async fn addresses_and_ranges_that_belong_to_others_are_refused() {
    let (server, alder, _birch) = with_lan().await;
    let given = json!([{"network": "lan", "address": "192.168.1.50/24", "gateway": "192.168.1.1",
        "allow_addresses": ["192.168.1.64/26", "192.168.1.200"]}]);
    server.create(&with_nics("web", &given)).await.expect(201);
    let by_dhcp = json!([{"network": "lan"}]);
    let ha = server.create(&with_nics("ha", &by_dhcp)).await.expect(201);
    let mut report = crate::common::report(ha.instance().id, InstanceState::Running);
    report.addresses = vec![observed("192.168.1.140", "lan")];
    alder.report_instance(report).await;
    let before = server.footprint().await;
    let of = |address: &str, allowed: &[&str]| {
        let mut nic = json!({"network": "lan", "allow_addresses": allowed});
        if !address.is_empty() {
            nic["address"] = json!(address);
        }
        with_nics("other", &json!([nic]))
    };
    for (address, allowed, field, expected) in [
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
        let answer = server.create(&of(address, allowed)).await;
        let problem = answer.refused(409, "address-taken", &format!("spec.nics[0].{field}"));
        assert!(
            problem.title.contains(expected),
            "{address} {allowed:?}: {problem:?}"
        );
    }
    // A NIC on default gets a route for its range, so the range must not contain addresses of any network.
    let routed = json!([{"network": "default", "allow_addresses": ["192.168.1.48/29"]}]);
    let problem = server.create(&with_nics("other", &routed)).await.problem();
    assert!(
        problem.title.contains("192.168.1.50/32 belongs to web"),
        "{problem:?}"
    );
    let own_router = json!([{"network": "lan", "address": "192.168.1.60/24", "gateway": "192.168.1.2",
        "allow_addresses": ["192.168.1.2"]}]);
    let problem = server
        .create(&with_nics("other", &own_router))
        .await
        .problem();
    assert!(
        problem.title.contains("the gateway of the instance itself"),
        "{problem:?}"
    );
    assert_eq!(
        server.footprint().await,
        before,
        "a refusal left something behind"
    );
    // An additional address can be shared, and an unused range is available.
    server
        .create(&of(
            "192.168.1.51/24",
            &["192.168.1.200", "192.168.1.208/28"],
        ))
        .await
        .expect(201);
}
