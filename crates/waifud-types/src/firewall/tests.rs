//! Tests of the forms of rules, ports and peers.

use proptest::prelude::*;

use super::*;

fn ports(text: &str) -> Result<PortRange, PortRangeError> {
    text.parse()
}

fn peer(text: &str) -> Result<FirewallPeer, FirewallPeerError> {
    text.parse()
}

fn rule() -> FirewallRule {
    FirewallRule {
        direction: FirewallDirection::In,
        action: FirewallAction::Allow,
        protocol: Some(FirewallProtocol::Tcp),
        ports: vec![ports("22").unwrap(), ports("8000-8010").unwrap()],
        peer: Some(peer("10.144.2.3").unwrap()),
    }
}

#[test]
fn a_port_is_a_number_from_1_or_an_ascending_range() {
    for text in ["1", "65535", "8000-8010"] {
        assert_eq!(ports(text).unwrap().to_string(), text);
    }
    assert_eq!(ports("80-80").unwrap().to_string(), "80");
    for text in [
        "0", "65536", "", "-", "80-", "-80", "+80", "http", "0-9", "1-2-3", " 80",
    ] {
        assert_eq!(ports(text), Err(PortRangeError::NotAPort), "{text:?}");
    }
    assert_eq!(ports("90-80"), Err(PortRangeError::Inverted));
}

#[test]
fn peers_are_ranges_instances_and_labels() {
    for text in [
        "10.144.2.3",
        "192.168.1.0/24",
        "0.0.0.0/0",
        "instance:db",
        "label:tier=front",
        "label:tier=",
        "label:a/b.c=x=y z",
    ] {
        assert_eq!(peer(text).unwrap().to_string(), text);
    }
    assert_eq!(peer("10.144.2.3/32").unwrap().to_string(), "10.144.2.3");
    let meant = "192.168.1.0/24".parse().unwrap();
    let given = "192.168.1.7/24".parse().unwrap();
    assert_eq!(
        peer("192.168.1.7/24"),
        Err(FirewallPeerError::HostBits { given, meant })
    );
    for text in ["fd00::1", "fd00::/8"] {
        assert_eq!(peer(text), Err(FirewallPeerError::Ipv6), "{text}");
    }
    for text in [
        "",
        "db",
        "10.0.0",
        "10.0.0.0/33",
        "Instance:db",
        "instance db",
    ] {
        assert_eq!(peer(text), Err(FirewallPeerError::UnknownForm), "{text:?}");
    }
    for text in ["instance:", "instance:DB", "instance:a b"] {
        assert_eq!(peer(text), Err(FirewallPeerError::Name), "{text:?}");
    }
    let long = format!("label:{}=x", "k".repeat(64));
    for text in [
        "label:",
        "label:tier",
        "label:=front",
        "label:a b=c",
        "label:a=b\n",
        &long,
    ] {
        assert_eq!(peer(text), Err(FirewallPeerError::Label), "{text:?}");
    }
}

#[test]
fn a_rule_reads_as_a_sentence_and_its_id_follows_from_it() {
    assert_eq!(
        rule().to_string(),
        "allow in tcp 22,8000-8010 from 10.144.2.3"
    );
    let all = FirewallRule {
        direction: FirewallDirection::Out,
        action: FirewallAction::Deny,
        protocol: None,
        ports: Vec::new(),
        peer: Some(peer("label:tier=front").unwrap()),
    };
    assert_eq!(all.to_string(), "deny out to label:tier=front");
    // Nodes report packets by these ids, so they must not change with the version.
    assert_eq!(rule().id().to_string(), "73c1b39f");
    let denied = FirewallRule {
        action: FirewallAction::Deny,
        ..rule()
    };
    assert_ne!(denied.id(), rule().id());
    assert!(denied.matches_the_same(&rule()));
    assert!(!all.matches_the_same(&rule()));
}

#[test]
fn a_spec_without_a_firewall_lets_everything_pass() {
    let spec: FirewallSpec =
        serde_json::from_str(r#"{"in":"allow","out":"allow","rules":[]}"#).unwrap();
    assert_eq!(spec, FirewallSpec::default());
    assert!(spec.is_open());
    for alter in [
        (|s| s.incoming = FirewallAction::Deny) as fn(&mut FirewallSpec),
        |s| s.outgoing = FirewallAction::Deny,
        |s| s.rules.push(rule()),
    ] {
        let mut spec = FirewallSpec::default();
        alter(&mut spec);
        assert!(!spec.is_open());
    }
}

#[test]
fn a_rule_has_one_form_on_the_wire() {
    let json = serde_json::json!({
        "direction": "in", "action": "allow", "protocol": "tcp", "ports": ["22", "8000-8010"],
        "peer": "10.144.2.3",
    });
    assert_eq!(serde_json::to_value(rule()).unwrap(), json);
    assert_eq!(
        serde_json::from_value::<FirewallRule>(json).unwrap(),
        rule()
    );
}

#[test]
fn only_instances_and_labels_are_named_peers() {
    let with = |peer: Option<&str>| FirewallRule {
        peer: peer.map(|text| text.parse().unwrap()),
        ..rule()
    };
    let spec = FirewallSpec {
        rules: [
            None,
            Some("10.0.0.1"),
            Some("instance:db"),
            Some("label:a=b"),
        ]
        .map(with)
        .into(),
        ..FirewallSpec::default()
    };
    let named: Vec<_> = spec.named_peers().map(ToString::to_string).collect();
    assert_eq!(named, ["instance:db", "label:a=b"]);
}

proptest! {
    #[test]
    fn merging_ranges_keeps_exactly_their_ports(
        given in proptest::collection::vec((1_u16..60, 0_u16..6), 0..12)
    ) {
        let ranges: Vec<_> = given
            .iter()
            .map(|(first, more)| PortRange::new(*first, first + more).unwrap())
            .collect();
        let has = |ranges: &[PortRange], port| ranges.iter().any(|r| r.first <= port && port <= r.last);
        let merged = PortRange::merged(ranges.clone());
        for port in 1..80 {
            prop_assert_eq!(has(&ranges, port), has(&merged, port));
        }
        for pair in merged.windows(2) {
            prop_assert!(pair[0].last + 1 < pair[1].first, "{:?}", merged);
        }
    }
}
