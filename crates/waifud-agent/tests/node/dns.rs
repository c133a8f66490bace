//! Names for machines that are not guests: what the node reports about serving them.

use waifud_network::{DnsAddress, DnsTrouble};
use waifud_types::DnsListener;

use crate::test_node::TestNode;

fn served(trouble: Option<DnsTrouble>) -> Vec<DnsAddress> {
    vec![DnsAddress {
        address: "192.0.2.1:53".parse().unwrap(),
        trouble,
    }]
}

#[tokio::test]
async fn what_is_served_is_reported_as_soon_as_it_changes() {
    let (node, id) = TestNode::with_instance("web").await;
    let dns = || node.waifud.facts().and_then(|facts| facts.dns);
    let condition = || {
        let facts = node.waifud.facts().unwrap();
        let mut conditions = facts.conditions.into_iter();
        conditions
            .find(|one| one.kind == "dns")
            .map(|one| one.reason)
    };
    assert_eq!(dns(), None);
    for (trouble, reason) in [
        (None, None),
        (Some(DnsTrouble::PortTaken), Some("port-taken")),
        (Some(DnsTrouble::NoAddress), Some("no-address")),
        (None, None),
    ] {
        node.network.set_dns(served(trouble));
        node.network.cause_drift("names: something has changed");
        node.until("the state is reported", async || {
            let listen = dns().map(|dns| dns.listen).unwrap_or_default();
            let errors: Vec<_> = listen
                .iter()
                .map(|it: &DnsListener| it.error.is_some())
                .collect();
            errors == [reason.is_some()] && condition().as_deref() == reason
        })
        .await;
    }
    assert_eq!(dns().unwrap().domain, "waifu.internal");
    node.network.set_dns(Vec::new());
    node.network.cause_drift("names: the setting was removed");
    node.until("nothing is served", async || dns().is_none())
        .await;
    node.until_ready(id).await;
}

#[tokio::test]
async fn what_an_agent_serves_after_its_start_is_reported_without_a_change() {
    let (node, _) = TestNode::with_instance("web").await;
    node.kill().await;
    // Names are served once the network is applied, which may be after the first report.
    node.network.cause_drift("the machine was restarted");
    node.network.set_dns(served(None));
    node.start();
    node.until("the state is reported", async || {
        node.waifud.facts().is_some_and(|facts| facts.dns.is_some())
    })
    .await;
}
