//! The firewall of a port: which connections its guest may accept and open.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use waifud_types::firewall::{
    FirewallAction, FirewallDirection, FirewallProtocol, PortRange, RuleId,
};

/// The rules of one port. The first that matches the first packet of a connection, and each further packet of the side that
/// opened it, decides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortFirewall {
    /// What happens to connections to the guest that no rule matches.
    pub incoming: FirewallAction,
    /// What happens to connections from the guest that no rule matches.
    pub outgoing: FirewallAction,
    /// The rules of both directions, in order.
    pub rules: Vec<PortRule>,
}

/// One rule of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortRule {
    /// Its id, unique at the port.
    pub id: RuleId,
    /// The direction of the connections that it matches.
    pub direction: FirewallDirection,
    /// What it does.
    pub action: FirewallAction,
    /// The protocol; `None` for all.
    pub protocol: Option<FirewallProtocol>,
    /// Destination ports, only with TCP or UDP; empty for all.
    pub ports: Vec<PortRange>,
    /// The addresses of the other end; `None` for all. A rule with an empty list matches nothing.
    pub peers: Option<Vec<Ipv4Net>>,
}

impl PortFirewall {
    /// Whether it lets everything pass.
    pub fn is_open(&self) -> bool {
        let defaults = [self.incoming, self.outgoing];
        self.rules.is_empty() && defaults == [FirewallAction::Allow; 2]
    }

    /// Why it cannot be applied: it would make the rules of all guests unreadable, or match other packets than it says.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let mut ids = BTreeSet::new();
        for rule in &self.rules {
            let has_ports = matches!(
                rule.protocol,
                Some(FirewallProtocol::Tcp | FirewallProtocol::Udp)
            );
            if !rule.ports.is_empty() && !has_ports {
                return Some("has ports, which its protocol does not have");
            }
            if !ids.insert(rule.id) {
                return Some("is there twice");
            }
        }
        None
    }

    /// Whether it can drop or count packets of a direction.
    pub(crate) fn restricts(&self, direction: FirewallDirection) -> bool {
        self.default_of(direction) == FirewallAction::Deny
            || self.rules.iter().any(|rule| rule.direction == direction)
    }

    pub(crate) const fn default_of(&self, direction: FirewallDirection) -> FirewallAction {
        match direction {
            FirewallDirection::In => self.incoming,
            FirewallDirection::Out => self.outgoing,
        }
    }
}

/// How many packets the firewall of a port has matched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FirewallCounters {
    /// Packets to the guest that the default dropped.
    pub incoming: u64,
    /// Packets from the guest that the default dropped.
    pub outgoing: u64,
    /// The packets of each rule.
    pub rules: BTreeMap<RuleId, u64>,
}

impl FirewallCounters {
    /// From the last parts of the names of counters.
    pub(crate) fn of<'a>(counted: impl Iterator<Item = (&'a str, u64)>) -> Self {
        let mut counters = Self::default();
        for (name, packets) in counted {
            match name {
                "in" => counters.incoming = packets,
                "out" => counters.outgoing = packets,
                rule => {
                    if let Some(rule) = RuleId::parse(rule) {
                        counters.rules.insert(rule, packets);
                    }
                }
            }
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_recognized_by_their_names() {
        let names = [("in", 1), ("out", 2), ("0000beef", 3), ("other", 4)];
        let counters = FirewallCounters::of(names.into_iter());
        assert_eq!((counters.incoming, counters.outgoing), (1, 2));
        let rule = RuleId::parse("0000beef").unwrap();
        assert_eq!(counters.rules, BTreeMap::from([(rule, 3)]));
    }
}
