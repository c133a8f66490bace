//! Problems of firewalls.

use waifud_api::Problem;
use waifud_types::Name;
use waifud_types::firewall::{FirewallPeerError, FirewallProtocol, FirewallRule, PortRangeError};

/// How many characters of a given text an error repeats.
const SHOWN_MAX: usize = 60;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// Two rules match the same packets.
pub fn duplicate_rule(index: usize, rule: &FirewallRule, other: &FirewallRule) -> Problem {
    Problem::new(
        422,
        "duplicate-rule",
        format!("the rule `{rule}` never matches: `{other}` before it matches the same packets"),
    )
    .field(format!("spec.firewall.rules[{index}]"))
    .hint("keep one of the two rules")
}

/// Ports in a rule for a protocol without ports.
pub fn ports_without_protocol(index: usize, protocol: Option<FirewallProtocol>) -> Problem {
    let text = match protocol {
        Some(protocol) => format!("{protocol} has no ports"),
        None => "a rule with ports needs a protocol".to_owned(),
    };
    Problem::new(422, "ports-without-protocol", text)
        .field(format!("spec.firewall.rules[{index}].protocol"))
        .hint("set the protocol to tcp or udp, or leave out the ports")
}

/// The text is not a port or a range.
pub fn invalid_port(index: usize, number: usize, text: &str, error: PortRangeError) -> Problem {
    Problem::new(
        422,
        "invalid-port",
        format!("{:?} is not a port or a range of ports", shown(text)),
    )
    .field(format!("spec.firewall.rules[{index}].ports[{number}]"))
    .hint(error.to_string())
}

/// The text is not a peer.
pub fn invalid_peer(index: usize, text: &str, error: &FirewallPeerError) -> Problem {
    Problem::new(
        422,
        "invalid-peer",
        format!("{:?} is not a peer of a firewall rule", shown(text)),
    )
    .field(format!("spec.firewall.rules[{index}].peer"))
    .hint(error.to_string())
}

/// The instance of a peer does not exist.
pub fn unknown_instance(index: usize, name: &Name) -> Problem {
    Problem::new(
        422,
        "unknown-peer",
        format!("there is no instance {name}, which the firewall rule names"),
    )
    .field(format!("spec.firewall.rules[{index}].peer"))
    .hint(format!(
        "create {name} first, or use a label: label:KEY=VALUE also applies to instances that are created later"
    ))
}

/// The instance has a nic that the node does not filter.
pub fn nic_without_firewall(nic: &Name, network: &Name) -> Problem {
    Problem::new(
        422,
        "firewall-needs-default-network",
        format!(
            "nic {nic} is on the network {network}: firewall rules apply on the network default only, where all packets of guests pass the node's router"
        ),
    )
    .field("spec.firewall")
    .hint("filter in the guest or at the router of that network, or use an instance whose nics are on default")
}
