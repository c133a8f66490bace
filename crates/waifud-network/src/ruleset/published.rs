//! Published ports: what arrives for one of the node's addresses and a published port goes to a guest.
//!
//! Only the destination is changed, so a guest sees who really asks. The one exception is a guest that asks for its
//! own published port: it would take an answer from itself for a forgery, so it sees the gateway. Loopback and the
//! gateway's address are left out: the first can't be routed, the second serves guests' DHCP and DNS.

use super::collection;
use crate::{NetworkState, Port};

/// The map that the ports are in, the set of its keys, and the guests that may come back to themselves.
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

/// What arrives, and what the host itself sends to its own addresses. -100 is `dstnat`, a word that `nft` knows for
/// prerouting only.
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
