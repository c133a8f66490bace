//! After a restore: a node has a newer copy of an instance than the restored database knows.
//!
//! The epoch of an instance grows when its owner changes. A backup from before such a change contains the older epoch, and
//! the node ignores every order in it. So waifud takes the epoch over from the report of the node that alone owns the
//! instance. It sends the instance, or its tombstone, in exactly that epoch: a node that has recorded the release of its
//! copy ignores this, and no second guest starts.
//!
//! A node that reports a release which the database does not contain was told to release the instance after the backup. waifud
//! counts it, so that a deletion reaches the copy. No move waits for it, so the node gets the instance back
//! ([`Control::give_back`]) once every node is confirmed and has reported that it has no newer copy.

use waifud_api::agent::{AgentReport, Released};
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{Epoch, InstanceId, InstanceState, NodeId};

use crate::instances::handover::{ownership, require_confirmed};
use crate::{Control, ControlError};

/// An instance, and what its node has of it.
pub(super) struct NewerCopy {
    row: InstanceRow,
    part: Part,
}

/// The instances whose copy on the node is newer than the database knows, or that the node has released without an order that
/// the database knows. None unless the database was restored.
pub(super) fn newer_copies(
    tx: &ReadTx<'_>,
    node: &NodeRow,
    report: &AgentReport,
) -> Result<Vec<NewerCopy>, ControlError> {
    let mut newer = Vec::new();
    if tx.epoch_floor()? == Epoch(0) {
        return Ok(newer);
    }
    for (id, epoch) in copies(report) {
        let is_newer = tx.epoch_on(id, node.id)?.is_some_and(|known| known < epoch);
        if !is_newer || report.released.iter().any(|one| one.instance == id) {
            continue;
        }
        let parts = tx.ownership(id)?;
        let [part] = &parts[..] else {
            continue;
        };
        // The owner of a newer epoch: a release in the database was withdrawn since.
        if part.node != node.id || part.role == OwnershipRole::Receiving {
            continue;
        }
        let mut copies = tx.unmanaged_copies(id)?.into_iter();
        // Of the same epoch, too: one of the two nodes may have released its copy to the other.
        if copies.any(|(other, copy)| other != node.id && copy >= Some(epoch)) {
            continue;
        }
        if let Some(row) = tx.instance(id)? {
            let part = Part {
                node: node.id,
                epoch,
                role: OwnershipRole::Owner,
                stop: false,
                off: false,
            };
            newer.push(NewerCopy { row, part });
        }
    }
    for released in &report.released {
        newer.extend(unknown_release(tx, node.id, *released)?);
    }
    Ok(newer)
}

/// The part of a node in an instance that it has released, if the database does not know of the order.
fn unknown_release(
    tx: &ReadTx<'_>,
    node: NodeId,
    released: Released,
) -> Result<Option<NewerCopy>, ControlError> {
    let parts = tx.ownership(released.instance)?;
    let [part] = &parts[..] else {
        return Ok(None);
    };
    let is_unknown = part.epoch < released.epoch
        || (part.epoch == released.epoch && part.role == OwnershipRole::Owner);
    if part.node != node || part.role == OwnershipRole::Receiving || !is_unknown {
        return Ok(None);
    }
    let row = tx.instance(released.instance)?;
    Ok(row.map(|row| NewerCopy {
        row,
        part: Part {
            node,
            epoch: released.epoch,
            role: OwnershipRole::Released,
            stop: true,
            off: released.off,
        },
    }))
}

/// The copies in a report, with their epochs. While a node deletes a copy, it reports the epoch of the order to do so, and
/// nothing about a release that it recorded before.
fn copies(report: &AgentReport) -> impl Iterator<Item = (InstanceId, Epoch)> {
    let instances = report.instances.iter();
    let managed = instances
        .filter(|one| one.state != InstanceState::Deleting)
        .map(|one| (one.id, one.epoch));
    let unmanaged = report.unmanaged.iter().flatten().filter_map(|entry| {
        let record = entry.record.as_ref()?;
        Some((entry.instance, record.epoch))
    });
    managed.chain(unmanaged)
}

impl Control {
    /// Takes over the epochs of newer copies, and releases. The node is sent each instance, or its tombstone, in that epoch. Returns
    /// whether there were any.
    pub(super) fn take_over_epochs(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        report: &AgentReport,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        let newer = newer_copies(tx, node, report)?;
        let any = !newer.is_empty();
        for NewerCopy { row, part } in newer {
            let message = if part.role == OwnershipRole::Owner {
                format!(
                    "the copy on {} is newer than the restored database; waifud manages that copy",
                    node.name
                )
            } else {
                format!(
                    "{} was told to release it after the backup that was restored",
                    node.name
                )
            };
            let event = self.instance_event("instance.newer-copy", &row, cause, message);
            let revision = tx.emit(&event)?;
            tx.set_epoch(row.id, part.epoch, revision)?;
            tx.set_part(row.id, &part, revision)?;
            if row.deleting {
                self.order_destruction(tx, &row, node.id, part.epoch, revision)?;
            }
        }
        Ok(any)
    }

    /// Makes the nodes owners again of instances that they have released, or were told to release, and that no move takes away: a
    /// restored database does not contain the move. Nothing happens until every node is confirmed and has reported what is on it.
    pub(super) fn give_back(
        &self,
        tx: &mut WriteTx<'_>,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        if tx.epoch_floor()? == Epoch(0) || !tx.all_swept()? {
            return Ok(());
        }
        for id in tx.released_without_move()? {
            let row = tx.instance(id)?;
            let Some((row, node)) = row.and_then(|row| row.node.map(|node| (row, node))) else {
                continue;
            };
            let mut parts = ownership(tx, &row)?;
            match require_confirmed(tx, &row, &parts) {
                // Another node has a newer copy, or is not confirmed.
                Err(ControlError::Problem(_)) => continue,
                checked => checked?,
            }
            if parts.withdraw_release(node).is_err() {
                continue;
            }
            let Some(part) = parts.part(node) else {
                continue;
            };
            let event = self.instance_event(
                "instance.release-withdrawn",
                &row,
                cause,
                "the restored database contains no move of it: the instance stays on its node",
            );
            let revision = tx.emit(&event)?;
            tx.set_part(row.id, &part, revision)?;
            tx.set_epoch(row.id, parts.epoch, revision)?;
        }
        Ok(())
    }
}
