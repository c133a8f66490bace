//! Firewalls of guests on `default`: their connections to other guests, other networks and published ports.
//!
//! All packets of these guests are routed, so they pass the forward hook, where connections are tracked. Access to the host is
//! restricted elsewhere, so DHCP, DNS, ping of the gateway and metadata work whatever the rules. So do connections that the host
//! opens, which do not pass this hook.
//!
//! Packets of the side that answers pass. Each packet of the side that opened the connection is matched, so a new rule applies to
//! existing connections, too. A packet between two guests is matched by the rules of both: those of the sender first.
//!
//! Only guests with rules have chains. They are found by the guest's MAC address, which the bridge rules have verified, and
//! by the address that the packet is for. A range or an address that several guests may share is compared in order instead.

use std::fmt::Write as _;

use ipnet::Ipv4Net;
use waifud_types::TapName;
use waifud_types::firewall::{FirewallAction, FirewallDirection};

use super::{Counted, collection, counter};
use crate::check::further_ranges;
use crate::{NetworkState, Port, PortRule};

/// Prefix of the names of counters and chains. The tap follows, then the rule or the direction.
pub(crate) const FIREWALL: &str = "firewall-";

/// The name of a counter of a rule.
pub(crate) fn rule_counter(tap: &TapName, rule: impl std::fmt::Display) -> String {
    format!("{FIREWALL}{tap}-{rule}")
}

/// The name of the counter of packets that a default dropped.
pub(crate) fn default_counter(tap: &TapName, direction: FirewallDirection) -> String {
    rule_counter(tap, direction)
}

/// The counters of all rules. They continue from `counted`.
pub(super) fn counters(state: &NetworkState, counted: &Counted) -> String {
    let mut text = String::new();
    for port in filtered(state) {
        let before = counted.get(&port.tap).cloned().unwrap_or_default().firewall;
        for (direction, packets) in [
            (FirewallDirection::In, before.incoming),
            (FirewallDirection::Out, before.outgoing),
        ] {
            text.push_str(&counter(&default_counter(&port.tap, direction), packets));
        }
        for rule in &port.firewall.rules {
            let packets = before.rules.get(&rule.id).copied().unwrap_or_default();
            text.push_str(&counter(&rule_counter(&port.tap, rule.id), packets));
        }
    }
    text
}

/// The chains of the ports, then the maps to them, then the chain that uses these.
pub(super) fn chains(state: &NetworkState) -> String {
    let mut text = String::new();
    for port in filtered(state) {
        for direction in [FirewallDirection::In, FirewallDirection::Out] {
            if port.firewall.restricts(direction) {
                text.push_str(&chain(port, direction));
            }
        }
    }
    let jumps = |direction, key: fn(&Port) -> String| {
        let ports = filtered(state).filter(move |port| port.firewall.restricts(direction));
        ports.map(move |port| format!("{} : jump {}", key(port), name(port, direction)))
    };
    text.push_str(&collection(
        "map firewalls_out",
        "type ether_addr : verdict",
        jumps(FirewallDirection::Out, |port| port.mac.to_string()),
    ));
    text.push_str(&collection(
        "map firewalls_in",
        "type ipv4_addr : verdict",
        jumps(FirewallDirection::In, |port| port.address.to_string()),
    ));
    let NetworkState {
        bridge,
        metadata_interface: metadata,
        ..
    } = state;
    let _ = write!(
        text,
        "\tchain firewalls {{
\t\ttype filter hook forward priority filter - 5; policy accept;
\t\tiifname \"{metadata}\" accept
\t\toifname \"{metadata}\" accept
\t\tct direction reply accept
\t\tct state related accept
\t\tiifname \"{bridge}\" ether saddr vmap @firewalls_out
\t\toifname \"{bridge}\" ip daddr vmap @firewalls_in
"
    );
    for port in filtered(state) {
        if port.firewall.restricts(FirewallDirection::In) {
            for range in further_ranges(port) {
                let chain = name(port, FirewallDirection::In);
                let _ = writeln!(
                    text,
                    "\t\toifname \"{bridge}\" ip daddr {range} jump {chain}"
                );
            }
        }
    }
    text.push_str("\t}\n");
    text
}

/// The ports with rules.
fn filtered(state: &NetworkState) -> impl Iterator<Item = &Port> {
    state.ports.iter().filter(|port| !port.firewall.is_open())
}

fn name(port: &Port, direction: FirewallDirection) -> String {
    format!("{FIREWALL}{}-{direction}", port.tap)
}

fn chain(port: &Port, direction: FirewallDirection) -> String {
    let mut text = format!("\tchain {} {{\n", name(port, direction));
    let rules = port.firewall.rules.iter();
    for rule in rules.filter(|rule| rule.direction == direction) {
        if let Some(condition) = conditions(rule) {
            let counter = rule_counter(&port.tap, rule.id);
            let verdict = match rule.action {
                FirewallAction::Allow => "return",
                FirewallAction::Deny => "drop",
            };
            let _ = writeln!(text, "\t\t{condition}counter name \"{counter}\" {verdict}");
        }
    }
    if port.firewall.default_of(direction) == FirewallAction::Deny {
        let counter = default_counter(&port.tap, direction);
        let _ = writeln!(text, "\t\tcounter name \"{counter}\" drop");
    }
    text.push_str("\t}\n");
    text
}

/// The condition of a rule, with a space at its end unless it is empty. `None` if nothing can match.
fn conditions(rule: &PortRule) -> Option<String> {
    let mut text = String::new();
    if let Some(peers) = &rule.peers {
        let peers = Ipv4Net::aggregate(peers);
        if peers.is_empty() {
            return None;
        }
        let side = match rule.direction {
            FirewallDirection::In => "saddr",
            FirewallDirection::Out => "daddr",
        };
        let _ = write!(text, "ip {side} {} ", set(&peers));
    }
    match (rule.protocol, rule.ports.is_empty()) {
        (None, _) => {}
        (Some(protocol), true) => {
            let _ = write!(text, "meta l4proto {protocol} ");
        }
        (Some(protocol), false) => {
            let _ = write!(text, "{protocol} dport {} ", set(&rule.ports));
        }
    }
    Some(text)
}

fn set<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    match &items[..] {
        [one] => one.clone(),
        _ => format!("{{ {} }}", items.join(", ")),
    }
}

#[cfg(test)]
mod tests;
