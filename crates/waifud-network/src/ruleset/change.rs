//! The difference between two states as a transaction, if only guests were added or removed.
//!
//! Replacing both tables costs the kernel five times as much as adding the elements of a guest, and the creation of a guest
//! waits for it. So this covers the common case. For all others there is [`super::replacing`], which is always correct.

use std::fmt::Write as _;

use waifud_types::template::REPORT_PORT;

use super::inet::REFUSED_REPORTS;
use super::{NOT_IPV4, SPOOFED, TABLE, TO_HOST, as_number};
use crate::{NetworkState, Port};

/// The transaction that changes the rules of `before` to those of `after`; `None` if more than guests' elements differ.
pub(crate) fn change(before: &NetworkState, after: &NetworkState) -> Option<String> {
    if !same_node(before, after) {
        return None;
    }
    let mut text = String::new();
    // Elements refer to counters, so they are deleted before and added after them.
    for port in missing(before, after)? {
        for (place, element) in elements(port) {
            write(
                &mut text,
                &format!("delete element {place} {{ {element} }}"),
            );
        }
        for counter in counters(port) {
            write(&mut text, &format!("delete counter {counter}"));
        }
    }
    for port in missing(after, before)? {
        for counter in counters(port) {
            write(&mut text, &format!("add counter {counter}"));
        }
        for (place, element) in elements(port) {
            write(&mut text, &format!("add element {place} {{ {element} }}"));
        }
    }
    if before.refuse_reports != after.refuse_reports {
        let verb = if after.refuse_reports {
            "add"
        } else {
            "delete"
        };
        write(
            &mut text,
            &format!("{verb} element inet {TABLE} {REFUSED_REPORTS} {{ {REPORT_PORT} }}"),
        );
    }
    Some(text)
}

/// Whether the rules differ in ports only.
fn same_node(before: &NetworkState, after: &NetworkState) -> bool {
    let bare = |state: &NetworkState| NetworkState {
        ports: Vec::new(),
        refuse_reports: false,
        // Compared below.
        remote_subnets: Vec::new(),
        // No rule depends on these.
        remote_names: [].into(),
        mtu: 0,
        domain: String::new(),
        ..state.clone()
    };
    // Nor on the names of other nodes, and on subnets that no fabric carries.
    let carried = |state: &NetworkState| -> Vec<_> {
        let remotes = state.remote_subnets.iter();
        let carried = remotes.filter_map(|remote| Some((remote.fabric.clone()?, remote.subnet)));
        carried.collect()
    };
    bare(before) == bare(after) && carried(before) == carried(after)
}

/// Ports of `here` that are not in `there`. `None` if one has changed, publishes ports, has a firewall, or has an address outside
/// the subnet, because such addresses are merged with the subnet.
fn missing<'a>(here: &'a NetworkState, there: &NetworkState) -> Option<Vec<&'a Port>> {
    let mut missing = Vec::new();
    for port in &here.ports {
        match there.ports.iter().find(|other| other.tap == port.tap) {
            Some(other) if is_same(port, other) => {}
            None if is_plain(port) => missing.push(port),
            _ => return None,
        }
    }
    Some(missing)
}

/// Whether no rules depend on the port apart from its own elements.
fn is_plain(port: &Port) -> bool {
    port.home.is_none()
        && port.allow_addresses.is_empty()
        && port.publish.is_empty()
        && port.firewall.is_open()
}

/// Whether both have the same rules. The name is used for DNS only.
fn is_same(one: &Port, other: &Port) -> bool {
    (one.mac, one.address, one.home) == (other.mac, other.address, other.home)
        && one.allow_addresses == other.allow_addresses
        && one.publish == other.publish
        && one.firewall == other.firewall
}

fn counters(port: &Port) -> [String; 3] {
    [("bridge", SPOOFED), ("bridge", NOT_IPV4), ("inet", TO_HOST)]
        .map(|(family, prefix)| format!("{family} {TABLE} {prefix}{}", port.tap))
}

/// A port's elements, each with its set or map.
fn elements(port: &Port) -> [(String, String); 6] {
    let Port {
        tap, mac, address, ..
    } = port;
    [
        (
            "bridge",
            "spoofed_by",
            format!("\"{tap}\" : \"{SPOOFED}{tap}\""),
        ),
        (
            "bridge",
            "not_ipv4_by",
            format!("\"{tap}\" : \"{NOT_IPV4}{tap}\""),
        ),
        (
            "inet",
            "refused_by",
            format!("{address} : \"{TO_HOST}{tap}\""),
        ),
        (
            "bridge",
            "dhcp_clients",
            format!("\"{tap}\" . {}", as_number(*mac)),
        ),
        ("bridge", "addresses", format!("\"{tap}\" . {address}")),
        ("bridge", "macs", format!("\"{tap}\" . {mac}")),
    ]
    .map(|(family, set, element)| (format!("{family} {TABLE} {set}"), element))
}

fn write(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use waifud_types::firewall::FirewallAction;
    use waifud_types::spec::{Protocol, PublishSpec};

    use super::*;
    use crate::RemoteSubnet;
    use crate::samples::{port, remote, state};

    #[test]
    fn one_guest_is_removed_and_one_added() {
        let mut after = state(2);
        after.ports[0] = port(7);
        insta::assert_snapshot!(change(&state(2), &after).unwrap());
    }

    #[test]
    fn properties_that_no_rule_depends_on_change_no_rule() {
        let mut after = state(2);
        after.ports[0].name = "renamed".parse().unwrap();
        after.mtu = 1400;
        after.domain = "other".to_owned();
        after.ports.reverse();
        let mut before = state(2);
        before.remote_subnets = vec![remote(2)];
        after.remote_subnets = vec![
            RemoteSubnet {
                node: "renamed".parse().unwrap(),
                ..remote(2)
            },
            RemoteSubnet {
                fabric: None,
                ..remote(3)
            },
        ];
        assert_eq!(change(&before, &after).as_deref(), Some(""));
    }

    #[test]
    fn refusing_reports_costs_one_element() {
        let mut after = state(2);
        after.refuse_reports = true;
        let expected = |verb: &str| {
            let text = format!("{verb} element inet waifud refused_reports {{ 8169 }}\n");
            Some(text)
        };
        assert_eq!(change(&state(2), &after), expected("add"));
        assert_eq!(change(&after, &state(2)), expected("delete"));
        assert_eq!(change(&after, &after.clone()).as_deref(), Some(""));
    }

    #[test]
    fn all_other_changes_need_a_replacement() {
        let changes: [fn(&mut NetworkState); 10] = [
            |s| {
                s.ports[0].publish = vec![PublishSpec {
                    port: 80,
                    guest_port: 80,
                    protocol: Protocol::Tcp,
                }];
            },
            |s| s.ports[0].firewall.incoming = FirewallAction::Deny,
            |s| s.ports[0].mac = port(9).mac,
            |s| s.ports[0].address = port(9).address,
            |s| s.ports[0].allow_addresses = vec!["10.9.0.1/32".parse().unwrap()],
            |s| s.gateway = [10, 144, 1, 2].into(),
            |s| s.metadata_interface = "wg1".to_owned(),
            |s| s.bridge = "waifu1".to_owned(),
            |s| s.remote_subnets.push(remote(4)),
            |s| s.remote_subnets[0].fabric = Some("fab1".to_owned()),
        ];
        let mut before = state(2);
        before.remote_subnets = vec![remote(2)];
        for alter in changes {
            let mut after = before.clone();
            alter(&mut after);
            assert_eq!(change(&before, &after), None);
            assert_eq!(change(&after, &before), None);
        }
    }
}
