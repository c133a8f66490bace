//! Cancels a move: the old node stays the owner, and the new one deletes what it has received.

use waifud_api::Instance;
use waifud_store::{InstanceRow, MoveRow, WriteTx};
use waifud_types::MoveState;
use waifud_types::event::Cause;
use waifud_types::ownership::OwnershipRole;

use crate::instances::handover::{ownership, require_confirmed};
use crate::instances::problems as instance_problems;
use crate::instances::{IfMatch, find};
use crate::{Control, ControlError};

impl Control {
    /// Cancels the move of an instance. Repeating the request changes nothing.
    pub async fn cancel_move(
        &self,
        name_or_id: &str,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        self.change_instance(name_or_id, IfMatch::Any, move |control, tx, row| {
            if row.deleting {
                return Err(instance_problems::deleting(&row.name).into());
            }
            let Some(moving) = row.moving.clone() else {
                return Err(instance_problems::not_moving(&row.name).into());
            };
            let to = moving.target_name.clone();
            match moving.state {
                MoveState::Canceling => Ok(control.instance_view(row)),
                state if state.can_be_canceled() => {
                    control.cancel_move_in(tx, &row, &moving, &cause)?;
                    Ok(control.instance_view(find(tx, &row.id.to_string())?))
                }
                _ => Err(instance_problems::already_moved(&row.name, &to).into()),
            }
        })
        .await
    }

    /// Cancels a move that can be canceled.
    pub(super) fn cancel_move_in(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        moving: &MoveRow,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let mut parts = ownership(tx, row)?;
        let source = parts.part(moving.source);
        let given_up = source.is_some_and(|part| part.role != OwnershipRole::Owner);
        if given_up {
            require_confirmed(tx, row, &parts)?;
            parts
                .withdraw_release(moving.source)
                .map_err(|error| instance_problems::handover_refused(&row.name, error))?;
        }
        let event = self.instance_event(
            "instance.move-canceled",
            row,
            cause,
            format!("it stays on {}", moving.source_name),
        );
        let revision = tx.emit(&event)?;
        if given_up && let Some(part) = parts.part(moving.source) {
            tx.set_part(row.id, &part, revision)?;
            tx.set_epoch(row.id, parts.epoch, revision)?;
        }
        if let Some(part) = parts.part(moving.target) {
            self.order_destruction(tx, row, moving.target, part.epoch, revision)?;
        }
        tx.set_move_state(row.id, MoveState::Canceling, revision)?;
        self.move_progress().forget(row.id);
        self.advance_move(tx, row.id, cause)?;
        Ok(())
    }
}
