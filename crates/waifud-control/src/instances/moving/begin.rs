//! Begins a move.

use waifud_api::{Instance, MoveInstance};
use waifud_store::{InstanceRow, MoveRow, NodeCapacity, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::node::feature;
use waifud_types::ownership::{Ownership, OwnershipRole};
use waifud_types::{InstanceState, MoveState, ReceiveState};

use super::destination;
use crate::instances::IfMatch;
use crate::instances::handover::{ownership, require_confirmed};
use crate::instances::problems as instance_problems;
use crate::network;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

impl Control {
    /// Begins to move an instance to another node. Repeating the request changes nothing.
    pub async fn move_instance(
        &self,
        name_or_id: &str,
        request: MoveInstance,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        self.change_instance(name_or_id, if_match, move |control, tx, row| {
            if let Some(moving) = &row.moving {
                let same = request.to.is_none() || request.to.as_ref() == Some(&moving.target_name);
                if same && moving.state != MoveState::Canceling {
                    return Ok(control.instance_view(row));
                }
                let to = &moving.target_name;
                return Err(match moving.state {
                    MoveState::Canceling => instance_problems::is_canceling(&row.name, to),
                    _ => instance_problems::is_moving(&row.name, to),
                }
                .into());
            }
            let row = control.begin_move_in(tx, row, &request, &cause)?;
            Ok(control.instance_view(row))
        })
        .await
    }

    /// Begins a move of an instance that is not being moved.
    pub(crate) fn begin_move_in(
        &self,
        tx: &mut WriteTx<'_>,
        row: InstanceRow,
        request: &MoveInstance,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let capacities = tx.node_capacities()?;
        let Checked {
            source,
            target,
            mut parts,
        } = check(tx, &row, request, capacities)?;
        parts
            .begin_receiving(target.id)
            .map_err(|error| instance_problems::handover_refused(&row.name, error))?;
        let part = parts
            .part(target.id)
            .ok_or_else(|| ControlError::Inconsistent("a receiving node has no part".to_owned()))?;
        let event = self.instance_event(
            "instance.moving",
            &row,
            cause,
            format!("from {} to {}", source.name, target.name),
        );
        let revision = tx.emit(&event)?;
        let moving = MoveRow {
            source: source.id,
            source_name: source.name,
            target: target.id,
            target_name: target.name.clone(),
            state: MoveState::Preparing,
            received: ReceiveState::Preparing,
            was_on: row.status.state.may_be_on(),
            began_at: self.now(),
            new_address: request.new_address && network::keep_address::has_address(&row.spec),
        };
        tx.begin_move(row.id, &moving, &part, &row.spec, revision)?;
        let mut on_target = row.clone();
        on_target.node = Some(target.id);
        on_target.owner.name = Some(target.name);
        network::reserve_ports(tx, &on_target, &row.spec.publish)?;
        Ok(InstanceRow {
            moving: Some(moving),
            ..row
        })
    }
}

/// A move that can begin.
pub(crate) struct Checked {
    source: NodeRow,
    /// The node that the instance moves to.
    pub(crate) target: NodeRow,
    parts: Ownership,
}

/// Whether a move of an instance that is not being moved can begin, by these capacities of the nodes, and where it leads.
pub(crate) fn check(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    request: &MoveInstance,
    capacities: Vec<NodeCapacity>,
) -> Result<Checked, ControlError> {
    if row.deleting {
        return Err(instance_problems::deleting(&row.name).into());
    }
    if row.lost_node.is_some() {
        return Err(instance_problems::lost(&row.name).into());
    }
    let source = match row.node {
        Some(node) => tx.node(node)?,
        None => None,
    };
    let Some(source) = source else {
        return Err(instance_problems::not_placed_to_move(&row.name).into());
    };
    if row.spec.rescue.is_some() {
        return Err(instance_problems::rescue_to_move(&row.name).into());
    }
    let parts = ownership(tx, row)?;
    require_confirmed(tx, row, &parts)?;
    if parts.part(source.id).map(|part| part.role) != Some(OwnershipRole::Owner) {
        return Err(instance_problems::is_released(&row.name, &source.name).into());
    }
    let target = destination::choose(tx, row, &source, request, &parts, capacities)?;
    if matches!(
        row.status.state,
        InstanceState::Pending | InstanceState::Preparing
    ) {
        return Err(instance_problems::unprepared_to_move(&row.name, &source.name).into());
    }
    require_feature(&source)?;
    require_feature(&target)?;
    if !request.new_address && !network::keep_address::can_keep(tx, row, &source, &target)? {
        return Err(instance_problems::new_address_needed(&row.name, &target.name).into());
    }
    Ok(Checked {
        source,
        target,
        parts,
    })
}

fn require_feature(node: &NodeRow) -> Result<(), ControlError> {
    if node.facts.has(feature::MOVE) && node.facts.has(feature::RELEASE) {
        Ok(())
    } else {
        Err(node_problems::agent_too_old(&node.name).into())
    }
}

/// Whether the instance needs another address wherever it moves from its node.
pub(crate) fn needs_new_address(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    node: &NodeRow,
) -> Result<bool, ControlError> {
    let home = row.home.unwrap_or(node.subnet);
    Ok(network::keep_address::has_address(&row.spec)
        && !network::keep_address::is_carried(tx, home)?)
}
