//! Routes and the rules that choose between tables.
//!
//! The host may have a 169.254.169.254 of its own (a cloud's). So guests' way to metadatad lies in a table of our own
//! that only guests' packets, and the answers to them, are looked up in. Without metadatad that table says
//! "unreachable", so that a guest's request never leaves by the host's uplink.

use std::net::Ipv4Addr;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::kernel;
use super::lan::ReturnRoute;
use crate::check::further_ranges;
use crate::{IDENTITIES, NetworkError, NetworkState};

/// The address that cloud-init asks (link-local, RFC 3927).
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Our table and the rules' priorities: before Tailscale's (5210 on) and the main table (32766).
const TABLE: u32 = 1690;
const FROM_BRIDGE: u32 = 1690;
const FROM_SUBNET: u32 = 1691;
const FROM_IDENTITY: u32 = 1692;
const TO_IDENTITY: u32 = 1693;

/// Marks routes of ours in the main table (`RTA_PROTOCOL`; 0 to 4 are the kernel's, well-known daemons end at 192).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(215);

/// The kernel's table of its own addresses.
const TABLE_LOCAL: u32 = 255;

/// A worse choice than any route with a lower number.
const LAST_RESORT: u32 = u32::MAX - 1;

/// An IPv4 route, as far as we look at routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    destination: Ipv4Net,
    table: u32,
    interfaces: Vec<u32>,
    gateway: Option<Ipv4Addr>,
    /// The same, and those of a route with several next hops.
    routers: Vec<Ipv4Addr>,
    ours: bool,
    unicast: bool,
    /// To an address of the host.
    local: bool,
    message: RouteMessage,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Routes(Vec<Route>);

impl Routes {
    pub(super) async fn read(handle: &Handle) -> Result<Self, NetworkError> {
        let mut filter = RouteMessageBuilder::<Ipv4Addr>::new();
        // Some kernels take the builder's defaults (static, unicast) for a filter.
        filter.get_mut().header.protocol = RouteProtocol::Unspec;
        filter.get_mut().header.kind = RouteType::Unspec;
        filter.get_mut().header.table = RouteHeader::RT_TABLE_UNSPEC;
        let messages: Vec<RouteMessage> = handle
            .route()
            .get(filter.build())
            .execute()
            .try_collect()
            .await
            .map_err(kernel("listing routes"))?;
        Ok(Self(messages.into_iter().filter_map(Route::of).collect()))
    }

    /// Networks that others' routes lead to, whatever their table; default routes lead everywhere and don't count.
    /// `ours` are interfaces of our own.
    pub(super) fn foreign(&self, ours: &[u32]) -> Vec<Ipv4Net> {
        let mut networks: Vec<_> = self
            .0
            .iter()
            .filter(|route| {
                route.unicast
                    && !route.ours
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

    /// Interfaces that default routes of the main table lead to.
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

    /// Whether our table leads exactly these ways, and nowhere with all other identities; without any, it says nothing
    /// of them.
    pub(super) fn lead_to(&self, ways: &[ReturnRoute]) -> bool {
        let there: Vec<_> = self.to_identities().collect();
        let dead_end = there.iter().any(|route| route.is_dead_end());
        let back = |way: &ReturnRoute| there.iter().any(|route| route.is_way(way));
        let count = ways.len() + usize::from(!ways.is_empty());
        there.len() == count && dead_end != ways.is_empty() && ways.iter().all(back)
    }

    fn to_identities(&self) -> impl Iterator<Item = &Route> {
        let ours = self.0.iter().filter(|route| route.table == TABLE);
        ours.filter(|route| IDENTITIES.contains(&route.destination))
    }

    /// The host's own IPv4 addresses, loopback aside.
    pub(super) fn own(&self) -> Vec<Ipv4Addr> {
        let local = self.0.iter().filter(|r| r.table == TABLE_LOCAL && r.local);
        let mut own: Vec<_> = local.map(|route| route.destination.addr()).collect();
        own.retain(|address| !address.is_loopback());
        own.sort_unstable();
        own.dedup();
        own
    }

    /// Routers that somebody's routes lead through.
    pub(super) fn routers(&self) -> Vec<Ipv4Addr> {
        let others = self
            .0
            .iter()
            .filter(|route| !route.ours && route.table != TABLE);
        let mut routers: Vec<_> = others
            .flat_map(|route| route.routers.iter().copied())
            .collect();
        routers.sort_unstable();
        routers.dedup();
        routers
    }

    /// Interfaces that have an address of the host, loopback aside.
    pub(super) fn addressed(&self) -> Vec<u32> {
        self.0
            .iter()
            .filter(|r| r.table == TABLE_LOCAL && !r.destination.addr().is_loopback())
            .flat_map(|route| route.interfaces.iter().copied())
            .collect()
    }

    /// Whether our table leads to metadatad: through `interface`, or nowhere when there is none.
    pub(super) fn lead_to_metadata(&self, interface: Option<u32>) -> bool {
        let to_it = |route: &&Route| route.table == TABLE && route.destination.addr() == METADATA;
        let in_table = || self.0.iter().filter(to_it);
        let nowhere = in_table().any(|route| !route.unicast);
        let ways: Vec<_> = in_table()
            .filter(|route| route.unicast)
            .flat_map(|route| route.interfaces.iter().copied())
            .collect();
        nowhere && ways == interface.into_iter().collect::<Vec<_>>()
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
            unicast: header.kind == RouteType::Unicast,
            local: header.kind == RouteType::Local,
            message,
        })
    }

    fn is_way(&self, way: &ReturnRoute) -> bool {
        self.unicast
            && self.destination == Ipv4Net::from(way.identity)
            && self.interfaces == [way.bridge]
    }

    fn is_dead_end(&self) -> bool {
        !self.unicast && self.destination == IDENTITIES
    }
}

/// Brings our table and the rules that lead into it in order. `interface` is the one to metadatad, if it is there
/// and up.
pub(super) async fn ensure_metadata(
    handle: &Handle,
    routes: &Routes,
    state: &NetworkState,
    interface: Option<u32>,
) -> Result<(), NetworkError> {
    ensure_rules(handle, state).await?;
    if routes.lead_to_metadata(interface) {
        return Ok(());
    }
    let to_metadata = || {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(METADATA, 32)
            .table_id(TABLE)
            .protocol(PROTOCOL)
    };
    let nowhere = to_metadata()
        .kind(RouteType::Unreachable)
        .priority(LAST_RESORT)
        .build();
    add(handle, nowhere).await?;
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
        let way = to_metadata()
            .scope(RouteScope::Link)
            .output_interface(index)
            .build();
        add(handle, way).await?;
    }
    Ok(())
}

/// Brings the ways back to ports on the host's own bridges in order.
pub(super) async fn ensure_ways(
    handle: &Handle,
    routes: &Routes,
    ways: &[ReturnRoute],
) -> Result<(), NetworkError> {
    if routes.lead_to(ways) {
        return Ok(());
    }
    let to = |net: Ipv4Net| {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .table_id(TABLE)
            .protocol(PROTOCOL)
    };
    if !ways.is_empty() {
        let nowhere = to(IDENTITIES).kind(RouteType::Unreachable);
        add(handle, nowhere.priority(LAST_RESORT).build()).await?;
    }
    for route in routes.to_identities() {
        let is_wanted = ways.iter().any(|way| route.is_way(way));
        if !is_wanted && (ways.is_empty() || !route.is_dead_end()) {
            delete(handle, route.message.clone()).await?;
        }
    }
    for way in ways {
        let route = to(way.identity.into()).scope(RouteScope::Link);
        add(handle, route.output_interface(way.bridge).build()).await?;
    }
    Ok(())
}

/// Whether exactly our rules lead into our table.
pub(super) async fn rules_are_whole(
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
            request
                .execute()
                .await
                .map_err(kernel("adding a routing rule"))?;
        }
    }
    for rule in found {
        if !wanted.iter().any(|w| same(w, &rule)) {
            delete_rule(handle, rule).await?;
        }
    }
    Ok(())
}

/// Guests' packets to 169.254.169.254, by where they come from; and by their source too, because that is how the
/// kernel looks for the way back when it checks the answers (`rp_filter`). What comes from a port on a bridge of the
/// host's own is known by the source that the port's rules gave it, so nobody else's packets are touched there.
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
        .map_err(kernel("listing routing rules"))?;
    let leads_to_ours = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Table(TABLE));
    Ok(all.into_iter().filter(leads_to_ours).collect())
}

/// The kernel adds attributes of its own when it shows a rule: what was asked for must all be there.
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
    handle
        .rule()
        .del(rule)
        .execute()
        .await
        .map_err(kernel("removing a routing rule"))
}

/// Routes to guests' further addresses: a single address is asked for on the bridge, whoever of its guests has it; a
/// range goes to the guest that it is given to.
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

/// Destinations and the guest that each is reached through, if not directly.
fn further(state: &NetworkState) -> Vec<(Ipv4Net, Option<Ipv4Addr>)> {
    let mut wanted = Vec::new();
    for port in &state.ports {
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

/// Removes rules and routes of ours, and says how many. Those that lead to links which are gone went with them.
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
    handle
        .route()
        .add(route)
        .replace()
        .execute()
        .await
        .map_err(kernel("adding a route"))
}

async fn delete(handle: &Handle, route: RouteMessage) -> Result<(), NetworkError> {
    handle
        .route()
        .del(route)
        .execute()
        .await
        .map_err(kernel("removing a route"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::state;

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
    fn foreign_networks_are_those_of_others_routes() {
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
    fn the_way_to_metadata_must_be_the_right_one_and_have_a_dead_end_behind_it() {
        let mut dead_end = route("169.254.169.254/32", TABLE, 0);
        dead_end.unicast = false;
        dead_end.interfaces.clear();
        let way = route("169.254.169.254/32", TABLE, 8);
        let both = Routes(vec![way.clone(), dead_end.clone()]);
        assert!(both.lead_to_metadata(Some(8)));
        assert!(!both.lead_to_metadata(Some(9)));
        assert!(!both.lead_to_metadata(None));
        assert!(!Routes(vec![way]).lead_to_metadata(Some(8)));
        assert!(Routes(vec![dead_end]).lead_to_metadata(None));
    }

    #[test]
    fn further_addresses_get_routes_only_where_the_subnet_has_none() {
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
