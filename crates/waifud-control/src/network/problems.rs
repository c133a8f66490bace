//! Problems with networks, nics, addresses and published ports.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind};
use waifud_types::fabric::ParseFabricError;
use waifud_types::spec::PublishSpec;
use waifud_types::{Name, VlanId};

/// An address and its owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owned {
    /// The owned address, or a range that contains the requested address.
    pub what: IpNet,
    /// A phrase, for example `belongs to web` or `is the router of web`.
    pub whose: String,
}

/// The path of the nic's field `address`.
fn address_of(index: usize) -> String {
    of(index, "address")
}

fn of(index: usize, part: &str) -> String {
    format!("spec.nics[{index}].{part}")
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn list() -> Hint {
    Hint::on_kind(&HintAction::List, HintKind::Network)
}

/// The fabric is not one that can be chosen.
pub fn unknown_fabric(error: &ParseFabricError) -> Problem {
    Problem::new(422, "unknown-fabric", error.to_string())
        .field("kind")
        .hint("use wireguard, static or none")
}

fn add_network() -> Hint {
    Hint::on_kind(&HintAction::AddNetwork { bridge: None }, HintKind::Network)
}

/// The network does not exist.
pub fn unknown_network(index: usize, name: &str, known: &[Name]) -> Problem {
    let problem = Problem::new(
        422,
        "unknown-network",
        format!("there is no network {:?}", shown(name)),
    )
    .field(of(index, "network"));
    if known.is_empty() {
        return problem.hint(list());
    }
    let known: Vec<_> = known.iter().map(Name::as_str).collect();
    problem
        .hint(format!("existing networks: {}", known.join(", ")))
        .hint(add_network())
}

/// The MAC address of the first nic is given in two fields.
pub fn mac_in_two_fields() -> Problem {
    Problem::new(
        422,
        "duplicate-mac",
        "the MAC address of the first nic is given twice",
    )
    .field("mac")
    .hint("set it only in nics")
}

/// Two nics have the same MAC address.
pub fn duplicate_mac(index: usize) -> Problem {
    Problem::new(422, "duplicate-mac", "two nics have the same MAC address")
        .field(of(index, "mac"))
        .hint("omit mac to let waifud choose one")
}

/// Two nics have the same address.
pub fn duplicate_address(index: usize) -> Problem {
    Problem::new(422, "duplicate-address", "two nics have the same address")
        .field(address_of(index))
        .hint("give each nic its own address")
}

/// Two nics in one subnet: the guest would answer from the wrong nic, and the answers would be dropped as spoofed.
pub fn two_nics_on_default(index: usize) -> Problem {
    Problem::new(
        422,
        "duplicate-default-network",
        "an instance can have only one nic on default: with two nics in one subnet, the guest may reply through the wrong one",
    )
    .field(of(index, "network"))
    .hint(Hint::action(&HintAction::AllowAddresses))
}

/// The text is not an IPv4 address.
pub fn bad_address(index: usize, text: &str) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!("{:?} is not an IPv4 address", shown(text)),
    )
    .field(address_of(index))
    .hint("on default, write the address without a prefix: 10.144.1.50")
}

/// The text is not an IPv4 address with a prefix length.
pub fn bad_address_with_prefix(index: usize, text: &str) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!(
            "{:?} is not an IPv4 address with a prefix length",
            shown(text)
        ),
    )
    .field(address_of(index))
    .hint("on a bridge, write for example 192.168.1.50/24; without an address, the guest uses DHCP")
}

/// The address is reserved in its network.
pub fn reserved_address(index: usize, net: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!(
            "{} is a reserved address and cannot be assigned to a guest",
            net.addr()
        ),
    )
    .field(address_of(index))
    .hint("choose another address of that network, outside its DHCP range")
}

/// The prefix length is out of range.
pub fn bad_prefix(index: usize, prefix: u8, least: u8, most: u8) -> Problem {
    Problem::new(
        422,
        "invalid-prefix",
        format!("the prefix length {prefix} is out of range"),
    )
    .field(address_of(index))
    .hint(format!(
        "use /{least} to /{most}; home networks usually have /24"
    ))
}

/// The address is in the range that waifud assigns addresses from.
pub fn address_in_guest_range(index: usize, address: Ipv4Addr, range: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "address-in-guest-range",
        format!("{address} is in {range}, from which waifud assigns addresses on default"),
    )
    .field(address_of(index))
    .hint("choose an address of the bridge's network")
}

/// A gateway is given without an address.
pub fn gateway_without_address(index: usize) -> Problem {
    Problem::new(
        422,
        "gateway-without-address",
        "a gateway is given without an address",
    )
    .field(of(index, "gateway"))
    .hint("give both, or neither to use DHCP")
}

/// Only the first nic can have the default route.
pub fn gateway_not_on_first_nic(index: usize) -> Problem {
    Problem::new(
        422,
        "gateway-not-on-first-nic",
        "only the first nic can have a gateway",
    )
    .field(of(index, "gateway"))
    .hint("omit gateway, or list this network first")
}

/// On `default` the node is the gateway.
pub fn gateway_on_default(index: usize) -> Problem {
    Problem::new(
        422,
        "gateway-on-default",
        "a gateway cannot be set on default, where the node is the gateway",
    )
    .field(of(index, "gateway"))
    .hint("omit gateway")
}

/// The number is not that of a VLAN.
pub fn bad_vlan(index: usize) -> Problem {
    let field = of(index, "vlan");
    crate::problems::out_of_range(&field, "the VLAN", VlanId::LEAST, VlanId::MOST)
}

/// The network `default` has no VLANs.
pub fn vlan_on_default(index: usize) -> Problem {
    Problem::new(
        422,
        "vlan-on-default",
        "the network default has no VLANs, because it is not a bridge that the nodes already have",
    )
    .field(of(index, "vlan"))
    .hint("omit vlan, or use a network on a bridge")
    .hint(add_network())
}

/// The gateway is not a host of the nic's network.
pub fn bad_gateway(index: usize, text: &str, net: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "invalid-gateway",
        format!(
            "{:?} is not the address of another host in {net}",
            shown(text)
        ),
    )
    .field(of(index, "gateway"))
    .hint("use the address of the network's router, for example 192.168.1.1")
}

fn allowed(index: usize, number: usize) -> String {
    format!("spec.nics[{index}].allow_addresses[{number}]")
}

/// The text is neither an address nor a range.
pub fn bad_allowed(index: usize, number: usize, text: &str) -> Problem {
    Problem::new(
        422,
        "invalid-address",
        format!(
            "{:?} is neither an address nor an address range",
            shown(text)
        ),
    )
    .field(allowed(index, number))
    .hint("write for example 192.168.1.200, 10.244.0.0/16 or fd00:1::/64")
}

/// The range is too large.
pub fn allowed_too_large(index: usize, number: usize, net: IpNet, least: u8) -> Problem {
    Problem::new(
        422,
        "address-reserved",
        format!("{net} is too large for one guest"),
    )
    .field(allowed(index, number))
    .hint(format!("use a prefix of at least /{least}"))
}

/// The range contains reserved addresses.
pub fn allowed_reserved(index: usize, number: usize, net: IpNet, meaning: &str) -> Problem {
    Problem::new(
        422,
        "address-reserved",
        format!("{net} contains {meaning} addresses"),
    )
    .field(allowed(index, number))
    .hint("allow only addresses that the guest itself uses")
}

/// The range overlaps the range that waifud assigns addresses from.
pub fn allowed_in_guest_range(index: usize, net: IpNet, range: Ipv4Net) -> Problem {
    Problem::new(
        422,
        "address-in-guest-range",
        format!("{net} overlaps {range}, from which waifud assigns guest addresses"),
    )
    .field(of(index, "allow_addresses"))
    .hint("use addresses outside that range")
}

/// The address belongs to another instance or router.
pub fn address_of_another(index: usize, address: Ipv4Addr, owned: &Owned) -> Problem {
    let title = if owned.what == IpNet::from(std::net::IpAddr::V4(address)) {
        format!("{address} {}", owned.whose)
    } else {
        format!("{address} is in {}, which {}", owned.what, owned.whose)
    };
    Problem::new(409, "address-taken", title)
        .field(address_of(index))
        .hint(
            "choose another address; an address becomes free when the node has confirmed that its instance is destroyed",
        )
}

/// The range contains an address that belongs to another instance or router.
pub fn allowed_of_another(index: usize, net: IpNet, owned: &Owned) -> Problem {
    Problem::new(
        409,
        "address-taken",
        format!(
            "{net} cannot be allowed: {} {}",
            owned.what, owned.whose
        ),
    )
    .field(of(index, "allow_addresses"))
    .hint("instances can share a single allowed address, but not a range; use a range that contains no address of another instance")
}

/// `default` does not support IPv6.
pub fn no_ipv6_on_default(index: usize, net: &str) -> Problem {
    Problem::new(
        422,
        "no-ipv6",
        format!("{net} is an IPv6 range, but the network default supports only IPv4"),
    )
    .field(of(index, "allow_addresses"))
    .hint("for IPv6, use a bridge of the nodes")
    .hint(add_network())
}

/// Ports can only be published for instances whose first nic is on `default`.
pub fn publish_needs_default_network(network: &Name) -> Problem {
    Problem::new(
        422,
        "publish-needs-default-network",
        format!("ports can be published only if the first nic is on default; it is on {network}"),
    )
    .field("spec.publish")
    .hint(format!(
        "on {network}, other machines reach the guest directly at its own address; to publish ports, list default first"
    ))
}

/// The address is not in any node's subnet.
pub fn address_outside(index: usize, address: Ipv4Addr, subnets: &[String]) -> Problem {
    Problem::new(
        422,
        "address-outside-subnet",
        format!("{address} is not in the subnet of any node"),
    )
    .field(address_of(index))
    .hint(if subnets.is_empty() {
        "no node has joined yet; omit the address to let waifud choose one".to_owned()
    } else {
        format!(
            "choose an address in {}, or omit the address to let waifud choose one",
            subnets.join(", ")
        )
    })
}

/// The address is in the subnet of another node than the requested one.
pub fn address_on_other_node(
    index: usize,
    address: Ipv4Addr,
    home: &Name,
    net: Ipv4Net,
    wanted: &Name,
) -> Problem {
    Problem::new(
        422,
        "address-on-other-node",
        format!("{address} is in {net}, the subnet of {home}, but node {wanted} was requested"),
    )
    .field(address_of(index))
    .hint(format!(
        "choose an address in {wanted}'s subnet, or place the instance on {home}"
    ))
    .hint(Hint::action(&HintAction::Omit {
        field: "spec.placement.node".to_owned(),
    }))
}

/// The address is reserved in its node's subnet.
pub fn address_reserved(
    index: usize,
    address: Ipv4Addr,
    what: &str,
    home: &Name,
    net: Ipv4Net,
) -> Problem {
    Problem::new(422, "address-reserved", format!("{address} {what}"))
        .field(address_of(index))
        .hint(format!("choose another address in {home}'s subnet {net}"))
}

/// Another instance has the address.
pub fn address_taken(index: usize, address: Option<Ipv4Addr>, owner: Option<&Name>) -> Problem {
    let address = address.map_or_else(|| "the address".to_owned(), |a| a.to_string());
    let owner = owner.map_or("another instance", |name| name.as_str());
    Problem::new(
        409,
        "address-taken",
        format!("{address} belongs to {owner}"),
    )
    .field(address_of(index))
    .hint("choose another address; an address becomes free when the node has confirmed that its instance is destroyed")
}

/// Port 0 is not valid.
pub fn port_zero(index: usize, field: &str) -> Problem {
    crate::problems::out_of_range(
        &format!("spec.publish[{index}].{field}"),
        "the port",
        1,
        u16::MAX,
    )
}

/// The port is reserved for waifud.
pub fn port_reserved(index: usize, port: u16) -> Problem {
    Problem::new(
        422,
        "port-reserved",
        format!("port {port} is reserved for waifud"),
    )
    .field(format!("spec.publish[{index}].port"))
    .hint("choose another node port; the guest port can stay the same")
}

/// The port is listed twice.
pub fn duplicate_port(index: usize, port: u16) -> Problem {
    Problem::new(
        422,
        "duplicate-port",
        format!("port {port} is listed twice"),
    )
    .field(format!("spec.publish[{index}].port"))
    .hint("publish each node port only once")
}

/// Another instance publishes the port.
pub fn port_taken(to: &PublishSpec, node: &Name, owner: Option<&Name>) -> Problem {
    let protocol = to.protocol.as_str();
    let shown = owner.map_or("another instance", |name| name.as_str());
    let problem = Problem::new(
        409,
        "port-taken",
        format!(
            "port {}/{protocol} of {node} is already published to {shown}",
            to.port
        ),
    )
    .field("spec.publish");
    let Some(owner) = owner else {
        return problem.hint("choose another node port");
    };
    let unpublish = HintAction::Unpublish {
        port: to.port,
        protocol: protocol.to_owned(),
    };
    problem
        .hint("choose another node port, or unpublish the other one first")
        .hint(Hint::on(&unpublish, HintKind::Instance, owner.as_str()))
}

/// Another nic has the MAC address.
pub fn mac_taken() -> Problem {
    Problem::new(409, "mac-taken", "another instance has this MAC address")
        .field("mac")
        .hint("omit mac to let waifud choose one")
}

/// Another network has the name.
pub fn network_name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "network-name-taken",
        format!("a network named {name} already exists"),
    )
    .field("name")
    .hint("choose another name")
    .hint(list())
}

/// Another network uses the bridge.
pub fn bridge_taken(bridge: &str, owner: Option<&Name>) -> Problem {
    let owner = owner.map_or("another network", |name| name.as_str());
    Problem::new(
        409,
        "bridge-in-use",
        format!("network {owner} already uses bridge {bridge}"),
    )
    .field("bridge")
    .hint(format!(
        "use network {owner}, or delete it first if no instance uses it"
    ))
}

/// The text is not a valid bridge name.
pub fn bad_bridge(text: &str, most: usize) -> Problem {
    let shown: String = text.chars().take(80).collect();
    Problem::new(
        422,
        "invalid-bridge",
        format!("{shown:?} is not a valid bridge name"),
    )
    .field("bridge")
    .hint(format!(
        "use 1 to {most} characters of a-z, A-Z, 0-9, -, _ and ., for example br0; `ip link show type bridge` lists the bridges of a node"
    ))
}

/// Guests cannot use the bridge.
pub fn unsuitable_bridge(bridge: &str, why: &str) -> Problem {
    Problem::new(422, "unsuitable-bridge", format!("{bridge} {why}"))
        .field("bridge")
        .hint("create a bridge with a wired uplink on the node: docs/guides/lan.md")
}

/// The network `default` cannot be deleted.
pub fn default_network_is_permanent() -> Problem {
    Problem::new(
        409,
        "default-network",
        "the network default cannot be deleted",
    )
    .field("name")
    .hint("only networks that were added with waifuctl network add can be deleted")
}

/// Instances use the network.
pub fn network_in_use(name: &Name, count: u64, users: &[Name]) -> Problem {
    let users = crate::problems::list_names(users, count);
    Problem::new(
        409,
        "network-in-use",
        format!("{name} is used by {users}"),
    )
    .field("name")
    .hint("delete these instances first; an instance that is being deleted uses the network until its node has confirmed the deletion")
}
