//! Routes, and the routing rules that select a table.
//!
//! The host may use 169.254.169.254 itself, for example in a cloud. So guests' route to metadatad is in our own table,
//! and routing rules select that table only for guests' packets and the answers to them. Without metadatad the table has
//! an unreachable route, so a guest's request never leaves through the host's uplink.

mod fabric;

use std::net::Ipv4Addr;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

pub(super) use self::fabric::{FabricRoute, ensure_fabric, towards};
use super::netlink::{carry_out, kernel_error};
use super::return_route::ReturnRoute;
use crate::check::further_ranges;
use crate::{IDENTITIES, METADATA, NetworkError, NetworkState};

/// Our table, and the priorities of our rules: before Tailscale's (from 5210) and the main table's (32766).
const TABLE: u32 = 1690;
const FROM_BRIDGE: u32 = 1690;
const FROM_SUBNET: u32 = 1691;
const FROM_IDENTITY: u32 = 1692;
const TO_IDENTITY: u32 = 1693;

/// Marks our routes in the main table (`RTA_PROTOCOL`; 0 to 4 are the kernel's, well-known daemons end at 192).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(215);

/// Marks the routes of the fabric ([`ensure_fabric`]).
const FABRIC: RouteProtocol = RouteProtocol::Other(216);

/// The kernel's table of its own addresses.
const TABLE_LOCAL: u32 = 255;

/// The metric of the unreachable routes: any other route is preferred.
const LAST_RESORT: u32 = u32::MAX - 1;

/// An IPv4 route, reduced to what is used here.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties of a route"
)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    destination: Ipv4Net,
    table: u32,
    interfaces: Vec<u32>,
    gateway: Option<Ipv4Addr>,
    /// The gateway, or the gateways of a route with several next hops.
    routers: Vec<Ipv4Addr>,
    ours: bool,
    /// Set by the fabric.
    fabric: bool,
    unicast: bool,
    /// Leads to an address of the host.
    local: bool,
    message: RouteMessage,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Routes(Vec<Route>);

impl Routes {
    pub(super) async fn read(handle: &Handle) -> Result<Self, NetworkError> {
        let mut filter = RouteMessageBuilder::<Ipv4Addr>::new();
        // Some kernels use the builder's defaults (static, unicast) as a filter.
        filter.get_mut().header.protocol = RouteProtocol::Unspec;
        filter.get_mut().header.kind = RouteType::Unspec;
        filter.get_mut().header.table = RouteHeader::RT_TABLE_UNSPEC;
        let messages: Vec<RouteMessage> = handle
            .route()
            .get(filter.build())
            .execute()
            .try_collect()
            .await
            .map_err(kernel_error("listing routes"))?;
        Ok(Self(messages.into_iter().filter_map(Route::of).collect()))
    }

    /// Destination networks of all routes that are not ours, in any table, except default routes. `ours` are the indexes
    /// of our interfaces.
    pub(super) fn foreign(&self, ours: &[u32]) -> Vec<Ipv4Net> {
        let mut networks: Vec<_> = self
            .0
            .iter()
            .filter(|route| {
                route.unicast
                    && !route.ours
                    && !route.fabric
                    && !matches!(route.table, TABLE_LOCAL | TABLE)
                    && route.destination.prefix_len() > 0
                    && !route.interfaces.iter().any(|index| ours.contains(index))
            })
            .map(|route| route.destination)
            .collect();
        networks.sort();
        networks.dedup();
        networks
    }

    /// Interfaces of the default routes in the main table.
    pub(super) fn uplinks(&self) -> Vec<u32> {
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        let mut indexes: Vec<_> = self
            .0
            .iter()
            .filter(|r| r.unicast && r.table == main && r.destination.prefix_len() == 0)
            .flat_map(|route| route.interfaces.iter().copied())
            .collect();
        indexes.sort_unstable();
        indexes.dedup();
        indexes
    }

    /// Whether our table has exactly these return routes, and an unreachable route for all other identities. Without return routes
    /// it must have no route to an identity.
    pub(super) fn match_return_routes(&self, wanted: &[ReturnRoute]) -> bool {
        let there: Vec<_> = self.to_identities().collect();
        let dead_end = there.iter().any(|route| route.is_dead_end());
        let exists = |back: &ReturnRoute| there.iter().any(|route| route.is_return_route(back));
        let count = wanted.len() + usize::from(!wanted.is_empty());
        there.len() == count && dead_end != wanted.is_empty() && wanted.iter().all(exists)
    }

    fn to_identities(&self) -> impl Iterator<Item = &Route> {
        let ours = self.0.iter().filter(|route| route.table == TABLE);
        ours.filter(|route| IDENTITIES.contains(&route.destination))
    }

    /// The host's IPv4 addresses, except loopback.
    pub(super) fn own(&self) -> Vec<Ipv4Addr> {
        let local = self.0.iter().filter(|r| r.table == TABLE_LOCAL && r.local);
        let mut own: Vec<_> = local.map(|route| route.destination.addr()).collect();
        own.retain(|address| !address.is_loopback());
        own.sort_unstable();
        own.dedup();
        own
    }

    /// Routers of all routes that are not ours.
    pub(super) fn routers(&self) -> Vec<Ipv4Addr> {
        let others = self
            .0
            .iter()
            .filter(|route| !route.ours && !route.fabric && route.table != TABLE);
        let mut routers: Vec<_> = others
            .flat_map(|route| route.routers.iter().copied())
            .collect();
        routers.sort_unstable();
        routers.dedup();
        routers
    }

    /// Interfaces that have an address of the host, except loopback.
    pub(super) fn addressed(&self) -> Vec<u32> {
        self.0
            .iter()
            .filter(|r| r.table == TABLE_LOCAL && !r.destination.addr().is_loopback())
            .flat_map(|route| route.interfaces.iter().copied())
            .collect()
    }

    /// Whether our table has the route to metadatad through `interface`, and the unreachable route as a fallback. Without
    /// an interface, only the unreachable route.
    pub(super) fn has_metadata_route(&self, interface: Option<u32>) -> bool {
        let to_it = |route: &&Route| route.table == TABLE && route.destination.addr() == METADATA;
        let in_table = || self.0.iter().filter(to_it);
        let dead_end = in_table().any(|route| !route.unicast);
        let interfaces: Vec<_> = in_table()
            .filter(|route| route.unicast)
            .flat_map(|route| route.interfaces.iter().copied())
            .collect();
        dead_end && interfaces == interface.into_iter().collect::<Vec<_>>()
    }
}

fn router(attribute: &RouteAttribute) -> Option<Ipv4Addr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    }
}

impl Route {
    fn of(message: RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut destination = Ipv4Addr::UNSPECIFIED;
        let mut table = u32::from(header.table);
        let mut interfaces = Vec::new();
        let mut gateway = None;
        let mut routers = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                    gateway = Some(*address);
                    routers.push(*address);
                }
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Oif(index) => interfaces.push(*index),
                RouteAttribute::MultiPath(hops) => {
                    interfaces.extend(hops.iter().map(|hop| hop.interface_index));
                    routers.extend(
                        hops.iter()
                            .flat_map(|hop| &hop.attributes)
                            .filter_map(router),
                    );
                }
                _ => {}
            }
        }
        Some(Self {
            destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
            table,
            interfaces,
            gateway,
            routers,
            ours: header.protocol == PROTOCOL,
            fabric: header.protocol == FABRIC,
            unicast: header.kind == RouteType::Unicast,
            local: header.kind == RouteType::Local,
            message,
        })
    }

    fn is_return_route(&self, back: &ReturnRoute) -> bool {
        self.unicast
            && self.destination == Ipv4Net::from(back.identity)
            && self.interfaces == [back.bridge]
    }

    fn is_dead_end(&self) -> bool {
        !self.unicast && self.destination == IDENTITIES
    }
}

/// Sets the metadata route of our table, and the rules that select the table. `interface` is the one to metadatad, if it
/// exists and is up.
pub(super) async fn ensure_metadata(
    handle: &Handle,
    routes: &Routes,
    state: &NetworkState,
    interface: Option<u32>,
) -> Result<(), NetworkError> {
    ensure_rules(handle, state).await?;
    if routes.has_metadata_route(interface) {
        return Ok(());
    }
    let to_metadata = || {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(METADATA, 32)
            .table_id(TABLE)
            .protocol(PROTOCOL)
    };
    let dead_end = to_metadata()
        .kind(RouteType::Unreachable)
        .priority(LAST_RESORT)
        .build();
    add(handle, dead_end).await?;
    let outdated = routes.0.iter().filter(|r| {
        r.table == TABLE
            && r.destination.addr() == METADATA
            && r.unicast
            && r.interfaces != interface.into_iter().collect::<Vec<_>>()
    });
    for route in outdated {
        delete(handle, route.message.clone()).await?;
    }
    if let Some(index) = interface {
        let route = to_metadata()
            .scope(RouteScope::Link)
            .output_interface(index)
            .build();
        add(handle, route).await?;
    }
    Ok(())
}

/// Sets the return routes to ports on bridges of the host.
pub(super) async fn ensure_return_routes(
    handle: &Handle,
    routes: &Routes,
    wanted: &[ReturnRoute],
) -> Result<(), NetworkError> {
    if routes.match_return_routes(wanted) {
        return Ok(());
    }
    let to = |net: Ipv4Net| {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .table_id(TABLE)
            .protocol(PROTOCOL)
    };
    if !wanted.is_empty() {
        let dead_end = to(IDENTITIES).kind(RouteType::Unreachable);
        add(handle, dead_end.priority(LAST_RESORT).build()).await?;
    }
    for route in routes.to_identities() {
        let keep = wanted.iter().any(|back| route.is_return_route(back));
        if !keep && (wanted.is_empty() || !route.is_dead_end()) {
            delete(handle, route.message.clone()).await?;
        }
    }
    for back in wanted {
        let route = to(back.identity.into()).scope(RouteScope::Link);
        add(handle, route.output_interface(back.bridge).build()).await?;
    }
    Ok(())
}

/// Whether exactly the wanted rules select our table.
pub(super) async fn rules_are_intact(
    handle: &Handle,
    state: &NetworkState,
) -> Result<bool, NetworkError> {
    let found = our_rules(handle).await?;
    let wanted = wanted_rules(handle, state);
    Ok(found.len() == wanted.len() && wanted.iter().all(|w| found.iter().any(|f| same(w, f))))
}

async fn ensure_rules(handle: &Handle, state: &NetworkState) -> Result<(), NetworkError> {
    let found = our_rules(handle).await?;
    let wanted = wanted_rules(handle, state);
    for rule in &wanted {
        if !found.iter().any(|f| same(rule, f)) {
            let mut request = handle.rule().add();
            *request.message_mut() = rule.clone();
            carry_out("adding a routing rule", request.execute()).await?;
        }
    }
    for rule in found {
        if !wanted.iter().any(|w| same(w, &rule)) {
            delete_rule(handle, rule).await?;
        }
    }
    Ok(())
}

/// The rules for guests' packets to 169.254.169.254: by incoming interface, and by source address as well, because the
/// kernel's reverse path check (`rp_filter`) looks up answers that way. Packets from a port on a bridge of the host are
/// recognized by the source address that the port's firewall rules set, so packets of other machines are not affected.
fn wanted_rules(handle: &Handle, state: &NetworkState) -> Vec<RuleMessage> {
    let to = |destination: Ipv4Net, priority| {
        handle
            .rule()
            .add()
            .v4()
            .action(RuleAction::ToTable)
            .destination_prefix(destination.network(), destination.prefix_len())
            .table_id(TABLE)
            .priority(priority)
    };
    let rule = |priority| to(METADATA.into(), priority);
    let mut by_bridge = rule(FROM_BRIDGE).input_interface(&state.bridge);
    let mut by_subnet =
        rule(FROM_SUBNET).source_prefix(state.subnet.network(), state.subnet.prefix_len());
    let mut rules = vec![
        by_bridge.message_mut().clone(),
        by_subnet.message_mut().clone(),
    ];
    for port in state.ports.iter().filter(|port| port.home.is_some()) {
        let mut by_address = rule(FROM_SUBNET).source_prefix(port.address, 32);
        rules.push(by_address.message_mut().clone());
    }
    if state.lan.iter().any(|port| port.identity.is_some()) {
        let (net, bits) = (IDENTITIES.network(), IDENTITIES.prefix_len());
        let mut asks = rule(FROM_IDENTITY).source_prefix(net, bits);
        let mut answers = to(IDENTITIES, TO_IDENTITY).source_prefix(METADATA, 32);
        rules.push(asks.message_mut().clone());
        rules.push(answers.message_mut().clone());
    }
    rules
}

async fn our_rules(handle: &Handle) -> Result<Vec<RuleMessage>, NetworkError> {
    let all: Vec<RuleMessage> = handle
        .rule()
        .get(IpVersion::V4)
        .execute()
        .try_collect()
        .await
        .map_err(kernel_error("listing routing rules"))?;
    let selects_ours = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Table(TABLE));
    Ok(all.into_iter().filter(selects_ours).collect())
}

/// Whether a rule that the kernel lists has all attributes of the wanted one. The kernel adds further ones.
fn same(wanted: &RuleMessage, found: &RuleMessage) -> bool {
    wanted.header.dst_len == found.header.dst_len
        && wanted.header.src_len == found.header.src_len
        && wanted.header.action == found.header.action
        && wanted
            .attributes
            .iter()
            .all(|attribute| found.attributes.contains(attribute))
}

async fn delete_rule(handle: &Handle, rule: RuleMessage) -> Result<(), NetworkError> {
    carry_out("removing a routing rule", handle.rule().del(rule).execute()).await
}

/// Sets the routes to guests' further addresses, and to addresses of guests that moved here. A single address is resolved by ARP on the bridge. A range is routed to
/// the address of the guest that it is assigned to.
pub(super) async fn ensure_further(
    handle: &Handle,
    routes: &Routes,
    state: &NetworkState,
    bridge: u32,
) -> Result<(), NetworkError> {
    let wanted = further(state);
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    let (kept, outdated): (Vec<_>, Vec<_>) = routes
        .0
        .iter()
        .filter(|route| route.ours && route.table == main)
        .partition(|r| r.interfaces == [bridge] && wanted.contains(&(r.destination, r.gateway)));
    for route in &outdated {
        delete(handle, route.message.clone()).await?;
    }
    for (destination, gateway) in wanted {
        if kept
            .iter()
            .any(|r| (r.destination, r.gateway) == (destination, gateway))
        {
            continue;
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .protocol(PROTOCOL)
            .output_interface(bridge);
        let route = match gateway {
            Some(gateway) => route.gateway(gateway),
            None => route.scope(RouteScope::Link),
        };
        add(handle, route.build()).await?;
    }
    Ok(())
}

/// Whether all routes to guests' addresses outside of the subnet are there.
pub(super) fn has_further(routes: &Routes, state: &NetworkState, bridge: u32) -> bool {
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    further(state).iter().all(|(destination, gateway)| {
        routes.0.iter().any(|route| {
            route.ours
                && route.table == main
                && route.interfaces == [bridge]
                && (route.destination, route.gateway) == (*destination, *gateway)
        })
    })
}

/// The destinations, each with the address of the guest that routes it, if it is a range.
fn further(state: &NetworkState) -> Vec<(Ipv4Net, Option<Ipv4Addr>)> {
    let mut wanted = Vec::new();
    for port in &state.ports {
        if port.home.is_some() {
            wanted.push((port.address.into(), None));
        }
        for range in further_ranges(port) {
            let single = range.prefix_len() == 32;
            // The subnet's own route covers it.
            if single && state.subnet.contains(&range) {
                continue;
            }
            wanted.push((range, (!single).then_some(port.address)));
        }
    }
    wanted.sort();
    wanted.dedup();
    wanted
}

/// Removes our rules and routes, and returns how many. The kernel has already removed the routes of deleted links.
pub(super) async fn remove(handle: &Handle) -> Result<usize, NetworkError> {
    let rules = our_rules(handle).await?;
    let mut removed = rules.len();
    for rule in rules {
        delete_rule(handle, rule).await?;
    }
    for route in Routes::read(handle).await?.0 {
        if route.ours || route.table == TABLE {
            delete(handle, route.message).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn add(handle: &Handle, route: RouteMessage) -> Result<(), NetworkError> {
    carry_out(
        "adding a route",
        handle.route().add(route).replace().execute(),
    )
    .await
}

async fn delete(handle: &Handle, route: RouteMessage) -> Result<(), NetworkError> {
    carry_out("removing a route", handle.route().del(route).execute()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::state;

    fn route(destination: &str, table: u32, interface: u32) -> Route {
        let destination: Ipv4Net = destination.parse().unwrap();
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .table_id(table)
            .output_interface(interface)
            .build();
        Route::of(message).unwrap()
    }

    #[test]
    fn foreign_networks_come_from_routes_that_are_not_ours() {
        let mut ours = route("10.99.0.0/24", 254, 3);
        ours.ours = true;
        let routes = Routes(vec![
            route("0.0.0.0/0", 254, 2),
            route("192.168.1.0/24", 254, 2),
            route("100.64.0.0/10", 52, 4),
            route("192.168.1.7/32", 255, 2),
            route("10.144.1.0/24", 254, 7),
            route("169.254.169.254/32", TABLE, 8),
            route("192.168.1.0/24", 254, 3),
            ours,
        ]);
        let networks: Vec<_> = routes
            .foreign(&[7])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(networks, ["100.64.0.0/10", "192.168.1.0/24"]);
        assert_eq!(routes.uplinks(), [2]);
    }

    #[test]
    fn the_metadata_route_needs_the_right_interface_and_a_dead_end_behind_it() {
        let mut dead_end = route("169.254.169.254/32", TABLE, 0);
        dead_end.unicast = false;
        dead_end.interfaces.clear();
        let direct = route("169.254.169.254/32", TABLE, 8);
        let both = Routes(vec![direct.clone(), dead_end.clone()]);
        assert!(both.has_metadata_route(Some(8)));
        assert!(!both.has_metadata_route(Some(9)));
        assert!(!both.has_metadata_route(None));
        assert!(!Routes(vec![direct]).has_metadata_route(Some(8)));
        assert!(Routes(vec![dead_end]).has_metadata_route(None));
    }

    #[test]
    fn further_addresses_outside_the_subnet_get_routes() {
        let mut state = state(2);
        for port in &mut state.ports {
            port.allow_addresses = vec![
                "10.144.1.200/32".parse().unwrap(),
                "10.99.0.7/32".parse().unwrap(),
            ];
        }
        state.ports[1]
            .allow_addresses
            .push("10.98.0.0/24".parse().unwrap());
        let lease = state.ports[1].address;
        assert_eq!(
            further(&state),
            [
                ("10.98.0.0/24".parse().unwrap(), Some(lease)),
                ("10.99.0.7/32".parse().unwrap(), None),
            ]
        );
    }
}
