//! Handovers: a node gives an instance up before another one may start it.
//!
//! The node receives the order in its watch and reports the recorded release; only then is the role of the node
//! `released`. Moves of instances ([`super::moving`]) begin handovers.

use waifud_api::Problem;
use waifud_api::agent::Released;
use waifud_store::{InstanceRow, NodeRow, ReadTx, StoreError, WriteTx};
use waifud_types::event::Cause;
use waifud_types::node::feature;
use waifud_types::ownership::{HandoverError, Ownership, OwnershipRole, Part};
use waifud_types::{Epoch, InstanceId, Name, NodeId};

use crate::events::event_builder::{self, EventExt};
use crate::instances::problems as instance_problems;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

impl Control {
    /// Orders the owner of an instance to release it. With `stop` the node shuts the guest down. Refused if the node's agent
    /// does not know releases: it would ignore the order.
    ///
    /// Without `stop`, a running guest keeps what the node has applied, for example published ports, and changes do not reach
    /// the node any more. So that is refused until the node has reported the latest one: waifud would give ports that were
    /// unpublished to other instances while the node still forwards them.
    pub async fn begin_release(
        &self,
        instance: InstanceId,
        stop: bool,
        cause: Cause,
    ) -> Result<(), ControlError> {
        self.change_ownership(
            instance,
            "instance.releasing",
            cause,
            move |parts, row, node| {
                if !node.facts.has(feature::RELEASE) {
                    return Err(node_problems::agent_too_old(&node.name).into());
                }
                if !stop && row.status.observed_generation < Some(row.generation) {
                    return Err(
                        instance_problems::handover_unobserved(&row.name, &node.name).into(),
                    );
                }
                parts.begin_release(node.id, stop)?;
                Ok("its node was told to release it")
            },
        )
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
            |parts, _, node| {
                parts.withdraw_release(node.id)?;
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
        change: impl FnOnce(&mut Ownership, &InstanceRow, &NodeRow) -> Result<&'static str, Refused>
        + Send
        + 'static,
    ) -> Result<(), ControlError> {
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let row = super::find(tx, &instance.to_string())?;
                let refused = |refused| match refused {
                    Refused::Roles(error) => instance_problems::handover_refused(&row.name, error),
                    Refused::Other(problem) => *problem,
                };
                let node = match row.node.filter(|_| !row.deleting) {
                    Some(node) => tx.node(node)?,
                    None => None,
                };
                let Some(node) = node else {
                    return Err(refused(HandoverError::NotOwner.into()).into());
                };
                let before = ownership(tx, &row)?;
                require_confirmed(tx, &row, &before)?;
                let mut parts = before.clone();
                let message = change(&mut parts, &row, &node).map_err(refused)?;
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
        if !parts.record_released(node.id, released.epoch, released.off) {
            return Ok(());
        }
        let running = if released.off {
            "; the guest is off"
        } else {
            "; the guest still runs"
        };
        let event = event_builder::event(
            self.now(),
            "instance.released",
            event_builder::instance(row.id, &row.name),
            cause,
            format!(
                "{} has released it and will not start it again{running}",
                node.name
            ),
        );
        let revision = tx.emit(&event.generation(row.generation))?;
        if let Some(part) = parts.part(node.id) {
            if part.off && is_older_copy(&part, &row) {
                // Its disks stay there, as those of an unmanaged instance.
                tx.leave_slice(row.id, node.id, revision)?;
            } else {
                tx.set_part(row.id, &part, revision)?;
            }
        }
        Ok(())
    }
}

/// Whether a node's part in an instance is a copy that it was told to give up, since the instance was recreated elsewhere.
pub(crate) fn is_older_copy(part: &Part, row: &InstanceRow) -> bool {
    let given_up = matches!(
        part.role,
        OwnershipRole::Releasing | OwnershipRole::Released
    );
    given_up && part.epoch < row.epoch && row.node != Some(part.node)
}

/// Why a handover is refused.
enum Refused {
    /// The roles do not allow it.
    Roles(HandoverError),
    /// Something else.
    Other(Box<Problem>),
}

impl From<HandoverError> for Refused {
    fn from(error: HandoverError) -> Self {
        Self::Roles(error)
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Other(Box::new(problem))
    }
}

/// After a restore the database may not contain the newest owner. Until every node is confirmed, and the nodes with a part
/// have reported what is on them, another node may run a newer copy.
pub(crate) fn require_confirmed(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    parts: &Ownership,
) -> Result<(), ControlError> {
    if let Some(node) = tx.unconfirmed_node()? {
        return Err(instance_problems::handover_unconfirmed(&row.name, &node).into());
    }
    for part in &parts.parts {
        if let Some(node) = tx.node(part.node)?.filter(|node| !node.unmanaged.swept) {
            return Err(instance_problems::handover_unreported(&row.name, &node.name).into());
        }
    }
    require_newest(tx, row.id, row.epoch, &row.name)
}

/// Refuses a change if a node has an unmanaged copy of the instance with a newer epoch than `epoch`.
pub(crate) fn require_newest(
    tx: &ReadTx<'_>,
    id: InstanceId,
    epoch: Epoch,
    name: &Name,
) -> Result<(), ControlError> {
    match node_with_newer_copy(tx, id, epoch)? {
        Some(node) => Err(node_problems::newer_copy(name, &node).into()),
        None => Ok(()),
    }
}

/// A node that has an unmanaged copy of the instance with a newer epoch than `epoch`.
pub(crate) fn node_with_newer_copy(
    tx: &ReadTx<'_>,
    id: InstanceId,
    epoch: Epoch,
) -> Result<Option<Name>, StoreError> {
    for (node, copy) in tx.unmanaged_copies(id)? {
        if copy > Some(epoch)
            && let Some(node) = tx.node(node)?
        {
            return Ok(Some(node.name));
        }
    }
    Ok(None)
}

/// Refuses a change of the published ports of a guest that runs on a node which gives the instance up: the change would not reach
/// the node, which forwards the former ports until the guest is off.
pub(super) fn require_not_releasing(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
) -> Result<(), ControlError> {
    let Some(node) = row.node else {
        return Ok(());
    };
    let part = tx.part_in(row.id, node)?;
    let may_run = part.is_some_and(|part| match part.role {
        OwnershipRole::Releasing => true,
        OwnershipRole::Released => !part.off,
        OwnershipRole::Owner | OwnershipRole::Receiving => false,
    });
    if may_run && let Some(node) = tx.node(node)? {
        return Err(instance_problems::releasing(&row.name, &node.name).into());
    }
    Ok(())
}

/// Whether a node reports a release, or that a released guest is off, which is not stored yet.
pub(crate) fn is_new_release(
    tx: &ReadTx<'_>,
    node: NodeId,
    released: Released,
) -> Result<bool, StoreError> {
    let Some(row) = tx.instance(released.instance)?.filter(|row| !row.deleting) else {
        return Ok(false);
    };
    Ok(ownership(tx, &row)?.record_released(node, released.epoch, released.off))
}

pub(crate) fn ownership(tx: &ReadTx<'_>, row: &InstanceRow) -> Result<Ownership, StoreError> {
    Ok(Ownership {
        epoch: row.epoch,
        floor: tx.epoch_floor()?,
        parts: tx.ownership(row.id)?,
    })
}
