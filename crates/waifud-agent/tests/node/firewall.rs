//! Firewalls of instances on their node: applied before the guest starts, with the addresses that waifud has resolved, and kept
//! on disk.

use waifud_api::PeerAddresses;
use waifud_api::agent::AgentInstance;
use waifud_network::{FirewallCounters, PortCounters, PortFirewall};
use waifud_types::evidence::{FirewallCounts, RuleCount};
use waifud_types::firewall::{FirewallAction, FirewallRule};
use waifud_types::{InstanceId, TapName};

use crate::test_node::TestNode;

fn from_db() -> FirewallRule {
    serde_json::from_value(serde_json::json!({
        "direction": "in", "action": "allow", "protocol": "tcp", "ports": ["5432"], "peer": "instance:db",
    }))
    .unwrap()
}

/// A firewall that allows connections from db, which has this address.
fn close(instance: &mut AgentInstance, db: &str) {
    instance.spec.firewall.incoming = FirewallAction::Deny;
    instance.spec.firewall.rules = vec![from_db()];
    instance.firewall_peers = vec![PeerAddresses {
        peer: "instance:db".to_owned(),
        addresses: vec![db.parse().unwrap()],
    }];
}

fn applied(node: &TestNode, id: InstanceId) -> PortFirewall {
    let state = node.network.state();
    let ports = state.into_iter().flat_map(|state| state.ports);
    let mut ports = ports.filter(|port| port.instance == id);
    ports.next().map(|port| port.firewall).unwrap_or_default()
}

fn allowed(node: &TestNode, id: InstanceId) -> Vec<String> {
    let rules = applied(node, id).rules.into_iter();
    let peers = rules.flat_map(|rule| rule.peers.unwrap_or_default());
    peers.map(|net| net.to_string()).collect()
}

#[tokio::test]
async fn rules_are_applied_before_the_guest_starts_and_follow_addresses_without_another_generation()
{
    let node = TestNode::started();
    let mut web = node.instance("web");
    close(&mut web, "10.144.2.7/32");
    let id = node.run(web.clone()).await;
    assert_eq!(applied(&node, id).incoming, FirewallAction::Deny);
    assert_eq!(allowed(&node, id), ["10.144.2.7/32"]);

    // The addresses of db change, and nothing else.
    close(&mut web, "10.144.3.9/32");
    node.waifud.put(web);
    node.until("the new address", async || {
        allowed(&node, id) == ["10.144.3.9/32"]
    })
    .await;
    node.waifud.edit(id, |instance| {
        instance.spec.firewall = waifud_types::FirewallSpec::default();
        instance.firewall_peers.clear();
    });
    node.until("no rules", async || applied(&node, id).is_open())
        .await;
}

#[tokio::test]
async fn an_agent_without_waifud_applies_the_rules_from_its_disk() {
    let node = TestNode::started();
    let mut web = node.instance("web");
    close(&mut web, "10.144.2.7/32");
    let id = node.run(web).await;
    node.waifud.set_online(false);
    node.kill().await;
    // As after a boot of the machine: no rules are in force.
    node.network.cause_drift("rebooted");
    node.start();
    node.until("the rules", async || {
        allowed(&node, id) == ["10.144.2.7/32"]
    })
    .await;
}

#[tokio::test]
async fn packets_of_rules_are_reported() {
    let node = TestNode::started();
    let mut web = node.instance("web");
    close(&mut web, "10.144.2.7/32");
    let id = node.run(web).await;
    let rule = from_db().id();
    let counters = PortCounters {
        firewall: FirewallCounters {
            incoming: 3,
            outgoing: 0,
            rules: [(rule, 5)].into(),
        },
        ..PortCounters::default()
    };
    node.network.set_counters(&TapName::of(id, 0), counters);
    let expected = FirewallCounts {
        incoming: 3,
        outgoing: 0,
        rules: vec![RuleCount {
            id: rule.to_string(),
            packets: 5,
        }],
    };
    node.until("the counters", async || {
        let reports = node.waifud.status_history(id);
        let mut evidence = reports
            .into_iter()
            .rev()
            .filter_map(|report| report.evidence);
        evidence.any(|seen| seen.firewall.as_ref() == Some(&expected))
    })
    .await;
}

/// Without its record, waifud could neither adopt nor destroy it.
#[tokio::test]
async fn an_unmanaged_instance_whose_rules_name_others_is_reported_with_its_record() {
    let node = TestNode::started();
    let mut web = node.instance("web");
    close(&mut web, "10.144.2.7/32");
    let id = node.run(web.clone()).await;
    node.waifud.remove_from_slice(id);
    node.until("reported", async || {
        let unmanaged = node.waifud.unmanaged().into_iter();
        let mut records = unmanaged.filter_map(|one| one.record);
        records.any(|record| record.spec == web.spec && record.firewall_peers.is_empty())
    })
    .await;
}
