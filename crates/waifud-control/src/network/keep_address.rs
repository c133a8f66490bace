//! Whether an instance keeps its address on another node.
//!
//! An address belongs to the subnet of a node, its home. On another node, the fabric must carry a route to the single address, and
//! both that node and the node of the subnet must support it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use waifud_store::{InstanceRow, NodeRow, ReadTx, StoreError};
use waifud_types::FabricKind;
use waifud_types::node::feature;
use waifud_types::spec::InstanceSpec;

use super::default_network::is_default;

/// Whether the instance has an address on `default`.
pub(crate) fn has_address(spec: &InstanceSpec) -> bool {
    let mut nics = spec.nics.iter();
    nics.any(|nic| is_default(&nic.network) && nic.address.is_some())
}

/// The subnet of the instance's address on a node whose subnet is `own`: it belongs to the subnet of the instance's present node,
/// `present`, or to another one from which the instance had come. `None` if it belongs to `own`, and without an address on
/// `default`.
pub(crate) fn home_on(row: &InstanceRow, present: Ipv4Net, own: Ipv4Net) -> Option<Ipv4Net> {
    let home = row.home.unwrap_or(present);
    (home != own && has_address(&row.spec)).then_some(home)
}

/// Whether the fabric leads to single addresses. One node needs no fabric, and the default of several does.
pub(crate) fn fabric_carries(tx: &ReadTx<'_>) -> Result<bool, StoreError> {
    let chosen = tx.fabric()?.configured;
    Ok(chosen.unwrap_or(FabricKind::Wireguard).carries_addresses())
}

/// Whether nodes can carry an address outside of this subnet.
pub(crate) fn is_carried(tx: &ReadTx<'_>, home: Ipv4Net) -> Result<bool, StoreError> {
    if !fabric_carries(tx)? {
        return Ok(false);
    }
    // A node that does not know of the address as one that is elsewhere would drop its packets.
    let at_home = tx.node_with_subnet(home)?;
    Ok(at_home.is_none_or(|node| node.facts.has(feature::KEEP_ADDRESS)))
}

/// Whether the instance keeps its address on `target`. True without an address on `default`.
pub(crate) fn can_keep(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    source: &NodeRow,
    target: &NodeRow,
) -> Result<bool, StoreError> {
    let Some(home) = home_on(row, source.subnet, target.subnet) else {
        return Ok(true);
    };
    Ok(target.facts.has(feature::KEEP_ADDRESS) && is_carried(tx, home)?)
}

/// Whether an instance that has this address, and no node, can be placed on `node` with it: its former node was removed.
pub(crate) fn fits(tx: &ReadTx<'_>, address: Ipv4Addr, node: &NodeRow) -> Result<Kept, StoreError> {
    let Some(home) = tx.home_of(address)? else {
        return Ok(Kept::NotLost);
    };
    let here = node.subnet == home;
    let carried = here || node.facts.has(feature::KEEP_ADDRESS) && is_carried(tx, home)?;
    Ok(if carried { Kept::Yes } else { Kept::No })
}

/// Whether the address of an instance without a node can be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// It can.
    Yes,
    /// It gets another one.
    No,
    /// The instance was not on a node before.
    NotLost,
}
