//! Rules for routed packets: which services of the host guests may reach, and which packets are forwarded for them.
//!
//! Access to the host is checked before destination NAT, so that ports that Docker publishes on the host's address count as
//! the host, and again at input. An `accept` ends only our table: other tables on the same hook are still evaluated, so
//! the administrator's rules are not overridden.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ipnet::Ipv4Net;
use waifud_types::template::REPORT_PORT;

use super::{Counted, HostSide, TABLE, TO_HOST, collection, counter, guest_firewall, published};
use crate::check::further_ranges;
use crate::{IDENTITIES, NetworkState, gateway_of};

/// Limits for the DNS queries of one guest: queries per second, and burst. Each query that no upstream server answers
/// occupies one of [`crate::dhcp::QUESTIONS_MAX`] slots of dnsmasq for ten seconds.
pub(crate) const DNS_RATE: u32 = 100;
pub(crate) const DNS_BURST: u32 = 200;
/// TCP connections of one guest to dnsmasq. Each occupies one of its 20 processes, possibly for minutes.
pub(crate) const DNS_CONNECTIONS: u32 = 4;

/// The number of queries by MAC address, which the bridge rules have verified. Filled by rules.
const DNS_SETS: &str = "\tset dns_asked {
\t\ttype ether_addr
\t\tsize 65536
\t\tflags dynamic,timeout
\t\ttimeout 1m
\t}
\tset dns_connected {
\t\ttype ether_addr
\t\tsize 65536
\t\tflags dynamic
\t}
";

/// The set that contains [`REPORT_PORT`] while reports are refused. They are refused before destination NAT: with
/// `br_netfilter`, the kernel sends the reset directly to the port, without undoing NAT. For the same reason, the reset would
/// not reach a guest on a bridge of the host, whose address has been replaced by its port's identity.
pub(super) const REFUSED_REPORTS: &str = "refused_reports";

/// The beginning of the names of sets with the subnets at a fabric.
const REMOTE_AT: &str = "remote_at_";

pub(super) fn table(state: &NetworkState, host: &HostSide, counted: &Counted) -> String {
    let mut text = format!("table inet {TABLE} {{\n");
    for port in &state.ports {
        let before = counted.get(&port.tap).map_or(0, |c| c.to_host);
        text.push_str(&counter(&format!("{TO_HOST}{}", port.tap), before));
    }
    text.push_str(&guest_firewall::counters(state, counted));
    text.push_str(&collection(
        "map refused_by",
        "type ipv4_addr : counter",
        state
            .ports
            .iter()
            .map(|p| format!("{} : \"{TO_HOST}{}\"", p.address, p.tap)),
    ));
    text.push_str(&collection(
        "set guests",
        "type ipv4_addr\n\t\tflags interval",
        guests(state).iter().map(Ipv4Net::to_string),
    ));
    text.push_str(&collection(
        "set routed",
        "type ipv4_addr\n\t\tflags interval",
        Ipv4Net::aggregate(&host.routed)
            .iter()
            .map(Ipv4Net::to_string),
    ));
    text.push_str(&remote(state));
    text.push_str(&moved(state));
    text.push_str(&collection(
        "set switched",
        "type ifname",
        host.switched.iter().map(|name| format!("\"{name}\"")),
    ));
    text.push_str(&collection(
        &format!("set {REFUSED_REPORTS}"),
        "type inet_service",
        state
            .refuse_reports
            .then(|| REPORT_PORT.to_string())
            .into_iter(),
    ));
    text.push_str(DNS_SETS);
    text.push_str(&metadata_clients(state, host));
    text.push_str(&published::collections(state));
    text.push_str(&chains(state));
    text.push_str(&published::chains(state));
    text.push_str(&guest_firewall::chains(state));
    text.push_str("}\n");
    text
}

/// The source of each identity, and the host's own bridges: with `br_netfilter`, packets that these bridges switch also
/// pass our chains, and must not be affected.
fn metadata_clients(state: &NetworkState, host: &HostSide) -> String {
    let with = state.lan.iter().filter_map(|p| Some((p, p.identity?)));
    let mut text = collection(
        "set metadata_clients",
        "type ifname . ipv4_addr",
        with.map(|(p, identity)| format!("\"{}\" . {identity}", p.bridge)),
    );
    let bridges = || host.bridges.iter();
    text.push_str(&collection(
        "set bridged",
        "type ifname . ifname",
        bridges().map(|(name, _)| format!("\"{name}\" . \"{name}\"")),
    ));
    let macs: std::collections::BTreeSet<_> = bridges().map(|(_, mac)| mac.to_string()).collect();
    text.push_str(&collection(
        "set bridge_macs",
        "type ether_addr",
        macs.into_iter(),
    ));
    text
}

/// The interfaces at which packets from guests of other nodes may arrive, each with the subnets there. A subnet that no fabric
/// carries changes nothing: its guests are reached by the host's routes, with the host's address.
fn by_fabric(state: &NetworkState) -> BTreeMap<&str, Vec<Ipv4Net>> {
    let mut by_fabric = BTreeMap::<&str, Vec<Ipv4Net>>::new();
    for remote in &state.remote_subnets {
        if let Some(fabric) = &remote.fabric {
            by_fabric.entry(fabric).or_default().push(remote.subnet);
        }
    }
    by_fabric
}

/// Guest subnets of other nodes, in all and by fabric, and the fabrics of their own, over which a connection can only come from such
/// a subnet.
///
/// Each fabric has a set of its own. One set of interfaces and subnets would be empty for an instant when the tables are replaced:
/// in Linux 6.1, the elements of such a set become visible after the rules that use it, and packets of all other nodes were lost.
fn remote(state: &NetworkState) -> String {
    let by_fabric = by_fabric(state);
    let subnets: Vec<_> = by_fabric.values().flatten().copied().collect();
    let remotes = state.remote_subnets.iter();
    let dedicated = remotes.filter(|remote| !remote.shared);
    let dedicated: BTreeSet<_> = dedicated
        .filter_map(|remote| remote.fabric.as_ref())
        .collect();
    let ranges = |subnets: &Vec<Ipv4Net>| {
        let merged = Ipv4Net::aggregate(subnets).into_iter();
        merged.map(|subnet| subnet.to_string()).collect::<Vec<_>>()
    };
    let kind = "type ipv4_addr\n\t\tflags interval";
    let mut text = collection("set remote", kind, ranges(&subnets).into_iter());
    for (number, subnets) in by_fabric.values().enumerate() {
        let set = format!("set {REMOTE_AT}{number}");
        text.push_str(&collection(&set, kind, ranges(subnets).into_iter()));
    }
    text.push_str(&collection(
        "set fabrics",
        "type ifname",
        dedicated.iter().map(|fabric| format!("\"{fabric}\"")),
    ));
    text
}

/// Guests that have moved between nodes and kept their address: those of this node's subnet that are elsewhere, those of another
/// subnet that are here, and the gateways of the latter.
fn moved(state: &NetworkState) -> String {
    let elsewhere = state.remote_subnets.iter().filter(|remote| {
        remote.fabric.is_some() && remote.is_address() && state.subnet.contains(&remote.subnet)
    });
    let here = state.ports.iter().filter(|port| port.home.is_some());
    let mut text = collection(
        "set moved_away",
        "type ipv4_addr",
        elsewhere.map(|remote| remote.subnet.addr().to_string()),
    );
    text.push_str(&collection(
        "set moved_here",
        "type ipv4_addr",
        here.map(|port| port.address.to_string()),
    ));
    let homes = state.homes().into_iter();
    text.push_str(&collection(
        "set home_gateways",
        "type ipv4_addr",
        homes.map(|home| gateway_of(home).to_string()),
    ));
    text
}

/// The subnet, addresses of guests that moved here, and the further ranges, merged if they are adjacent, because interval sets allow no overlaps.
fn guests(state: &NetworkState) -> Vec<Ipv4Net> {
    let mut ranges = vec![state.subnet];
    let moved = state.ports.iter().filter(|port| port.home.is_some());
    ranges.extend(moved.map(|port| Ipv4Net::from(port.address)));
    ranges.extend(state.ports.iter().flat_map(further_ranges));
    Ipv4Net::aggregate(&ranges)
}

/// The rules for packets from guests of other nodes: they return where such a packet may arrive.
fn from_remote(state: &NetworkState) -> String {
    let mut text = String::new();
    for (number, fabric) in by_fabric(state).keys().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\t\tiifname \"{fabric}\" ip saddr @{REMOTE_AT}{number} return"
        );
    }
    text
}

fn chains(state: &NetworkState) -> String {
    let from_remote = from_remote(state);
    let NetworkState {
        bridge,
        metadata_interface: metadata,
        gateway,
        subnet,
        ..
    } = state;
    format!(
        r#"	chain before_nat {{
		type filter hook prerouting priority mangle; policy accept;
		ip saddr {IDENTITIES} iifname . ip saddr != @metadata_clients drop
		iifname "{bridge}" ip daddr 169.254.169.254 tcp dport @{REFUSED_REPORTS} reject with tcp reset
		iifname "{bridge}" meta nfproto ipv6 drop
		iifname "{bridge}" ip daddr != {gateway} fib daddr type local meta l4proto . th dport @published_ports accept
		iifname "{bridge}" fib daddr type != unicast goto to_host
	}}
	chain reporting {{
		type nat hook prerouting priority -100; policy accept;
		iifname "{bridge}" ip daddr 169.254.169.254 tcp dport {REPORT_PORT} dnat ip to 169.254.169.254:80
		ip saddr {IDENTITIES} ip daddr 169.254.169.254 tcp dport {REPORT_PORT} dnat ip to 169.254.169.254:80
		iifname "{bridge}" ip daddr @home_gateways meta l4proto {{ tcp, udp }} th dport {{ 53, 67 }} dnat ip to {gateway}
	}}
	chain input {{
		type filter hook input priority filter - 10; policy accept;
		iifname "{bridge}" ip daddr {gateway} udp dport 53 update @dns_asked {{ ether saddr limit rate over {DNS_RATE}/second burst {DNS_BURST} packets }} drop
		iifname "{bridge}" ip daddr {gateway} tcp dport 53 ct state new add @dns_connected {{ ether saddr ct count over {DNS_CONNECTIONS} }} drop
		iifname "{bridge}" goto to_host
		iifname @fabrics ct state established,related accept
		iifname @fabrics ip saddr @remote ip daddr {gateway} icmp type echo-request accept
		iifname @fabrics drop
	}}
	chain to_host {{
		ip daddr {{ 255.255.255.255, {gateway} }} udp sport 68 udp dport 67 accept
		ip daddr {gateway} udp dport 53 accept
		ip daddr {gateway} tcp dport 53 accept
		ip daddr {gateway} icmp type echo-request accept
		ct state established,related accept
		fib daddr type {{ broadcast, multicast }} drop
		goto refused
	}}
	chain refused {{
		counter name ip saddr map @refused_by drop
		drop
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
		oifname "{bridge}" icmp type redirect drop
	}}
	chain forwarding {{
		type filter hook forward priority filter - 10; policy accept;
		iifname . oifname @bridged ether daddr != @bridge_macs accept
		iifname "{bridge}" goto from_guests
		oifname "{bridge}" goto to_guests
		ip saddr {IDENTITIES} goto from_askers
		ip daddr {IDENTITIES} goto to_askers
		oifname "{metadata}" drop
		iifname "{metadata}" drop
		iifname @switched ct state new drop
	}}
	chain from_guests {{
		meta nfproto ipv6 drop
		ip daddr {IDENTITIES} goto refused
		oifname "{metadata}" goto to_metadata
		ip daddr 169.254.0.0/16 goto refused
		tcp flags syn / syn,rst tcp option maxseg size set rt mtu
		accept
	}}
	chain from_askers {{
		oifname "{metadata}" iifname . ip saddr @metadata_clients goto to_metadata
		drop
	}}
	chain to_askers {{
		iifname "{metadata}" ip saddr 169.254.169.254 oifname . ip daddr @metadata_clients ct state established,related accept
		drop
	}}
	chain to_metadata {{
		ip daddr 169.254.169.254 tcp dport 80 accept
		ip daddr 169.254.169.254 icmp type echo-request accept
		goto refused
	}}
	chain from_remote {{
{from_remote}		drop
	}}
	chain to_guests {{
		meta nfproto ipv6 drop
		iifname "{metadata}" ip saddr 169.254.169.254 ct state established,related accept
		iifname "{metadata}" drop
		ip saddr {subnet} ip saddr != @moved_away drop
		ip saddr @moved_here drop
		ip saddr @remote jump from_remote
		iifname @fabrics ip saddr != @remote ct state != {{ established, related }} drop
		tcp flags syn / syn,rst tcp option maxseg size set rt mtu
		accept
	}}
	chain masquerading {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr . ip daddr @publishers masquerade
		ip saddr @guests ip daddr != @routed ip daddr != @remote oifname != {{ "{bridge}", "{metadata}", "lo" }} masquerade
	}}
"#
    )
}
