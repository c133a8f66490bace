//! Fixed addresses and published ports: each has one owner, decided in one transaction.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod common;

use common::Server;
use serde_json::{Value, json};
use waifud_types::ByteSize;

async fn refused(server: &Server, body: &Value, status: u16, code: &str, field: &str) -> String {
    let before = server.footprint().await;
    let problem = server.create(body).await.problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (status, code),
        "{problem:?}"
    );
    assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
    assert_eq!(
        server.footprint().await,
        before,
        "{code} left something behind"
    );
    format!("{} {}", problem.title, problem.hint.unwrap())
}

fn with_address(address: &str) -> Value {
    json!({"template": "debian-12", "nics": [{"network": "default", "address": address}]})
}

fn publishing(name: &str, ports: &Value) -> Value {
    json!({"name": name, "template": "debian-12", "publish": ports})
}

/// Two nodes, alder with 10.144.1.0/24 and birch with 10.144.2.0/24.
async fn two_nodes() -> Server {
    let server = Server::start().await;
    server.template().await;
    server.join("alder", ByteSize::gib(64)).await;
    server.join("birch", ByteSize::gib(128)).await;
    server
}

#[tokio::test]
async fn a_fixed_address_determines_the_node_and_is_kept() {
    let server = two_nodes().await;
    for (address, node) in [
        ("10.144.1.50", "alder"),
        ("10.144.2.50", "birch"),
        ("10.144.1.2", "alder"),
    ] {
        let instance = server
            .create(&with_address(address))
            .await
            .expect(201)
            .instance();
        assert_eq!(instance.status.node.unwrap().as_str(), node);
        assert_eq!(instance.spec.nics[0].address.unwrap().to_string(), address);
        assert_eq!(instance.status.addresses[0].address.to_string(), address);
    }
    // Other instances do not get any of them.
    let body = json!({"template": "debian-12", "placement": {"node": "alder"}});
    let next = server.create(&body).await.expect(201).instance();
    assert_eq!(next.spec.nics[0].address.unwrap().to_string(), "10.144.1.3");
}

#[tokio::test]
async fn an_impossible_address_is_refused_with_the_reason() {
    let server = two_nodes().await;
    let field = "spec.nics[0].address";
    server.create(&json!({"name": "first", "template": "debian-12", "nics": [{"address": "10.144.1.50"}]})).await.expect(201);
    for (address, status, code, words) in [
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
        let refusal = refused(&server, &with_address(address), status, code, field).await;
        assert!(refusal.contains(words), "{address}: {refusal}");
    }
    let mut elsewhere = with_address("10.144.1.51");
    elsewhere["placement"] = json!({"node": "birch"});
    let refusal = refused(&server, &elsewhere, 422, "address-on-other-node", field).await;
    assert!(
        refusal.contains("the subnet of alder, but node birch was requested"),
        "{refusal}"
    );
}

#[tokio::test]
async fn invalid_nics_are_refused() {
    let server = two_nodes().await;
    let with = |nics: Value| json!({"template": "debian-12", "nics": nics});
    let mac = "52:54:00:00:00:09";
    let lan = with(json!([{"network": "lan"}]));
    refused(
        &server,
        &lan,
        422,
        "unknown-network",
        "spec.nics[0].network",
    )
    .await;
    refused(
        &server,
        &with(json!([{}, {}])),
        422,
        "duplicate-default-network",
        "spec.nics[1].network",
    )
    .await;
    let mut twice = with(json!([{"mac": mac}]));
    twice["mac"] = json!(mac);
    refused(&server, &twice, 422, "duplicate-mac", "mac").await;
    let instance = server
        .create(&with(json!([{"mac": mac}])))
        .await
        .expect(201)
        .instance();
    assert_eq!(instance.spec.nics[0].mac.to_string(), mac);
    refused(
        &server,
        &with(json!([{"mac": mac}])),
        409,
        "mac-taken",
        "mac",
    )
    .await;
}

#[tokio::test]
async fn a_port_of_a_node_leads_to_one_instance() {
    let server = Server::start().await;
    server.template().await;
    server.join("alder", ByteSize::gib(64)).await;
    let web = server
        .create(&publishing(
            "web",
            &json!([{"port": 8080, "guest_port": 80}]),
        ))
        .await
        .expect(201)
        .instance();
    assert_eq!(web.spec.publish[0].to_string(), "8080:80/tcp");
    // The same port of the other protocol is free.
    server
        .create(&publishing(
            "dns",
            &json!([{"port": 8080, "protocol": "udp"}]),
        ))
        .await
        .expect(201);

    // A later instance waits and names the owner.
    let late = server
        .create(&publishing("late", &json!([{"port": 8080}])))
        .await
        .expect(201)
        .instance();
    assert_eq!(late.status.node, None);
    let reason = late.status.reason.unwrap();
    assert!(reason.contains("published by web"), "{reason}");

    // A change of a running instance is refused.
    let patch = json!({"publish": [{"port": 9000}, {"port": 8080}]});
    let problem = server.patch("/v1/instances/dns", &patch).await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "port-taken"));
    assert!(problem.title.contains("published by web"), "{problem:?}");
    let dns = server.get("/v1/instances/dns").await.instance();
    assert_eq!((dns.spec.publish.len(), dns.generation.0), (1, 1));

    // A released port is free for others, including instances that wait for it.
    server.delete("/v1/instances/late").await.expect(200);
    let patched = server
        .patch("/v1/instances/web", &json!({"publish": []}))
        .await
        .expect(200)
        .instance();
    assert_eq!((patched.spec.publish.len(), patched.generation.0), (0, 2));
    let patch =
        json!({"publish": [{"port": 8080, "protocol": "udp"}, {"port": 8080, "guest_port": 53}]});
    let dns = server
        .patch("/v1/instances/dns", &patch)
        .await
        .expect(200)
        .instance();
    assert_eq!(dns.spec.publish.len(), 2);
    // Repeating the list changes nothing.
    let again = server
        .patch("/v1/instances/dns", &patch)
        .await
        .expect(200)
        .instance();
    assert_eq!(again.generation, dns.generation);
}

#[tokio::test]
async fn a_published_port_is_placed_where_it_is_free() {
    let server = two_nodes().await;
    let ports = json!([{"port": 443}]);
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let instance = server
            .create(&publishing(name, &ports))
            .await
            .expect(201)
            .instance();
        nodes.push(instance.status.node.unwrap().to_string());
    }
    nodes.sort();
    assert_eq!(nodes, ["alder", "birch"]);
    let third = server
        .create(&publishing("c", &ports))
        .await
        .expect(201)
        .instance();
    assert_eq!(third.status.node, None);
}

#[tokio::test]
async fn invalid_published_ports_are_refused() {
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
        refused(&server, &publishing("web", &ports), 422, code, field).await;
    }
    // Any guest port is allowed.
    server
        .create(&publishing(
            "web",
            &json!([{"port": 80, "guest_port": 7373}]),
        ))
        .await
        .expect(201);
}
