//! Looking at cloud-init, which may take a guest a while to answer and never holds up anything else.

use std::time::{Duration, Instant};

use waifud_hypervisor::HypervisorError;

use super::{Driver, Pass};
use crate::backoff::jittered;
use crate::plan::{Observed, Step};
use crate::ready::Readiness;
use crate::record::Memory;
use crate::table::View;
use crate::trouble::Failure;

impl Driver {
    pub(super) async fn watch_ready(
        &mut self,
        view: &View,
        seen: &mut Observed,
        failed: bool,
    ) -> Pass {
        let evidence = self.shared.metadata.evidence(self.id);
        if let Some(wait) = self.readiness.not_before(Instant::now()) {
            let learned = self.learned(|ready, memory| ready.learn(memory, None, &evidence));
            if let Err(failure) = learned {
                return self.failed(view, Some(seen), Step::WatchReady, failure);
            }
            return self.pause_after_look(view, seen, wait, failed);
        }
        let shared = self.shared.clone();
        let probe = crate::readiness::probe(&shared.hypervisor, self.id);
        let Some(found) = self.unless_the_wish_changes(view.version, probe).await else {
            return Pass::Again;
        };
        let found = match found {
            Ok(status) => Some(status),
            Err(HypervisorError::AgentSilent(_) | HypervisorError::TimedOut { .. }) => None,
            // Off in the meantime, or libvirt is away: the next look will tell.
            Err(_) => return Pass::Pause(self.retry.pause()),
        };
        let learned = self.learned(|ready, memory| ready.learn(memory, found.as_ref(), &evidence));
        if let Err(failure) = learned {
            return self.failed(view, Some(seen), Step::WatchReady, failure);
        }
        let wait = self.readiness.looked(found.as_ref());
        self.pause_after_look(view, seen, wait, failed)
    }

    fn learned(&self, learn: impl Fn(&Readiness, &mut Memory)) -> Result<(), Failure> {
        let change = |memory: &mut Memory| learn(&self.readiness, memory);
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
