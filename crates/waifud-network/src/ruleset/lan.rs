//! Ports on bridges that the host already has: which frames they may send, and how their addresses are learned.
//!
//! The network's own DHCP server assigns addresses, so the rules learn them in the kernel, so no process can be too slow: an
//! IPv4 address from the server's answer to the port's MAC address, an IPv6 address from the guest's duplicate address
//! detection (RFC 4862, section 5.4; first come, first served, as in RFC 6620). An address that another port of this node
//! holds on the same network is not learned, and the number of IPv6 addresses per hour is limited. Packets from addresses
//! in no set are dropped, so a lost entry never allows more.
//!
//! The source address of a request to 169.254.169.254 is replaced by the port's identity before the host's stack receives
//! it, and restored in the answer at the port. So neither the return route nor the source filter depends on the guest's own
//! address, and two networks may use the same range. No other machine on a bridge may send from an identity, or from
//! 169.254.169.254 to a guest.
//!
//! Raw payload: `@nh,96,32` is the source of IPv4, `@nh,112,32` the sender of ARP, `@nh,64,128` the source of IPv6. After
//! the UDP header (8 octets), BOOTP's `op` is `@th,64,8`, `yiaddr` `@th,192,32` and `chaddr` `@th,288,48` (RFC 951,
//! section 3). `@th,64,128` is the target of neighbor discovery (RFC 4861, section 4.3). The elements of a set have one
//! type, so raw payload is used even for those that `nft` has a name for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;
use waifud_types::template::REPORT_PORT;
use waifud_types::{MacAddr, TapName};

use super::vlan::READY;
use super::{HostSide, TO_HOST, collection, counter};
use crate::check::{fixed_v4, fixed_v6};
use crate::{IDENTITIES, LanPort, NetworkState, PortCounters};

/// The addresses learned at each port.
pub(crate) type Learned = BTreeMap<TapName, BTreeSet<IpAddr>>;

/// The sets of learned addresses.
pub(crate) const LEARNED: [&str; 2] = ["learned4", "learned6"];

/// Sets and maps that rules or the agent fill. Comparisons of rules leave out their elements.
pub(crate) const FILLED_BY_RULES: [&str; 10] = [
    "dns_asked",
    "dns_connected",
    "learned4",
    "learned6",
    "held4",
    "held6",
    "tentative6",
    "asked6",
    "answers",
    READY,
];

/// How long an unused address is kept: the longest expected lease or sleep of a guest. Each packet from it renews it.
const KEPT: &str = "timeout 30d";
/// More than the ports of a bridge; further addresses are not learned.
const SIZE: &str = "size 65536";

/// Objects of the bridge table.
pub(super) fn collections(state: &NetworkState, host: &HostSide, learned: &Learned) -> String {
    let ports = || state.lan.iter();
    let mut text = collection(
        "set lan_ports",
        "type ifname",
        ports().map(|p| format!("\"{}\"", p.tap)),
    );
    text.push_str(&collection(
        "set ranges6",
        "type ifname . ipv6_addr\n\t\tflags interval",
        ports().flat_map(|p| {
            let ranges: Vec<_> = fixed_v6(p)
                .filter(|range| range.prefix_len() < 128)
                .collect();
            let ranges = Ipv6Net::aggregate(&ranges);
            ranges
                .into_iter()
                .map(|range| format!("\"{}\" . {range}", p.tap))
        }),
    ));
    text.push_str(&collection(
        "set given6",
        "typeof iifname . @th,64,128",
        ports().flat_map(|p| {
            given_v6(p)
                .into_iter()
                .map(|a| format!("\"{}\" . {}", p.tap, hex(a.into())))
        }),
    ));
    text.push_str(&collection(
        "map networks",
        "type ifname : mark",
        ports().map(|p| format!("\"{}\" : {:#010x}", p.tap, network(p))),
    ));
    text.push_str(&identities(state, host));
    text.push_str(&taken(state, host));
    text.push_str(&filled_by_rules(state, learned));
    text
}

/// The identities of ports, and the MAC addresses of the host's bridges.
fn identities(state: &NetworkState, host: &HostSide) -> String {
    let with = || state.lan.iter().filter_map(|p| Some((p, p.identity?)));
    let mut text = collection(
        "map identities",
        "type ifname : ipv4_addr",
        with().map(|(p, identity)| format!("\"{}\" : {identity}", p.tap)),
    );
    text.push_str(&collection(
        "set identity_of",
        "type ifname . ipv4_addr",
        with().map(|(p, identity)| format!("\"{}\" . {identity}", p.tap)),
    ));
    let macs = state.lan.iter();
    let macs = macs.filter_map(|p| Some((p, host.bridges.get(&p.bridge)?)));
    text.push_str(&collection(
        "map bridge_macs",
        "type ifname : ether_addr",
        macs.map(|(p, mac)| format!("\"{}\" : {mac}", p.tap)),
    ));
    text.push_str(&collection(
        "map to_host_by",
        "type ifname : counter",
        state
            .lan
            .iter()
            .map(|p| format!("\"{tap}\" : \"{TO_HOST}{tap}\"", tap = p.tap)),
    ));
    text
}

/// Addresses that no port learns: those given to another port of the same network, and the host's own.
fn taken(state: &NetworkState, host: &HostSide) -> String {
    let elements = |of: fn(&LanPort) -> Vec<IpAddr>| {
        let all: BTreeSet<String> = state
            .lan
            .iter()
            .flat_map(|p| {
                let network = network(p);
                let all = of(p).into_iter();
                all.map(move |a| format!("{network:#010x} . {}", hex(a)))
            })
            .collect();
        all.into_iter()
    };
    let mut text = collection(
        "set taken4",
        "typeof meta mark . @th,192,32",
        elements(|p| {
            let single = fixed_v4(p).filter(|range| range.prefix_len() == 32);
            single.map(|range| range.network().into()).collect()
        }),
    );
    text.push_str(&collection(
        "set taken6",
        "typeof meta mark . @th,64,128",
        elements(|p| given_v6(p).into_iter().map(IpAddr::from).collect()),
    ));
    text.push_str(&collection(
        "set own4",
        "typeof @th,192,32",
        host.own.iter().map(|address| hex((*address).into())),
    ));
    text
}

/// The sets that rules fill, with the addresses learned before the tables are replaced.
fn filled_by_rules(state: &NetworkState, learned: &Learned) -> String {
    let known = |wanted: fn(&IpAddr) -> bool| {
        let ports = state.lan.iter();
        ports.flat_map(move |p| {
            let of = learned.get(&p.tap).into_iter().flatten();
            of.filter(move |a| wanted(a)).map(move |a| (p, *a))
        })
    };
    let set = |name: &str, kind: &str, timeout: &str, elements: Vec<String>| {
        let kind = format!("typeof {kind}\n\t\t{SIZE}\n\t\tflags dynamic,timeout\n\t\t{timeout}");
        collection(&format!("set {name}"), &kind, elements.into_iter())
    };
    let mut text = String::new();
    for (name, held, key, payload, wanted) in [
        (
            "learned4",
            "held4",
            "@nh,96,32",
            "@th,192,32",
            IpAddr::is_ipv4 as fn(&IpAddr) -> bool,
        ),
        (
            "learned6",
            "held6",
            "@th,64,128",
            "@th,64,128",
            IpAddr::is_ipv6,
        ),
    ] {
        let elements = known(wanted).map(|(p, a)| format!("\"{}\" . {}", p.tap, hex(a)));
        text.push_str(&set(
            name,
            &format!("iifname . {key}"),
            KEPT,
            elements.collect(),
        ));
        let elements: BTreeSet<_> = known(wanted)
            .map(|(p, a)| format!("{:#010x} . {}", network(p), hex(a)))
            .collect();
        let kind = format!("meta mark . {payload}");
        text.push_str(&set(held, &kind, KEPT, elements.into_iter().collect()));
    }
    // RetransTimer is one second (RFC 4861, section 10): the owner of an address answers within that time.
    text.push_str(&set(
        "tentative6",
        "iifname . @th,64,128",
        "timeout 3s",
        Vec::new(),
    ));
    text.push_str(&set("asked6", "iifname", "timeout 1h", Vec::new()));
    let kind = format!("type ifname : ipv4_addr\n\t\t{SIZE}\n\t\tflags dynamic");
    text.push_str(&collection("map answers", &kind, std::iter::empty()));
    text
}

/// Counters of the bridge table that only these ports have.
pub(super) fn counters(port: &LanPort, before: &PortCounters) -> String {
    counter(&format!("{TO_HOST}{}", port.tap), before.to_host)
}

/// IPv6 addresses that a port may use without learning: the interface's link-local address (RFC 4291, appendix A), and the
/// given ones.
fn given_v6(port: &LanPort) -> BTreeSet<Ipv6Addr> {
    let single = fixed_v6(port).filter(|range| range.prefix_len() == 128);
    let mut given: BTreeSet<_> = single.map(|range| range.network()).collect();
    given.insert(link_local(port.mac));
    given
}

fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [first, mac @ ..] = mac.bytes();
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[0xfe, 0x80]);
    // The universal bit is inverted, and two octets are inserted in the middle.
    bytes[8] = first ^ 2;
    bytes[9..11].copy_from_slice(&mac[..2]);
    bytes[11..13].copy_from_slice(&[0xff, 0xfe]);
    bytes[13..].copy_from_slice(&mac[2..]);
    bytes.into()
}

/// A number for a port's bridge and VLAN that does not depend on others (FNV-1a). If two networks had the same number, an
/// address in use on one would not be learned on the other.
fn network(port: &LanPort) -> u32 {
    let vlan = port.vlan.map(|vlan| vlan.get().to_be_bytes());
    // No name of an interface contains a zero, so the VLAN cannot be taken for a part of it.
    let vlan = vlan.into_iter().flat_map(|[high, low]| [0, high, low]);
    port.bridge
        .bytes()
        .chain(vlan)
        .fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
}

/// An address as a number, for comparisons with raw payload.
fn hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:#010x}", u32::from(address)),
        IpAddr::V6(address) => format!("{:#034x}", u128::from(address)),
    }
}

/// Rules for received frames of all other ports of bridges.
pub(super) fn from_elsewhere() -> String {
    format!(
        "\t\tip saddr {IDENTITIES} drop\n\t\tip daddr {IDENTITIES} drop\n\
         \t\tarp saddr ip {IDENTITIES} drop\n\t\tarp daddr ip {IDENTITIES} drop\n"
    )
}

/// Rules against frames that must not leave through any other port of a bridge: metadata requests that did not reach the
/// host, and answers that did not reach the guest.
pub(super) fn to_elsewhere() -> String {
    from_elsewhere()
}

/// The chains of these ports. The chains of `bridge.rs` jump here for ports in `lan_ports`.
pub(super) fn chains() -> String {
    RULES
        .trim_start_matches('\n')
        .replace(
            "ARP_PROLONGS",
            &prolongs("arp", "4", "@nh,112,32", "goto arp_of_lan"),
        )
        .replace(
            "IPV6_PROLONGS",
            &prolongs("ipv6", "6", "@th,64,128", "accept"),
        )
        .replace("IDENTITIES", &IDENTITIES.to_string())
        .replace("REPORT_PORT", &REPORT_PORT.to_string())
}

/// The chain that keeps a learned address for as long as its guest uses it. `address` is where the frame has it.
fn prolongs(protocol: &str, version: &str, address: &str, then: &str) -> String {
    format!(
        "\tchain {protocol}_prolongs {{
\t\tupdate @learned{version} {{ iifname . {address} }}
\t\tmeta mark set iifname map @networks
\t\tupdate @held{version} {{ meta mark . {address} }}
\t\tmeta mark set 0
\t\t{then}
\t}}
"
    )
}

const RULES: &str = "
	chain from_lan_port {
		iifname . ether saddr != @macs goto spoofed
		ether type arp goto arp_from_lan_port
		ether type ip goto ipv4_from_lan_port
		ether type ip6 goto ipv6_from_lan_port
		goto not_ipv4
	}
	chain arp_from_lan_port {
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } iifname . arp saddr ether @macs goto arp_sender_on_lan
		goto spoofed
	}
	chain arp_sender_on_lan {
		arp operation request arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ip @addresses goto arp_of_lan
		iifname . arp saddr ip @ranges goto arp_of_lan
		iifname . @nh,112,32 @learned4 goto arp_prolongs
		goto spoofed
	}
ARP_PROLONGS	chain arp_of_lan {
		arp daddr ip != 169.254.169.254 accept
		delete @answers { iifname : arp saddr ip }
		add @answers { iifname : arp saddr ip }
		arp saddr ip set iifname map @identities ether daddr set iifname map @bridge_macs meta pkttype set host accept
		drop
	}
	chain ipv4_from_lan_port {
		udp sport 67 goto spoofed
		udp dport 67 goto dhcp_from_lan_port
		iifname . ip saddr @addresses goto ipv4_of_lan
		iifname . ip saddr @ranges goto ipv4_of_lan
		iifname . @nh,96,32 @learned4 goto ipv4_of_lan
		ip saddr 0.0.0.0 ip protocol igmp accept
		goto spoofed
	}
	chain dhcp_from_lan_port {
		iifname . @th,288,48 != @dhcp_clients goto spoofed
		udp sport != 68 goto spoofed
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 accept
		iifname . ip saddr @addresses accept
		iifname . ip saddr @ranges accept
		iifname . @nh,96,32 @learned4 accept
		goto spoofed
	}
	chain ipv4_of_lan {
		icmp type { redirect, router-advertisement } goto spoofed
		ip daddr 169.254.169.254 goto metadata_from_lan_port
		ip daddr IDENTITIES goto refused_on_lan
		accept
	}
	chain metadata_from_lan_port {
		ip frag-off & 0x3fff != 0 goto refused_on_lan
		tcp dport { 80, REPORT_PORT } goto ask_metadata
		icmp type echo-request goto ask_metadata
		goto refused_on_lan
	}
	chain ask_metadata {
		tcp flags & (fin | syn | rst | ack) == syn delete @answers { iifname : ip saddr }
		icmp type echo-request delete @answers { iifname : ip saddr }
		add @answers { iifname : ip saddr }
		ip saddr set iifname map @identities ether daddr set iifname map @bridge_macs meta pkttype set host accept
		goto refused_on_lan
	}
	chain refused_on_lan {
		counter name iifname map @to_host_by drop
		drop
	}
	chain ipv6_from_lan_port {
		udp sport 547 goto spoofed
		icmpv6 type { nd-router-advert, nd-redirect } goto spoofed
		frag nexthdr != { tcp, udp, ipv6-icmp } goto spoofed
		ip6 saddr :: goto ipv6_from_no_address
		iifname . @nh,64,128 @given6 goto ipv6_of_lan
		iifname . @nh,64,128 @learned6 goto ipv6_of_lan
		iifname . ip6 saddr @ranges6 goto ipv6_of_lan
		goto spoofed
	}
	chain ipv6_from_no_address {
		icmpv6 type nd-neighbor-solicit goto detects_duplicates
		icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report } accept
		goto spoofed
	}
	chain ipv6_of_lan {
		icmpv6 type nd-neighbor-advert goto advertises
		accept
	}
	chain advertises {
		iifname . @th,64,128 @given6 accept
		iifname . @th,64,128 @learned6 goto ipv6_prolongs
		goto spoofed
	}
IPV6_PROLONGS	chain detects_duplicates {
		@th,64,8 0xff goto spoofed
		iifname . @th,64,128 @given6 accept
		iifname . @th,64,128 @learned6 goto ipv6_prolongs
		meta mark set iifname map @networks
		meta mark . @th,64,128 @taken6 goto learns_nothing
		meta mark . @th,64,128 @held6 goto learns_nothing
		update @asked6 { iifname limit rate over 30/hour burst 30 packets } goto learns_nothing
		update @held6 { meta mark . @th,64,128 }
		update @learned6 { iifname . @th,64,128 }
		update @tentative6 { iifname . @th,64,128 }
		goto learns_nothing
	}
	chain learns_nothing {
		meta mark set 0
		accept
	}
	chain to_lan_port {
		ip saddr IDENTITIES drop
		ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs drop
		ip saddr 169.254.169.254 goto answer_to_lan_port
		ip daddr IDENTITIES drop
		ether type arp goto arp_to_lan_port
		udp sport 67 udp dport 68 goto dhcp_to_lan_port
		icmpv6 type nd-neighbor-advert goto advertised_to_lan_port
		accept
	}
	chain answer_to_lan_port {
		oifname . ip daddr @identity_of ip daddr set oifname map @answers accept
		drop
	}
	chain arp_to_lan_port {
		arp saddr ip IDENTITIES drop
		arp saddr ip 169.254.169.254 oifname . arp daddr ip @identity_of arp daddr ip set oifname map @answers accept
		arp saddr ip 169.254.169.254 drop
		arp daddr ip IDENTITIES drop
		accept
	}
	chain dhcp_to_lan_port {
		oifname . @th,288,48 != @dhcp_clients accept
		@th,64,8 != 2 accept
		@th,192,32 { 0x00000000-0x00ffffff, 0x7f000000-0x7fffffff, 0xa9fe0000-0xa9feffff, 0xe0000000-0xffffffff } accept
		@th,192,32 @own4 accept
		meta mark set oifname map @networks
		oifname . @th,192,32 @learned4 goto dhcp_teaches
		meta mark . @th,192,32 @taken4 goto learns_nothing
		meta mark . @th,192,32 @held4 goto learns_nothing
		goto dhcp_teaches
	}
	chain dhcp_teaches {
		update @held4 { meta mark . @th,192,32 }
		update @learned4 { oifname . @th,192,32 }
		goto learns_nothing
	}
	chain advertised_to_lan_port {
		oifname . @th,64,128 @tentative6 goto is_taken
		accept
	}
	chain is_taken {
		meta mark set oifname map @networks
		delete @held6 { meta mark . @th,64,128 }
		delete @learned6 { oifname . @th,64,128 }
		delete @tentative6 { oifname . @th,64,128 }
		goto learns_nothing
	}
";
