//! A node has an older copy of an instance that another node owns now.
//!
//! This happens when a machine returns after an administrator has removed its node, and its instances were recreated
//! elsewhere. The copy must not run, and its disks may be the only ones with the user's data. So waifud orders its release:
//! the node shuts the guest down and does not start it again. When it is off, it leaves the node's slice, and the node
//! reports it as unmanaged again.

use std::borrow::Cow;

use waifud_api::agent::Unmanaged;
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::node::feature;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{Epoch, InstanceId};

use crate::instances::handover::is_older_copy;
use crate::{Control, ControlError};

/// The running copies in a node's list that are older than the copy of another node, with their epochs. None before an
/// administrator has confirmed a restored database: it may not contain the newest owner.
pub(super) fn older_copies(
    tx: &ReadTx<'_>,
    node: &NodeRow,
    unmanaged: &[Unmanaged],
) -> Result<Vec<(InstanceRow, Epoch)>, ControlError> {
    let mut older = Vec::new();
    if !node.confirmed || !node.facts.has(feature::RELEASE) {
        return Ok(older);
    }
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

/// The list of unmanaged objects of a node, with the older copies that it still shuts down. It does not report them, since
/// they are in its slice, but their addresses are in use.
pub(super) fn with_releasing<'a>(
    tx: &ReadTx<'_>,
    node: &NodeRow,
    list: &'a [Unmanaged],
) -> Result<Cow<'a, [Unmanaged]>, ControlError> {
    let mut releasing: Vec<InstanceId> = Vec::new();
    for id in tx.handovers_on(node.id)? {
        if let (Some(row), Some(part)) = (tx.instance(id)?, tx.part_in(id, node.id)?)
            && is_older_copy(&part, &row)
            && list.iter().all(|entry| entry.instance != id)
        {
            releasing.push(id);
        }
    }
    if releasing.is_empty() {
        return Ok(Cow::Borrowed(list));
    }
    let mut with = list.to_vec();
    let known = tx.unmanaged_on(node.id)?.into_iter();
    with.extend(known.filter(|entry| releasing.contains(&entry.instance)));
    Ok(Cow::Owned(with))
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
        for (row, epoch) in older_copies(tx, node, unmanaged)? {
            let event = self.instance_event(
                "instance.older-copy",
                &row,
                cause,
                format!(
                    "{} has an older copy of it; that guest is shut down and its disks are kept",
                    node.name
                ),
            );
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
