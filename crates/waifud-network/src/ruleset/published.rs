//! Published ports: packets to a published port of one of the node's addresses are forwarded to the guest.
//!
//! Only the destination is changed, so the guest sees the client's address. The exception is a guest that connects to its
//! own published port: it would drop packets from its own address, so it sees the gateway's address. Loopback and the
//! gateway's address are not published: loopback cannot be routed, and the gateway serves DHCP and DNS to guests.

use super::collection;
use crate::{NetworkState, Port};

/// The map of published ports, the set of its keys, and the guests that may connect to themselves.
pub(super) fn collections(state: &NetworkState) -> String {
    let all = || {
        state
            .ports
            .iter()
            .flat_map(|port| port.publish.iter().map(move |published| (port, published)))
    };
    let mut text = collection(
        "map published",
        "type inet_proto . inet_service : ipv4_addr . inet_service",
        all().map(|(Port { address, .. }, to)| {
            let protocol = to.protocol.as_str();
            format!("{protocol} . {} : {address} . {}", to.port, to.guest_port)
        }),
    );
    text.push_str(&collection(
        "set published_ports",
        "type inet_proto . inet_service",
        all().map(|(_, to)| format!("{} . {}", to.protocol.as_str(), to.port)),
    ));
    text.push_str(&collection(
        "set publishers",
        "type ipv4_addr . ipv4_addr",
        state
            .ports
            .iter()
            .filter(|port| !port.publish.is_empty())
            .map(|port| format!("{address} . {address}", address = port.address)),
    ));
    text
}

/// Destination NAT for received packets, and for packets of the host to its own addresses. -100 is `dstnat`, a name that
/// `nft` accepts for prerouting only.
pub(super) fn chains(state: &NetworkState) -> String {
    let NetworkState {
        metadata_interface: metadata,
        gateway,
        ..
    } = state;
    let rule = format!(
        "fib daddr type local ip daddr != {{ 127.0.0.0/8, {gateway} }} dnat ip to meta l4proto . th dport map @published"
    );
    format!(
        "\tchain publishing {{\n\t\ttype nat hook prerouting priority -100; policy accept;\n\t\tiifname != \"{metadata}\" {rule}\n\t}}\n\
         \tchain publishing_here {{\n\t\ttype nat hook output priority -100; policy accept;\n\t\t{rule}\n\t}}\n"
    )
}
