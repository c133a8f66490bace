//! Fixed addresses and published ports: each belongs to one instance at a time.

use crate::common::Server;
use serde_json::{Value, json};
use waifud_types::spec::Protocol;
use waifud_types::{ByteSize, WaitReason};

fn with_address(address: &str) -> Value {
    json!({"template": "debian-12", "nics": [{"network": "default", "address": address}]})
}

fn publishing(name: &str, ports: &Value) -> Value {
    json!({"name": name, "template": "debian-12", "publish": ports})
}

/// Two nodes, alder with 10.144.1.0/24 and birch with 10.144.2.0/24.
async fn two_nodes() -> Server {
    let (server, _alder) = Server::with_node(ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(128)).await;
    server
}

#[tokio::test]
async fn a_fixed_address_determines_the_node_and_is_reserved() {
    let server = two_nodes().await;
    for (address, node) in [
        ("10.144.1.50", "alder"),
        ("10.144.2.50", "birch"),
        ("10.144.1.2", "alder"),
    ] {
        let instance = server.created(&with_address(address)).await;
        assert_eq!(instance.status.node.unwrap().as_str(), node);
        assert_eq!(instance.spec.nics[0].address.unwrap().to_string(), address);
        assert_eq!(instance.status.addresses[0].address.to_string(), address);
    }
    // The addresses are not given to another instance.
    let body = json!({"template": "debian-12", "placement": {"node": "alder"}});
    let next = server.created(&body).await;
    assert_eq!(next.spec.nics[0].address.unwrap().to_string(), "10.144.1.3");
}

#[tokio::test]
async fn unavailable_addresses_are_refused_with_the_reason() {
    let server = two_nodes().await;
    let field = "spec.nics[0].address";
    server.create(&json!({"name": "first", "template": "debian-12", "nics": [{"address": "10.144.1.50"}]})).await.expect(201);
    for (address, status, code, expected) in [
        ("10.144.1.50", 409, "address-taken", "belongs to first"),
        (
            "10.144.1.0",
            422,
            "address-reserved",
            "is the subnet's network address",
        ),
        ("10.144.1.255", 422, "address-reserved", "broadcast"),
        ("10.144.1.1", 422, "address-reserved", "gateway"),
        (
            "192.0.2.7",
            422,
            "address-outside-subnet",
            "birch has 10.144.2.0/24",
        ),
        (
            "10.144.1.50/24",
            422,
            "invalid-address",
            "write the address without a prefix",
        ),
        ("fd00::1", 422, "invalid-address", "not an IPv4 address"),
    ] {
        let text = server
            .create_refused(&with_address(address), status, code, field)
            .await;
        assert!(text.contains(expected), "{address}: {text}");
    }
    let mut elsewhere = with_address("10.144.1.51");
    elsewhere["placement"] = json!({"node": "birch"});
    let text = server
        .create_refused(&elsewhere, 422, "address-on-other-node", field)
        .await;
    assert!(
        text.contains("the subnet of alder, but node birch was requested"),
        "{text}"
    );
}

#[tokio::test]
async fn invalid_nics_are_refused() {
    let server = two_nodes().await;
    let with = |nics: Value| json!({"template": "debian-12", "nics": nics});
    let mac = "52:54:00:00:00:09";
    let lan = with(json!([{"network": "lan"}]));
    server
        .create_refused(&lan, 422, "unknown-network", "spec.nics[0].network")
        .await;
    server
        .create_refused(
            &with(json!([{}, {}])),
            422,
            "duplicate-default-network",
            "spec.nics[1].network",
        )
        .await;
    let mut twice = with(json!([{"mac": mac}]));
    twice["mac"] = json!(mac);
    server
        .create_refused(&twice, 422, "duplicate-mac", "mac")
        .await;
    let instance = server.created(&with(json!([{"mac": mac}]))).await;
    assert_eq!(instance.spec.nics[0].mac.to_string(), mac);
    server
        .create_refused(&with(json!([{"mac": mac}])), 409, "mac-taken", "mac")
        .await;
}

#[tokio::test]
async fn a_node_port_is_published_to_one_instance_only() {
    let (server, _alder) = Server::with_node(ByteSize::gib(64)).await;
    let web = server
        .created(&publishing(
            "web",
            &json!([{"port": 8080, "guest_port": 80}]),
        ))
        .await;
    assert_eq!(web.spec.publish[0].to_string(), "8080:80/tcp");
    // The same port number of the other protocol is another port.
    server
        .create(&publishing(
            "dns",
            &json!([{"port": 8080, "protocol": "udp"}]),
        ))
        .await
        .expect(201);

    // A new instance with the same port waits, and its reason names the other instance.
    let late = server
        .created(&publishing("late", &json!([{"port": 8080}])))
        .await;
    assert_eq!(late.status.node, None);
    let reason = WaitReason::PortTaken {
        port: 8080,
        protocol: Protocol::Tcp,
        node: "alder".parse().unwrap(),
        instance: "web".parse().unwrap(),
    };
    assert_eq!(late.status.wait_reason(), Some(reason));

    // A change of a placed instance to that port is refused and changes nothing.
    let patch = json!({"publish": [{"port": 9000}, {"port": 8080}]});
    let problem = server.patch_instance("dns", &patch).await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "port-taken"));
    assert!(problem.title.contains("published to web"), "{problem:?}");
    let dns = server.instance("dns").await;
    assert_eq!((dns.spec.publish.len(), dns.generation.0), (1, 1));

    // An unpublished port is available to others. The instance that waits for it is deleted first, because it would be
    // placed with it.
    server.delete("/v1/instances/late").await.expect(200);
    let patched = server.patched("web", &json!({"publish": []})).await;
    assert_eq!((patched.spec.publish.len(), patched.generation.0), (0, 2));
    let patch =
        json!({"publish": [{"port": 8080, "protocol": "udp"}, {"port": 8080, "guest_port": 53}]});
    let dns = server.patched("dns", &patch).await;
    assert_eq!(dns.spec.publish.len(), 2);
    // The same list again changes nothing.
    let again = server.patched("dns", &patch).await;
    assert_eq!(again.generation, dns.generation);
}

#[tokio::test]
async fn an_instance_is_placed_where_its_published_ports_are_free() {
    let server = two_nodes().await;
    let ports = json!([{"port": 443}]);
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let instance = server.created(&publishing(name, &ports)).await;
        nodes.push(instance.status.node.unwrap().to_string());
    }
    nodes.sort();
    assert_eq!(nodes, ["alder", "birch"]);
    let third = server.created(&publishing("c", &ports)).await;
    assert_eq!(third.status.node, None);
}

#[tokio::test]
async fn invalid_and_reserved_ports_are_refused() {
    let server = two_nodes().await;
    for (ports, code, field) in [
        (json!([{"port": 0}]), "out-of-range", "spec.publish[0].port"),
        (
            json!([{"port": 80}, {"port": 81, "guest_port": 0}]),
            "out-of-range",
            "spec.publish[1].guest_port",
        ),
        (
            json!([{"port": 7373}]),
            "port-reserved",
            "spec.publish[0].port",
        ),
        (
            json!([{"port": 51820, "protocol": "udp"}]),
            "port-reserved",
            "spec.publish[0].port",
        ),
        (
            json!([{"port": 80}, {"port": 80, "guest_port": 8080}]),
            "duplicate-port",
            "spec.publish[1].port",
        ),
    ] {
        server
            .create_refused(&publishing("web", &ports), 422, code, field)
            .await;
    }
    // The port inside the guest may be any.
    server
        .create(&publishing(
            "web",
            &json!([{"port": 80, "guest_port": 7373}]),
        ))
        .await
        .expect(201);
}
