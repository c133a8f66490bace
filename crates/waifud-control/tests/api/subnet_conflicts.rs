//! The subnet of a node does not overlap networks that the node already routes to, even when it reports them late.

use crate::common::{Server, facts};
use waifud_types::node::condition_kind;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, Timestamp};

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_that_conflicts_with_a_route_is_replaced_while_it_is_unused() {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    let subnet = async || server.node("alder").await["subnets"][0].clone();
    let report_routes = async |routes: &[&str]| {
        let mut facts = facts(ByteSize::gib(8));
        facts.routes = routes.iter().filter_map(|net| net.parse().ok()).collect();
        agent.report_facts(facts).await;
    };
    assert_eq!(subnet().await, "10.144.1.0/24");
    report_routes(&["0.0.0.0/0", "192.168.1.0/24"]).await;
    assert_eq!(subnet().await, "10.144.1.0/24");
    report_routes(&["10.144.0.0/22"]).await;
    assert_eq!(subnet().await, "10.144.4.0/24");
    // A subnet with an instance is kept, because the address of an instance never changes.
    server.create_instance("web").await;
    report_routes(&["10.144.4.0/24"]).await;
    assert_eq!(subnet().await, "10.144.4.0/24");
}

#[tokio::test]
async fn instances_wait_while_guest_addresses_of_the_node_overlap_another_network() {
    let (server, agent) = Server::with_node(ByteSize::gib(8)).await;
    let mut known = facts(ByteSize::gib(8));
    known.conditions = vec![Condition {
        kind: condition_kind::SUBNET.to_owned(),
        ok: false,
        reason: "subnet-conflict".to_owned(),
        message: "the guests' subnet 10.144.1.0/24 overlaps 10.144.0.0/16".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }];
    agent.report_facts(known.clone()).await;
    let web = server.create_instance("web").await;
    let reason = "waiting for: alder, where guest addresses overlap another network";
    assert_eq!(web.status.reason.as_deref(), Some(reason));
    let why = server.why("web").await;
    assert_eq!(why["placement"][0]["code"], "subnet-conflict");
    let verdict = why["placement"][0].to_string();
    assert!(verdict.contains("overlaps 10.144.0.0/16"), "{why}");
    assert!(
        why["hint"]
            .as_str()
            .unwrap()
            .contains("remove the route on alder"),
        "{why}"
    );

    known.conditions.clear();
    agent.report_facts(known).await;
    assert_eq!(server.node_of("web").await.as_deref(), Some("alder"));
}
