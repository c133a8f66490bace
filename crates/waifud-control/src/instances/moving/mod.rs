//! Moves of instances to other nodes: a request begins one, reports of both nodes let it go on ([`advance`]), and a user can
//! cancel it until the new node owns the instance ([`cancel`]).
//!
//! The rule by which a move goes on is in [`waifud_types::moving`], the roles of both nodes are in
//! [`waifud_types::ownership`], and `docs/reference/ownership.md` has the outcomes of a crash at each point.

mod advance;
mod begin;
mod cancel;
mod destination;
mod progress;
mod return_home;

use waifud_api::agent::Receiving;
use waifud_api::{InstanceMove, Problem};
use waifud_store::{InstanceRow, MoveRow};
use waifud_types::WaitReason;
use waifud_types::status::StepStatus;

pub(crate) use advance::advances;
pub(crate) use begin::{check, needs_new_address};
pub(crate) use progress::MoveProgress;
pub(crate) use return_home::can_return;

use crate::Control;
use crate::instances::problems as instance_problems;

/// Refuses a change that the receiving node would not notice, until it owns the instance.
pub(super) fn require_not_moving(row: &InstanceRow) -> Result<(), Problem> {
    match &row.moving {
        Some(moving) if moving.state.can_be_canceled() => {
            Err(instance_problems::is_moving(&row.name, &moving.target_name))
        }
        _ => Ok(()),
    }
}

/// The move as the API shows it.
pub(super) fn view(row: &InstanceRow, progress: &MoveProgress) -> Option<InstanceMove> {
    let moving = row.moving.as_ref()?;
    let report = report(row, progress);
    let copying = report
        .as_ref()
        .filter(|report| report.total_bytes.bytes() > 0);
    Some(InstanceMove {
        from: moving.source_name.clone(),
        to: moving.target_name.clone(),
        state: moving.state,
        began_at: moving.began_at,
        done_bytes: copying.map(|report| report.done_bytes),
        total_bytes: copying.map(|report| report.total_bytes),
        reason: problem(row, progress),
        path: copying.and_then(|report| report.path),
    })
}

/// What an instance between two owners waits for.
pub(super) fn reason(moving: &MoveRow, problem: Option<String>) -> WaitReason {
    WaitReason::Moving {
        to: moving.target_name.clone(),
        state: moving.state,
        problem,
    }
}

/// The progress of a move as a step of the instance.
pub(super) fn step(moving: &MoveRow, report: &Receiving) -> StepStatus {
    let total = report.total_bytes.bytes();
    let percent = report
        .done_bytes
        .bytes()
        .saturating_mul(100)
        .checked_div(total);
    StepStatus {
        name: format!("move-{}", moving.state),
        percent: percent.and_then(|percent| u8::try_from(percent.min(100)).ok()),
        since: moving.began_at,
        waiting_for: report.reason.clone(),
    }
}

/// The last report about the instance, while the node receives it.
pub(super) fn report(row: &InstanceRow, progress: &MoveProgress) -> Option<Receiving> {
    let moving = row.moving.as_ref()?;
    progress
        .report(row.id)
        .filter(|_| moving.state.can_be_canceled())
}

/// Why a move does not go on; `None` if it does.
pub(super) fn problem(row: &InstanceRow, progress: &MoveProgress) -> Option<String> {
    let obstacle = progress.obstacle(row.id);
    obstacle.or_else(|| report(row, progress)?.reason)
}

impl Control {
    /// The move of an instance as the API shows it.
    pub(crate) fn move_view(&self, row: &InstanceRow) -> Option<InstanceMove> {
        view(row, self.move_progress())
    }
}
