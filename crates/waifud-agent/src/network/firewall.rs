//! The firewall of an instance's port: its rules with the addresses that waifud has resolved.

use ipnet::Ipv4Net;
use waifud_api::agent::AgentInstance;
use waifud_network::{FirewallCounters, PortFirewall, PortRule};
use waifud_types::evidence::{FirewallCounts, RuleCount};
use waifud_types::firewall::FirewallPeer;

/// The firewall of each port of the instance on `default`.
pub fn of(instance: &AgentInstance) -> PortFirewall {
    let firewall = &instance.spec.firewall;
    let rules = firewall.rules.iter().map(|rule| PortRule {
        id: rule.id(),
        direction: rule.direction,
        action: rule.action,
        protocol: rule.protocol,
        ports: rule.ports.clone(),
        peers: rule.peer.as_ref().map(|peer| addresses(instance, peer)),
    });
    PortFirewall {
        incoming: firewall.incoming,
        outgoing: firewall.outgoing,
        rules: rules.collect(),
    }
}

/// The addresses of a peer. One that waifud did not resolve has none.
fn addresses(instance: &AgentInstance, peer: &FirewallPeer) -> Vec<Ipv4Net> {
    if let FirewallPeer::Address(net) = peer {
        return vec![*net];
    }
    let text = peer.to_string();
    let mut known = instance.firewall_peers.iter();
    known
        .find(|entry| entry.peer == text)
        .map_or_else(Vec::new, |entry| entry.addresses.clone())
}

/// Adds what was counted at a port.
pub fn add(counts: &mut FirewallCounts, port: &FirewallCounters) {
    counts.incoming = counts.incoming.saturating_add(port.incoming);
    counts.outgoing = counts.outgoing.saturating_add(port.outgoing);
    for (rule, packets) in &port.rules {
        let id = rule.to_string();
        match counts.rules.iter_mut().find(|known| known.id == id) {
            Some(known) => known.packets = known.packets.saturating_add(*packets),
            None => counts.rules.push(RuleCount {
                id,
                packets: *packets,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::sample_instance;
    use waifud_api::PeerAddresses;
    use waifud_types::firewall::{FirewallAction, FirewallRule};

    fn rule(peer: Option<&str>) -> FirewallRule {
        serde_json::from_value(serde_json::json!({
            "direction": "in", "action": "allow", "protocol": null, "ports": [], "peer": peer,
        }))
        .unwrap()
    }

    #[test]
    fn peers_are_replaced_by_their_addresses_and_an_unknown_one_has_none() {
        let mut web = sample_instance("web");
        web.spec.firewall.incoming = FirewallAction::Deny;
        web.spec.firewall.rules = [
            None,
            Some("10.1.0.0/16"),
            Some("instance:db"),
            Some("label:a=b"),
        ]
        .map(rule)
        .into();
        let addresses = vec!["10.144.2.7/32".parse().unwrap()];
        web.firewall_peers = vec![PeerAddresses {
            peer: "instance:db".to_owned(),
            addresses: addresses.clone(),
        }];
        let firewall = of(&web);
        assert_eq!(firewall.incoming, FirewallAction::Deny);
        let peers: Vec<_> = firewall.rules.into_iter().map(|rule| rule.peers).collect();
        let range = vec!["10.1.0.0/16".parse().unwrap()];
        assert_eq!(
            peers,
            [None, Some(range), Some(addresses), Some(Vec::new())]
        );
    }

    #[test]
    fn counters_of_several_ports_are_summed() {
        let id = rule(None).id();
        let port = FirewallCounters {
            incoming: 1,
            outgoing: 2,
            rules: [(id, 3)].into(),
        };
        let mut counts = FirewallCounts::default();
        add(&mut counts, &port);
        add(&mut counts, &port);
        assert_eq!((counts.incoming, counts.outgoing), (2, 4));
        assert_eq!(counts.of(&id.to_string()), Some(6));
    }
}
