//! Names for machines that are not guests: the zones, and what nodes report about serving them.

use std::time::Duration;

use serde_json::json;
use waifud_api::agent::AgentReport;
use waifud_types::node::NodeFacts;
use waifud_types::{ByteSize, DnsFacts, DnsListener};

use crate::common::{Server, facts};

fn serving(address: &str, error: Option<&str>) -> NodeFacts {
    NodeFacts {
        dns: Some(DnsFacts {
            domain: "waifu.internal".to_owned(),
            listen: vec![DnsListener {
                address: address.parse().unwrap(),
                error: error.map(str::to_owned),
            }],
        }),
        ..facts(ByteSize::gib(8))
    }
}

#[tokio::test]
async fn each_node_that_serves_names_is_listed_with_its_state() {
    let (server, clock) = Server::with_manual_clock().await;
    let alder = server.join("alder", ByteSize::gib(8)).await;
    let birch = server.join("birch", ByteSize::gib(8)).await;
    let shown = server.get("/v1/dns").await.expect(200).json();
    assert_eq!(shown["domain"], "waifu.internal");
    let zones = shown["reverse_zones"].as_array().unwrap();
    assert_eq!(zones.len(), 16);
    assert_eq!(zones[0], "144.10.in-addr.arpa");
    assert_eq!(shown["servers"], json!([]));

    alder.report_facts(serving("192.0.2.1:53", None)).await;
    birch
        .report_facts(serving(
            "192.0.2.2:5353",
            Some("another program has the port"),
        ))
        .await;
    let shown = server.get("/v1/dns").await.expect(200).json();
    let of = |node: &str, address: &str, state: &str, message: Option<&str>| json!({"node": node, "address": address, "domain": "waifu.internal", "state": state, "message": message});
    assert_eq!(
        shown["servers"],
        json!([
            of("alder", "192.0.2.1:53", "serving", None),
            of(
                "birch",
                "192.0.2.2:5353",
                "failed",
                Some("another program has the port")
            ),
        ])
    );

    // A node that is off stays listed: the resolver asks another one meanwhile.
    clock.forward(Duration::from_mins(10));
    birch.report(&AgentReport::default()).await;
    server.control.check_contacts().await.unwrap();
    let shown = server.get("/v1/dns").await.expect(200).json();
    let off = of(
        "alder",
        "192.0.2.1:53",
        "unreachable",
        Some("alder is unreachable; it may be off"),
    );
    assert_eq!(shown["servers"][0], off);
    birch.report_facts(facts(ByteSize::gib(8))).await;
    let shown = server.get("/v1/dns").await.expect(200).json();
    assert_eq!(shown["servers"], json!([off]));
}

#[tokio::test]
async fn a_domain_that_would_change_the_lines_of_a_configuration_is_not_served() {
    let (server, alder) = Server::with_watching_node().await;
    let mut facts = serving("192.0.2.1:53", None);
    facts.dns.as_mut().unwrap().domain = "org/192.0.2.9".to_owned();
    alder.report_facts(facts).await;
    let shown = server.get("/v1/dns").await.expect(200).json();
    assert_eq!(shown["servers"][0]["state"], "failed", "{shown}");
}

#[tokio::test]
async fn subnets_from_an_earlier_range_keep_their_reverse_zones() {
    let (server, _alder) = Server::with_watching_node().await;
    let range = "10.200.0.0/16".parse().unwrap();
    let server = server.restart(|config| config.guest_range = range).await;
    let shown = server.get("/v1/dns").await.expect(200).json();
    assert_eq!(
        shown["reverse_zones"],
        json!(["200.10.in-addr.arpa", "1.144.10.in-addr.arpa"])
    );
}
