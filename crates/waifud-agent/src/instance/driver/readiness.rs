//! Asks the guest agent about cloud-init. A guest may take a while to answer; nothing else waits for it.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use waifud_hypervisor::HypervisorError;
use waifud_types::status::ReadyBy;

use super::{Driver, Pass};
use crate::backoff::jittered;
use crate::blocking;
use crate::control_link::record::{ConsoleStart, DesiredState, Memory, RunMemory};
use crate::control_link::table::View;
use crate::guest::console_end;
use crate::guest::readiness;
use crate::guest::verdict::expects;
use crate::instance::failure::Failure;
use crate::instance::planner::{Observed, Step};

/// The time limit for reading the console, so that a disk that hangs does not stop the driver.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after its boot a guest's console is read often.
const CONSOLE_PATIENCE: Duration = Duration::from_mins(15);

impl Driver {
    pub(super) async fn watch_ready(
        &mut self,
        view: &View,
        seen: &mut Observed,
        failed: bool,
    ) -> Pass {
        if let Some(wait) = self.readiness.not_before(Instant::now()) {
            if let Err(failure) = self.learn(view).await {
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
        if let Err(failure) = self.learn(view).await {
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

    async fn learn(&mut self, view: &View) -> Result<(), Failure> {
        let DesiredState::Keep(want) = &view.desired else {
            return Ok(());
        };
        let start = self.read_console().await;
        let evidence = self.shared.metadata.evidence(self.id);
        let now = self.shared.now();
        let change = |memory: &mut Memory| {
            memory.console_start = start.or(memory.console_start);
            let expects = expects(want, memory);
            let console = self.console.report();
            self.readiness
                .learn(memory, &evidence, console, expects, now);
        };
        Ok(self.shared.table.remember(self.id, change)?)
    }

    /// Reads what was added to the guest's console. Returns where the lines of the current boot begin, if it is new.
    async fn read_console(&mut self) -> Option<ConsoleStart> {
        let view = self.shared.table.view(self.id)?;
        let memory = &view.record.memory;
        if memory.boot.cloud_init.state.is_final()
            && memory.boot.ready_by != Some(ReadyBy::PhoneHome)
        {
            // A phone-home only proves that cloud-init finished in this boot. Output on the console also shows that the next boot can be observed.
            return None;
        }
        let boot = readiness::since(memory)?;
        let start = memory.console_start.filter(|start| start.boot == boot);
        let position = self
            .console
            .position(boot, start.map(|start| start.position));
        let log = self.shared.instances.files.console_log(self.id);
        let scan = blocking::on_a_thread(move || console_end::scan(&log, position));
        // A log that cannot be read shows nothing.
        let scan = timeout(CONSOLE_TIMEOUT, scan).await.ok()?.ok()?;
        let noticed = ConsoleStart {
            boot,
            position: scan.position,
        };
        self.console.add(boot, scan, self.shared.now());
        start.is_none().then_some(noticed)
    }

    /// How long until the next pass of a guest that is not known to be ready. Without a reporter, only its console may show
    /// the end of cloud-init, and no event announces that.
    fn until_console(&self, memory: &Memory, desired: &DesiredState, pause: Duration) -> Duration {
        let DesiredState::Keep(want) = desired else {
            return pause;
        };
        let booted = readiness::since(memory)
            .and_then(|boot| Duration::try_from(self.shared.now().duration_since(boot)).ok());
        let boots = booted.is_some_and(|ago| ago < CONSOLE_PATIENCE);
        if boots && memory.boot.ready_by.is_none() && expects(want, memory).no_report.is_some() {
            pause.min(self.shared.settings.timing.evidence)
        } else {
            pause
        }
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
            (false, _) => self.until_console(&fresh.record.memory, &fresh.desired, wait),
        };
        Pass::Pause(pause)
    }
}
