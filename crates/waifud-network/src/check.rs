//! Refuses a state that contradicts itself, before anything is changed.
//!
//! The firewall guarantees that an address is used by one owner only. This requires a state in which no address has two
//! owners, so the real adapter and the fake both call [`check`] first. Names that are written to a ruleset or to dnsmasq's
//! configuration are checked here as well: those that pass need no quoting.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use waifud_types::VlanId;

use crate::{IDENTITIES, LanPort, NetworkError, NetworkState, Port, gateway_of};

/// The maximum length of an interface name: `IFNAMSIZ` (16) without the final zero.
const INTERFACE_NAME_MAX: usize = 15;

/// The minimum MTU (RFC 791: "every internet module must be able to forward a datagram of 68 octets").
const MTU_MIN: u16 = 68;

/// Ranges that no guest may have an address in: link-local (RFC 3927), loopback, "this network", multicast and reserved.
const NEVER_GUESTS: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The same for IPv6: unspecified and loopback, multicast (RFC 4291).
const NEVER_GUESTS_V6: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::UNSPECIFIED, 127),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Checks that all ports of a state can be served together. The error describes the first contradiction.
pub fn check(state: &NetworkState) -> Result<(), NetworkError> {
    check_names(state)?;
    check_subnet(state)?;
    check_ports(state)?;
    check_lan(state)
}

/// Further IPv4 ranges that `port` may use as source. IPv6 ranges are left out: this network has no IPv6.
pub(crate) fn further_ranges(port: &Port) -> impl Iterator<Item = Ipv4Net> {
    port.allow_addresses.iter().filter_map(|range| match range {
        IpNet::V4(range) => Some(range.trunc()),
        IpNet::V6(_) => None,
    })
}

fn contradiction(text: String) -> NetworkError {
    NetworkError::Contradiction(text)
}

fn check_names(state: &NetworkState) -> Result<(), NetworkError> {
    check_interface_name(&state.bridge)?;
    check_interface_name(&state.metadata_interface)?;
    if state.bridge == state.metadata_interface {
        return Err(contradiction(format!(
            "{} is both the guests' bridge and the metadata interface",
            state.bridge
        )));
    }
    let labels_are_plain = state
        .domain
        .split('.')
        .all(|label| label.parse::<waifud_types::Name>().is_ok());
    // RFC 1035, section 2.3.4: at most 255 octets, including the guest's own label.
    if !labels_are_plain || state.domain.len() > 190 {
        let shown: String = state.domain.chars().take(40).collect();
        return Err(contradiction(format!(
            "{shown:?} is not a valid DNS domain"
        )));
    }
    if state.mtu < MTU_MIN {
        return Err(contradiction(format!(
            "the MTU {} is less than the minimum of {MTU_MIN}",
            state.mtu
        )));
    }
    Ok(())
}

pub(crate) fn check_interface_name(name: &str) -> Result<(), NetworkError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let leads = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !leads || name.len() > INTERFACE_NAME_MAX || !name.chars().all(plain) {
        let shown: String = name.chars().take(40).collect();
        return Err(contradiction(format!(
            "{shown:?} is not a valid interface name: 1 to {INTERFACE_NAME_MAX} of a-z, A-Z, 0-9, -, _ and ."
        )));
    }
    if name.starts_with(waifud_types::TapName::PREFIX) {
        return Err(contradiction(format!(
            "interface name {name} is reserved for guests' ports"
        )));
    }
    Ok(())
}

fn check_subnet(state: &NetworkState) -> Result<(), NetworkError> {
    let subnet = state.subnet;
    if subnet.prefix_len() > 30 || subnet.trunc() != subnet {
        return Err(contradiction(format!(
            "{subnet} cannot be the guests' subnet: it has host bits set, or is too small for a gateway and a guest"
        )));
    }
    if let Some(range) = never_guests(subnet) {
        return Err(contradiction(format!(
            "subnet {subnet} is in {range}, which cannot be routed"
        )));
    }
    if !is_host_of(subnet, state.gateway) {
        return Err(contradiction(format!(
            "gateway {} is not an address of {subnet}",
            state.gateway
        )));
    }
    Ok(())
}

fn check_ports(state: &NetworkState) -> Result<(), NetworkError> {
    let mut taps = HashSet::new();
    let mut macs = HashMap::from([(state.gateway_mac, "the gateway".to_owned())]);
    let mut leases = HashMap::from([(state.gateway, "the gateway".to_owned())]);
    for home in check_homes(state)? {
        leases.insert(gateway_of(home), format!("the gateway of {home}"));
    }
    for port in &state.ports {
        let who = format!("{} ({})", port.name, port.tap);
        let subnet = port.home.unwrap_or(state.subnet);
        if !taps.insert(&port.tap) {
            return Err(contradiction(format!("port {} is listed twice", port.tap)));
        }
        if let Some(why) = port.firewall.contradiction() {
            return Err(contradiction(format!("a firewall rule of {who} {why}")));
        }
        if !is_host_of(subnet, port.address) {
            return Err(contradiction(format!(
                "{who} has {}, which is not a host address in {subnet}",
                port.address
            )));
        }
        if let Some(other) = macs.insert(port.mac, who.clone()) {
            return Err(contradiction(format!(
                "MAC address {} is assigned to both {other} and {who}",
                port.mac
            )));
        }
        if let Some(other) = leases.insert(port.address, who.clone()) {
            return Err(contradiction(format!(
                "address {} is assigned to both {other} and {who}",
                port.address
            )));
        }
    }
    for port in &state.ports {
        check_further_ranges(state, port, &leases)?;
    }
    check_shared_ranges(state)?;
    check_published(state)
}

/// The subnets of guests that kept their address. Each has a gateway, and they overlap neither each other nor this node's subnet.
fn check_homes(state: &NetworkState) -> Result<BTreeSet<Ipv4Net>, NetworkError> {
    let homes = state.homes();
    for home in &homes {
        let unusable = home.prefix_len() > 30 || home.trunc() != *home;
        if unusable || never_guests(*home).is_some() {
            return Err(contradiction(format!("{home} cannot be a guests' subnet")));
        }
        let mut others = homes.iter().filter(|other| *other != home);
        let own = Some(&state.subnet).filter(|own| overlap(**own, *home));
        if let Some(other) = own.or_else(|| others.find(|other| overlap(**other, *home))) {
            return Err(contradiction(format!(
                "{home}, from which a guest came with its address, overlaps {other}"
            )));
        }
    }
    Ok(homes)
}

/// Ports on bridges of the host: no tap, MAC address or identity twice, and no reserved source addresses.
fn check_lan(state: &NetworkState) -> Result<(), NetworkError> {
    let mut taps: HashSet<_> = state.ports.iter().map(|port| &port.tap).collect();
    let mut macs: HashSet<_> = state.ports.iter().map(|port| port.mac).collect();
    macs.insert(state.gateway_mac);
    let mut identities = HashSet::new();
    check_lan_owners(state)?;
    for port in &state.lan {
        let who = format!("{} ({})", port.name, port.tap);
        check_interface_name(&port.bridge)?;
        if port.bridge == state.bridge || port.bridge == state.metadata_interface {
            return Err(contradiction(format!(
                "{who} cannot be on {}, which waifud manages itself",
                port.bridge
            )));
        }
        if !taps.insert(&port.tap) {
            return Err(contradiction(format!("port {} is listed twice", port.tap)));
        }
        if !macs.insert(port.mac) {
            return Err(contradiction(format!(
                "MAC address {} is assigned to {who} and to another port",
                port.mac
            )));
        }
        if let (Some(vlan), Some(_)) = (port.vlan, port.identity) {
            return Err(contradiction(format!(
                "{who} is in VLAN {vlan} and cannot read its metadata through this port"
            )));
        }
        if let Some(identity) = port.identity
            && (!is_host_of(IDENTITIES, identity) || !identities.insert(identity))
        {
            return Err(contradiction(format!(
                "{identity} cannot identify {who}: it already identifies another port, or is not in {IDENTITIES}"
            )));
        }
        for range in fixed_v4(port) {
            if let Some(reserved) = never_guests(range) {
                return Err(contradiction(format!(
                    "{who} may not use {range}: it overlaps {reserved}"
                )));
            }
        }
        for range in fixed_v6(port) {
            let reserved = NEVER_GUESTS_V6.iter().any(|(start, bits)| {
                Ipv6Net::new(*start, *bits).is_ok_and(|r| overlap_v6(r, range))
            });
            if reserved {
                return Err(contradiction(format!(
                    "{who} may not use {range}: it contains reserved addresses"
                )));
            }
        }
    }
    Ok(())
}

/// What tells networks apart: the same address may be in use on two bridges, or in two VLANs of one.
fn network_of(port: &LanPort) -> (&str, Option<VlanId>) {
    (&port.bridge, port.vlan)
}

/// Checks that a port's given address belongs to no other port of the network or of `default`, and to no range of another
/// port. Single further addresses may be shared, as on `default`.
fn check_lan_owners(state: &NetworkState) -> Result<(), NetworkError> {
    let mut owners: HashMap<_, &LanPort> = HashMap::new();
    for port in &state.lan {
        if let Some(address) = port.given
            && let Some(other) = owners.insert((network_of(port), address), port)
        {
            return Err(contradiction(format!(
                "address {address} is assigned to both {} and {} ({})",
                other.name, port.name, port.tap
            )));
        }
    }
    for ((network, address), owner) in &owners {
        let of_lan = state.lan.iter();
        let of_lan = of_lan
            .filter(|port| network_of(port) == *network && port.tap != owner.tap)
            .flat_map(|port| fixed_v4(port).map(move |range| (&port.name, range)));
        let routed = state.ports.iter();
        let routed = routed.flat_map(|port| further_ranges(port).map(move |r| (&port.name, r)));
        if let Some((name, range)) = of_lan.chain(routed).find(|(_, r)| r.contains(address)) {
            return Err(contradiction(format!(
                "{name} may not use {range}: {address} belongs to {}",
                owner.name
            )));
        }
    }
    Ok(())
}

/// IPv4 sources that a port on a bridge of the host may use without learning them.
pub(crate) fn fixed_v4(port: &LanPort) -> impl Iterator<Item = Ipv4Net> {
    port.fixed.iter().filter_map(|range| match range {
        IpNet::V4(range) => Some(range.trunc()),
        IpNet::V6(_) => None,
    })
}

/// The same for IPv6.
pub(crate) fn fixed_v6(port: &LanPort) -> impl Iterator<Item = Ipv6Net> {
    port.fixed.iter().filter_map(|range| match range {
        IpNet::V4(_) => None,
        IpNet::V6(range) => Some(range.trunc()),
    })
}

fn overlap_v6(one: Ipv6Net, other: Ipv6Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Checks that each port of the node is published to one guest only.
fn check_published(state: &NetworkState) -> Result<(), NetworkError> {
    let mut owners = HashMap::new();
    for port in &state.ports {
        for published in &port.publish {
            if published.port == 0 || published.guest_port == 0 {
                return Err(contradiction(format!("{} publishes port 0", port.name)));
            }
            let key = (published.protocol, published.port);
            if let Some(other) = owners.insert(key, &port.name) {
                return Err(contradiction(format!(
                    "port {}/{} of the node is published to both {other} and {}",
                    published.port,
                    published.protocol.as_str(),
                    port.name
                )));
            }
        }
    }
    Ok(())
}

/// Checks that further addresses contain no lease, no gateway and no reserved address.
fn check_further_ranges(
    state: &NetworkState,
    port: &Port,
    leases: &HashMap<Ipv4Addr, String>,
) -> Result<(), NetworkError> {
    for range in further_ranges(port) {
        if let Some(reserved) = never_guests(range) {
            return Err(contradiction(format!(
                "{} may not use {range}: it overlaps {reserved}",
                port.name
            )));
        }
        // There are few ranges, so comparing each with every lease is cheap.
        let taken = leases
            .iter()
            .find(|(address, _)| **address != port.address && range.contains(*address));
        if let Some((address, owner)) = taken {
            return Err(contradiction(format!(
                "{} may not use {range}: {address} belongs to {owner}",
                port.name
            )));
        }
        let edge = state.subnet.broadcast();
        if range.contains(&edge) || range.contains(&state.subnet.network()) {
            return Err(contradiction(format!(
                "{} may not use {range}: it contains the network or broadcast address of {}",
                port.name, state.subnet
            )));
        }
    }
    Ok(())
}

/// Checks that no range belongs to two guests, because a range is routed to one guest. Single addresses may be shared, for
/// example by two guests that take over an address from each other.
fn check_shared_ranges(state: &NetworkState) -> Result<(), NetworkError> {
    let mut owners: HashMap<Ipv4Net, &Port> = HashMap::new();
    for port in &state.ports {
        for range in further_ranges(port).filter(|range| range.prefix_len() < 32) {
            if let Some(other) = owners.insert(range, port).filter(|o| o.tap != port.tap) {
                return Err(contradiction(format!(
                    "{range} is routed to both {} and {}",
                    other.name, port.name
                )));
            }
        }
    }
    Ok(())
}

pub(crate) fn never_guests(range: Ipv4Net) -> Option<Ipv4Net> {
    NEVER_GUESTS
        .iter()
        .filter_map(|(address, prefix)| Ipv4Net::new(*address, *prefix).ok())
        .find(|reserved| overlap(*reserved, range))
}

/// Two ranges overlap when one contains the other's first address.
pub(crate) fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn is_host_of(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::samples::{lan_port, port_rule, state};

    #[track_caller]
    fn refused(state: &NetworkState, words: &str) {
        let text = check(state).unwrap_err().to_string();
        assert!(text.contains(words), "{text:?} lacks {words:?}");
    }

    #[test]
    fn ordinary_states_are_accepted() {
        check(&state(0)).unwrap();
        check(&state(200)).unwrap();
    }

    #[test]
    fn one_mac_address_or_lease_on_two_ports_is_refused() {
        let mut twice = state(2);
        twice.ports[1].mac = twice.ports[0].mac;
        refused(&twice, "MAC address 52:54:00:00:00:01 is assigned to both");
        let mut twice = state(2);
        twice.ports[1].address = twice.ports[0].address;
        refused(&twice, "address 10.144.1.11 is assigned to both");
        let mut twice = state(1);
        twice.ports.push(twice.ports[0].clone());
        refused(&twice, "is listed twice");
        let mut twice = state(1);
        twice.ports[0].mac = twice.gateway_mac;
        refused(&twice, "the gateway");
    }

    #[test]
    fn rules_that_nft_would_refuse_are_refused() {
        let with = |words: &str, times: usize| {
            let mut state = state(2);
            let rule = port_rule(words, None);
            state.ports[1].firewall.rules = vec![rule; times];
            state
        };
        check(&with("in allow tcp 22", 1)).unwrap();
        let words = "a firewall rule of guest-1 (";
        refused(&with("in allow tcp 22", 2), words);
        refused(&with("in allow icmp 22", 1), words);
        refused(&with("in allow - 22", 1), words);
    }

    #[test]
    fn addresses_that_guests_cannot_have_are_refused() {
        for (address, words) in [
            ([10, 144, 1, 1], "the gateway"),
            ([10, 144, 2, 9], "not a host address in"),
            ([10, 144, 1, 0], "not a host address in"),
            ([10, 144, 1, 255], "not a host address in"),
        ] {
            let mut state = state(1);
            state.ports[0].address = address.into();
            refused(&state, words);
        }
    }

    #[test]
    fn subnets_that_cannot_be_routed_are_refused() {
        for (subnet, words) in [
            (
                "169.254.0.0/16",
                "is in 169.254.0.0/16, which cannot be routed",
            ),
            ("127.1.0.0/24", "is in 127.0.0.0/8, which cannot be routed"),
            ("224.1.0.0/24", "is in 224.0.0.0/3, which cannot be routed"),
            ("10.144.1.0/31", "cannot be the guests' subnet"),
            ("10.144.1.7/24", "cannot be the guests' subnet"),
        ] {
            let mut state = state(0);
            state.subnet = subnet.parse().unwrap();
            state.gateway = state.subnet.hosts().next().unwrap();
            refused(&state, &format!("{subnet} {words}"));
        }
        let mut outside = state(0);
        outside.gateway = [10, 144, 2, 1].into();
        refused(&outside, "gateway 10.144.2.1 is not");
    }

    #[test]
    fn further_addresses_that_belong_to_others_are_refused() {
        for (range, words) in [
            ("10.144.1.12/32", "belongs to"),
            ("10.144.1.0/28", "may not use"),
            ("0.0.0.0/0", "may not use"),
            ("169.254.169.254/32", "overlaps 169.254.0.0/16"),
        ] {
            let mut state = state(2);
            state.ports[0].allow_addresses = vec![range.parse().unwrap()];
            refused(&state, words);
        }
        let mut shared = state(2);
        for port in &mut shared.ports {
            port.allow_addresses = vec![
                "10.99.0.7/32".parse().unwrap(),
                "fd00::/64".parse().unwrap(),
            ];
        }
        check(&shared).unwrap();
        for port in &mut shared.ports {
            port.allow_addresses = vec!["10.99.0.0/24".parse().unwrap()];
        }
        refused(&shared, "is routed to");
    }

    #[test]
    fn an_address_on_a_bridge_has_one_owner() {
        let at = |address: [u8; 4], ranges: &[&str], index| {
            let mut port = lan_port(index);
            port.given = Some(address.into());
            port.fixed = vec![std::net::IpAddr::from(address).into()];
            port.fixed
                .extend(ranges.iter().map(|r| r.parse::<IpNet>().unwrap()));
            port
        };
        let with = |lan: Vec<LanPort>| NetworkState { lan, ..state(1) };
        let shared = ["192.168.1.200/32"];
        check(&with(vec![
            at([192, 168, 1, 50], &shared, 0),
            at([192, 168, 1, 51], &shared, 1),
        ]))
        .unwrap();
        refused(
            &with(vec![
                at([192, 168, 1, 50], &[], 0),
                at([192, 168, 1, 50], &[], 1),
            ]),
            "address 192.168.1.50 is assigned to both lan-0 and lan-1",
        );
        let mut elsewhere = at([192, 168, 1, 50], &[], 1);
        elsewhere.bridge = "br1".to_owned();
        check(&with(vec![at([192, 168, 1, 50], &[], 0), elsewhere])).unwrap();
        let tagged = |vlan: u16, index| LanPort {
            vlan: Some(vlan.try_into().unwrap()),
            identity: None,
            ..at([192, 168, 1, 50], &["192.168.1.32/27"], index)
        };
        for one in [at([192, 168, 1, 50], &[], 0), tagged(20, 0)] {
            check(&with(vec![one.clone(), tagged(30, 1)])).unwrap();
            if one.vlan.is_some() {
                let both = "address 192.168.1.50 is assigned to both lan-0 and lan-1";
                refused(&with(vec![one, tagged(20, 1)]), both);
            }
        }
        for range in ["192.168.1.50/32", "192.168.1.32/27"] {
            let mut taking = lan_port(1);
            taking.fixed = vec![range.parse().unwrap()];
            refused(
                &with(vec![at([192, 168, 1, 50], &[], 0), taking]),
                "192.168.1.50 belongs to lan-0",
            );
            let mut routed = with(vec![at([192, 168, 1, 50], &[], 0)]);
            routed.ports[0].allow_addresses = vec![range.parse().unwrap()];
            refused(&routed, "192.168.1.50 belongs to lan-0");
        }
    }

    #[test]
    fn no_port_in_a_vlan_has_an_identity() {
        let mut state = state(0);
        state.lan = vec![lan_port(0)];
        state.lan[0].vlan = Some(20.try_into().unwrap());
        refused(&state, "lan-0 (");
        state.lan[0].identity = None;
        check(&state).unwrap();
    }

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        let interfaces: [fn(&mut NetworkState) -> &mut String; 2] = [
            |state| &mut state.bridge,
            |state| &mut state.metadata_interface,
        ];
        for interface in interfaces {
            for name in [
                "",
                "waifu 0",
                "waifu0\n",
                "a\"b",
                "../x",
                "0123456789abcdef",
            ] {
                let mut state = state(0);
                name.clone_into(interface(&mut state));
                refused(&state, &format!("{name:?} is not a valid interface name"));
            }
            let mut state = state(0);
            "wf-bridge".clone_into(interface(&mut state));
            refused(&state, "wf-bridge is reserved for guests' ports");
        }
        for domain in ["", "a..b", "x\ndhcp-script=/bin/sh", "A.B", ".a", "a."] {
            let mut state = state(0);
            state.domain = domain.to_owned();
            refused(&state, &format!("{domain:?} is not a valid DNS domain"));
        }
    }
}
