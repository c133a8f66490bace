//! Begins the moves of drains, and ends the drains of nodes that are empty.

use waifud_api::MoveInstance;
use waifud_store::{NodeRow, ReadTx, StoreError};
use waifud_types::event::Cause;
use waifud_types::{InstanceId, MoveState, NodeId};

use super::plan;
use crate::events::event_builder;
use crate::{Control, ControlError};

/// The number of instances that leave a node at the same time. More would share its disks and its network, and each guest
/// would be off for longer.
const PARALLEL: usize = 2;

/// What comes next for a node that is drained.
enum Next {
    /// Nothing is on it any more.
    Empty,
    /// These instances can be moved, in this order; at most so many moves may begin.
    Move(Vec<InstanceId>, usize),
}

impl Control {
    /// Continues all drains.
    pub async fn continue_drains(&self) -> Result<(), ControlError> {
        for node in self.store().read(|tx| tx.draining()).await? {
            self.continue_drain(node.id).await?;
        }
        Ok(())
    }

    /// Begins the moves from a node that are possible now, or ends its drain.
    pub(super) async fn continue_drain(&self, node: NodeId) -> Result<(), ControlError> {
        let control = self.clone();
        let next = self.store().read(move |tx| control.next(&tx, node)).await?;
        let (instances, mut left) = match next {
            None => return Ok(()),
            Some(Next::Empty) => return self.finish_drain(node).await,
            Some(Next::Move(instances, left)) => (instances, left),
        };
        for id in instances {
            if left == 0 {
                break;
            }
            match self.move_away(node, id).await {
                Ok(begun) => left -= usize::from(begun),
                // It does not fit any more; the plan says why.
                Err(ControlError::Problem(problem)) => {
                    tracing::debug!(instance = %id, %problem, "an instance cannot leave its node now");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What comes next for a node; `None` if it is not drained, or enough moves are under way.
    fn next(&self, tx: &ReadTx<'_>, node: NodeId) -> Result<Option<Next>, ControlError> {
        let Some(node) = draining(tx, node)? else {
            return Ok(None);
        };
        if is_empty(tx, &node)? {
            return Ok(Some(Next::Empty));
        }
        let under_way = leaving(tx, node.id)?;
        let left = PARALLEL.saturating_sub(under_way);
        if left == 0 {
            return Ok(None);
        }
        let plan = plan::plan(self, tx, &node, None)?;
        let movable = plan
            .instances
            .into_iter()
            .filter(|instance| instance.moving.is_none() && instance.to.is_some());
        let movable = movable.map(|instance| instance.id).collect();
        Ok(Some(Next::Move(movable, left)))
    }

    /// Begins to move an instance away from a node that is still drained. Returns whether it did.
    async fn move_away(&self, node: NodeId, id: InstanceId) -> Result<bool, ControlError> {
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let Some(drain) = draining(tx, node)?.and_then(|node| node.drain) else {
                    return Ok(false);
                };
                let row = tx.instance(id)?;
                let Some(row) = row.filter(|row| row.node == Some(node) && row.moving.is_none())
                else {
                    return Ok(false);
                };
                let request = MoveInstance {
                    to: None,
                    new_address: drain.new_address,
                };
                control.begin_move_in(tx, row, &request, &Cause::system())?;
                Ok::<_, ControlError>(true)
            })
            .await
    }

    async fn finish_drain(&self, node: NodeId) -> Result<(), ControlError> {
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let Some(node) = draining(tx, node)? else {
                    return Ok(());
                };
                if !is_empty(tx, &node)? {
                    return Ok(());
                }
                tx.emit(&event_builder::event(
                    control.now(),
                    "node.drained",
                    event_builder::node(node.id, &node.name),
                    &Cause::system(),
                    "no instance is left on it; it stays cordoned",
                ))?;
                tx.set_node_drain(node.id, None)?;
                Ok::<_, ControlError>(())
            })
            .await
    }
}

/// The node, if it is being drained.
fn draining(tx: &ReadTx<'_>, node: NodeId) -> Result<Option<NodeRow>, StoreError> {
    Ok(tx.node(node)?.filter(|node| node.drain.is_some()))
}

/// Whether nothing of any instance is left on the node or on its way to it.
fn is_empty(tx: &ReadTx<'_>, node: &NodeRow) -> Result<bool, StoreError> {
    Ok(tx.instances_on(node.id)?.is_empty() && tx.moves_of(node.id)?.is_empty())
}

/// The number of instances that are leaving a node, until they are on the other one.
fn leaving(tx: &ReadTx<'_>, node: NodeId) -> Result<usize, StoreError> {
    let mut leaving = 0;
    for id in tx.moves_of(node)? {
        let row = tx.instance(id)?;
        let moving = row.and_then(|row| row.moving);
        leaving +=
            usize::from(moving.is_some_and(|moving| {
                moving.source == node && moving.state != MoveState::Removing
            }));
    }
    Ok(leaving)
}
