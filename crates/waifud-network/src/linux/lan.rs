//! Bridges that the host already has: attaching guests' taps, and the way back from metadatad to their ports.
//!
//! Nothing of a bridge itself is changed. What stands for a port ([`crate::IDENTITIES`]) has a route of its own in our
//! table and a neighbour that never changes, so nobody is asked by ARP who has it, and no answer goes astray.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use waifud_types::MacAddr;

use super::kernel;
use super::links::{self, Link, Links};
use super::routes::METADATA;
use crate::{IDENTITIES, LanPort, NetworkError, NetworkState};

/// Where one port's answers go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReturnRoute {
    pub(super) identity: Ipv4Addr,
    pub(super) bridge: u32,
    mac: MacAddr,
}

/// Why nothing gets through a port, in a sentence.
pub(super) fn trouble(links: &Links, port: &LanPort) -> Option<String> {
    let name = &port.bridge;
    match links.named(name) {
        None => Some(format!("this node has no bridge {name}")),
        Some(link) if !link.is_bridge => Some(format!("{name} of this node is no bridge")),
        Some(link) if !link.up => Some(format!("bridge {name} of this node is down")),
        Some(_) => None,
    }
}

/// Those of the state's ports with an identity whose bridges are there and up.
pub(super) fn ways(state: &NetworkState, links: &Links) -> Vec<ReturnRoute> {
    let way = |port: &LanPort| {
        let link = links.named(&port.bridge)?;
        (link.is_bridge && link.up).then_some(ReturnRoute {
            identity: port.identity?,
            bridge: link.index,
            mac: port.mac,
        })
    };
    let mut ways: Vec<_> = state.lan.iter().filter_map(way).collect();
    ways.sort_by_key(|way| way.identity);
    ways
}

/// Names of those bridges, sorted.
pub(super) fn bridges(state: &NetworkState, links: &Links) -> Vec<String> {
    let ways = ways(state, links);
    let names = ways.iter().filter_map(|way| links.name_of(way.bridge));
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Taps that exist and are not ports of their bridge, or isolated ones: on a network of the host's own, guests see each
/// other as its machines do. With the bridge of each.
pub(super) fn astray<'a>(state: &NetworkState, links: &'a Links) -> Vec<(&'a Link, u32)> {
    let port = |port: &LanPort| {
        let bridge = links.named(&port.bridge).filter(|link| link.is_bridge)?;
        let tap = links.named(port.tap.as_str())?;
        (!tap.is_open_port_of(bridge.index)).then_some((tap, bridge.index))
    };
    state.lan.iter().filter_map(port).collect()
}

/// Brings taps, neighbours and answers to ARP in order. `before` are bridges on which we answered.
pub(super) async fn ensure(
    handle: &Handle,
    links: &Links,
    state: &NetworkState,
    before: &[String],
) -> Result<(), NetworkError> {
    for (tap, bridge) in astray(state, links) {
        links::attach(handle, tap, bridge, false).await?;
    }
    let wanted = ways(state, links);
    let there = neighbours(handle).await?;
    for neighbour in &there {
        if !wanted.iter().any(|way| is_of(neighbour, way)) {
            delete(handle, neighbour.clone()).await?;
        }
    }
    for way in &wanted {
        if there.iter().any(|neighbour| is_of(neighbour, way)) {
            continue;
        }
        handle
            .neighbours()
            .add(way.bridge, IpAddr::V4(way.identity))
            .link_layer_address(&way.mac.bytes())
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
            .map_err(kernel("adding a neighbour"))?;
    }
    let answering = bridges(state, links);
    for name in &answering {
        if let Some(link) = links.named(name) {
            links::answer_for_metadata(handle, link.index).await?;
        }
    }
    let no_more: Vec<_> = before.iter().filter(|b| !answering.contains(b)).collect();
    stop_answering(handle, links, no_more.into_iter()).await
}

/// Whether every way back is there.
pub(super) async fn is_whole(
    handle: &Handle,
    links: &Links,
    state: &NetworkState,
) -> Result<bool, NetworkError> {
    let wanted = ways(state, links);
    let there = neighbours(handle).await?;
    Ok(there.len() == wanted.len()
        && wanted
            .iter()
            .all(|way| there.iter().any(|neighbour| is_of(neighbour, way))))
}

/// Takes neighbours of ours and answers on `bridges` away.
pub(super) async fn remove(
    handle: &Handle,
    links: &Links,
    bridges: &[String],
) -> Result<usize, NetworkError> {
    let there = neighbours(handle).await?;
    let count = there.len();
    for neighbour in there {
        delete(handle, neighbour).await?;
    }
    stop_answering(handle, links, bridges.iter()).await?;
    Ok(count)
}

/// Permanent neighbours with addresses that only we give.
async fn neighbours(handle: &Handle) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let all: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Inet)
        .execute()
        .try_collect()
        .await
        .map_err(kernel("listing neighbours"))?;
    let is_ours = |message: &NeighbourMessage| {
        destination(message).is_some_and(|address| IDENTITIES.contains(&address))
    };
    Ok(all.into_iter().filter(is_ours).collect())
}

fn destination(message: &NeighbourMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

fn is_of(message: &NeighbourMessage, way: &ReturnRoute) -> bool {
    let has_mac = message
        .attributes
        .iter()
        .any(|a| matches!(a, NeighbourAttribute::LinkLayerAddress(mac) if *mac == way.mac.bytes()));
    destination(message) == Some(way.identity)
        && message.header.ifindex == way.bridge
        && message.header.state == NeighbourState::Permanent
        && has_mac
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
    let proxies: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .proxies()
        .set_address_family(AddressFamily::Inet)
        .execute()
        .try_collect()
        .await
        .map_err(kernel("listing whom ARP is answered for"))?;
    for proxy in proxies {
        if destination(&proxy) == Some(METADATA) && indexes.contains(&proxy.header.ifindex) {
            delete(handle, proxy).await?;
        }
    }
    Ok(())
}

async fn delete(handle: &Handle, neighbour: NeighbourMessage) -> Result<(), NetworkError> {
    handle
        .neighbours()
        .del(neighbour)
        .execute()
        .await
        .map_err(kernel("removing a neighbour"))
}
