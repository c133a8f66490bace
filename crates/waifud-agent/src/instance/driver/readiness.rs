//! Asks the guest agent about cloud-init. A guest may take a while to answer; nothing else waits for it.

use std::time::{Duration, Instant};

use waifud_hypervisor::HypervisorError;

use super::{Driver, Pass};
use crate::backoff::jittered;
use crate::control_link::record::{DesiredState, Memory, RunMemory};
use crate::control_link::table::View;
use crate::guest::readiness;
use crate::guest::verdict::expects;
use crate::instance::failure::Failure;
use crate::instance::planner::{Observed, Step};

impl Driver {
    pub(super) async fn watch_ready(
        &mut self,
        view: &View,
        seen: &mut Observed,
        failed: bool,
    ) -> Pass {
        if let Some(wait) = self.readiness.not_before(Instant::now()) {
            if let Err(failure) = self.learn(view) {
                return self.fail(view, Some(seen), Step::WatchReady, failure);
            }
            return self.pause_after_probe(view, seen, wait, failed);
        }
        let shared = self.shared.clone();
        // Taken before the request: an end reported while the request runs is newer than its answer.
        let asked_at = shared.now();
        let probe = crate::guest::cloud_init_probe::probe(&shared.hypervisor, self.id);
        let Some(found) = self.unless_desired_state_changes(view.version, probe).await else {
            return Pass::Again;
        };
        let found = match found {
            Ok(status) => Some(status),
            Err(HypervisorError::AgentUnresponsive(_) | HypervisorError::TimedOut { .. }) => None,
            // The guest went off, or libvirt is unreachable: the next observation shows which.
            Err(_) => return Pass::Pause(self.retry.pause()),
        };
        let wait = self.readiness.probed(found, asked_at);
        if let Err(failure) = self.learn(view) {
            return self.fail(view, Some(seen), Step::WatchReady, failure);
        }
        self.pause_after_probe(view, seen, wait, failed)
    }

    /// Applies signals from the guest since the last pass: a reboot, or an agent that connected or disconnected.
    pub(super) fn apply_guest_signals(&mut self) {
        if self.signal.take_rebooted() {
            self.record_reboot();
        }
        if self.signal.take_reprobe() {
            self.readiness.probe_again();
        }
    }

    /// The guest was reset: readiness was proven for the previous boot only.
    fn record_reboot(&mut self) {
        let now = self.shared.now();
        let noted = self.shared.table.remember(self.id, |memory| {
            if memory.run == RunMemory::Started {
                readiness::reset_for_boot(memory, Some(now));
            }
        });
        if let Err(error) = noted {
            tracing::warn!(instance = %self.id, %error, "could not record the guest's reboot");
        }
        self.readiness.probe_again();
    }

    fn learn(&self, view: &View) -> Result<(), Failure> {
        let DesiredState::Keep(want) = &view.desired else {
            return Ok(());
        };
        let evidence = self.shared.metadata.evidence(self.id);
        let now = self.shared.now();
        let change = |memory: &mut Memory| {
            let expects = expects(want, memory);
            self.readiness.learn(memory, &evidence, expects, now);
        };
        Ok(self.shared.table.remember(self.id, change)?)
    }

    fn pause_after_probe(
        &mut self,
        view: &View,
        seen: &mut Observed,
        wait: Duration,
        failed: bool,
    ) -> Pass {
        let Some(fresh) = self.shared.table.view(self.id) else {
            return Pass::Gone;
        };
        if fresh.version != view.version {
            return Pass::Again;
        }
        let is_final = self.readiness.is_final(&fresh.record.memory);
        if is_final && !failed {
            self.enter(Step::Idle);
        }
        seen.readiness_final = is_final;
        self.report(&fresh, Some(seen));
        let pause = match (is_final, failed) {
            (true, false) => jittered(self.shared.settings.timing.period),
            (true, true) => self.retry.pause(),
            (false, _) => wait,
        };
        Pass::Pause(pause)
    }
}
