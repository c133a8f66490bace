//! Tests of the text of guests' firewalls.

use std::collections::BTreeMap;

use waifud_types::firewall::FirewallProtocol;

use super::*;
use crate::ruleset::lan::Learned;
use crate::ruleset::vlan::Ready;
use crate::ruleset::{HostSide, tables};
use crate::samples::{port_rule, state};
use crate::{FirewallCounters, PortCounters, PortFirewall};

#[test]
fn the_rules_of_two_guests_match_their_snapshot() {
    let mut state = state(3);
    state.ports[0].firewall = PortFirewall {
        incoming: FirewallAction::Deny,
        outgoing: FirewallAction::Allow,
        rules: vec![
            port_rule("in allow tcp 22,8000-8010", Some(&["10.144.2.3/32"])),
            port_rule("in allow icmp", None),
            port_rule(
                "out deny udp 53",
                Some(&["192.0.2.0/25", "192.0.2.128/25", "198.51.100.1/32"]),
            ),
            port_rule("in allow", Some(&[])),
        ],
    };
    state.ports[1].firewall.outgoing = FirewallAction::Deny;
    state.ports[1].allow_addresses = vec!["10.99.0.0/24".parse().unwrap()];
    state.ports[2].firewall.incoming = FirewallAction::Deny;
    state.ports[2].allow_addresses = vec!["10.98.0.7/32".parse().unwrap()];
    let before = PortCounters {
        firewall: FirewallCounters {
            incoming: 7,
            outgoing: 0,
            rules: BTreeMap::from([(state.ports[0].firewall.rules[0].id, 9)]),
        },
        ..PortCounters::default()
    };
    let counted = Counted::from([(state.ports[0].tap.clone(), before)]);
    let text = counters(&state, &counted) + &chains(&state);
    insta::assert_snapshot!(text);
}

#[test]
fn a_rule_with_protocol_ports_and_peers_has_all_conditions() {
    let of = |text, peers| conditions(&port_rule(text, peers));
    assert_eq!(of("in allow", None).as_deref(), Some(""));
    assert_eq!(
        of("in allow tcp 22", Some(&["10.0.0.0/8"])).as_deref(),
        Some("ip saddr 10.0.0.0/8 tcp dport 22 ")
    );
    assert_eq!(
        of("out deny udp", Some(&["10.0.0.1/32", "10.0.0.3/32"])).as_deref(),
        Some("ip daddr { 10.0.0.1/32, 10.0.0.3/32 } meta l4proto udp ")
    );
    assert_eq!(
        of("in deny icmp", None).as_deref(),
        Some("meta l4proto icmp ")
    );
    assert_eq!(
        of("in allow tcp 22", Some(&[])),
        None,
        "no addresses are not all addresses"
    );
    assert_eq!(FirewallProtocol::Icmp.to_string(), "icmp");
}

#[test]
fn guests_without_rules_add_nothing() {
    let (none, some) = (state(0), state(9));
    assert_eq!(chains(&none), chains(&some));
    assert_eq!(counters(&some, &Counted::new()), "");
}

/// In particular, the rules against forged packets and for access to the host stay as they are.
#[test]
fn a_firewall_only_adds_to_the_rules() {
    let of = |state: &NetworkState| {
        let host = HostSide::default();
        tables(
            state,
            &host,
            &Counted::new(),
            &Learned::new(),
            &Ready::new(),
        )
    };
    let mut filtered = state(3);
    filtered.ports[1].firewall = PortFirewall {
        incoming: FirewallAction::Deny,
        outgoing: FirewallAction::Deny,
        rules: vec![port_rule("in allow", None), port_rule("out allow", None)],
    };
    let (plain, filtered) = (of(&state(3)), of(&filtered));
    let mut rest = filtered.lines();
    for line in plain.lines() {
        assert!(rest.any(|other| other == line), "{line}");
    }
}
