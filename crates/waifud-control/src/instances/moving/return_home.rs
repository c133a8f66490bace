//! A node of a move is removed by force: the instance stays on the other one.

use waifud_store::{InstanceRow, NodeRow, WriteTx};
use waifud_types::event::Cause;
use waifud_types::ownership::OwnershipRole;
use waifud_types::status::InstanceStatus;
use waifud_types::{MoveState, NodeId, WaitReason};

use crate::instances::handover::ownership;
use crate::instances::problems as instance_problems;
use crate::network;
use crate::{Control, ControlError};

/// Whether the instance was handed over to the node, and the old node still has its disks.
pub(crate) fn can_return(row: &InstanceRow, from: NodeId) -> bool {
    row.node == Some(from)
        && row
            .moving
            .as_ref()
            .is_some_and(|moving| moving.target == from && moving.state == MoveState::Starting)
}

impl Control {
    /// Ends the moves to a node that is being removed, before the node owns the instances.
    pub(crate) fn end_moves_to(
        &self,
        tx: &mut WriteTx<'_>,
        node: NodeId,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        for id in tx.moves_of(node)? {
            let Some(row) = tx.instance(id)?.filter(|row| !row.deleting) else {
                continue;
            };
            let Some(moving) = row.moving.clone() else {
                continue;
            };
            if moving.target == node && moving.state.can_be_canceled() {
                self.cancel_move_in(tx, &row, &moving, cause)?;
            }
        }
        Ok(())
    }

    /// Makes the old node of a move the owner again, since the new one is removed before the instance was seen on it. The
    /// disks there are those from before the move.
    pub(crate) fn return_home(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        removed: &NodeRow,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let Some(moving) = row.moving.clone() else {
            return Ok(());
        };
        let home = moving.source_name.clone();
        let event = self.instance_event(
            "instance.returned",
            &row,
            cause,
            format!("{} was removed; it stays on {home}", removed.name),
        );
        let revision = tx.emit(&event)?;
        let mut parts = ownership(tx, &row)?;
        parts
            .parts
            .retain(|part| part.node != removed.id || part.role != OwnershipRole::Owner);
        parts
            .withdraw_release(moving.source)
            .map_err(|error| instance_problems::handover_refused(&row.name, error))?;
        tx.end_part(row.id, removed.id)?;
        if let Some(part) = parts.part(moving.source) {
            tx.set_part(row.id, &part, revision)?;
        }
        tx.end_move(row.id)?;
        row.epoch = parts.epoch;
        row.generation = row.generation.next();
        row.status = InstanceStatus::pending(None);
        row.status.node = Some(home.clone());
        row.status
            .set_wait(&WaitReason::NodePreparing { node: home.clone() });
        if row.spec.placement.node.is_some() {
            row.spec.placement.node = Some(home);
        }
        let Some(source) = tx.node(moving.source)? else {
            return Ok(());
        };
        if moving.new_address {
            row.home = None;
            super::advance::new_address(tx, &mut row, &source)?;
        } else {
            row.home = network::keep_address::home_on(&row, removed.subnet, source.subnet);
        }
        tx.set_home(row.id, row.home, &[source.id], revision)?;
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        tx.set_epoch(row.id, row.epoch, revision)?;
        tx.set_status(row.id, &row.status)?;
        row.node = Some(source.id);
        row.owner.name = Some(source.name.clone());
        self.put_bundle(tx, &row, &source)?;
        Ok(())
    }
}
