//! Addresses, routes, firewalls and nics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use waifud_network::{NetworkState, PortFirewall, PortRule};
use waifud_store::InstanceRow;
use waifud_types::firewall::FirewallPeer;
use waifud_types::ownership::OwnershipRole;
use waifud_types::{InstanceId, TapName};

use super::snapshot::{Database, Snapshot};
use super::{Violation, hold};
use crate::world::World;

/// No two guests have the same address, also not on different nodes.
pub(super) fn an_address_is_served_once(
    world: &World,
    nodes: &[Snapshot<'_>],
) -> Result<(), Violation> {
    let mut served: BTreeMap<Ipv4Addr, (&str, InstanceId)> = BTreeMap::new();
    for at in nodes {
        for port in &at.ports {
            let here = (at.node.name.as_str(), port.instance);
            let other = served.insert(port.address, here);
            hold!(
                world,
                other.is_none(),
                an_address_is_served_once,
                "{} is served to {here:?} and to {other:?}",
                port.address
            );
        }
    }
    Ok(())
}

/// An address on `default`, also one that was kept in a move, belongs to one instance, and to the subnet of its node or to the one
/// that the instance came from.
pub(super) fn an_address_belongs_to_one_instance(
    world: &World,
    database: &Database,
) -> Result<(), Violation> {
    let mut owners: BTreeMap<Ipv4Addr, InstanceId> = BTreeMap::new();
    for row in database.instances.values() {
        for address in row.spec.nics.iter().filter_map(|nic| nic.address) {
            let other = owners.insert(address, row.id);
            hold!(
                world,
                other.is_none(),
                an_address_belongs_to_one_instance,
                "{address} belongs to {} and to {other:?}",
                row.name
            );
            let own = row.node.and_then(|node| database.subnets.get(&node));
            // One without a node keeps the address that it had. One that is deleted during a move may be left on the other node.
            let home = row.home.as_ref().or(own).filter(|_| !row.deleting);
            let Some(home) = home else {
                continue;
            };
            hold!(
                world,
                home.contains(&address),
                an_address_belongs_to_one_instance,
                "{} has {address}, which is not in {home}",
                row.name
            );
        }
    }
    Ok(())
}

/// Every node sends packets to a guest of another node to the node that serves the guest's address.
pub(super) fn routes_lead_to_the_node_of_each_guest(
    world: &World,
    nodes: &[Snapshot<'_>],
) -> Result<(), Violation> {
    for from in nodes.iter().filter(|at| at.node.is_member()) {
        let Some(state) = from.node.network_state() else {
            continue;
        };
        let others = nodes.iter().filter(|at| at.node.name != from.node.name);
        for to in others {
            for port in &to.ports {
                let found = next_node(&state, port.address);
                hold!(
                    world,
                    found == Some(to.node.name.as_str()),
                    routes_lead_to_the_node_of_each_guest,
                    "{} sends packets for {} to {found:?}, and {} has the guest",
                    from.node.name,
                    port.address,
                    to.node.name
                );
            }
        }
    }
    Ok(())
}

/// The node that packets for an address go to: that of the most exact route.
fn next_node(state: &NetworkState, address: Ipv4Addr) -> Option<&str> {
    let routes = state.remote_subnets.iter();
    let fitting = routes.filter(|route| route.subnet.contains(&address) && route.fabric.is_some());
    let route = fitting.max_by_key(|route| route.subnet.prefix_len())?;
    let own = state.subnet.contains(&address) && !route.is_address();
    (!own).then(|| route.node.as_str())
}

/// The rules at each port are those of the spec, with the present addresses of instances and labels.
pub(super) fn the_firewall_of_a_port_is_as_requested(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
) -> Result<(), Violation> {
    for at in nodes {
        for port in &at.ports {
            let Some(row) = is_managed(world, database, port.instance) else {
                continue;
            };
            let wanted = wanted_firewall(row, database);
            hold!(
                world,
                port.firewall == wanted,
                the_firewall_of_a_port_is_as_requested,
                "{} has {:?} on {}, and was to have {wanted:?}",
                row.name,
                port.firewall,
                at.node.name
            );
        }
    }
    Ok(())
}

/// The row of an instance whose changes reach its node.
fn is_managed<'a>(
    world: &World,
    database: &'a Database,
    id: InstanceId,
) -> Option<&'a InstanceRow> {
    let promise = world.promises.of(id)?;
    let role = database.part(id)?.role;
    let row = database.instances.get(&id)?;
    (promise.is_managed() && role == OwnershipRole::Owner).then_some(row)
}

fn wanted_firewall(row: &InstanceRow, database: &Database) -> PortFirewall {
    let firewall = &row.spec.firewall;
    let rules = firewall.rules.iter().map(|rule| PortRule {
        id: rule.id(),
        direction: rule.direction,
        action: rule.action,
        protocol: rule.protocol,
        ports: rule.ports.clone(),
        peers: rule.peer.as_ref().map(|peer| addresses(peer, database)),
    });
    PortFirewall {
        incoming: firewall.incoming,
        outgoing: firewall.outgoing,
        rules: rules.collect(),
    }
}

fn addresses(peer: &FirewallPeer, database: &Database) -> Vec<Ipv4Net> {
    let is_meant = |row: &&InstanceRow| match peer {
        FirewallPeer::Instance(name) => row.name == *name,
        FirewallPeer::Label { key, value } => row.labels.get(key.as_str()) == Some(value),
        FirewallPeer::Address(_) => false,
    };
    if let FirewallPeer::Address(net) = peer {
        return vec![*net];
    }
    let rows = database.instances.values().filter(is_meant);
    let nics = rows.flat_map(|row| &row.spec.nics);
    let mut found: BTreeSet<Ipv4Net> = BTreeSet::new();
    for nic in nics {
        found.extend(nic.address.map(Ipv4Net::from));
        let further = nic.allow_addresses.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        });
        found.extend(further);
    }
    Ipv4Net::aggregate(&found.into_iter().collect())
}

/// A running guest has the nics of its spec and no others, each with its rules.
pub(super) fn the_nics_of_a_guest_are_as_requested(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
) -> Result<(), Violation> {
    for at in nodes {
        let lan = at.node.network_state().map(|state| state.lan);
        let lan = lan.unwrap_or_default();
        for domain in at.running() {
            let Some(row) = is_managed(world, database, domain.id) else {
                continue;
            };
            let wanted: BTreeSet<TapName> = row
                .spec
                .numbered_nics()
                .map(|(number, _)| TapName::of(row.id, number))
                .collect();
            let has = at.node.nics(row.id);
            let own = at.ports.iter().filter(|port| port.instance == row.id);
            let own = own.map(|port| port.tap.clone());
            let of_lan = lan.iter().filter(|port| port.instance == row.id);
            let ruled: BTreeSet<TapName> = own.chain(of_lan.map(|port| port.tap.clone())).collect();
            hold!(
                world,
                has == wanted && ruled == wanted,
                the_nics_of_a_guest_are_as_requested,
                "{} has the nics {has:?} with rules for {ruled:?} on {}, and was to have {wanted:?}",
                row.name,
                at.node.name
            );
        }
    }
    Ok(())
}
