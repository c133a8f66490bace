//! The subnet of a node does not overlap networks that the node already routes to, even when it reports them late.

use crate::common::{Server, facts};
use waifud_types::ByteSize;

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
