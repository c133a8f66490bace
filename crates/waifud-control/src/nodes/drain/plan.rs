//! What is left on a node, and where each instance can go now.
//!
//! Instances are planned one after the other, largest first, as the moves are begun, each with what those before it take.

use std::cmp::Reverse;

use waifud_api::{Drain, DrainedInstance, MoveInstance};
use waifud_store::{InstanceRow, NodeCapacity, NodeRow, ReadTx, StoreError};
use waifud_types::{Name, NodeId};

use crate::instances::moving;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

/// The instances whose owner is the node: those that move, then the others, largest first.
pub(super) fn instances(tx: &ReadTx<'_>, node: NodeId) -> Result<Vec<InstanceRow>, StoreError> {
    let mut rows = Vec::new();
    for id in tx.instances_on(node)? {
        rows.extend(tx.instance(id)?);
    }
    let size = |row: &InstanceRow| Reverse((row.spec.memory_bytes, row.spec.cpus));
    rows.sort_by(|a, b| {
        (a.moving.is_none(), size(a), &a.name).cmp(&(b.moving.is_none(), size(b), &b.name))
    });
    Ok(rows)
}

/// The instances that cannot leave the node without another address.
pub(super) fn bound_to_addresses(
    tx: &ReadTx<'_>,
    node: &NodeRow,
    instances: &[InstanceRow],
) -> Result<Vec<Name>, ControlError> {
    let mut bound = Vec::new();
    for row in instances {
        if !row.deleting && row.moving.is_none() && moving::needs_new_address(tx, row, node)? {
            bound.push(row.name.clone());
        }
    }
    Ok(bound)
}

/// Plans the drain of a node.
pub(super) fn plan(
    control: &Control,
    tx: &ReadTx<'_>,
    node: &NodeRow,
    new_address: Option<bool>,
) -> Result<Drain, ControlError> {
    let allowed = node.drain.is_some_and(|drain| drain.new_address);
    let new_address = new_address.unwrap_or(allowed);
    let mut capacities = tx.node_capacities()?;
    let mut planned = Vec::new();
    for row in instances(tx, node.id)? {
        let mut instance = DrainedInstance {
            id: row.id,
            name: row.name.clone(),
            memory_bytes: row.spec.memory_bytes,
            deleting: row.deleting,
            moving: control.move_view(&row),
            to: None,
            obstacle: None,
        };
        if let Some(moving) = &row.moving {
            instance.to = Some(moving.target_name.clone());
        } else if !row.deleting {
            match destination(tx, &row, node, new_address, &mut capacities) {
                Ok(to) => instance.to = Some(to),
                Err(ControlError::Problem(problem)) => instance.obstacle = Some(*problem),
                Err(error) => return Err(error),
            }
        }
        planned.push(instance);
    }
    Ok(Drain {
        node: node.name.clone(),
        draining: node.drain.is_some(),
        began_at: node.drain.map(|drain| drain.began_at),
        new_address,
        instances: planned,
        arriving: arriving(tx, node.id)?,
    })
}

/// Where an instance goes, whose size is then taken from that node.
fn destination(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    node: &NodeRow,
    new_address: bool,
    capacities: &mut [NodeCapacity],
) -> Result<Name, ControlError> {
    if !node.reachable {
        return Err(node_problems::drain_waits(&node.name).into());
    }
    let request = MoveInstance {
        to: None,
        new_address,
    };
    let target = moving::check(tx, row, &request, capacities.to_vec())?.target;
    let mut nodes = capacities.iter_mut();
    if let Some(capacity) = nodes.find(|capacity| capacity.node.id == target.id) {
        capacity.promise(&row.spec);
    }
    Ok(target.name)
}

/// The instances that are being moved to a node.
fn arriving(tx: &ReadTx<'_>, node: NodeId) -> Result<Vec<Name>, StoreError> {
    let mut names = Vec::new();
    for id in tx.moves_of(node)? {
        if let Some(row) = tx.instance(id)?
            && row.node != Some(node)
            && row.moving.as_ref().is_some_and(|moving| {
                moving.target == node && moving.state != waifud_types::MoveState::Canceling
            })
        {
            names.push(row.name);
        }
    }
    names.sort();
    Ok(names)
}
