//! Which node an instance moves to: the requested one, or the best of the others by the rules of placement.

use waifud_api::MoveInstance;
use waifud_store::{InstanceRow, NodeCapacity, NodeRow, ReadTx};
use waifud_types::ownership::Ownership;
use waifud_types::spec::InstanceSpec;

use crate::ControlError;
use crate::instances::problems as instance_problems;
use crate::network;
use crate::placement::place::{Related, decide};

/// The number of verdicts that are needed to explain a refusal.
const VERDICTS: usize = 4;

/// The node for a move. Refused if there is none, with the reason. A requested node may be unreachable: the move waits for it.
pub(super) fn choose(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    source: &NodeRow,
    request: &MoveInstance,
    parts: &Ownership,
    mut capacities: Vec<NodeCapacity>,
) -> Result<NodeRow, ControlError> {
    let spec = spec_elsewhere(row, source, request)?;
    if let Some(wanted) = &request.to {
        if *wanted == source.name {
            return Err(instance_problems::already_there(&row.name, wanted).into());
        }
        let Some(node) = tx.node_named(wanted.as_str())? else {
            return Err(instance_problems::unknown_node("to", wanted).into());
        };
        if parts.part(node.id).is_some() || tx.tombstone_epoch(row.id, node.id)?.is_some() {
            return Err(instance_problems::still_has_part(&row.name, wanted).into());
        }
        if has_copy(tx, row, &node)? {
            return Err(instance_problems::copy_exists(&row.name, wanted).into());
        }
        for capacity in &mut capacities {
            capacity.node.reachable |= capacity.node.id == node.id;
        }
    }
    let mut suitable = Vec::with_capacity(capacities.len());
    let mut without_address = None;
    for capacity in capacities {
        let node = &capacity.node;
        let busy = parts.part(node.id).is_some()
            || tx.tombstone_epoch(row.id, node.id)?.is_some()
            || has_copy(tx, row, node)?;
        if busy {
            continue;
        }
        let keeps = request.new_address || network::keep_address::can_keep(tx, row, source, node)?;
        // A requested node is refused only if the instance fits there otherwise.
        if keeps || request.to.is_some() {
            suitable.push(capacity);
        } else {
            without_address.get_or_insert_with(|| node.name.clone());
        }
    }
    if suitable.is_empty()
        && let Some(node) = without_address
    {
        return Err(instance_problems::new_address_needed(&row.name, &node).into());
    }
    let related = Related::read(tx, &spec)?;
    let (choice, _) = decide(tx, &related.request(&spec, &row.arch), &suitable, VERDICTS)?;
    let mut nodes = suitable.into_iter().map(|NodeCapacity { node, .. }| node);
    match nodes.find(|node| Some(node.id) == choice.node) {
        Some(node) => Ok(node),
        None => Err(instance_problems::no_node_to_move_to(
            &row.name,
            request.to.as_ref(),
            &choice.verdicts,
        )
        .into()),
    }
}

/// The spec as it is placed on another node, pinned to the requested one. With new addresses on `default`, or without nics there,
/// because an address that is kept needs no room in the subnet of the node.
fn spec_elsewhere(
    row: &InstanceRow,
    source: &NodeRow,
    request: &MoveInstance,
) -> Result<InstanceSpec, ControlError> {
    let mut spec = row.spec.clone();
    if request.to.is_none() && spec.placement.node.is_some() {
        return Err(instance_problems::pinned(&row.name, &source.name).into());
    }
    spec.placement.node.clone_from(&request.to);
    if request.new_address {
        for nic in &mut spec.nics {
            if network::is_default(&nic.network) {
                nic.address = None;
            }
        }
    } else {
        spec.nics.retain(|nic| !network::is_default(&nic.network));
    }
    Ok(spec)
}

/// Whether the node has an unmanaged copy of the instance.
fn has_copy(tx: &ReadTx<'_>, row: &InstanceRow, node: &NodeRow) -> Result<bool, ControlError> {
    let copies = tx.unmanaged_copies(row.id)?;
    Ok(copies.into_iter().any(|(on, _)| on == node.id))
}
