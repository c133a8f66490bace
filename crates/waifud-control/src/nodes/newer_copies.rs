//! After a restore: a node has a newer copy of an instance than the restored database knows.
//!
//! The epoch of an instance grows when its owner changes. A backup from before such a change contains the older epoch, and
//! the node ignores every order in it. So waifud takes the epoch over from the report of the node that alone owns the
//! instance. It sends the instance, or its tombstone, in exactly that epoch: a node that has recorded the release of its
//! copy ignores this, and no second guest starts.

use waifud_api::agent::AgentReport;
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{Epoch, InstanceId, InstanceState};

use crate::{Control, ControlError};

/// An instance, and the newer epoch of the copy on the node that owns it.
pub(super) struct NewerCopy {
    row: InstanceRow,
    part: Part,
    epoch: Epoch,
}

/// The instances whose copy on the node is newer than the database knows. None unless the database was restored.
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
            newer.push(NewerCopy {
                row,
                part: *part,
                epoch,
            });
        }
    }
    Ok(newer)
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
    /// Takes over the epochs of newer copies. The node is sent each instance, or its tombstone, in that epoch.
    pub(super) fn take_over_epochs(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        report: &AgentReport,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        for NewerCopy { row, part, epoch } in newer_copies(tx, node, report)? {
            let event = self.instance_event(
                "instance.newer-copy",
                &row,
                cause,
                format!(
                    "the copy on {} is newer than the restored database; waifud manages that copy",
                    node.name
                ),
            );
            let revision = tx.emit(&event)?;
            tx.set_epoch(row.id, epoch, revision)?;
            let owner = Part {
                node: part.node,
                epoch,
                role: OwnershipRole::Owner,
                stop: false,
                off: false,
            };
            tx.set_part(row.id, &owner, revision)?;
            if row.deleting {
                self.order_destruction(tx, &row, node.id, epoch, revision)?;
            }
        }
        Ok(())
    }
}
