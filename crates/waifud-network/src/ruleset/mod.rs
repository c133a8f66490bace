//! The firewall as text for `nft -f`: two tables of our own, replaced in one transaction.
//!
//! `table bridge waifud` filters frames at the guests' ports, in both directions. `table inet waifud` filters routed
//! packets: access of guests to the host, and forwarding.
//!
//! The rules are the same for every node and any number of guests; guests are elements of sets and maps. So the cost of a
//! packet does not grow with the number of guests, and there are only about thirty rules to review. Packets of a port that
//! is in no set are dropped: a missing guest has a closed port, never an open one.
//!
//! Names of guests and interfaces are inserted only after [`crate::check`], which refuses all that would need quoting.

mod bridge;
mod change;
pub(crate) mod guest_firewall;
pub(crate) mod inet;
pub(crate) mod lan;
mod published;
pub(crate) mod vlan;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use waifud_types::{MacAddr, TapName};

pub(crate) use self::change::change;
use self::lan::Learned;
use self::vlan::Ready;
use crate::{NetworkState, PortCounters};

/// The name of both tables.
pub(crate) const TABLE: &str = "waifud";

/// Prefix of a counter's name; the tap follows.
pub(crate) const SPOOFED: &str = "spoofed-";
/// See [`SPOOFED`].
pub(crate) const NOT_IPV4: &str = "not-ipv4-";
/// See [`SPOOFED`].
pub(crate) const TO_HOST: &str = "to-host-";
/// The counter of frames from taps with our prefix that are not in the state.
pub(crate) const UNKNOWN_PORT: &str = "unknown-port";

/// Properties of the host that the rules depend on, in addition to the state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostSide {
    /// Interfaces whose forwarding we enabled for guests. They forward no other packets.
    pub(crate) switched: Vec<String>,
    /// Destinations with a route back to guests, which are never masqueraded.
    pub(crate) routed: Vec<ipnet::Ipv4Net>,
    /// Bridges of the host, with their MAC addresses.
    pub(crate) bridges: BTreeMap<String, MacAddr>,
    /// The host's addresses, which no port learns.
    pub(crate) own: Vec<Ipv4Addr>,
    /// Whether the kernel knows the VLAN of a port. Otherwise, ports in a VLAN send and receive nothing.
    pub(crate) knows_vlans: bool,
}

/// Counters before the tables are replaced. The new counters continue from these.
pub(crate) type Counted = BTreeMap<TapName, PortCounters>;

/// Both tables. The same state gives the same text.
pub(crate) fn tables(
    state: &NetworkState,
    host: &HostSide,
    counted: &Counted,
    learned: &Learned,
    ready: &Ready,
) -> String {
    let mut text = bridge::table(state, host, counted, learned, ready);
    text.push_str(&inet::table(state, host, counted));
    text
}

/// A transaction that replaces our tables by `tables`. `nft` commits a file as one transaction, so rules are in force at
/// any time.
pub(crate) fn replacing(tables: &str) -> String {
    let mut text = removal();
    text.push_str(tables);
    text
}

/// Statements that delete both tables. They are added first, so that this succeeds if they do not exist.
pub(crate) fn removal() -> String {
    let mut text = String::new();
    for family in ["bridge", "inet"] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "add table {family} {TABLE}");
        let _ = writeln!(text, "delete table {family} {TABLE}");
    }
    text
}

/// A MAC address as a number, for comparisons with raw payload.
fn as_number(mac: MacAddr) -> String {
    mac.bytes()
        .iter()
        .fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A named counter that starts at `packets`. Bytes are not used.
fn counter(name: &str, packets: u64) -> String {
    format!("\tcounter {name} {{\n\t\tpackets {packets} bytes 0\n\t}}\n")
}

/// A set or map. The list of elements is left out if it is empty, because `nft` refuses an empty list.
fn collection(head: &str, kind: &str, elements: impl Iterator<Item = String>) -> String {
    let mut text = format!("\t{head} {{\n\t\t{kind}\n");
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t"));
    }
    text.push_str("\t}\n");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use waifud_types::spec::{Protocol, PublishSpec};

    use super::*;
    use crate::samples::{lan_port, port, remote, state};
    use crate::{FirewallCounters, RemoteSubnet};

    const COUNTERS: PortCounters = PortCounters {
        spoofed: 7,
        to_host: 8,
        not_ipv4: 9,
        firewall: FirewallCounters {
            incoming: 0,
            outgoing: 0,
            rules: BTreeMap::new(),
        },
    };

    fn published(port: u16, guest_port: u16, protocol: Protocol) -> PublishSpec {
        PublishSpec {
            port,
            guest_port,
            protocol,
        }
    }

    fn host() -> HostSide {
        HostSide {
            switched: vec!["eth0".to_owned()],
            routed: vec!["10.144.0.0/12".parse().unwrap()],
            bridges: BTreeMap::from([("br0".to_owned(), MacAddr::new([2, 0, 0, 0, 0, 9]))]),
            own: vec![[192, 168, 1, 2].into()],
            knows_vlans: true,
        }
    }

    #[test]
    fn the_ruleset_for_two_guests_matches_its_snapshot() {
        let mut state = state(2);
        state.ports[1].allow_addresses = vec![
            "10.99.0.0/24".parse().unwrap(),
            "10.144.1.200/32".parse().unwrap(),
            "fd00::/64".parse().unwrap(),
        ];
        state.ports[0].publish = vec![
            published(80, 8080, Protocol::Tcp),
            published(53, 53, Protocol::Udp),
        ];
        let counted = Counted::from([(state.ports[0].tap.clone(), COUNTERS)]);
        insta::assert_snapshot!(replacing(&tables(
            &state,
            &host(),
            &counted,
            &Learned::new(),
            &Ready::new(),
        )));
    }

    #[test]
    fn the_ruleset_for_guests_on_a_host_bridge_matches_its_snapshot() {
        let mut state = state(0);
        state.lan = vec![lan_port(0), lan_port(1)];
        state.lan[1].identity = None;
        state.lan[1].fixed = vec![
            "192.168.1.50/32".parse().unwrap(),
            "192.168.1.60/31".parse().unwrap(),
            "fd00::7/128".parse().unwrap(),
            "fd00:1::/64".parse().unwrap(),
        ];
        let learned = Learned::from([(
            state.lan[0].tap.clone(),
            ["192.168.1.40", "fd00::8"]
                .iter()
                .map(|a| a.parse().unwrap())
                .collect(),
        )]);
        let counted = Counted::from([(state.lan[0].tap.clone(), COUNTERS)]);
        insta::assert_snapshot!(replacing(&tables(
            &state,
            &host(),
            &counted,
            &learned,
            &Ready::new()
        )));
    }

    #[test]
    fn the_ruleset_for_a_guest_in_a_vlan_matches_its_snapshot() {
        let mut state = state(0);
        state.lan = vec![lan_port(0), lan_port(1), lan_port(2)];
        for (port, vlan) in state.lan.iter_mut().skip(1).zip([20_u16, 4094]) {
            port.vlan = Some(vlan.try_into().unwrap());
            port.identity = None;
        }
        let of = |host: &HostSide| {
            let (counted, learned) = (Counted::new(), Learned::new());
            tables(&state, host, &counted, &learned, &Ready::from([12, 7]))
        };
        insta::assert_snapshot!(of(&host()));
        // Ports in a VLAN are closed then, and no rule fails to load.
        let without = of(&HostSide {
            knows_vlans: false,
            ..host()
        });
        assert!(!without.contains("ibrpvid"), "{without}");
        assert!(without.contains("chain from_vlan_port {\n\t\tdrop\n\t}\n"));
        assert!(!without.contains("elements = { 7"), "{without}");
    }

    #[test]
    fn the_ruleset_for_subnets_of_other_nodes_matches_its_snapshot() {
        let mut state = state(1);
        let over = |index, fabric: &str| RemoteSubnet {
            fabric: Some(fabric.to_owned()),
            ..remote(index)
        };
        // 2 and 3 are adjacent and on one fabric, 4 is on another one, 9 is not connected.
        let uncarried = RemoteSubnet {
            fabric: None,
            ..remote(9)
        };
        state.remote_subnets = vec![over(2, "wgf0"), over(3, "wgf0"), over(4, "tun0"), uncarried];
        insta::assert_snapshot!(inet::table(&state, &host(), &Counted::new()));
    }

    #[test]
    fn a_ruleset_without_guests_has_no_empty_element_lists() {
        let text = tables(
            &state(0),
            &HostSide::default(),
            &Counted::new(),
            &Learned::new(),
            &Ready::new(),
        );
        assert!(!text.contains("{  }"), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_port_adds_elements_and_no_rules() {
        let rules = |guests: u8| {
            let mut state = state(guests);
            state.lan = (0..guests).map(lan_port).collect();
            let (counted, learned) = (Counted::new(), Learned::new());
            tables(&state, &host(), &counted, &learned, &Ready::new())
                .lines()
                .filter(|line| line.contains(" accept") || line.contains(" drop"))
                .count()
        };
        assert_eq!(rules(1), rules(200));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn exactly_the_ports_of_the_state_are_elements(present in proptest::collection::btree_set(0_u8..200, 0..40)) {
            let mut state = state(0);
            state.ports = present.iter().map(|index| port(*index)).collect();
            let text = tables(&state, &host(), &Counted::new(), &Learned::new(), &Ready::new());
            for index in 0..200 {
                let port = port(index);
                let (mac, address) = (port.mac, port.address);
                let element = format!("\"{}\" . {mac}", port.tap);
                prop_assert_eq!(text.contains(&element), present.contains(&index));
                let element = format!("\"{}\" . {address}", port.tap);
                let found = text.lines().any(|line| line.trim_end_matches([',', ' ', '}']).ends_with(&element));
                prop_assert_eq!(found, present.contains(&index));
            }
        }
    }
}
