//! Rules for frames at the guests' ports, in both directions.
//!
//! A port may send IPv4 and ARP with its own MAC and IP addresses, and DHCP as a client but not as a server. It may receive
//! frames to its MAC address, ARP requests for its addresses, and DHCP answers to it. The restriction on receiving matters
//! because a bridge floods frames to all ports if it has not learned the destination.
//!
//! Ports on bridges of the host have separate chains ([`super::lan`]).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::lan::{self, Learned};
use super::vlan::{self, Ready};
use super::{
    Counted, HostSide, NOT_IPV4, SPOOFED, TABLE, UNKNOWN_PORT, as_number, collection, counter,
};
use crate::NetworkState;
use crate::check::{fixed_v4, further_ranges};

/// BOOTP's `chaddr`, the MAC address of the DHCP client, is 288 bits after the beginning of the UDP header (8 octets of
/// UDP, 28 of BOOTP: RFC 951, section 3). Without this check, a guest could decline the lease of another guest.
const RULES: &str = r#"
	chain from_ports {
		type filter hook prerouting priority -300; policy accept;
		iifname "wf-*" goto from_port
FROM_ELSEWHERE	}
	chain from_port {
FROM_VLAN		iifname @lan_ports goto from_lan_port
		iifname . ether saddr != @macs goto spoofed
		ether type arp goto arp_from_port
		ether type ip goto ipv4_from_port
		goto not_ipv4
	}
	chain arp_from_port {
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } iifname . arp saddr ether @macs goto arp_sender
		goto spoofed
	}
	chain arp_sender {
		arp operation request arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ip @addresses accept
		iifname . arp saddr ip @ranges accept
		goto spoofed
	}
	chain ipv4_from_port {
		udp sport 67 goto spoofed
		udp dport 67 goto dhcp_from_port
		iifname . ip saddr @addresses accept
		iifname . ip saddr @ranges accept
		ip saddr 0.0.0.0 ip protocol igmp drop
		goto spoofed
	}
	chain dhcp_from_port {
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 iifname . @th,288,48 @dhcp_clients accept
		iifname . ip saddr @addresses udp sport 68 iifname . @th,288,48 @dhcp_clients accept
		goto spoofed
	}
	chain spoofed {
		counter name iifname map @spoofed_by drop
		counter name "unknown-port" drop
	}
	chain not_ipv4 {
		counter name iifname map @not_ipv4_by drop
		counter name "unknown-port" drop
	}
	chain to_ports {
		type filter hook postrouting priority 0; policy accept;
		oifname "wf-*" goto to_port
TO_ELSEWHERE	}
	chain to_port {
TO_VLAN		oifname @lan_ports goto to_lan_port
		ether daddr ff:ff:ff:ff:ff:ff goto broadcast_to_port
		ether type { ip, arp } oifname . ether daddr @macs accept
		drop
	}
	chain broadcast_to_port {
		ether type arp arp operation request oifname . arp daddr ip @addresses accept
		ether type arp arp operation request oifname . arp daddr ip @ranges accept
		ether type ip udp sport 67 udp dport 68 oifname . @th,288,48 @dhcp_clients accept
		drop
	}
"#;

pub(super) fn table(
    state: &NetworkState,
    host: &HostSide,
    counted: &Counted,
    learned: &Learned,
    ready: &Ready,
) -> String {
    let ports = || state.ports.iter();
    let lan = || state.lan.iter();
    // Used for both kinds of ports.
    let both = || {
        let ports = ports().map(|p| (&p.tap, p.mac));
        ports.chain(lan().map(|p| (&p.tap, p.mac)))
    };
    let mut text = format!("table bridge {TABLE} {{\n");
    text.push_str(&counter(UNKNOWN_PORT, 0));
    for (tap, _) in both() {
        let before = counted.get(tap).cloned().unwrap_or_default();
        text.push_str(&counter(&format!("{SPOOFED}{tap}"), before.spoofed));
        text.push_str(&counter(&format!("{NOT_IPV4}{tap}"), before.not_ipv4));
    }
    for port in lan() {
        let before = counted.get(&port.tap).cloned().unwrap_or_default();
        text.push_str(&lan::counters(port, &before));
    }
    for (map, prefix) in [("spoofed_by", SPOOFED), ("not_ipv4_by", NOT_IPV4)] {
        text.push_str(&collection(
            &format!("map {map}"),
            "type ifname : counter",
            both().map(|(tap, _)| format!("\"{tap}\" : \"{prefix}{tap}\"")),
        ));
    }
    text.push_str(&collection(
        "set macs",
        "type ifname . ether_addr",
        both().map(|(tap, mac)| format!("\"{tap}\" . {mac}")),
    ));
    // Single addresses have a set of their own: on kernel 6.1, a set of interfaces and ranges is empty for an instant when the
    // tables are replaced.
    let leases = ports().map(|p| (&p.tap, p.address));
    let given = ports().flat_map(|p| further_ranges(p).map(|range| (&p.tap, range)));
    let given = given.chain(lan().flat_map(|p| fixed_v4(p).map(|range| (&p.tap, range))));
    let (single, ranges): (Vec<_>, Vec<_>) =
        given.partition(|(_, range)| range.prefix_len() == range.max_prefix_len());
    let single = single
        .into_iter()
        .map(|(tap, range)| (tap, range.network()));
    let addresses: BTreeSet<_> = leases.chain(single).collect();
    text.push_str(&collection(
        "set addresses",
        "type ifname . ipv4_addr",
        addresses
            .into_iter()
            .map(|(tap, address)| format!("\"{tap}\" . {address}")),
    ));
    let mut ranges_of: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (tap, range) in ranges {
        ranges_of.entry(tap).or_default().push(range);
    }
    text.push_str(&collection(
        "set ranges",
        "type ifname . ipv4_addr\n\t\tflags interval",
        ranges_of.into_iter().flat_map(|(tap, ranges)| {
            let ranges = Ipv4Net::aggregate(&ranges);
            ranges
                .into_iter()
                .map(move |range| format!("\"{tap}\" . {range}"))
        }),
    ));
    text.push_str(&collection(
        "set dhcp_clients",
        "typeof iifname . @th,288,48",
        both().map(|(tap, mac)| format!("\"{tap}\" . {}", as_number(mac))),
    ));
    text.push_str(&lan::collections(state, host, learned));
    text.push_str(&vlan::collections(state, host, ready));
    let rules = RULES.trim_start_matches('\n');
    let rules = rules.replace("FROM_ELSEWHERE", &lan::from_elsewhere());
    let rules = rules.replace("TO_ELSEWHERE", &lan::to_elsewhere());
    let rules = rules.replace("FROM_VLAN", vlan::from_port(state));
    text.push_str(&rules.replace("TO_VLAN", vlan::to_port(state)));
    text.push_str(&lan::chains());
    text.push_str(&vlan::chains(state, host));
    text.push_str("}\n");
    text
}
