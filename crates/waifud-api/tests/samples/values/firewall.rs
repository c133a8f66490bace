//! Firewalls of instances.

use waifud_api::{
    FirewallDefault, FirewallRuleState, InstanceFirewall, PeerAddresses, SetFirewall,
};
use waifud_types::FirewallSpec;
use waifud_types::evidence::{FirewallCounts, RuleCount};
use waifud_types::firewall::{FirewallAction, FirewallDirection, FirewallProtocol, FirewallRule};

use super::{INSTANCE, Kind, parse};

pub fn kinds() -> Vec<Kind> {
    vec![Kind::one("InstanceFirewall", state())]
}

/// Every action, direction, protocol and kind of peer occurs.
pub fn spec() -> FirewallSpec {
    FirewallSpec {
        incoming: FirewallAction::Deny,
        outgoing: FirewallAction::Allow,
        rules: vec![
            FirewallRule {
                direction: FirewallDirection::In,
                action: FirewallAction::Allow,
                protocol: Some(FirewallProtocol::Tcp),
                ports: vec![parse("22"), parse("8000-8010")],
                peer: Some(parse("10.144.2.0/24")),
            },
            FirewallRule {
                direction: FirewallDirection::Out,
                action: FirewallAction::Deny,
                protocol: Some(FirewallProtocol::Udp),
                ports: Vec::new(),
                peer: Some(parse("instance:db")),
            },
            FirewallRule {
                direction: FirewallDirection::In,
                action: FirewallAction::Allow,
                protocol: Some(FirewallProtocol::Icmp),
                ports: Vec::new(),
                peer: Some(parse("label:tier=front")),
            },
            FirewallRule {
                direction: FirewallDirection::Out,
                action: FirewallAction::Deny,
                protocol: None,
                ports: Vec::new(),
                peer: None,
            },
        ],
    }
}

pub fn set() -> SetFirewall {
    SetFirewall::from(&spec())
}

pub fn addresses() -> Vec<PeerAddresses> {
    vec![PeerAddresses {
        peer: "instance:db".to_owned(),
        addresses: vec![parse("10.144.2.7/32")],
    }]
}

pub fn counts() -> FirewallCounts {
    let [first, ..] = &spec().rules[..] else {
        return FirewallCounts::default();
    };
    FirewallCounts {
        incoming: 3,
        outgoing: 4,
        rules: vec![RuleCount {
            id: first.id().to_string(),
            packets: 5,
        }],
    }
}

fn state() -> InstanceFirewall {
    let FirewallSpec {
        incoming,
        outgoing,
        rules,
    } = spec();
    let default = |action, packets| FirewallDefault { action, packets };
    InstanceFirewall {
        instance: parse(INSTANCE),
        name: parse("web"),
        incoming: default(incoming, Some(3)),
        outgoing: default(outgoing, None),
        rules: rules
            .into_iter()
            .map(|rule| FirewallRuleState {
                id: rule.id().to_string(),
                addresses: Some(vec![parse("10.144.2.7/32")]),
                packets: Some(5),
                rule,
            })
            .collect(),
    }
}
