//! Bridges that the host already has: attaches guests' taps to them, and keeps the neighbors of return routes.
//!
//! A bridge itself is never changed. The address that stands for a port ([`crate::IDENTITIES`]) has a route in our table
//! and a permanent neighbor, so the kernel never asks by ARP for it, and no answer reaches the wrong machine.

use std::collections::BTreeMap;

use rtnetlink::Handle;
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};
use waifud_types::MacAddr;

use super::links::{self, Link, Links};
use super::neighbors::{self, address_of, mac_of};
use super::return_route::{ReturnRoute, return_routes};
use crate::vlan;
use crate::{IDENTITIES, LanPort, METADATA, NetworkError, NetworkState};

/// Why a port has no connection, in a sentence.
pub(super) fn trouble(links: &Links, port: &LanPort) -> Option<String> {
    let name = &port.bridge;
    match links.named(name) {
        None => Some(format!("this node has no bridge {name}")),
        Some(link) if !link.is_bridge => Some(format!("{name} on this node is not a bridge")),
        Some(link) if !link.up => Some(format!("bridge {name} on this node is down")),
        Some(link) if !link.is_vlan_aware => vlan::not_aware(port),
        Some(_) => None,
    }
}

/// The host's bridges that the rules name: those with guests, and those that forward only for guests.
pub(super) fn hosts_bridges(
    state: &NetworkState,
    links: &Links,
    forwarding: &[String],
) -> BTreeMap<String, MacAddr> {
    let lan = state.lan.iter().map(|port| &port.bridge);
    let names = lan.chain(forwarding);
    let mac = |name: &String| {
        let link = links.named(name).filter(|link| link.is_bridge)?;
        Some((name.clone(), link.mac()?))
    };
    names.filter_map(mac).collect()
}

/// A bridge in both maps whose MAC address has changed.
pub(super) fn moved<'a>(
    before: &'a BTreeMap<String, MacAddr>,
    now: &BTreeMap<String, MacAddr>,
) -> Option<&'a String> {
    let mut moved = before
        .iter()
        .filter(|(name, mac)| now.get(*name).is_some_and(|found| found != *mac));
    moved.next().map(|(name, _)| name)
}

/// Names of the bridges that return routes lead to, sorted.
pub(super) fn bridges(state: &NetworkState, links: &Links) -> Vec<String> {
    let routes = return_routes(state, links);
    let names = routes
        .iter()
        .filter_map(|route| links.name_of(route.bridge));
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Taps that exist and are not ports of their bridge, or are isolated there, each with the bridge's index. On a bridge
/// of the host, guests must see each other as other machines of that network do.
pub(super) fn misattached<'a>(state: &NetworkState, links: &'a Links) -> Vec<(&'a Link, u32)> {
    let port = |port: &LanPort| {
        let bridge = links.named(&port.bridge).filter(|link| link.is_bridge)?;
        let tap = links.named(port.tap.as_str())?;
        (!tap.is_open_port_of(bridge.index)).then_some((tap, bridge.index))
    };
    state.lan.iter().filter_map(port).collect()
}

/// Attaches taps, and sets neighbors and ARP proxy entries. `before` are the bridges that had proxy entries.
pub(super) async fn ensure(
    handle: &Handle,
    links: &Links,
    state: &NetworkState,
    before: &[String],
) -> Result<(), NetworkError> {
    for (tap, bridge) in misattached(state, links) {
        links::attach(handle, tap, bridge, false).await?;
    }
    let wanted = return_routes(state, links);
    let found = our_neighbors(handle).await?;
    for neighbor in &found {
        if !wanted.iter().any(|route| is_of(neighbor, route)) {
            neighbors::delete(handle, neighbor.clone()).await?;
        }
    }
    for route in &wanted {
        if !found.iter().any(|neighbor| is_of(neighbor, route)) {
            neighbors::add_permanent(handle, route.bridge, route.identity, route.mac).await?;
        }
    }
    let answering = bridges(state, links);
    for name in &answering {
        if let Some(link) = links.named(name) {
            neighbors::answer_for_metadata(handle, link.index).await?;
        }
    }
    let former: Vec<_> = before.iter().filter(|b| !answering.contains(b)).collect();
    stop_answering(handle, links, former.into_iter()).await
}

/// Whether every return route has its neighbor, and none of our other neighbor entries exists.
pub(super) async fn is_intact(
    handle: &Handle,
    links: &Links,
    state: &NetworkState,
) -> Result<bool, NetworkError> {
    let wanted = return_routes(state, links);
    let found = our_neighbors(handle).await?;
    Ok(found.len() == wanted.len()
        && wanted
            .iter()
            .all(|route| found.iter().any(|neighbor| is_of(neighbor, route))))
}

/// Removes our neighbors, and our ARP proxy entries on `bridges`. Returns the number of neighbors.
pub(super) async fn remove(
    handle: &Handle,
    links: &Links,
    bridges: &[String],
) -> Result<usize, NetworkError> {
    let found = our_neighbors(handle).await?;
    let count = found.len();
    for neighbor in found {
        neighbors::delete(handle, neighbor).await?;
    }
    stop_answering(handle, links, bridges.iter()).await?;
    Ok(count)
}

/// Neighbors with an address of [`IDENTITIES`], which only waifud uses.
async fn our_neighbors(handle: &Handle) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let mut found = neighbors::list(handle).await?;
    found.retain(|message| address_of(message).is_some_and(|a| IDENTITIES.contains(&a)));
    Ok(found)
}

fn is_of(message: &NeighbourMessage, route: &ReturnRoute) -> bool {
    address_of(message) == Some(route.identity)
        && message.header.ifindex == route.bridge
        && message.header.state == NeighbourState::Permanent
        && mac_of(message) == Some(route.mac)
}

async fn stop_answering(
    handle: &Handle,
    links: &Links,
    bridges: impl Iterator<Item = &String>,
) -> Result<(), NetworkError> {
    let indexes: Vec<_> = bridges
        .filter_map(|name| links.named(name).map(|link| link.index))
        .collect();
    if indexes.is_empty() {
        return Ok(());
    }
    for proxy in neighbors::list_proxies(handle).await? {
        if address_of(&proxy) == Some(METADATA) && indexes.contains(&proxy.header.ifindex) {
            neighbors::delete(handle, proxy).await?;
        }
    }
    Ok(())
}
