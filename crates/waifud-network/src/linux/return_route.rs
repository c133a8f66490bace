//! The return path from metadatad to a port on a bridge of the host: a route in our table and a neighbor.

use std::net::Ipv4Addr;

use waifud_types::MacAddr;

use super::links::Links;
use crate::{LanPort, NetworkState};

/// The destination of the answers to one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReturnRoute {
    /// The address that stands for the port ([`crate::IDENTITIES`]).
    pub(super) identity: Ipv4Addr,
    /// The index of the port's bridge.
    pub(super) bridge: u32,
    /// The guest's MAC address.
    pub(super) mac: MacAddr,
}

/// The routes of all ports that have an identity and whose bridge exists and is up, sorted.
pub(super) fn return_routes(state: &NetworkState, links: &Links) -> Vec<ReturnRoute> {
    let of_port = |port: &LanPort| {
        let link = links.named(&port.bridge)?;
        (link.is_bridge && link.up).then_some(ReturnRoute {
            identity: port.identity?,
            bridge: link.index,
            mac: port.mac,
        })
    };
    let mut routes: Vec<_> = state.lan.iter().filter_map(of_port).collect();
    routes.sort_by_key(|route| route.identity);
    routes
}
