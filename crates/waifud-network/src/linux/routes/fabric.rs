//! The routes of the fabric to guests of other nodes, in the main table.

use std::net::Ipv4Addr;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteScope};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::super::netlink::kernel_error;
use super::{FABRIC, Route, Routes, add};
use crate::NetworkError;

/// A route of the fabric.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::linux) struct FabricRoute {
    pub(in crate::linux) destination: Ipv4Net,
    /// The index of the interface.
    pub(in crate::linux) interface: u32,
    pub(in crate::linux) gateway: Option<Ipv4Addr>,
    /// The source of the host's own packets.
    pub(in crate::linux) source: Option<Ipv4Addr>,
}

impl FabricRoute {
    fn is(&self, route: &Route) -> bool {
        let source = route.message.attributes.iter().find_map(|a| match a {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        route.unicast
            && route.destination == self.destination
            && route.interfaces == [self.interface]
            && route.gateway == self.gateway
            && source == self.source
    }
}

/// Makes these the only routes of the fabric. Returns how many were removed.
pub(in crate::linux) async fn ensure_fabric(
    handle: &Handle,
    wanted: &[FabricRoute],
) -> Result<usize, NetworkError> {
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    let there = Routes::read(handle).await?.0.into_iter();
    let there = there.filter(|route| route.fabric && route.table == main);
    let (kept, outdated): (Vec<_>, Vec<_>) =
        there.partition(|route| wanted.iter().any(|wanted| wanted.is(route)));
    for route in &outdated {
        let request = handle.route().del(route.message.clone());
        match request.execute().await {
            // The kernel has removed it together with its link.
            Err(rtnetlink::Error::NetlinkError(error))
                if error.to_io().raw_os_error() == Some(nix::libc::ESRCH) => {}
            other => other.map_err(kernel_error("removing a route"))?,
        }
    }
    for wanted in wanted {
        if kept.iter().any(|route| wanted.is(route)) {
            continue;
        }
        let destination = wanted.destination;
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .protocol(FABRIC)
            .output_interface(wanted.interface);
        route = match wanted.gateway {
            Some(gateway) => route.gateway(gateway),
            None => route.scope(RouteScope::Link),
        };
        if let Some(source) = wanted.source {
            route = route.pref_source(source);
        }
        add(handle, route.build()).await?;
    }
    Ok(outdated.len())
}

/// The interface and the router of the host's packets to an address; `None` if there is no route.
pub(in crate::linux) async fn towards(
    handle: &Handle,
    address: Ipv4Addr,
) -> Result<Option<(u32, Option<Ipv4Addr>)>, NetworkError> {
    let question = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .build();
    let answer = handle.route().get(question).execute().try_next().await;
    match answer {
        Ok(answer) => Ok(answer.and_then(Route::of).and_then(|route| {
            let interface = route.interfaces.first().copied()?;
            Some((interface, route.gateway))
        })),
        // Without a route, the kernel answers that the network is unreachable.
        Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(kernel_error("looking up a route")(error)),
    }
}
