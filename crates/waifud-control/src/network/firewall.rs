//! Firewalls of instances: requests become rules, in two steps as for published ports. Forms and limits are checked without the
//! database, named instances in the transaction.

use std::collections::BTreeSet;

use waifud_api::{Problem, SetFirewall, SetFirewallRule};
use waifud_store::ReadTx;
use waifud_types::FirewallSpec;
use waifud_types::firewall::{
    FirewallPeer, FirewallProtocol, FirewallRule, PORTS_MAX, PortRange, RULES_MAX,
};
use waifud_types::spec::InstanceSpec;

use super::default_network::is_default;
use super::firewall_problems;
use crate::ControlError;
use crate::problems;

/// Checks the rules of a request.
pub(crate) fn rules(wanted: &SetFirewall) -> Result<FirewallSpec, Problem> {
    if wanted.rules.len() > RULES_MAX {
        return Err(problems::too_many("spec.firewall.rules", RULES_MAX));
    }
    let mut rules: Vec<FirewallRule> = Vec::with_capacity(wanted.rules.len());
    for (index, request) in wanted.rules.iter().enumerate() {
        let rule = rule(index, request)?;
        let mut before = rules.iter();
        let same = |other: &&FirewallRule| other.matches_the_same(&rule) || other.id() == rule.id();
        if let Some(other) = before.find(same) {
            return Err(firewall_problems::duplicate_rule(index, &rule, other));
        }
        rules.push(rule);
    }
    Ok(FirewallSpec {
        incoming: wanted.incoming,
        outgoing: wanted.outgoing,
        rules,
    })
}

fn rule(index: usize, request: &SetFirewallRule) -> Result<FirewallRule, Problem> {
    if request.ports.len() > PORTS_MAX {
        let field = format!("spec.firewall.rules[{index}].ports");
        return Err(problems::too_many(&field, PORTS_MAX));
    }
    let has_ports = matches!(
        request.protocol,
        Some(FirewallProtocol::Tcp | FirewallProtocol::Udp)
    );
    if !request.ports.is_empty() && !has_ports {
        return Err(firewall_problems::ports_without_protocol(
            index,
            request.protocol,
        ));
    }
    let ports = request.ports.iter().enumerate().map(|(number, text)| {
        text.parse()
            .map_err(|error| firewall_problems::invalid_port(index, number, text, error))
    });
    let ports: Vec<PortRange> = ports.collect::<Result<_, _>>()?;
    let peer = request.peer.as_deref().map(|text| {
        text.parse()
            .map_err(|error| firewall_problems::invalid_peer(index, text, &error))
    });
    Ok(FirewallRule {
        direction: request.direction,
        action: request.action,
        protocol: request.protocol,
        ports: PortRange::merged(ports),
        peer: peer.transpose()?,
    })
}

/// Refuses rules for an instance that has a nic on a bridge of the host: they would not apply to the packets there.
pub(crate) fn check_nics(spec: &InstanceSpec) -> Result<(), Problem> {
    if spec.firewall.is_open() {
        return Ok(());
    }
    let mut elsewhere = spec.nics.iter().filter(|nic| !is_default(&nic.network));
    match elsewhere.next() {
        Some(nic) => Err(firewall_problems::nic_without_firewall(
            &nic.name,
            &nic.network,
        )),
        None => Ok(()),
    }
}

/// Refuses rules that name an instance that does not exist. Those of `before` may: their instance may be deleted meanwhile,
/// and other changes remain possible.
pub(crate) fn check_names(
    tx: &ReadTx<'_>,
    firewall: &FirewallSpec,
    before: &FirewallSpec,
) -> Result<(), ControlError> {
    let known: BTreeSet<_> = before.named_peers().collect();
    for (index, rule) in firewall.rules.iter().enumerate() {
        let Some(peer) = &rule.peer else {
            continue;
        };
        if let FirewallPeer::Instance(name) = peer
            && !known.contains(peer)
            && tx.instance_named(name.as_str())?.is_none()
        {
            return Err(firewall_problems::unknown_instance(index, name).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::firewall::{FirewallAction, FirewallDirection};

    type Change = fn(&mut SetFirewallRule);

    fn request() -> SetFirewallRule {
        SetFirewallRule {
            direction: FirewallDirection::In,
            action: FirewallAction::Allow,
            protocol: Some(FirewallProtocol::Tcp),
            ports: vec!["443".to_owned(), "80-90".to_owned(), "85-95".to_owned()],
            peer: Some("10.144.2.3/32".to_owned()),
        }
    }

    fn refused(rules_: Vec<SetFirewallRule>) -> (String, String) {
        let wanted = SetFirewall {
            rules: rules_,
            ..SetFirewall::default()
        };
        let problem = rules(&wanted).unwrap_err();
        assert!(problem.hint.is_some(), "{problem:?}");
        (problem.code, problem.field.unwrap_or_default())
    }

    #[test]
    fn ports_are_sorted_and_merged_and_a_single_address_has_no_prefix() {
        let wanted = SetFirewall {
            rules: vec![request()],
            ..SetFirewall::default()
        };
        let spec = rules(&wanted).unwrap();
        assert_eq!(
            spec.rules[0].to_string(),
            "allow in tcp 80-95,443 from 10.144.2.3"
        );
        assert_eq!(rules(&SetFirewall::from(&spec)).unwrap(), spec);
    }

    #[test]
    fn each_invalid_rule_names_its_field() {
        let cases: [(Change, &str, &str); 9] = [
            (
                |r| r.ports = vec!["0".to_owned()],
                "invalid-port",
                "ports[0]",
            ),
            (
                |r| r.ports = vec!["1".to_owned(), "90-80".to_owned()],
                "invalid-port",
                "ports[1]",
            ),
            (
                |r| r.ports = vec!["ssh".to_owned()],
                "invalid-port",
                "ports[0]",
            ),
            (
                |r| r.protocol = Some(FirewallProtocol::Icmp),
                "ports-without-protocol",
                "protocol",
            ),
            (|r| r.protocol = None, "ports-without-protocol", "protocol"),
            (|r| r.peer = Some("db".to_owned()), "invalid-peer", "peer"),
            (
                |r| r.peer = Some("fd00::1".to_owned()),
                "invalid-peer",
                "peer",
            ),
            (
                |r| r.peer = Some("10.0.0.1/8".to_owned()),
                "invalid-peer",
                "peer",
            ),
            (|r| r.ports = vec!["1".to_owned(); 16], "too-many", "ports"),
        ];
        for (alter, code, field) in cases {
            let mut wrong = request();
            alter(&mut wrong);
            let good = SetFirewallRule {
                peer: None,
                ..request()
            };
            let expected = (code.to_owned(), format!("spec.firewall.rules[1].{field}"));
            assert_eq!(refused(vec![good, wrong]), expected);
        }
    }

    #[test]
    fn a_rule_that_can_never_match_and_too_many_rules_are_refused() {
        let denied = SetFirewallRule {
            action: FirewallAction::Deny,
            ports: vec!["80-95".to_owned(), "443".to_owned()],
            peer: Some("10.144.2.3".to_owned()),
            ..request()
        };
        let expected = (
            "duplicate-rule".to_owned(),
            "spec.firewall.rules[1]".to_owned(),
        );
        assert_eq!(refused(vec![request(), denied]), expected);
        let many = (1..=65).map(|port| SetFirewallRule {
            ports: vec![port.to_string()],
            ..request()
        });
        let expected = ("too-many".to_owned(), "spec.firewall.rules".to_owned());
        assert_eq!(refused(many.collect()), expected);
    }
}
