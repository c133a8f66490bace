//! Tests of rules from arguments, of their place, and of the table.

use clap::Parser;
use waifud_types::InstanceId;

use super::*;
use crate::cli::{Cli, Command};

fn args(line: &str) -> Result<FirewallRuleArgs, String> {
    let words = ["waifuctl", "firewall"].into_iter().chain(line.split(' '));
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    match cli.command {
        Command::Firewall(FirewallCommand::Allow(args) | FirewallCommand::Deny(args)) => Ok(args),
        other => panic!("{other:?}"),
    }
}

fn parsed(line: &str) -> FirewallRule {
    let action = match line.split(' ').next() {
        Some("allow") => FirewallAction::Allow,
        _ => FirewallAction::Deny,
    };
    rule(&args(line).unwrap(), action).unwrap()
}

fn with(lines: &[&str]) -> FirewallSpec {
    let mut spec = FirewallSpec::default();
    for line in lines {
        put(&mut spec, &parsed(line), args(line).unwrap().first).unwrap();
    }
    spec
}

fn texts(spec: &FirewallSpec) -> Vec<String> {
    spec.rules.iter().map(ToString::to_string).collect()
}

#[test]
fn arguments_become_a_rule_with_the_direction_of_its_peer() {
    for (line, expected) in [
        ("allow web --in --port 22", "allow in tcp 22"),
        (
            "allow web --from 10.0.0.1/32 --port 80,90-99 --port 81",
            "allow in tcp 80-81,90-99 from 10.0.0.1",
        ),
        ("deny web --to instance:db", "deny out to instance:db"),
        ("deny web --out --protocol udp", "deny out udp"),
        (
            "allow web --in --protocol icmp --from label:tier=front",
            "allow in icmp from label:tier=front",
        ),
    ] {
        assert_eq!(parsed(line).to_string(), expected, "{line}");
    }
}

#[test]
fn invalid_arguments_name_the_argument() {
    for line in [
        "allow web",
        "allow web --port 22",
        "allow web --in --out",
        "allow web --in --to 10.0.0.1",
        "allow web --out --from 10.0.0.1",
        "allow web --in --protocol sctp",
    ] {
        assert!(args(line).is_err(), "{line}");
    }
    for (line, field) in [
        ("allow web --in --port 0", "--port"),
        ("allow web --in --port 9-8", "--port"),
        ("allow web --in --port 80 --protocol icmp", "--port"),
        ("allow web --from db", "--from"),
        ("allow web --to fd00::1", "--to"),
    ] {
        let failure = rule(&args(line).unwrap(), FirewallAction::Allow).unwrap_err();
        let problem = failure.problem();
        assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
        assert!(problem.hint.is_some(), "{problem:?}");
    }
}

#[test]
fn a_rule_without_limits_is_the_default_of_its_direction() {
    let spec = with(&["deny web --in", "allow web --in --port 22"]);
    assert_eq!(spec.incoming, FirewallAction::Deny);
    assert_eq!(spec.outgoing, FirewallAction::Allow);
    assert_eq!(texts(&spec), ["allow in tcp 22"]);
    let first = parsed("deny web --in --first");
    assert!(put(&mut FirewallSpec::default(), &first, true).is_err());
}

#[test]
fn rules_keep_their_order_and_the_same_rule_is_replaced_in_its_place() {
    let ssh = "allow web --in --port 22";
    let web = "allow web --in --port 80";
    assert_eq!(
        texts(&with(&[ssh, web, ssh])),
        ["allow in tcp 22", "allow in tcp 80"]
    );
    let denied = "deny web --in --port 22";
    assert_eq!(
        texts(&with(&[ssh, web, denied])),
        ["deny in tcp 22", "allow in tcp 80"]
    );
    let replaced = |lines: &[&str], line: &str| {
        let first = args(line).unwrap().first;
        put(&mut with(lines), &parsed(line), first).unwrap()
    };
    assert_eq!(replaced(&[web], ssh), None);
    assert_eq!(replaced(&[ssh, web], denied), Some(FirewallAction::Allow));
    let first = "deny web --in --port 80 --first";
    assert_eq!(replaced(&[ssh, web], first), Some(FirewallAction::Allow));
    assert_eq!(
        texts(&with(&[ssh, web, first])),
        ["deny in tcp 80", "allow in tcp 22"]
    );
}

#[test]
fn rules_are_removed_by_the_beginning_of_their_id() {
    let mut spec = with(&["allow web --in --port 22", "allow web --in --port 80"]);
    let id = spec.rules[0].id().to_string();
    take(&mut spec, "web", &id[..5]).unwrap();
    assert_eq!(texts(&spec), ["allow in tcp 80"]);
    let unknown = take(&mut spec, "web", &id).unwrap_err();
    assert_eq!(unknown.problem().code, "unknown-rule");
    let mut both = with(&["allow web --in --port 22", "allow web --in --port 80"]);
    let ambiguous = take(&mut both, "web", "").unwrap_err();
    assert_eq!(ambiguous.problem().code, "ambiguous-rule");
    assert_eq!(both.rules.len(), 2);
}

#[test]
fn a_rule_without_effect_is_noted() {
    let ssh = "allow web --in --port 22";
    let note = |lines: &[&str]| effect(&with(lines), &parsed(ssh));
    assert!(note(&[ssh]).unwrap().contains("firewall deny NAME --in"));
    assert_eq!(note(&["deny web --in", ssh]), None);
    assert_eq!(note(&[ssh, "deny web --in --port 1-100"]), None);
}

#[test]
fn the_table_shows_defaults_counters_and_addresses() {
    let spec = with(&[
        "deny web --in",
        "allow web --port 22,8000-8010 --from label:tier=front",
        "allow web --from instance:db",
        "deny web --to 192.0.2.0/24",
    ]);
    let addresses = [
        Some(vec![
            "10.144.1.2/32",
            "10.144.1.4/32",
            "10.144.2.0/24",
            "10.144.3.1/32",
        ]),
        Some(vec![]),
        None,
    ];
    let rules = spec.rules.iter().zip(addresses).map(|(rule, addresses)| {
        let parse = |all: Vec<&str>| all.iter().map(|net| net.parse().unwrap()).collect();
        FirewallRuleState {
            id: rule.id().to_string(),
            packets: (rule.direction == FirewallDirection::In).then_some(12),
            addresses: addresses.map(parse),
            rule: rule.clone(),
        }
    });
    let firewall = InstanceFirewall {
        instance: "0198d2a8-1111-7000-8000-00000000000a"
            .parse::<InstanceId>()
            .unwrap(),
        name: "web".parse().unwrap(),
        incoming: FirewallDefault {
            action: spec.incoming,
            packets: Some(3),
        },
        outgoing: FirewallDefault {
            action: spec.outgoing,
            packets: None,
        },
        rules: rules.collect(),
    };
    let ids: Vec<_> = spec.rules.iter().map(FirewallRule::id).collect();
    assert_eq!(
        to_text(&firewall),
        format!(
            "RULE      DIRECTION  ACTION  PROTOCOL  PORTS         PEER              PACKETS  ADDRESSES\n\
             {}  in         allow   tcp       22,8000-8010  label:tier=front  12       10.144.1.2,10.144.1.4,10.144.2.0/24 and 1 more\n\
             {}  in         allow   all       all           instance:db       12       none\n\
             {}  out        deny    all       all           192.0.2.0/24      -        -\n\
             default   in         deny    all       all           all               3        -\n\
             default   out        allow   all       all           all               -        -",
            ids[0], ids[1], ids[2]
        )
    );
}
