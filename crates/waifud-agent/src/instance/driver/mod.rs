//! One instance's driver: the only task that changes anything of that instance.
//!
//! A *pass* observes the instance, asks the planner for the next step, runs it, and repeats until the planner returns
//! `Idle` or `Wait`. A pass begins on a signal (a frame of the watch, an event of the hypervisor, a repaired network, a
//! restarted metadatad) and periodically, so a lost signal only costs time. A failed step is retried with back-off;
//! until then the failure is the reason in the instance's status.
//!
//! A changed desired state ends the pass at the next step, and cancels steps that only wait for others. An instance can
//! therefore be deleted at any point of its creation.

mod background;
mod circumstances;
mod effect;
mod ensured;
mod nics;
mod readiness;
mod receive;
mod report;
mod restart;
mod run_step;
mod shutdown_timer;

pub(crate) use effect::apply;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use waifud_api::agent::AgentInstance;
use waifud_hypervisor::DomainSpec;
use waifud_types::status::HypervisorKind;
use waifud_types::{CopyPath, InstanceId, Name};

use self::background::BackgroundWork;
use self::report::Progress;
use self::restart::RestartTimer;
use self::shutdown_timer::ShutdownTimer;
use crate::backoff::{Backoff, jittered};
use crate::control_link::record::DesiredState;
use crate::guest::console_end::ConsoleWatch;
use crate::guest::readiness::Readiness;
use crate::instance::datasource::{Choice, Seeded};
use crate::instance::disks::Disks;
use crate::instance::drift::Drift;
use crate::instance::failure::Failure;
use crate::instance::nics::EnsuredNics;
use crate::instance::observe;
use crate::instance::planner::{self, Observed, Step, Wait};
use crate::instance::signals::Signal;
use crate::instance::steps;
use crate::shared::Shared;

/// How a pass ended.
enum Pass {
    /// Begin another pass at once.
    Again,
    /// Begin another pass after this long, or on a signal.
    Pause(Duration),
    /// The record is gone, and the driver ends.
    Gone,
}

/// How a step ended.
enum Outcome {
    Done,
    Failed(Failure),
    /// The desired state changed first.
    Canceled,
}

/// The driver; see the module documentation.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    id: InstanceId,
    signal: Arc<Signal>,
    /// The spec that this process prepared disks for, and those disks.
    prepared: Option<(AgentInstance, Disks)>,
    /// The path by which this process has copied the disks that the node receives.
    copied: Option<CopyPath>,
    defined: Option<DomainSpec>,
    seeded: Seeded,
    /// The nics of the running guest, as this process last ensured them.
    nics: Option<EnsuredNics>,
    /// How the guest finds its documents at the next start; chosen once per pass.
    choice: Option<Choice>,
    retry: Backoff,
    restart: RestartTimer,
    shutdown: ShutdownTimer,
    resume_after: Option<Instant>,
    /// The full pool that keeps the guest paused.
    full_pool: Option<Name>,
    readiness: Readiness,
    console: ConsoleWatch,
    progress: Progress,
    hypervisor: Option<HypervisorKind>,
    drift: Option<Drift>,
    background: BackgroundWork,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, id: InstanceId, signal: Arc<Signal>) -> Self {
        let timing = &shared.settings.timing;
        Self {
            prepared: None,
            copied: None,
            defined: None,
            seeded: Seeded::Unknown,
            nics: None,
            choice: None,
            retry: Backoff::new(timing.retry_min, timing.retry_max),
            restart: RestartTimer::default(),
            shutdown: ShutdownTimer::default(),
            resume_after: None,
            full_pool: None,
            readiness: Readiness::new(timing.ready_min, timing.ready_max, timing.unknown),
            console: ConsoleWatch::default(),
            progress: Progress::new(shared.now()),
            hypervisor: None,
            drift: None,
            background: BackgroundWork::default(),
            shared,
            id,
            signal,
        }
    }

    /// Runs until the record is gone.
    pub async fn run(mut self) -> InstanceId {
        loop {
            self.apply_guest_signals();
            let ended = self.pass().await;
            let pause = match ended {
                Pass::Gone => return self.id,
                Pass::Again => {
                    // Other tasks must run even if this loop never sleeps.
                    tokio::task::yield_now().await;
                    continue;
                }
                Pass::Pause(pause) => pause,
            };
            tokio::select! {
                () = self.signal.raised() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn pass(&mut self) -> Pass {
        self.end_background_work().await;
        let Some(mut view) = self.shared.table.view(self.id) else {
            return Pass::Gone;
        };
        tracing::trace!(instance = %self.id, "pass");
        if let DesiredState::Receive(record) = &view.desired {
            let record = record.clone();
            self.shared.reports.released(self.id, None);
            return self.receive(&view, &record).await;
        }
        self.shared.reports.receiving(self.id, None);
        let ensured = self.ensured(&view.desired);
        let observation =
            observe::observe(&self.shared, &view.record, &view.desired, ensured).await;
        let mut seen = match observation {
            Ok(observation) => {
                self.hypervisor = observation.hypervisor.or(self.hypervisor);
                let now = self.shared.now();
                self.drift = Drift::after(self.drift.take(), observation.drift, now);
                observation.seen
            }
            Err(failure) => {
                let step = self.progress.step;
                let pause = self.fail(&view, None, step, failure);
                // Cleared by the next successful observation.
                self.progress.failure_version = None;
                return pause;
            }
        };
        if !seen.is_on() {
            self.nics = None;
        }
        let released = match &view.desired {
            DesiredState::Release(handover) => handover.reported(),
            _ => None,
        };
        self.shared.reports.released(self.id, released);
        if matches!(view.desired, DesiredState::LeaveAlone) {
            let given_up = view.record.is_given_up();
            self.delete_partial_copy(&view.record).await;
            return self.leave_alone(&seen, view.version, given_up).await;
        }
        let host_stopping = self.host_stopping(&view, &seen).await;
        if let Err(failure) = self.record_observation(&mut view, &seen, host_stopping) {
            return self.fail(&view, Some(&seen), Step::Idle, failure);
        }
        let mut now = self.circumstances(&view, &seen).await;
        now.host_stopping = host_stopping;
        let mut failed = false;
        loop {
            if self.shared.table.version(self.id) != Some(view.version) {
                return Pass::Again;
            }
            seen.readiness_final = self.readiness.is_final(&view.record.memory);
            let step = planner::next(&view.desired, &view.record.memory, &seen, now);
            if !failed {
                self.clear_failure(step, view.version);
            }
            self.enter(step);
            self.report(&view, Some(&seen));
            match step {
                Step::Idle | Step::Wait(_) => {
                    if let (Step::Wait(Wait::Host), DesiredState::Keep(want)) =
                        (step, &view.desired)
                    {
                        let order = &self.shared.instances.boot_order;
                        order.wait_for_host(self.id, want.spec.priority);
                    }
                    self.finish_boot_turn(step);
                    let pause = self.pause(step, failed);
                    return Pass::Pause(pause);
                }
                Step::WatchReady => {
                    self.finish_boot_turn(step);
                    return self.watch_ready(&view, &mut seen, failed).await;
                }
                _ => {}
            }
            self.begin_background_work(step, &view, &seen);
            let begun = Instant::now();
            let outcome = self.run_step(step, &view, &seen).await;
            let took = begun.elapsed();
            tracing::debug!(instance = %self.id, step = step.name(), ?took, "step");
            match outcome {
                Outcome::Canceled => return Pass::Again,
                Outcome::Done => {
                    if !failed {
                        self.retry.reset();
                        self.progress
                            .failure
                            .take_if(|failure| failure.step == step);
                    }
                    if matches!(step, Step::ForceOff | Step::Undefine | Step::Start) {
                        // These change enough to warrant a new observation.
                        return Pass::Again;
                    }
                    if step == Step::ConfirmDestroyed {
                        return Pass::Pause(self.shared.settings.timing.period);
                    }
                    // The step may have changed the record.
                    let Some(fresh) = self.shared.table.view(self.id) else {
                        return Pass::Gone;
                    };
                    if fresh.version != view.version {
                        return Pass::Again;
                    }
                    view = fresh;
                    now.ask_again &= step != Step::RequestShutdown;
                    apply(&mut seen, step);
                }
                Outcome::Failed(failure)
                    if seen.is_on() && is_repair(step)
                        || seen.by_disk && step == Step::EnsureBundle =>
                {
                    // A running guest is left running, and one with its documents on a disk does not need the service.
                    // The rest of the plan continues without this step.
                    self.record_failure(step, failure);
                    failed = true;
                    now.port_failed |= step == Step::EnsurePort;
                    now.nics_failed |= step == Step::EnsureNics;
                    now.bundle_failed |= step == Step::EnsureBundle;
                    now.grow_failed |= step == Step::GrowDisks;
                }
                Outcome::Failed(failure) => {
                    if step == Step::Start {
                        // A file may be missing: ensure everything again before the next attempt.
                        self.prepared = None;
                        self.defined = None;
                        self.seeded = Seeded::Unknown;
                    }
                    return self.fail(&view, Some(&seen), step, failure);
                }
            }
        }
    }

    /// For an instance outside the slice: once nothing of it is left on the node, its record and its lease are removed.
    async fn leave_alone(&mut self, seen: &Observed, version: u64, given_up: bool) -> Pass {
        self.shared.reports.forget(self.id);
        let table = &self.shared.table;
        if seen.domain.is_none() && !seen.leftovers {
            let released = async {
                if seen.assigned {
                    steps::release_bundle(&self.shared, self.id).await?;
                }
                self.shared.network.release(table, self.id).await?;
                let files = self.shared.instances.files.ensure_absent(self.id).await;
                files.map_err(|error| Failure::passing(error.to_string()))?;
                Ok::<_, Failure>(table.forget(self.id, version)?)
            };
            return match released.await {
                Ok(()) => Pass::Again,
                Err(_) => Pass::Pause(self.retry.pause()),
            };
        }
        if !seen.port && !given_up {
            // An instance that is left running keeps its network.
            let _tried_again = self.shared.network.ensure(table, self.id).await;
        }
        Pass::Pause(jittered(self.shared.settings.timing.period))
    }
}

/// Steps whose failure does not stop the plan of a running guest.
fn is_repair(step: Step) -> bool {
    matches!(
        step,
        Step::EnsurePort | Step::EnsureNics | Step::EnsureBundle | Step::GrowDisks
    )
}
