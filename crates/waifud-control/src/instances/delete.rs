//! Delete: works on any instance, in any state.
//!
//! An instance without a node is removed immediately. An instance with a node gets a tombstone and stays visible as
//! `deleting`, with its name, address and reservation, until its node has confirmed the destruction. During a handover
//! every node with a part in it gets a tombstone. With an offline node
//! this only takes longer.

use waifud_api::Instance;
use waifud_api::agent::Tombstone;
use waifud_store::{InstanceRow, NodeRow, WriteTx};
use waifud_types::event::Cause;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{Digest, Epoch, NodeId, Revision};

use super::handover::is_older_copy;
use super::{IfMatch, find};
use crate::instances::problems as instance_problems;
use crate::{Control, ControlError};

/// The result of a delete request.
#[derive(Clone, PartialEq, Debug)]
pub struct Deleted {
    /// The instance: its last state, or its state while its node destroys it.
    pub instance: Instance,
    /// Whether the instance is removed.
    pub removed: bool,
}

impl Control {
    /// Orders the deletion of an instance. Repeating the request changes nothing.
    pub async fn delete_instance(
        &self,
        name_or_id: &str,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Deleted, ControlError> {
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        let (deleted, image) = self
            .store()
            .write(move |tx| control.delete_in(tx, &wanted, &if_match, &cause))
            .await?;
        self.images().collect(image).await;
        Ok(deleted)
    }

    fn delete_in(
        &self,
        tx: &mut WriteTx<'_>,
        wanted: &str,
        if_match: &IfMatch,
        cause: &Cause,
    ) -> Result<(Deleted, Option<Digest>), ControlError> {
        let mut row = find(tx, wanted)?;
        if_match.check(row.generation)?;
        if !row.deleting {
            if row.spec.protected {
                return Err(instance_problems::protected(&row.name).into());
            }
            let parts = tx.ownership(row.id)?;
            if parts.is_empty() {
                row.deleting = true;
                let image = self.remove(tx, &row, cause, "it had no node")?;
                self.place_waiting(tx)?;
                let instance = self.instance_view(row);
                return Ok((
                    Deleted {
                        instance,
                        removed: true,
                    },
                    Some(image),
                ));
            }
            self.order_deletion(tx, &mut row, &parts, cause)?;
        }
        let instance = self.instance_view(row);
        Ok((
            Deleted {
                instance,
                removed: false,
            },
            None,
        ))
    }

    fn order_deletion(
        &self,
        tx: &mut WriteTx<'_>,
        row: &mut InstanceRow,
        parts: &[Part],
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let on = row
            .owner
            .name
            .as_ref()
            .map_or("its node", |name| name.as_str());
        let revision = tx.emit(&self.instance_event(
            "instance.deleting",
            row,
            cause,
            format!("{on} was told to destroy it"),
        ))?;
        tx.mark_deleting(row.id)?;
        // From now on, the reason and the step are about the destruction.
        row.deleting = true;
        row.status.clear_reason();
        tx.set_status(row.id, &row.status)?;
        self.instance_progress().clear_step(row.id);
        // The old node of a move has the instance's own disks.
        let source = row.moving.take().map(|moving| moving.source);
        tx.end_move(row.id)?;
        self.move_progress().forget(row.id);
        // During a handover, several nodes have a part.
        for part in parts {
            if is_older_copy(part, row) && source != Some(part.node) {
                // Given up when the instance was recreated: it stays where it is, as unmanaged.
                tx.leave_slice(row.id, part.node, revision)?;
            } else {
                self.order_destruction(tx, row, part.node, row.epoch, revision)?;
            }
        }
        Ok(())
    }

    /// Orders a node to destroy its copy of an instance in this epoch.
    pub(crate) fn order_destruction(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        node: NodeId,
        epoch: Epoch,
        revision: Revision,
    ) -> Result<(), ControlError> {
        let tombstone = Tombstone {
            instance: row.id,
            name: row.name.clone(),
            epoch,
        };
        Ok(tx.put_tombstone(node, &tombstone, self.now(), revision)?)
    }

    /// Ends the part of a node that has destroyed its copy of this epoch, if the instance is being deleted or another node
    /// owns it. The instance is removed with its last part if it is being deleted. Returns whether a part ended, and the image of a removed instance.
    pub(crate) fn end_part(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        node: &NodeRow,
        epoch: Epoch,
        cause: &Cause,
    ) -> Result<(bool, Option<Digest>), ControlError> {
        let parts = tx.ownership(row.id)?;
        let part = parts.iter().find(|part| part.node == node.id);
        let has_owner = parts.iter().any(|part| part.role == OwnershipRole::Owner);
        let given_up = |part: &Part| match part.role {
            OwnershipRole::Released => has_owner,
            // A tombstone for a receiving node: the move was canceled.
            OwnershipRole::Receiving => true,
            OwnershipRole::Owner | OwnershipRole::Releasing => false,
        };
        let ends = |part: &Part| part.epoch <= epoch && (row.deleting || given_up(part));
        if !part.is_some_and(ends) {
            return Ok((false, None));
        }
        if row.deleting && parts.len() == 1 {
            let message = format!("{} has destroyed the instance", node.name);
            return Ok((true, Some(self.remove(tx, row, cause, &message)?)));
        }
        tx.end_part(row.id, node.id)?;
        if row.home.is_some() && row.node == Some(node.id) {
            let message = format!("{} has destroyed its copy", node.name);
            self.leave(tx, row, node, cause, message)?;
        }
        Ok((true, None))
    }

    /// A node whose part has ended no longer serves the address that the instance brought along. Other nodes must not send
    /// packets there, because the next instance may get the address before the remaining copies are destroyed.
    pub(crate) fn leave(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        node: &NodeRow,
        cause: &Cause,
        message: String,
    ) -> Result<(), ControlError> {
        let remaining = tx.instance(row.id)?.and_then(|row| row.node);
        let remaining = remaining.map(|id| tx.node(id)).transpose()?.flatten();
        let mut nodes = vec![node.id];
        let mut home = row.home;
        if let Some(remaining) = remaining {
            nodes.push(remaining.id);
            home = home.filter(|home| *home != remaining.subnet);
        }
        let revision = tx.emit(&self.instance_event("instance.deleting", row, cause, message))?;
        Ok(tx.set_home(row.id, home, &nodes, revision)?)
    }

    /// Removes a destroyed instance. Returns its image, which may be unused now.
    pub(crate) fn remove(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        cause: &Cause,
        message: &str,
    ) -> Result<Digest, ControlError> {
        let revision = tx.emit(&self.instance_event("instance.deleted", row, cause, message))?;
        if row.home.is_some() {
            // No other node may send packets there for the next instance with the address.
            tx.set_home(row.id, None, row.node.as_slice(), revision)?;
        }
        tx.remove_instance(row.id)?;
        self.instance_progress().forget(row.id);
        Ok(row.spec.image)
    }
}
