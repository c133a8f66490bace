//! Handovers: a node gives an instance up before another one may start it.
//!
//! The node receives the order in its watch and reports the recorded release; only then is the role of the node
//! `released`. No request begins a handover yet: moves of instances will.

use waifud_api::agent::Released;
use waifud_store::{InstanceRow, NodeRow, ReadTx, StoreError, WriteTx};
use waifud_types::ownership::{HandoverError, Ownership, OwnershipRole};
use waifud_types::{InstanceId, NodeId};

use crate::auth::principal::Cause;
use crate::events::event_builder::{self, EventExt};
use crate::instances::problems as instance_problems;
use crate::{Control, ControlError};

impl Control {
    /// Orders the owner of an instance to release it. With `stop` the node shuts the guest down.
    pub async fn begin_release(
        &self,
        instance: InstanceId,
        stop: bool,
        cause: Cause,
    ) -> Result<(), ControlError> {
        self.change_ownership(instance, "instance.releasing", cause, move |parts, node| {
            parts.begin_release(node, stop)?;
            Ok("its node was told to release it")
        })
        .await
    }

    /// Withdraws the release of an instance, recorded or not, as long as no other node is the owner.
    pub async fn withdraw_release(
        &self,
        instance: InstanceId,
        cause: Cause,
    ) -> Result<(), ControlError> {
        self.change_ownership(
            instance,
            "instance.release-withdrawn",
            cause,
            |parts, node| {
                parts.withdraw_release(node)?;
                Ok("the release was withdrawn: the instance stays on its node")
            },
        )
        .await
    }

    /// Changes the parts of the nodes in an instance that is not being deleted. `change` is given the node that owns it, or
    /// that was the last owner.
    async fn change_ownership(
        &self,
        instance: InstanceId,
        kind: &'static str,
        cause: Cause,
        change: impl FnOnce(&mut Ownership, NodeId) -> Result<&'static str, HandoverError>
        + Send
        + 'static,
    ) -> Result<(), ControlError> {
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let row = super::find(tx, &instance.to_string())?;
                let refused = |error| instance_problems::handover_refused(&row.name, error);
                let Some(node) = row.node.filter(|_| !row.deleting) else {
                    return Err(refused(HandoverError::NotOwner).into());
                };
                let before = ownership(tx, &row)?;
                let mut parts = before.clone();
                let message = change(&mut parts, node).map_err(refused)?;
                let event = event_builder::event(
                    control.now(),
                    kind,
                    event_builder::instance(row.id, &row.name),
                    &cause,
                    message,
                );
                let revision = tx.emit(&event.generation(row.generation))?;
                let changed = parts.parts.iter();
                for part in changed.filter(|part| !before.parts.contains(part)) {
                    tx.set_part(row.id, part, revision)?;
                }
                if parts.epoch != row.epoch {
                    tx.set_epoch(row.id, parts.epoch, revision)?;
                }
                Ok(())
            })
            .await
    }

    /// Stores that a node has recorded the release of an instance. A repeated report, and one of another epoch, changes
    /// nothing.
    pub(crate) fn record_released(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        released: Released,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let Some(row) = tx.instance(released.instance)?.filter(|row| !row.deleting) else {
            return Ok(());
        };
        let mut parts = ownership(tx, &row)?;
        if !parts.record_released(node.id, released.epoch) {
            return Ok(());
        }
        let event = event_builder::event(
            self.now(),
            "instance.released",
            event_builder::instance(row.id, &row.name),
            cause,
            format!("{} has released it and will not start it again", node.name),
        );
        let revision = tx.emit(&event.generation(row.generation))?;
        if let Some(part) = parts.part(node.id) {
            tx.set_part(row.id, &part, revision)?;
        }
        Ok(())
    }
}

/// Whether a node reports a release that is not stored yet.
pub(crate) fn is_new_release(
    tx: &ReadTx<'_>,
    node: NodeId,
    released: Released,
) -> Result<bool, StoreError> {
    let part = tx.part_in(released.instance, node)?;
    Ok(part
        .is_some_and(|part| part.role == OwnershipRole::Releasing && part.epoch == released.epoch))
}

fn ownership(tx: &ReadTx<'_>, row: &InstanceRow) -> Result<Ownership, StoreError> {
    Ok(Ownership {
        epoch: row.epoch,
        parts: tx.ownership(row.id)?,
    })
}
