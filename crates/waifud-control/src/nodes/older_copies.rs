//! A node has an older copy of an instance that another node owns now.
//!
//! This happens when a machine returns after an administrator has removed its node, and its instances were recreated
//! elsewhere. The copy must not run, and its disks may be the only ones with the user's data. So waifud orders its release:
//! the node shuts the guest down, keeps the disks, and does not start it again.

use waifud_api::agent::Unmanaged;
use waifud_store::{InstanceRow, NodeRow, ReadTx, StoreError, WriteTx};
use waifud_types::Epoch;
use waifud_types::event::Cause;
use waifud_types::node::feature;
use waifud_types::ownership::{OwnershipRole, Part};

use crate::events::event_builder::{self, EventExt};
use crate::{Control, ControlError};

/// The running copies on a node that are older than the copy of another node, with their epochs.
fn older_copies(
    tx: &ReadTx<'_>,
    node: &NodeRow,
    unmanaged: &[Unmanaged],
) -> Result<Vec<(InstanceRow, Epoch)>, ControlError> {
    let mut older = Vec::new();
    for entry in unmanaged.iter().filter(|entry| entry.running) {
        let Some(record) = &entry.record else {
            continue;
        };
        let Some(row) = tx.instance(entry.instance)? else {
            continue;
        };
        let parts = tx.ownership(row.id)?;
        let is_owned = parts.iter().any(|part| part.role == OwnershipRole::Owner);
        let has_part = parts.iter().any(|part| part.node == node.id);
        if is_owned && !has_part && !row.deleting && record.epoch < row.epoch {
            older.push((row, record.epoch));
        }
    }
    Ok(older)
}

/// The older copies that a node keeps by order of waifud, as unmanaged objects.
pub(super) fn kept(tx: &ReadTx<'_>, node: &NodeRow) -> Result<Vec<Unmanaged>, StoreError> {
    let mut kept = Vec::new();
    for id in tx.handovers_on(node.id)? {
        let (Some(row), Some(part)) = (tx.instance(id)?, tx.part_in(id, node.id)?) else {
            continue;
        };
        if is_older_copy(&part, &row) {
            kept.push(Unmanaged {
                kind: "domain".to_owned(),
                instance: id,
                name: Some(row.name.to_string()),
                volume: None,
                running: !part.off,
                addresses: Vec::new(),
                record: None,
                bundle: None,
            });
        }
    }
    Ok(kept)
}

/// Whether a node's part in an instance is an older copy that it gives up or has given up.
pub(super) fn is_older_copy(part: &Part, row: &InstanceRow) -> bool {
    let given_up = matches!(
        part.role,
        OwnershipRole::Releasing | OwnershipRole::Released
    );
    given_up && part.epoch < row.epoch && row.node != Some(part.node)
}

impl Control {
    /// Orders the release of older copies in a node's list of unmanaged objects.
    pub(super) fn release_older_copies(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        unmanaged: &[Unmanaged],
        cause: &Cause,
    ) -> Result<(), ControlError> {
        if !node.facts.has(feature::RELEASE) {
            return Ok(());
        }
        for (row, epoch) in older_copies(tx, node, unmanaged)? {
            let event = self
                .event(
                    "instance.older-copy",
                    event_builder::instance(row.id, &row.name),
                    cause,
                    format!(
                        "{} has an older copy of it; that guest is shut down and its disks are kept",
                        node.name
                    ),
                )
                .generation(row.generation);
            let revision = tx.emit(&event)?;
            let part = Part {
                node: node.id,
                epoch,
                role: OwnershipRole::Releasing,
                stop: true,
                off: false,
            };
            tx.set_part(row.id, &part, revision)?;
        }
        Ok(())
    }
}
