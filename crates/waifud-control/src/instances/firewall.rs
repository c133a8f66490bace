//! The firewall of an instance: its change, and its rules with the packets that the node has counted.

use waifud_api::{
    FirewallDefault, FirewallRuleState, InstanceFirewall, PeerAddresses, Problem, SetFirewall,
};
use waifud_store::{InstanceRow, NodeRow, ReadTx};
use waifud_types::FirewallSpec;
use waifud_types::evidence::FirewallCounts;
use waifud_types::firewall::{FirewallAction, FirewallRule};
use waifud_types::node::feature;

use super::find;
use crate::network::firewall;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

/// Replaces the firewall.
pub(super) fn apply(
    tx: &ReadTx<'_>,
    row: &mut InstanceRow,
    wanted: &SetFirewall,
    changes: &mut Vec<String>,
) -> Result<(), ControlError> {
    let wanted = firewall::rules(wanted)?;
    if wanted == row.spec.firewall {
        return Ok(());
    }
    firewall::check_names(tx, &wanted, &row.spec.firewall)?;
    let target = row.moving.as_ref().map(|moving| moving.target);
    for id in row.node.into_iter().chain(target) {
        if let Some(node) = tx.node(id)? {
            check_agent(&wanted, &node)?;
        }
    }
    let before = std::mem::replace(&mut row.spec.firewall, wanted);
    firewall::check_nics(&row.spec)?;
    changes.push(difference(&before, &row.spec.firewall));
    Ok(())
}

/// Refuses rules on a node whose agent would ignore them.
fn check_agent(firewall: &FirewallSpec, node: &NodeRow) -> Result<(), Problem> {
    if firewall.is_open() || node.facts.has(feature::FIREWALL) {
        return Ok(());
    }
    let problem = node_problems::agent_too_old(&node.name);
    Err(problem.field("spec.firewall"))
}

/// What has changed, for the history.
fn difference(before: &FirewallSpec, after: &FirewallSpec) -> String {
    let mut parts = Vec::new();
    for (direction, old, new) in [
        ("in", before.incoming, after.incoming),
        ("out", before.outgoing, after.outgoing),
    ] {
        if old != new {
            parts.push(format!("{direction} by default: {new}"));
        }
    }
    let mut missing = |from: &FirewallSpec, other: &FirewallSpec, what: &str| {
        let gone = from.rules.iter().filter(|rule| !other.rules.contains(rule));
        parts.extend(gone.map(|rule| format!("{what} `{rule}`")));
    };
    missing(before, after, "removed");
    missing(after, before, "added");
    if parts.is_empty() {
        parts.push("the order of its rules".to_owned());
    }
    format!("firewall changed: {}", parts.join(", "))
}

impl Control {
    /// The rules of an instance, with the addresses that they stand for and the packets counted.
    pub async fn instance_firewall(
        &self,
        name_or_id: &str,
    ) -> Result<InstanceFirewall, ControlError> {
        let wanted = name_or_id.to_owned();
        let (row, addresses) = self
            .store()
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                let addresses = tx.peer_addresses(&row.spec.firewall)?;
                Ok::<_, ControlError>((row, addresses))
            })
            .await?;
        let evidence = self.instance_progress().evidence(row.id);
        let counts = evidence.and_then(|evidence| evidence.firewall);
        Ok(state(row, &addresses, counts.as_ref()))
    }
}

fn state(
    row: InstanceRow,
    addresses: &[PeerAddresses],
    counts: Option<&FirewallCounts>,
) -> InstanceFirewall {
    let FirewallSpec {
        incoming,
        outgoing,
        rules,
    } = row.spec.firewall;
    let default = |action: FirewallAction, packets: fn(&FirewallCounts) -> u64| FirewallDefault {
        action,
        packets: counts
            .filter(|_| action == FirewallAction::Deny)
            .map(packets),
    };
    let rule_state = |rule: FirewallRule| {
        let id = rule.id().to_string();
        let peer = rule.peer.as_ref().map(ToString::to_string);
        FirewallRuleState {
            packets: counts.and_then(|counts| counts.of(&id)),
            addresses: peer.and_then(|peer| {
                let mut all = addresses.iter();
                all.find(|entry| entry.peer == peer)
                    .map(|entry| entry.addresses.clone())
            }),
            id,
            rule,
        }
    };
    InstanceFirewall {
        instance: row.id,
        name: row.name,
        incoming: default(incoming, |counts| counts.incoming),
        outgoing: default(outgoing, |counts| counts.outgoing),
        rules: rules.into_iter().map(rule_state).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::firewall::FirewallDirection;

    fn rule(peer: &str) -> FirewallRule {
        FirewallRule {
            direction: FirewallDirection::In,
            action: FirewallAction::Allow,
            protocol: None,
            ports: Vec::new(),
            peer: Some(peer.parse().unwrap()),
        }
    }

    fn spec(peers: &[&str]) -> FirewallSpec {
        FirewallSpec {
            rules: peers.iter().map(|peer| rule(peer)).collect(),
            ..FirewallSpec::default()
        }
    }

    #[test]
    fn the_history_says_what_has_changed() {
        let closed = FirewallSpec {
            incoming: FirewallAction::Deny,
            ..spec(&["10.0.0.2", "10.0.0.3"])
        };
        assert_eq!(
            difference(&spec(&["10.0.0.1", "10.0.0.2"]), &closed),
            "firewall changed: in by default: deny, removed `allow in from 10.0.0.1`, added `allow in from 10.0.0.3`"
        );
        assert_eq!(
            difference(
                &spec(&["10.0.0.1", "10.0.0.2"]),
                &spec(&["10.0.0.2", "10.0.0.1"])
            ),
            "firewall changed: the order of its rules"
        );
    }
}
