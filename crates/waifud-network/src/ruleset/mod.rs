//! The firewall as text for `nft -f`: two tables of our own, replaced in one transaction.
//!
//! `table bridge waifud` stands at the guests' ports and knows frames: who may speak there, and what may be heard
//! there. `table inet waifud` stands behind the gateway and knows routes: what of the host a guest may reach, and
//! what is forwarded.
//!
//! The rules are the same for every node and any number of guests; guests are elements of sets and maps. So the cost
//! of a packet does not grow with guests, and a reader checks some thirty rules once. A port that is in no set is
//! dropped: forgetting a guest closes its port, never opens it.
//!
//! Names from outside reach the text only after [`crate::check`], which lets nothing pass that would need quoting.

mod bridge;
mod change;
pub(crate) mod inet;
pub(crate) mod lan;
mod published;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use waifud_types::{MacAddr, TapName};

pub(crate) use self::change::change;
use self::lan::Learned;
use crate::{NetworkState, PortCounters};

/// The name of both tables.
pub(crate) const TABLE: &str = "waifud";

/// Names of a port's counters begin with these; the tap follows.
pub(crate) const SPOOFED: &str = "spoofed-";
/// See [`SPOOFED`].
pub(crate) const NOT_IPV4: &str = "not-ipv4-";
/// See [`SPOOFED`].
pub(crate) const TO_HOST: &str = "to-host-";
/// Counts frames of ports that have our prefix and are in no state.
pub(crate) const UNKNOWN_PORT: &str = "unknown-port";

/// What the rules need to know of the host beside the state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct HostSide {
    /// Interfaces whose forwarding we switched on for the guests' sake: they forward for nobody else.
    pub(crate) switched: Vec<String>,
    /// Destinations that know the way back to guests: never masqueraded.
    pub(crate) routed: Vec<ipnet::Ipv4Net>,
    /// The host's own bridges, with their MAC addresses.
    pub(crate) bridges: BTreeMap<String, MacAddr>,
    /// The host's own addresses: no guest learns them.
    pub(crate) own: Vec<Ipv4Addr>,
}

/// What was counted before the tables are replaced; the new ones go on from there.
pub(crate) type Counted = BTreeMap<TapName, PortCounters>;

/// The tables, without the transaction around them. The same state gives the same text.
pub(crate) fn tables(
    state: &NetworkState,
    host: &HostSide,
    counted: &Counted,
    learned: &Learned,
) -> String {
    let mut text = bridge::table(state, host, counted, learned);
    text.push_str(&inet::table(state, host, counted));
    text
}

/// Puts `tables` in the place of whatever is there under our name. `nft` sends one file as one transaction: there is
/// no moment without rules.
pub(crate) fn replacing(tables: &str) -> String {
    let mut text = removal();
    text.push_str(tables);
    text
}

/// Takes both tables away. Adding first makes it work when they are absent.
pub(crate) fn removal() -> String {
    let mut text = String::new();
    for family in ["bridge", "inet"] {
        // Writing to a String can't fail.
        let _ = writeln!(text, "add table {family} {TABLE}");
        let _ = writeln!(text, "delete table {family} {TABLE}");
    }
    text
}

/// A MAC address as raw payload is compared with it.
fn as_number(mac: MacAddr) -> String {
    mac.bytes()
        .iter()
        .fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A named counter that goes on from `packets`. Bytes are not kept: nobody asks for them.
fn counter(name: &str, packets: u64) -> String {
    format!("\tcounter {name} {{\n\t\tpackets {packets} bytes 0\n\t}}\n")
}

/// A set or map. `nft` refuses an empty list of elements, so none is written then.
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
    use crate::samples::{lan_port, port, state};

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
        }
    }

    #[test]
    fn two_guests_give_this_ruleset() {
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
        let counted = Counted::from([(
            state.ports[0].tap.clone(),
            PortCounters {
                spoofed: 7,
                to_host: 8,
                not_ipv4: 9,
            },
        )]);
        insta::assert_snapshot!(replacing(&tables(
            &state,
            &host(),
            &counted,
            &Learned::new()
        )));
    }

    #[test]
    fn guests_on_a_bridge_of_the_hosts_own_give_this_ruleset() {
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
        let counted = Counted::from([(
            state.lan[0].tap.clone(),
            PortCounters {
                spoofed: 7,
                to_host: 8,
                not_ipv4: 9,
            },
        )]);
        insta::assert_snapshot!(replacing(&tables(&state, &host(), &counted, &learned)));
    }

    #[test]
    fn no_guests_give_no_empty_element_lists() {
        let text = tables(
            &state(0),
            &HostSide::default(),
            &Counted::new(),
            &Learned::new(),
        );
        assert!(!text.contains("{  }"), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_port_costs_elements_and_no_rules() {
        let rules = |guests: u8| {
            let mut state = state(guests);
            state.lan = (0..guests).map(lan_port).collect();
            tables(&state, &host(), &Counted::new(), &Learned::new())
                .lines()
                .filter(|line| line.contains(" accept") || line.contains(" drop"))
                .count()
        };
        assert_eq!(rules(1), rules(200));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_port_and_nobody_else_is_an_element(present in proptest::collection::btree_set(0_u8..200, 0..40)) {
            let mut state = state(0);
            state.ports = present.iter().map(|index| port(*index)).collect();
            let text = tables(&state, &host(), &Counted::new(), &Learned::new());
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
