//! Problems with addresses, nics and published ports.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use waifud_api::Problem;
use waifud_types::Name;
use waifud_types::spec::PublishSpec;

const ADDRESS: &str = "spec.nics[0].address";

/// No such network.
pub fn unknown_network(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        422,
        "unknown-network",
        format!("there is no network {shown:?}"),
    )
    .field("spec.nics[0].network")
    .hint("default is every node's own network")
}

/// Said twice.
pub fn mac_twice() -> Problem {
    Problem::new(
        422,
        "mac-twice",
        "the first nic's MAC address is given twice",
    )
    .field("mac")
    .hint("give it in nics only")
}

/// No IPv4 address.
pub fn bad_address(text: &str) -> Problem {
    let shown: String = text.chars().take(80).collect();
    Problem::new(422, "bad-address", format!("{shown:?} is no IPv4 address"))
        .field(ADDRESS)
        .hint("on default, write the address alone: 10.144.1.50")
}

/// In no node's subnet.
pub fn address_outside(address: Ipv4Addr, subnets: &[String]) -> Problem {
    Problem::new(
        422,
        "address-outside",
        format!("{address} lies in no node's subnet"),
    )
    .field(ADDRESS)
    .hint(if subnets.is_empty() {
        "no node has joined yet; without an address one is chosen".to_owned()
    } else {
        format!("{}; without an address one is chosen", subnets.join(", "))
    })
}

/// In the subnet of another node than the one asked for.
pub fn address_elsewhere(address: Ipv4Addr, home: &Name, net: Ipv4Net, wanted: &Name) -> Problem {
    Problem::new(
        422,
        "address-elsewhere",
        format!("{address} lies in {net}, which is {home}'s, and {wanted} was asked for"),
    )
    .field(ADDRESS)
    .hint(format!(
        "choose an address of {wanted}'s subnet, or leave --node out and it goes to {home}"
    ))
}

/// It has a meaning of its own.
pub fn address_reserved(address: Ipv4Addr, what: &str, home: &Name, net: Ipv4Net) -> Problem {
    Problem::new(422, "address-reserved", format!("{address} {what}"))
        .field(ADDRESS)
        .hint(format!("choose another address of {home}'s subnet {net}"))
}

/// Another has it.
pub fn address_taken(address: Option<Ipv4Addr>, owner: Option<&Name>) -> Problem {
    let address = address.map_or_else(|| "the address".to_owned(), |a| a.to_string());
    let owner = owner.map_or("another instance", |name| name.as_str());
    Problem::new(
        409,
        "address-taken",
        format!("{address} belongs to {owner}"),
    )
    .field(ADDRESS)
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
        "port-twice",
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
