//! A node's subnet avoids the networks that the node has routes to, even if it reports them late.

mod common;

use common::{Server, facts};
use serde_json::json;
use waifud_api::agent::AgentReport;
use waifud_types::ByteSize;

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_subnet_is_changed_if_the_node_has_a_route_to_it() {
    let (server, agent) = Server::with_node().await;
    let subnet = async || {
        let node = server.get("/v1/nodes/alder").await.expect(200).json();
        node["subnets"][0].as_str().unwrap_or_default().to_owned()
    };
    let say = async |routes: &[&str]| {
        let mut facts = facts(ByteSize::gib(8));
        facts.routes = routes.iter().filter_map(|net| net.parse().ok()).collect();
        agent
            .report(&AgentReport {
                facts: Some(facts),
                ..AgentReport::default()
            })
            .await;
    };
    assert_eq!(subnet().await, "10.144.1.0/24");
    say(&["0.0.0.0/0", "192.168.1.0/24"]).await;
    assert_eq!(subnet().await, "10.144.1.0/24");
    say(&["10.144.0.0/22"]).await;
    assert_eq!(subnet().await, "10.144.4.0/24");
    // A subnet with an instance stays, since the instance keeps its address.
    server.create_instance("web").await;
    say(&["10.144.4.0/24"]).await;
    assert_eq!(subnet().await, "10.144.4.0/24");
}
