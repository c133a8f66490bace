//! Records what was observed of a run, and schedules the restart after one that ended.

use tokio::time::Instant;
use waifud_hypervisor::DomainState;
use waifud_types::Timestamp;
use waifud_types::spec::RestartPolicy;

use super::Driver;
use crate::backoff;
use crate::control_link::record::{DesiredState, Memory, RunMemory};
use crate::control_link::table::View;
use crate::instance::failure::Failure;
use crate::instance::pending;
use crate::instance::planner::Observed;
use crate::instance::restart_policy;

/// Times runs and the pauses between them.
#[derive(Debug, Default)]
pub(super) struct RestartTimer {
    /// When the restart is due; `None` if none is scheduled.
    pub due: Option<Instant>,
    /// The same as a time of day, for the status.
    pub next_start: Option<Timestamp>,
    /// Since when this process has seen the guest running.
    pub running_since: Option<Instant>,
}

impl Driver {
    /// Records what was observed, durably before anything acts on it.
    pub(super) fn record_observation(
        &mut self,
        view: &mut View,
        seen: &Observed,
        host_stopping: bool,
    ) -> Result<(), Failure> {
        if matches!(view.desired, DesiredState::Release(_)) && !seen.is_on() {
            self.shutdown.reset();
        }
        let want = match &view.desired {
            DesiredState::Keep(want) => want,
            DesiredState::Release(_) => return self.record_released_run(view, seen, host_stopping),
            DesiredState::Destroy(_) | DesiredState::Receive(_) | DesiredState::LeaveAlone => {
                return Ok(());
            }
        };
        let before = &view.record.memory;
        let mut after = restart_policy::remember(before, want, seen.domain, host_stopping);
        if seen.domain == Some(DomainState::Running) {
            self.restart.running_since.get_or_insert_with(Instant::now);
        }
        if before.run == RunMemory::Started && after.run == RunMemory::Stopped {
            self.schedule_restart(&mut after, want.spec.restart);
            tracing::info!(instance = %self.id, name = %want.name, by = ?after.stopped_by, "the guest is off");
        }
        if !seen.is_on() {
            self.restart.running_since = None;
            self.shutdown.reset();
            self.readiness.probe_again();
        } else if after.restarts > 0 && self.is_stable(&after) {
            after.restarts = 0;
        }
        if seen.is_on()
            && want.spec.run
            && !restart_policy::reboot_requested(&after, want)
            && self.shutdown.has_expired(&self.shared.settings.timing)
        {
            // The desired state changed back and the guest stayed on: a later power-off is its own.
            after.stop_requested = false;
            self.shutdown.reset();
        }
        let evidence = self.shared.metadata.evidence(self.id);
        self.readiness.update_evidence(&evidence);
        after.documents = pending::documents(before, want, seen, evidence.asked_for);
        self.remember_run(view, after)
    }

    /// During a release only the run and its end matter: a withdrawn release continues from there.
    fn record_released_run(
        &self,
        view: &mut View,
        seen: &Observed,
        host_stopping: bool,
    ) -> Result<(), Failure> {
        let Some(instance) = &view.record.instance else {
            return Ok(());
        };
        let before = &view.record.memory;
        let after = restart_policy::remember(before, instance, seen.domain, host_stopping);
        self.remember_run(view, after)
    }

    /// Stores what has changed in the memory of the run.
    fn remember_run(&self, view: &mut View, after: Memory) -> Result<(), Failure> {
        if after != view.record.memory {
            self.shared.table.remember(self.id, |memory| {
                memory.run = after.run;
                memory.stopped_by = after.stopped_by;
                memory.stop_requested = after.stop_requested;
                memory.documents = after.documents;
                memory.reboots_done = after.reboots_done;
                memory.restarts = after.restarts;
            })?;
            view.record.memory = after;
        }
        Ok(())
    }

    fn schedule_restart(&mut self, memory: &mut Memory, policy: RestartPolicy) {
        self.restart.due = None;
        self.restart.next_start = None;
        if !restart_policy::is_restart(memory) || !restart_policy::may_start(memory, policy) {
            return;
        }
        if self.is_stable(memory) {
            memory.restarts = 0;
        }
        let timing = &self.shared.settings.timing;
        let pause = backoff::nth(memory.restarts, timing.restart_min, timing.restart_max);
        memory.restarts = memory.restarts.saturating_add(1);
        self.restart.due = Some(Instant::now() + pause);
        self.restart.next_start = self.shared.now().checked_add(pause).ok();
    }

    /// Whether the guest runs, or ran, long enough to end a series of restarts. The run may have begun before this process.
    fn is_stable(&self, memory: &Memory) -> bool {
        let stable = self.shared.settings.timing.stable;
        let here = self.restart.running_since.map(|since| since.elapsed());
        let recorded = memory
            .start
            .started_at
            .and_then(|at| self.shared.now().duration_since(at).try_into().ok());
        here.max(recorded).is_some_and(|ran| ran >= stable)
    }
}
