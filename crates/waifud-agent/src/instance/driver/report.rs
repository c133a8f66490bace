//! The driver's progress, and the report made from it.

use waifud_types::Timestamp;

use super::{Driver, Pass};
use crate::control_link::table::View;
use crate::instance::conditions;
use crate::instance::failure::Failure;
use crate::instance::planner::{self, Observed, Step};
use crate::instance::status::{self, Situation, StepFailure};

/// Where the driver is in its plan.
#[derive(Debug)]
pub(super) struct Progress {
    pub step: Step,
    /// When the step began.
    pub since: Timestamp,
    pub percent: Option<u8>,
    /// The last failure, until it is cleared.
    pub failure: Option<StepFailure>,
    /// The version of the desired state that the failure belongs to.
    pub failure_version: Option<u64>,
}

impl Progress {
    pub fn new(now: Timestamp) -> Self {
        Self {
            step: Step::Idle,
            since: now,
            percent: None,
            failure: None,
            failure_version: None,
        }
    }
}

impl Driver {
    pub(super) fn record_failure(&mut self, step: Step, failure: Failure) {
        let Failure { message, lasting } = failure;
        let changed = self
            .progress
            .failure
            .as_ref()
            .is_none_or(|known| known.message != message);
        if changed {
            tracing::warn!(instance = %self.id, step = step.name(), lasting, "{message}");
        }
        self.progress.failure = Some(StepFailure {
            step,
            message,
            lasting,
        });
        self.progress.failure_version = self.shared.table.version(self.id);
    }

    /// A failure stays the instance's reason while the failed step, or one that leads to it, is retried. It is cleared
    /// when the plan goes past that step, or when the desired state changes.
    pub(super) fn clear_failure(&mut self, step: Step, version: u64) {
        let same = self.progress.failure_version == Some(version);
        self.progress
            .failure
            .take_if(|failure| !(same && planner::leads_to(step, failure.step)));
    }

    pub(super) fn fail(
        &mut self,
        view: &View,
        seen: Option<&Observed>,
        step: Step,
        failure: Failure,
    ) -> Pass {
        self.record_failure(step, failure);
        self.report(view, seen);
        self.finish_boot_turn(step);
        Pass::Pause(self.retry.pause())
    }

    pub(super) fn enter(&mut self, step: Step) {
        if self.progress.step != step {
            self.progress.step = step;
            self.progress.since = self.shared.now();
            self.progress.percent = None;
        }
    }

    pub(super) fn report(&self, view: &View, seen: Option<&Observed>) {
        // The name that waifud uses, which may differ from the one in the configuration.
        let slice = self.shared.table.node().slice;
        let node = slice.map_or_else(|| self.shared.settings.node.clone(), |slice| slice.name);
        let situation = Situation {
            node: &node,
            record: &view.record,
            desired: &view.desired,
            seen,
            hypervisor: self.hypervisor,
            step: self.progress.step,
            since: self.progress.since,
            percent: self.progress.percent,
            module: self.shared.metadata.running_module(self.id),
            failure: self.progress.failure.as_ref(),
            next_start: self.restart.next_start,
            full_pool: self.full_pool.clone(),
            nics: self.nics.as_ref(),
            conditions: conditions::of_instance(
                &self.shared,
                &view.record,
                seen,
                self.progress.failure.as_ref(),
                self.drift.as_ref(),
            ),
        };
        if let Some(report) = status::report(situation) {
            self.shared.reports.instance(report);
        }
    }
}
