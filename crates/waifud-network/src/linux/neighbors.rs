//! Neighbor entries of the kernel: ARP entries, addresses that it answers ARP for, and what bridges have learned.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, NeighbourAddRequest, NeighbourGetRequest};
use waifud_types::MacAddr;

use super::netlink::{carry_out, kernel_error};
use crate::{METADATA, NetworkError};

/// All IPv4 neighbors.
pub(super) async fn list(handle: &Handle) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let request = handle.neighbours().get();
    let request = request.set_address_family(AddressFamily::Inet);
    read(request, "listing neighbors").await
}

/// IPv4 addresses that the kernel answers ARP for.
pub(super) async fn list_proxies(handle: &Handle) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let request = handle.neighbours().get().proxies();
    let request = request.set_address_family(AddressFamily::Inet);
    read(request, "listing ARP proxy entries").await
}

/// MAC addresses that bridges have learned, each with the port that it is behind.
pub(super) async fn list_bridge_entries(
    handle: &Handle,
) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let request = handle.neighbours().get();
    let request = request.set_address_family(AddressFamily::Bridge);
    read(request, "listing the forwarding entries of bridges").await
}

async fn read(
    request: NeighbourGetRequest,
    what: &str,
) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let entries = request.execute().try_collect().await;
    entries.map_err(kernel_error(what))
}

/// Adds a neighbor that never expires, so that the kernel does not ask by ARP for its MAC address.
pub(super) async fn add_permanent(
    handle: &Handle,
    link: u32,
    address: Ipv4Addr,
    mac: MacAddr,
) -> Result<(), NetworkError> {
    let request = handle.neighbours().add(link, IpAddr::V4(address));
    let request = request
        .link_layer_address(&mac.bytes())
        .state(NeighbourState::Permanent);
    replace(request, "adding a neighbor").await
}

/// Answers ARP for the metadata address on `link`: some images have an on-link route to all of 169.254.0.0/16
/// (RFC 3927) and ask for the address instead of using the gateway.
pub(super) async fn answer_for_metadata(handle: &Handle, link: u32) -> Result<(), NetworkError> {
    let request = handle.neighbours().add(link, IpAddr::V4(METADATA));
    let request = request
        .flags(NeighbourFlags::Proxy)
        .state(NeighbourState::None);
    replace(request, "answering ARP for 169.254.169.254").await
}

/// Makes the kernel resolve the address by ARP, if it has no entry for it.
pub(super) async fn resolve(
    handle: &Handle,
    link: u32,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    let request = handle.neighbours().add(link, IpAddr::V4(address));
    let request = request
        .flags(NeighbourFlags::Use)
        .state(NeighbourState::None);
    replace(request, "resolving a neighbor").await
}

async fn replace(request: NeighbourAddRequest, what: &str) -> Result<(), NetworkError> {
    carry_out(what, request.replace().execute()).await
}

pub(super) async fn delete(
    handle: &Handle,
    neighbor: NeighbourMessage,
) -> Result<(), NetworkError> {
    carry_out(
        "removing a neighbor",
        handle.neighbours().del(neighbor).execute(),
    )
    .await
}

/// The IPv4 address of a neighbor.
pub(super) fn address_of(message: &NeighbourMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// The MAC address of a neighbor or of a bridge's entry.
pub(super) fn mac_of(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => {
            Some(MacAddr::new(mac.as_slice().try_into().ok()?))
        }
        _ => None,
    })
}
