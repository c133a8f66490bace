//! Lets moves go on, after reports of both nodes.

use ipnet::Ipv4Net;
use waifud_api::agent::{AgentReport, Receiving};
use waifud_store::{InstanceRow, MoveRow, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::moving::{MoveFacts, MoveStep, next};
use waifud_types::ownership::{Ownership, OwnershipRole};
use waifud_types::status::InstanceStatus;
use waifud_types::{
    CopyPath, InstanceId, InstanceState, MoveState, NodeId, ReceiveState, WaitReason,
};

use crate::instances::handover::{ownership, require_confirmed};
use crate::instances::problems as instance_problems;
use crate::network;
use crate::{Control, ControlError};

/// What a report of the receiving node changes in the database: only what decides about the move.
fn stored_state(report: &Receiving) -> ReceiveState {
    match report.state {
        ReceiveState::Copying => ReceiveState::Prepared,
        state => state,
    }
}

/// The instances that a node receives by its report and that have got further.
fn progressed(
    tx: &ReadTx<'_>,
    node: NodeId,
    report: &AgentReport,
) -> Result<Vec<(InstanceId, ReceiveState)>, ControlError> {
    let mut all = Vec::new();
    for receiving in &report.receiving {
        let Some(row) = tx.instance(receiving.instance)? else {
            continue;
        };
        let Some(moving) = row.moving.filter(|moving| moving.target == node) else {
            continue;
        };
        let part = tx.part_in(row.id, node)?;
        let of_this_move = part.is_some_and(|part| {
            part.role == OwnershipRole::Receiving && part.epoch == receiving.epoch
        });
        let state = stored_state(receiving);
        if of_this_move && moving.state.can_be_canceled() && moving.received != state {
            all.push((row.id, state));
        }
    }
    Ok(all)
}

/// Whether a report lets a move go on.
pub(crate) fn advances(
    tx: &ReadTx<'_>,
    node: NodeId,
    report: &AgentReport,
) -> Result<bool, ControlError> {
    Ok(!report.receiving.is_empty() && !progressed(tx, node, report)?.is_empty())
}

impl Control {
    /// Records how far a node is with the instances that it receives: in memory, and as progress for followers.
    pub(crate) fn record_receiving(&self, report: &AgentReport, known: &[InstanceRow]) {
        for receiving in &report.receiving {
            let row = known.iter().find(|row| row.id == receiving.instance);
            let Some(row) = row else {
                continue;
            };
            if let Some(moving) = &row.moving
                && self.move_progress().record(receiving)
            {
                let step = super::step(moving, receiving);
                self.instance_progress()
                    .publish(row.id, &row.name, Some(step));
            }
        }
    }

    /// Stores what a node has reported of the instances that it receives, and lets all moves to and from the node go on.
    pub(crate) fn advance_moves_of(
        &self,
        tx: &mut WriteTx<'_>,
        node: NodeId,
        report: &AgentReport,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        for (id, state) in progressed(tx, node, report)? {
            tx.set_received(id, state)?;
        }
        let mut changed = false;
        for id in tx.moves_of(node)? {
            changed |= self.advance_move(tx, id, cause)?;
        }
        Ok(changed)
    }

    /// Lets all moves go on that can: something else than a report may have let them wait.
    pub async fn advance_moves(&self) -> Result<(), ControlError> {
        let waiting = self.store().read(|tx| tx.moving()).await?;
        for id in waiting {
            let control = self.clone();
            self.store()
                .write(move |tx| {
                    if control.advance_move(tx, id, &Cause::system())? {
                        control.place_waiting(tx)?;
                    }
                    Ok::<_, ControlError>(())
                })
                .await?;
        }
        Ok(())
    }

    /// Takes the steps of a move that are possible now. Returns whether capacity was freed.
    pub(super) fn advance_move(
        &self,
        tx: &mut WriteTx<'_>,
        id: InstanceId,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        loop {
            let Some(row) = tx.instance(id)?.filter(|row| !row.deleting) else {
                return Ok(false);
            };
            let Some(moving) = row.moving.clone() else {
                return Ok(false);
            };
            let parts = ownership(tx, &row)?;
            let Some(step) = next(moving.state, facts(&row, &moving, &parts)) else {
                return Ok(false);
            };
            tracing::debug!(instance = %row.name, ?step, "a move goes on");
            let done = match step {
                MoveStep::Release => self.release_to_move(tx, &row, parts, cause),
                MoveStep::Copy => self.begin_copy(tx, &row, &moving, cause),
                MoveStep::TakeOver => self.take_over(tx, row, &moving, parts, cause),
                MoveStep::Remove => self.remove_source(tx, &row, &moving, &parts, cause),
                MoveStep::End => {
                    self.end_move(tx, &row, &moving, cause)?;
                    return Ok(true);
                }
            };
            match done {
                Ok(()) => self.move_progress().set_obstacle(id, None),
                // An administrator has to confirm a restored database first, or an address is missing: tried again later.
                Err(ControlError::Problem(problem)) => {
                    self.move_progress()
                        .set_obstacle(id, Some(problem.title.clone()));
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn release_to_move(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        mut parts: Ownership,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        require_confirmed(tx, row, &parts)?;
        let Some(owner) = parts.owner() else {
            return Err(ControlError::Inconsistent(format!(
                "{} moves and has no owner",
                row.name
            )));
        };
        parts
            .begin_release(owner, true)
            .map_err(|error| instance_problems::handover_refused(&row.name, error))?;
        let event = self.instance_event(
            "instance.releasing",
            row,
            cause,
            "its node was told to shut it down and to release it",
        );
        let revision = tx.emit(&event)?;
        if let Some(part) = parts.part(owner) {
            tx.set_part(row.id, &part, revision)?;
        }
        // The guest may have gone off while the new node got the image.
        tx.set_move_was_on(row.id, row.status.state.may_be_on())?;
        tx.set_move_state(row.id, MoveState::Stopping, revision)?;
        Ok(())
    }

    fn begin_copy(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        moving: &MoveRow,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let event = self.instance_event(
            "instance.copying",
            row,
            cause,
            format!("{} copies its disks", moving.target_name),
        );
        let revision = tx.emit(&event)?;
        tx.set_move_state(row.id, MoveState::Copying, revision)?;
        Ok(())
    }

    /// Makes the receiving node the owner. The instance keeps its address on `default`, or gets a new one.
    fn take_over(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        moving: &MoveRow,
        mut parts: Ownership,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        require_confirmed(tx, &row, &parts)?;
        let Some(target) = tx.node(moving.target)? else {
            return Err(ControlError::Inconsistent(format!(
                "{} moves to a node that does not exist",
                row.name
            )));
        };
        parts
            .take_over(target.id)
            .map_err(|error| instance_problems::handover_refused(&row.name, error))?;
        let had_home = row.home.is_some();
        let address = if moving.new_address {
            row.home = None;
            new_address(tx, &mut row, &target)?
        } else {
            row.home = kept_home(tx, &row, moving.source, &target)?;
            None
        };
        if row.spec.placement.node.is_some() {
            row.spec.placement.node = Some(target.name.clone());
        }
        row.generation = row.generation.next();
        row.epoch = parts.epoch;
        row.status = InstanceStatus::pending(None);
        row.status.node = Some(target.name.clone());
        row.status.set_wait(&WaitReason::NodePreparing {
            node: target.name.clone(),
        });
        let copied = match self.move_progress().path(row.id) {
            Some(CopyPath::Direct) => "; its disks were copied directly",
            Some(CopyPath::Waifud) => "; its disks were copied through waifud",
            Some(CopyPath::Other) | None => "",
        };
        let event = self.instance_event(
            "instance.handed-over",
            &row,
            cause,
            match address {
                Some(address) => format!("to {}, {address}{copied}", target.name),
                None => format!("to {}{copied}", target.name),
            },
        );
        let revision = tx.emit(&event)?;
        if let Some(part) = parts.part(target.id) {
            tx.set_part(row.id, &part, revision)?;
        }
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        tx.set_epoch(row.id, row.epoch, revision)?;
        tx.set_status(row.id, &row.status)?;
        row.node = Some(target.id);
        row.owner.name = Some(target.name.clone());
        if had_home || row.home.is_some() {
            tx.set_home(row.id, row.home, &[moving.source, target.id], revision)?;
        }
        self.put_bundle(tx, &row, &target)?;
        tx.set_move_state(row.id, MoveState::Starting, revision)?;
        self.move_progress().forget(row.id);
        self.instance_progress().clear_step(row.id);
        Ok(())
    }

    /// Orders the old node to delete its copy.
    fn remove_source(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        moving: &MoveRow,
        parts: &Ownership,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let event = self.instance_event(
            "instance.moved",
            row,
            cause,
            format!("to {}; the old copy is being deleted", moving.target_name),
        );
        let revision = tx.emit(&event)?;
        if let Some(part) = parts.part(moving.source) {
            self.order_destruction(tx, row, moving.source, part.epoch, revision)?;
        }
        tx.set_move_state(row.id, MoveState::Removing, revision)?;
        Ok(())
    }

    fn end_move(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        moving: &MoveRow,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let (kind, message) = match moving.state {
            MoveState::Canceling => (
                "instance.move-undone",
                format!("nothing of it is left on {}", moving.target_name),
            ),
            _ => (
                "instance.move-finished",
                format!("nothing of it is left on {}", moving.source_name),
            ),
        };
        let event = self.instance_event(kind, row, cause, message);
        tx.emit(&event)?;
        tx.end_move(row.id)?;
        self.move_progress().forget(row.id);
        Ok(())
    }
}

fn facts(row: &InstanceRow, moving: &MoveRow, parts: &Ownership) -> MoveFacts {
    let source = parts.part(moving.source);
    let target = parts.part(moving.target);
    let owns = target.is_some_and(|part| part.role == OwnershipRole::Owner);
    let at_rest = matches!(
        row.status.state,
        InstanceState::Running | InstanceState::Stopped | InstanceState::Paused
    );
    MoveFacts {
        received: moving.received,
        is_released: source.is_some_and(|part| part.role == OwnershipRole::Released && part.off),
        is_settled: owns && at_rest && row.status.observed_generation.is_some(),
        old_is_gone: source.is_none(),
        new_is_gone: target.is_none(),
    }
}

/// The subnet of an address that an instance keeps when it comes from `source` to `target`, if it is not that of `target`.
fn kept_home(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    source: NodeId,
    target: &NodeRow,
) -> Result<Option<Ipv4Net>, ControlError> {
    let Some(source) = tx.node(source)? else {
        return Err(ControlError::Inconsistent(format!(
            "{} moves from a node that does not exist",
            row.name
        )));
    };
    Ok(network::keep_address::home_on(
        row,
        source.subnet,
        target.subnet,
    ))
}

/// Assigns another address on `default`, which belongs to the subnet of the new node. The guest of the old one is off.
pub(super) fn new_address(
    tx: &mut WriteTx<'_>,
    row: &mut InstanceRow,
    target: &NodeRow,
) -> Result<Option<std::net::Ipv4Addr>, ControlError> {
    let mut spec = row.spec.clone();
    // Its own ports are reserved on the node already.
    spec.publish.clear();
    for nic in &mut spec.nics {
        if network::is_default(&nic.network) {
            nic.address = None;
        }
    }
    let address = match network::fit(tx, &spec, target)? {
        Ok(address) => address,
        Err(obstacle) => {
            let why = obstacle.verdict.to_string();
            return Err(
                instance_problems::no_address_to_move(&row.name, &target.name, &why).into(),
            );
        }
    };
    let Some(address) = address else {
        return Ok(None);
    };
    network::set_default_address(tx, row.id, &mut row.spec, address)?;
    Ok(Some(address))
}
