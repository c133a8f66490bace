//! Frames at the guests' ports: what may be said there, and what may be heard.
//!
//! From a port: IPv4 and ARP with the port's own MAC and addresses, as DHCP client but not as server. To a port:
//! what is addressed to its MAC, ARP that asks for its addresses, and DHCP answers that are its own. The second half
//! matters because a bridge floods frames whose receiver it has forgotten to all ports.

use super::{Counted, NOT_IPV4, SPOOFED, TABLE, UNKNOWN_PORT, as_number, collection, counter};
use crate::NetworkState;
use crate::check::further_ranges;

/// 288 bits behind the UDP header's begin lies BOOTP's `chaddr` (8 octets of UDP, 28 of BOOTP: RFC 951, section 3):
/// the MAC that a DHCP message speaks for. Without this, a guest could decline a neighbour's lease in its name.
const RULES: &str = r#"
	chain from_ports {
		type filter hook prerouting priority -300; policy accept;
		iifname "wf-*" goto from_port
	}
	chain from_port {
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
		iifname . arp saddr ip @leases accept
		iifname . arp saddr ip @ranges accept
		goto spoofed
	}
	chain ipv4_from_port {
		udp sport 67 goto spoofed
		udp dport 67 goto dhcp_from_port
		iifname . ip saddr @leases accept
		iifname . ip saddr @ranges accept
		goto spoofed
	}
	chain dhcp_from_port {
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 iifname . @th,288,48 @dhcp_clients accept
		iifname . ip saddr @leases udp sport 68 iifname . @th,288,48 @dhcp_clients accept
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
	}
	chain to_port {
		ether daddr ff:ff:ff:ff:ff:ff goto broadcast_to_port
		ether type { ip, arp } oifname . ether daddr @macs accept
		drop
	}
	chain broadcast_to_port {
		ether type arp arp operation request oifname . arp daddr ip @leases accept
		ether type arp arp operation request oifname . arp daddr ip @ranges accept
		ether type ip udp sport 67 udp dport 68 oifname . @th,288,48 @dhcp_clients accept
		drop
	}
"#;

pub(super) fn table(state: &NetworkState, counted: &Counted) -> String {
    let ports = || state.ports.iter();
    let mut text = format!("table bridge {TABLE} {{\n");
    text.push_str(&counter(UNKNOWN_PORT, 0));
    for port in ports() {
        let before = counted.get(&port.tap).cloned().unwrap_or_default();
        text.push_str(&counter(&format!("{SPOOFED}{}", port.tap), before.spoofed));
        text.push_str(&counter(
            &format!("{NOT_IPV4}{}", port.tap),
            before.not_ipv4,
        ));
    }
    for (map, prefix) in [("spoofed_by", SPOOFED), ("not_ipv4_by", NOT_IPV4)] {
        text.push_str(&collection(
            &format!("map {map}"),
            "type ifname : counter",
            ports().map(|p| format!("\"{tap}\" : \"{prefix}{tap}\"", tap = p.tap)),
        ));
    }
    text.push_str(&collection(
        "set macs",
        "type ifname . ether_addr",
        ports().map(|p| format!("\"{}\" . {}", p.tap, p.mac)),
    ));
    text.push_str(&collection(
        "set leases",
        "type ifname . ipv4_addr",
        ports().map(|p| format!("\"{}\" . {}", p.tap, p.address)),
    ));
    text.push_str(&collection(
        "set ranges",
        "type ifname . ipv4_addr\n\t\tflags interval",
        ports().flat_map(|p| further_ranges(p).map(|range| format!("\"{}\" . {range}", p.tap))),
    ));
    text.push_str(&collection(
        "set dhcp_clients",
        "typeof iifname . @th,288,48",
        ports().map(|p| format!("\"{}\" . {}", p.tap, as_number(p.mac))),
    ));
    text.push_str(RULES.trim_start_matches('\n'));
    text.push_str("}\n");
    text
}
