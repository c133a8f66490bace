//! Problems with addresses, nics and published ports.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use waifud_api::Problem;
use waifud_types::Name;
use waifud_types::spec::PublishSpec;

use crate::network::address_owners::Owned;

/// The field of the nic that is on `default`: there is one at most.
fn address_of(index: usize) -> String {
    of(index, "address")
}

fn of(index: usize, part: &str) -> String {
    format!("spec.nics[{index}].{part}")
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// No such network.
pub fn unknown_network(index: usize, name: &str, known: &[Name]) -> Problem {
    let known: Vec<_> = known.iter().map(Name::as_str).collect();
    let hint = if known.is_empty() {
        "waifuctl network list".to_owned()
    } else {
        format!(
            "there is {}; a bridge of the nodes becomes one by waifuctl network add",
            known.join(", ")
        )
    };
    Problem::new(
        422,
        "unknown-network",
        format!("there is no network {:?}", shown(name)),
    )
    .field(of(index, "network"))
    .hint(hint)
}

/// Said twice.
pub fn mac_twice() -> Problem {
    Problem::new(
        422,
        "duplicate-mac",
        "the first nic's MAC address is given twice",
    )
    .field("mac")
    .hint("give it in nics only")
}

/// Two nics with one MAC address.
pub fn mac_on_two(index: usize) -> Problem {
    Problem::new(422, "duplicate-mac", "two nics have the same MAC address")
        .field(of(index, "mac"))
        .hint("leave mac out and one is chosen")
}

/// Two nics with one address.
pub fn address_on_two(index: usize) -> Problem {
    Problem::new(422, "duplicate-address", "two nics have the same address")
        .field(address_of(index))
        .hint("give each its own")
}

/// Two addresses in one subnet: answers would leave by the wrong nic and be dropped as forged.
pub fn default_twice(index: usize) -> Problem {
    Problem::new(
        422,
        "duplicate-default-network",
        "an instance has one nic on default at most: of two in one subnet a guest answers from the wrong one",
    )
    .field(of(index, "network"))
    .hint("for further addresses there, use --allow-address")
}

/// No IPv4 address.
pub fn bad_address(index: usize, text: &str) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!("{:?} is no IPv4 address", shown(text)),
    )
    .field(address_of(index))
    .hint("on default, write the address alone: 10.144.1.50")
}

/// No IPv4 address with its prefix.
pub fn bad_address_with_prefix(index: usize, text: &str) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!("{:?} is no IPv4 address with its prefix", shown(text)),
    )
    .field(address_of(index))
    .hint("on a bridge, write 192.168.1.50/24; without an address the DHCP server there gives one")
}

/// No host can have it.
pub fn no_hosts_address(index: usize, net: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!(
            "no guest can have {}: it has a meaning of its own",
            net.addr()
        ),
    )
    .field(address_of(index))
    .hint("choose another address of that network, one that its DHCP server gives to nobody")
}

/// Too short or too long.
pub fn bad_prefix(index: usize, prefix: u8, least: u8, most: u8) -> Problem {
    Problem::new(
        422,
        "invalid-prefix",
        format!("a network with a prefix of {prefix} is not taken"),
    )
    .field(address_of(index))
    .hint(format!("/{least} to /{most}; at home it mostly is /24"))
}

/// The address lies where waifud gives addresses.
pub fn address_in_guest_range(index: usize, address: Ipv4Addr, range: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "address-in-guest-range",
        format!("{address} lies in {range}, out of which waifud gives addresses on default"),
    )
    .field(address_of(index))
    .hint("choose an address of the bridge's own network")
}

/// A router without an address of one's own.
pub fn gateway_alone(index: usize) -> Problem {
    Problem::new(
        422,
        "gateway-without-address",
        "a gateway is given without an address",
    )
    .field(of(index, "gateway"))
    .hint("give both, or neither: then DHCP gives both")
}

/// Only one nic has the default route.
pub fn gateway_of_a_later_nic(index: usize) -> Problem {
    Problem::new(
        422,
        "gateway-not-on-first-nic",
        "only the first nic has the default route",
    )
    .field(of(index, "gateway"))
    .hint("leave gateway out, or name this network first")
}

/// Its node is the router.
pub fn gateway_on_default(index: usize) -> Problem {
    Problem::new(
        422,
        "gateway-on-default",
        "on default the node is the gateway",
    )
    .field(of(index, "gateway"))
    .hint("leave gateway out")
}

/// Not a router of that network.
pub fn bad_gateway(index: usize, text: &str, net: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "invalid-gateway",
        format!("{:?} is no other host's address in {net}", shown(text)),
    )
    .field(of(index, "gateway"))
    .hint("the address of the home's router, such as 192.168.1.1")
}

fn allowed(index: usize, number: usize) -> String {
    format!("spec.nics[{index}].allow_addresses[{number}]")
}

/// Neither an address nor a range.
pub fn bad_allowed(index: usize, number: usize, text: &str) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!(
            "{:?} is neither an address nor a range of them",
            shown(text)
        ),
    )
    .field(allowed(index, number))
    .hint("write 192.168.1.200, 10.244.0.0/16 or fd00:1::/64")
}

/// More than anybody means.
pub fn allowed_too_much(index: usize, number: usize, net: IpNet, least: u8) -> Problem {
    Problem::new(
        422,
        "address-reserved",
        format!("{net} is more than a guest may send from"),
    )
    .field(allowed(index, number))
    .hint(format!("at most a /{least}"))
}

/// It covers what has a meaning.
pub fn allowed_reserved(index: usize, number: usize, net: IpNet, meaning: &str) -> Problem {
    Problem::new(
        422,
        "address-reserved",
        format!("{net} holds addresses that are {meaning}"),
    )
    .field(allowed(index, number))
    .hint("give the guest's own further addresses only")
}

/// It covers what waifud gives to guests.
pub fn allowed_in_guest_range(index: usize, net: IpNet, range: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "address-in-guest-range",
        format!("{net} overlaps {range}, out of which waifud gives each guest its own address"),
    )
    .field(of(index, "allow_addresses"))
    .hint("give addresses outside of it")
}

/// An address that another has.
pub fn address_of_another(index: usize, address: Ipv4Addr, owned: &Owned) -> Problem {
    let title = if owned.what == IpNet::from(std::net::IpAddr::V4(address)) {
        format!("{address} {}", owned.whose)
    } else {
        format!("{address} lies in {}, which {}", owned.what, owned.whose)
    };
    Problem::new(409, "address-taken", title)
        .field(address_of(index))
        .hint(
            "choose another; an address is free once the node has confirmed that its owner is gone",
        )
}

/// Further addresses that hold what another has.
pub fn allowed_of_another(index: usize, net: IpNet, owned: &Owned) -> Problem {
    Problem::new(
        409,
        "address-taken",
        format!(
            "the instance may not use {net}: {} {}",
            owned.what, owned.whose
        ),
    )
    .field(of(index, "allow_addresses"))
    .hint("only a single further address may be shared by several instances; give ranges that nobody has a part of")
}

/// `default` has none.
pub fn no_ipv6_on_default(index: usize, net: &str) -> Problem {
    Problem::new(
        422,
        "no-ipv6",
        format!("{net} is IPv6, and default carries IPv4 only"),
    )
    .field(of(index, "allow_addresses"))
    .hint("IPv6 works on a bridge of the nodes: waifuctl network add")
}

/// Ports of the node lead to guests that answer through it.
pub fn publish_elsewhere(network: &Name) -> Problem {
    Problem::new(
        422,
        "publish-needs-default-network",
        format!("ports are published for guests whose first nic is on default; this one's is on {network}"),
    )
    .field("spec.publish")
    .hint(format!(
        "on {network} others reach the guest at its own address; or name default first"
    ))
}

/// In no node's subnet.
pub fn address_outside(index: usize, address: Ipv4Addr, subnets: &[String]) -> Problem {
    Problem::new(
        422,
        "address-outside-subnet",
        format!("{address} lies in no node's subnet"),
    )
    .field(address_of(index))
    .hint(if subnets.is_empty() {
        "no node has joined yet; without an address one is chosen".to_owned()
    } else {
        format!("{}; without an address one is chosen", subnets.join(", "))
    })
}

/// In the subnet of another node than the one asked for.
pub fn address_elsewhere(
    index: usize,
    address: Ipv4Addr,
    home: &Name,
    net: Ipv4Net,
    wanted: &Name,
) -> Problem {
    Problem::new(
        422,
        "address-on-other-node",
        format!("{address} lies in {net}, which is {home}'s, and {wanted} was asked for"),
    )
    .field(address_of(index))
    .hint(format!(
        "choose an address of {wanted}'s subnet, or leave --node out and it goes to {home}"
    ))
}

/// It has a meaning of its own.
pub fn address_reserved(
    index: usize,
    address: Ipv4Addr,
    what: &str,
    home: &Name,
    net: Ipv4Net,
) -> Problem {
    Problem::new(422, "address-reserved", format!("{address} {what}"))
        .field(address_of(index))
        .hint(format!("choose another address of {home}'s subnet {net}"))
}

/// Another has it.
pub fn address_taken(index: usize, address: Option<Ipv4Addr>, owner: Option<&Name>) -> Problem {
    let address = address.map_or_else(|| "the address".to_owned(), |a| a.to_string());
    let owner = owner.map_or("another instance", |name| name.as_str());
    Problem::new(
        409,
        "address-taken",
        format!("{address} belongs to {owner}"),
    )
    .field(address_of(index))
    .hint("choose another; an address is free once the node has confirmed that its owner is gone")
}

/// Ports begin with 1.
pub fn port_zero(index: usize, field: &str) -> Problem {
    crate::problems::out_of_range(
        &format!("spec.publish[{index}].{field}"),
        "the port",
        1,
        u16::MAX,
    )
}

/// waifud listens there.
pub fn port_reserved(index: usize, port: u16) -> Problem {
    Problem::new(
        422,
        "port-reserved",
        format!("port {port} is one of waifud's own"),
    )
    .field(format!("spec.publish[{index}].port"))
    .hint("choose another port of the node; the guest's may stay: PORT:GUESTPORT")
}

/// Twice in one list.
pub fn port_twice(index: usize, port: u16) -> Problem {
    Problem::new(
        422,
        "duplicate-port",
        format!("port {port} is in the list twice"),
    )
    .field(format!("spec.publish[{index}].port"))
    .hint("a port of the node leads to one port of one guest")
}

/// It leads to another instance.
pub fn port_taken(to: &PublishSpec, node: &Name, owner: Option<&Name>) -> Problem {
    let owner = owner.map_or("another instance", |name| name.as_str());
    Problem::new(
        409,
        "port-taken",
        format!(
            "port {}/{} of {node} is published by {owner}",
            to.port,
            to.protocol.as_str()
        ),
    )
    .field("spec.publish")
    .hint("choose another port of the node: PORT:GUESTPORT; or waifuctl unpublish the other one first")
}

/// A nic has it.
pub fn mac_taken() -> Problem {
    Problem::new(409, "mac-taken", "another instance has that MAC address")
        .field("mac")
        .hint("leave mac out and one is chosen")
}

/// A network has the name.
pub fn network_name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "network-name-taken",
        format!("there is a network {name} already"),
    )
    .field("name")
    .hint("waifuctl network list; choose another name")
}

/// Another network is the bridge.
pub fn bridge_taken(bridge: &str, owner: Option<&Name>) -> Problem {
    let owner = owner.map_or("another network", |name| name.as_str());
    Problem::new(
        409,
        "bridge-in-use",
        format!("bridge {bridge} is network {owner} already"),
    )
    .field("bridge")
    .hint(format!(
        "use {owner}, or delete it first if no instance does"
    ))
}

/// Not a name for a bridge.
pub fn bad_bridge(text: &str, most: usize) -> Problem {
    let shown: String = text.chars().take(80).collect();
    Problem::new(
        422,
        "invalid-bridge",
        format!("{shown:?} is not a name for a bridge"),
    )
    .field("bridge")
    .hint(format!(
        "1 to {most} of a-z, A-Z, 0-9, -, _ and ., such as br0; `ip link show type bridge` lists a node's"
    ))
}

/// There is such a bridge, and guests can't be on it.
pub fn bridge_unfit(bridge: &str, why: &str) -> Problem {
    Problem::new(422, "unsuitable-bridge", format!("{bridge} {why}"))
        .field("bridge")
        .hint("make a bridge with a wired uplink on the node: docs/guides/lan.md")
}

/// It is every node's own.
pub fn default_network_stays() -> Problem {
    Problem::new(
        409,
        "default-network",
        "default is every node's own network and stays",
    )
    .field("name")
    .hint("only networks that were added can be deleted")
}

/// Instances have nics on it.
pub fn network_in_use(name: &Name, count: u64, users: &[Name]) -> Problem {
    let named: Vec<_> = users.iter().map(Name::as_str).collect();
    let more = count.saturating_sub(users.len() as u64);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    Problem::new(
        409,
        "network-in-use",
        format!("{name} is used by {}{more}", named.join(", ")),
    )
    .field("name")
    .hint("delete these instances first; one that is being destroyed uses it until its node has confirmed that")
}
