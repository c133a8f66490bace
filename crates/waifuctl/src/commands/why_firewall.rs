//! Formats what the firewall of an instance has dropped and allowed, for `waifuctl why`.

use std::fmt::Write;

use waifud_types::FirewallSpec;
use waifud_types::evidence::GuestEvidence;
use waifud_types::firewall::FirewallAction;

use crate::text::escape;

/// A line for each rule and each default that drops packets. Empty without a firewall.
pub fn lines(evidence: &GuestEvidence, firewall: &FirewallSpec) -> String {
    if firewall.is_open() {
        return String::new();
    }
    let counts = evidence.firewall.as_ref();
    let mut out = String::new();
    let mut line = |text: &str, verb: &str, packets: Option<u64>| {
        let packets = packets.map_or_else(
            || "not counted yet".to_owned(),
            |packets| format!("{packets} packets {verb}"),
        );
        let _infallible = writeln!(out, "  firewall: {}: {packets}", escape(text));
    };
    for rule in &firewall.rules {
        let verb = match rule.action {
            FirewallAction::Allow => "passed",
            FirewallAction::Deny => "dropped",
        };
        let packets = counts.and_then(|counts| counts.of(&rule.id().to_string()));
        line(&rule.to_string(), verb, packets);
    }
    if firewall.incoming == FirewallAction::Deny {
        let packets = counts.map(|counts| counts.incoming);
        line("deny in by default", "dropped", packets);
    }
    if firewall.outgoing == FirewallAction::Deny {
        let packets = counts.map(|counts| counts.outgoing);
        line("deny out by default", "dropped", packets);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::evidence::{FirewallCounts, RuleCount};

    #[test]
    fn rules_and_closed_defaults_are_shown_with_their_packets() {
        let firewall: FirewallSpec = serde_json::from_value(serde_json::json!({
            "in": "deny", "out": "allow",
            "rules": [
                {"direction": "in", "action": "allow", "protocol": "tcp", "ports": ["22"], "peer": null},
                {"direction": "out", "action": "deny", "protocol": null, "ports": [], "peer": "instance:db"},
            ],
        }))
        .unwrap();
        let counts = FirewallCounts {
            incoming: 3,
            outgoing: 0,
            rules: vec![RuleCount {
                id: firewall.rules[0].id().to_string(),
                packets: 7,
            }],
        };
        let mut evidence = GuestEvidence {
            firewall: Some(counts),
            ..GuestEvidence::default()
        };
        assert_eq!(
            lines(&evidence, &firewall),
            "  firewall: allow in tcp 22: 7 packets passed\n  \
             firewall: deny out to instance:db: not counted yet\n  \
             firewall: deny in by default: 3 packets dropped\n"
        );
        assert_eq!(lines(&evidence, &FirewallSpec::default()), "");
        evidence.firewall = None;
        assert!(lines(&evidence, &firewall).contains("deny in by default: not counted yet"));
    }
}
