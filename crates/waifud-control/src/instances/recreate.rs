//! Recreate: an instance whose node was removed with its disks is placed again, with new disks from its image.
//!
//! It keeps its id, name, MAC addresses, user-data and settings. It keeps its address on the default network if the fabric carries
//! it to the new node, and gets another one otherwise. The epoch grows: if the old node comes back, its copy is the older one.

use waifud_api::{Instance, RecreateInstance};
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::ownership::Ownership;
use waifud_types::status::InstanceStatus;
use waifud_types::{InstanceState, Name, WaitReason};

use super::IfMatch;
use crate::instances::problems as instance_problems;
use crate::network;
use crate::{Control, ControlError};

impl Control {
    /// Places an instance again whose node was removed with its disks. Its disks are new.
    pub async fn recreate_instance(
        &self,
        name_or_id: &str,
        request: RecreateInstance,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        let (recreated, former) = self
            .change_instance(name_or_id, if_match, move |control, tx, row| {
                let rescue = row.spec.rescue.as_ref().map(|rescue| rescue.image);
                let row = control.recreate_in(tx, row, request, &cause)?;
                Ok((control.instance_view(row), rescue))
            })
            .await?;
        // Its rescue may have been the last user of this image.
        self.images().collect(former).await;
        Ok(recreated)
    }

    fn recreate_in(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        request: RecreateInstance,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        if row.deleting {
            return Err(instance_problems::deleting(&row.name).into());
        }
        let Some(lost_on) = row.lost_node.take() else {
            return Err(not_lost(&row));
        };
        if let Some(node) = tx.unconfirmed_node()? {
            return Err(instance_problems::recreate_unconfirmed(&row.name, &node).into());
        }
        if let Some((node, _)) = tx.unmanaged_copies(row.id)?.into_iter().next()
            && let Some(node) = tx.node(node)?
        {
            return Err(instance_problems::copy_exists(&row.name, &node.name).into());
        }
        row.spec.placement.node = match (request.node, row.spec.placement.node.take()) {
            (Some(node), _) if tx.node_named(node.as_str())?.is_none() => {
                return Err(instance_problems::unknown_node("node", &node).into());
            }
            (Some(node), _) => Some(node),
            // The removed node: the instance cannot be pinned to it any more, unless another one has its name now.
            (None, Some(pinned)) if tx.node_named(pinned.as_str())?.is_some() => Some(pinned),
            (None, _) => None,
        };
        // A rescue repairs the disks, and they are new.
        row.spec.rescue = None;
        row.generation = row.generation.next();
        row.epoch = next_epoch(tx, &row)?;
        row.status = InstanceStatus::pending(None);
        let event = self.instance_event(
            "instance.recreated",
            &row,
            cause,
            format!("with new disks; those on {lost_on} are given up"),
        );
        let revision = tx.emit(&event)?;
        tx.set_lost(row.id, None)?;
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        tx.set_epoch(row.id, row.epoch, revision)?;
        tx.set_status(row.id, &row.status)?;
        let capacities = tx.node_capacities()?;
        self.place(tx, row, &capacities, cause)
    }

    /// Records that an instance has lost its disks: its node is being removed.
    pub(crate) fn lose(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        node: &NodeRow,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let reason = WaitReason::NodeRemoved {
            node: node.name.clone(),
        };
        row.status = InstanceStatus::pending(None);
        row.status.state = InstanceState::Failed;
        row.status.set_wait(&reason);
        let event = self.instance_event("instance.lost", &row, cause, reason.to_string());
        let revision = tx.emit(&event)?;
        // Older copies stay on their nodes as unmanaged. First, so that none of them is taken for the last owner.
        for part in tx.ownership(row.id)? {
            if part.node != node.id {
                tx.leave_slice(row.id, part.node, revision)?;
            }
        }
        tx.end_part(row.id, node.id)?;
        // The subnet of an address stays reserved while it is kept.
        let mut home = None;
        for (position, nic) in row.spec.nics.iter_mut().enumerate() {
            if !network::is_default(&nic.network) {
                continue;
            }
            if network::keep_address::fabric_carries(tx)? {
                home = row.home.or(Some(node.subnet));
            } else {
                nic.address = None;
                tx.clear_lease_address(row.id, network::lease_number(position, nic))?;
            }
        }
        tx.set_home(row.id, home, &[], revision)?;
        super::nics::free_all_removed(tx, &row)?;
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        tx.set_status(row.id, &row.status)?;
        tx.set_lost(row.id, Some(&node.name))?;
        self.instance_progress().forget(row.id);
        Ok(())
    }
}

/// The epoch of the new copy.
fn next_epoch(tx: &ReadTx<'_>, row: &InstanceRow) -> Result<waifud_types::Epoch, ControlError> {
    let ownership = Ownership {
        epoch: row.epoch,
        floor: tx.epoch_floor()?,
        parts: Vec::new(),
    };
    Ok(ownership.next_epoch())
}

/// Why an instance that is not lost cannot be recreated.
fn not_lost(row: &InstanceRow) -> ControlError {
    let node: Option<&Name> = row.owner.name.as_ref();
    match node {
        None => instance_problems::not_placed_yet(&row.name),
        Some(node) if row.owner.reachable => instance_problems::not_lost(&row.name, node),
        Some(node) => instance_problems::maybe_not_lost(&row.name, node),
    }
    .into()
}
