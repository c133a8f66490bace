//! Looking at cloud-init, which may take a guest a while to answer and never holds up anything else.

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
                return self.failed(view, Some(seen), Step::WatchReady, failure);
            }
            return self.pause_after_look(view, seen, wait, failed);
        }
        let shared = self.shared.clone();
        // Before the question: an end that is told of while it is asked is newer than the answer.
        let asked_at = shared.now();
        let probe = crate::guest::cloud_init_probe::probe(&shared.hypervisor, self.id);
        let Some(found) = self.unless_the_wish_changes(view.version, probe).await else {
            return Pass::Again;
        };
        let found = match found {
            Ok(status) => Some(status),
            Err(HypervisorError::AgentSilent(_) | HypervisorError::TimedOut { .. }) => None,
            // Off in the meantime, or libvirt is away: the next look will tell.
            Err(_) => return Pass::Pause(self.retry.pause()),
        };
        let wait = self.readiness.looked(found, asked_at);
        if let Err(failure) = self.learn(view) {
            return self.failed(view, Some(seen), Step::WatchReady, failure);
        }
        self.pause_after_look(view, seen, wait, failed)
    }

    /// What was heard of the guest since the last pass: another boot, or its agent came or left.
    pub(super) fn heed_the_guest(&mut self) {
        if self.signal.take_rebooted() {
            self.booted_again();
        }
        if self.signal.take_reprobe() {
            self.readiness.look_again();
        }
    }

    /// The guest was reset: what was proven is of the boot before.
    fn booted_again(&mut self) {
        let now = self.shared.now();
        let noted = self.shared.table.remember(self.id, |memory| {
            if memory.run == RunMemory::Started {
                readiness::boots_anew(memory, Some(now));
            }
        });
        if let Err(error) = noted {
            tracing::warn!(instance = %self.id, %error, "the guest's reboot could not be written down");
        }
        self.readiness.look_again();
    }

    fn learn(&self, view: &View) -> Result<(), Failure> {
        let DesiredState::Keep(want) = &view.wish else {
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

    fn pause_after_look(
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
        let settled = self.readiness.is_settled(&fresh.record.memory);
        if settled && !failed {
            self.enter(Step::Idle);
        }
        seen.settled = settled;
        self.report(&fresh, Some(seen));
        let pause = match (settled, failed) {
            (true, false) => jittered(self.shared.settings.timing.period),
            (true, true) => self.retry.pause(),
            (false, _) => wait,
        };
        Pass::Pause(pause)
    }
}
