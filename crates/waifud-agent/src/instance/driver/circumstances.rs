//! Gathers the planner's inputs other than the observation: timers, permissions, free space, the host's shutdown.

use std::time::Duration;

use tokio::time::Instant;
use waifud_api::agent::AgentInstance;
use waifud_hypervisor::DomainState;
use waifud_types::Name;

use super::Driver;
use crate::backoff::jittered;
use crate::control_link::record::{DesiredState, RunMemory};
use crate::control_link::table::View;
use crate::instance::planner::{Circumstances, Observed, Step, Wait};
use crate::instance::restart_policy;

/// A pool with less free space counts as full.
const POOL_MIN_FREE: u64 = 64 << 20;

impl Driver {
    /// Whether the host is shutting down. Asked only when it matters: the guest went off, or would be started.
    pub(super) async fn host_stopping(&self, view: &View, seen: &Observed) -> bool {
        let memory = &view.record.memory;
        let went_off = !seen.is_on() && memory.run == RunMemory::Started;
        let matters = match &view.desired {
            DesiredState::Keep(want) => {
                let may_start = restart_policy::may_start(memory, want.spec.restart);
                want.spec.run && (went_off || !seen.is_on() && may_start)
            }
            DesiredState::Release(_) => went_off,
            DesiredState::Destroy(_) | DesiredState::Receive(_) | DesiredState::LeaveAlone => false,
        };
        matters && self.shared.host.is_stopping().await
    }

    /// Lets instances of a lower priority start, once this one was started or only waits.
    pub(super) fn finish_boot_turn(&self, step: Step) {
        let held_up = matches!(step, Step::Wait(Wait::StartAllowed | Wait::Host));
        if !held_up && self.shared.instances.boot_order.finish_turn(self.id) {
            self.shared.signals.nudge_all();
        }
    }

    pub(super) async fn circumstances(&mut self, view: &View, seen: &Observed) -> Circumstances {
        let changed_back = matches!(&view.desired, DesiredState::Keep(want) if want.spec.run);
        if view.record.memory.stop_requested && seen.is_on() && changed_back {
            // Asked before, perhaps by an earlier process. Within the grace period a power-off may still be the answer.
            self.shutdown.since.get_or_insert_with(Instant::now);
        }
        let io_error = seen.domain == Some(DomainState::Paused { io_error: true });
        let rested = self.resume_after.is_none_or(|at| at <= Instant::now());
        let priority = match &view.desired {
            DesiredState::Keep(want) => want.spec.priority,
            _ => 0,
        };
        let start_allowed = self.shared.instances.start_permission.is_granted()
            && self.shared.instances.boot_order.may_start(priority);
        self.full_pool = match &view.desired {
            DesiredState::Keep(want) if io_error => self.find_full_pool(want).await,
            _ => None,
        };
        Circumstances {
            start_allowed,
            restart_due: self.restart.due.is_none_or(|at| at <= Instant::now()),
            grace_over: self.shutdown.has_expired(&self.shared.settings.timing),
            ask_again: self.shutdown.should_ask(&self.shared.settings.timing),
            unconfirmed: self.shared.table.node().unconfirmed.is_some(),
            space_returned: io_error && rested && self.full_pool.is_none(),
            host_stopping: false,
            grow_failed: false,
            port_failed: false,
            bundle_failed: false,
            nics_failed: false,
        }
    }

    /// The first of the instance's pools that has less than [`POOL_MIN_FREE`] or does not answer.
    async fn find_full_pool(&self, want: &AgentInstance) -> Option<Name> {
        for disk in &want.spec.disks {
            let usage = match self.shared.pool(&disk.pool) {
                Some(pool) => pool.usage().await.ok(),
                None => None,
            };
            let free = usage.map_or(0, |u| u.size.bytes().saturating_sub(u.used.bytes()));
            if free < POOL_MIN_FREE {
                return Some(disk.pool.clone());
            }
        }
        None
    }

    pub(super) fn pause(&mut self, step: Step, failed: bool) -> Duration {
        let timing = &self.shared.settings.timing;
        if failed {
            return self.retry.pause();
        }
        let until = |at: Option<Instant>| {
            at.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
        };
        let soon = match step {
            Step::Wait(Wait::Backoff) => until(self.restart.due),
            Step::Wait(Wait::Shutdown) => until(self.shutdown.next_due(timing)),
            Step::Wait(Wait::DiskSpace) => Some(Duration::from_secs(5)),
            // There is no event for a host shutdown that was canceled.
            Step::Wait(Wait::Host) => Some(Duration::from_secs(3)),
            _ => None,
        };
        soon.unwrap_or_else(|| jittered(timing.period))
            .min(timing.period)
    }
}
