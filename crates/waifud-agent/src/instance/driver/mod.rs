//! One instance's driver: the only task that changes anything of it.
//!
//! A *pass* looks at the instance, asks the plan for the next step, carries it out, and goes on until the plan says that
//! nothing is to be done or that something is waited for. Passes begin on a signal (a frame of the watch, an event of
//! the hypervisor, a repaired network, a new metadatad) and on a period, so a lost signal costs time and nothing else.
//! A failed step is tried again after a pause that grows; its reason is the instance's reason meanwhile.
//!
//! A changed wish ends a pass at the next step; steps that only wait for others are given up in the middle. So an
//! instance can be deleted at any point of its creation.

mod act;
mod early;
mod effect;
mod look;

pub(crate) use effect::apply;

use std::sync::Arc;
use std::time::{Duration, Instant};

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::{DomainSpec, DomainState};
use waifud_types::spec::RestartPolicy;
use waifud_types::status::HypervisorKind;
use waifud_types::template::Datasource;
use waifud_types::{InstanceId, Name, Timestamp};

use self::early::Early;
use crate::backoff::{self, Backoff, jittered};
use crate::control_link::record::{DesiredState, Memory, RunMemory};
use crate::control_link::table::View;
use crate::guest::readiness::Readiness;
use crate::instance::conditions;
use crate::instance::datasource::{self, Choice, Seeded};
use crate::instance::drift::Drift;
use crate::instance::failure::Failure;
use crate::instance::observe::{self, Own};
use crate::instance::pending;
use crate::instance::planner::{self, Circumstances, Observed, Step, Wait};
use crate::instance::rescue;
use crate::instance::restart_policy;
use crate::instance::signals::Signal;
use crate::instance::status::{self, Situation, Trouble};
use crate::instance::steps::{self, Disks};
use crate::shared::Shared;

/// How a pass ended.
enum Pass {
    /// Look again at once.
    Again,
    /// Look again after this long, or on a signal.
    Pause(Duration),
    /// There is nothing to look after any more.
    Gone,
}

/// How a step ended that may be given up.
enum Outcome {
    Done,
    Failed(Failure),
    GivenUp,
}

/// The driver. See the module's text.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    id: InstanceId,
    signal: Arc<Signal>,
    /// The spec that was prepared for in this process, and its disks.
    prepared: Option<(AgentInstance, Disks)>,
    defined: Option<DomainSpec>,
    seeded: Seeded,
    /// How the next start finds its documents; chosen once a pass.
    choice: Option<Choice>,
    retry: Backoff,
    restart_due: Option<Instant>,
    /// The same in the clock's time, for people.
    next_start: Option<Timestamp>,
    /// The pool without room that halts the guest.
    full: Option<Name>,
    running_since: Option<Instant>,
    /// When the guest was first asked to shut down, and when it was last.
    stopping_since: Option<Instant>,
    asked: Option<Instant>,
    resume_after: Option<Instant>,
    readiness: Readiness,
    step: Step,
    since: Timestamp,
    percent: Option<u8>,
    trouble: Option<Trouble>,
    /// The version of the desired state that the trouble is about.
    trouble_version: Option<u64>,
    hypervisor: Option<HypervisorKind>,
    drift: Option<Drift>,
    early: Early,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, id: InstanceId, signal: Arc<Signal>) -> Self {
        let timing = &shared.settings.timing;
        Self {
            prepared: None,
            defined: None,
            seeded: Seeded::Unknown,
            choice: None,
            retry: Backoff::new(timing.retry_min, timing.retry_max),
            restart_due: None,
            next_start: None,
            full: None,
            running_since: None,
            stopping_since: None,
            asked: None,
            resume_after: None,
            readiness: Readiness::new(timing.ready_min, timing.ready_max, timing.unknown),
            step: Step::Idle,
            since: shared.now(),
            percent: None,
            trouble: None,
            trouble_version: None,
            hypervisor: None,
            drift: None,
            early: Early::default(),
            shared,
            id,
            signal,
        }
    }

    /// Drives until there is no record any more.
    pub async fn run(mut self) -> InstanceId {
        loop {
            self.heed_the_guest();
            let pause = match self.pass().await {
                Pass::Gone => return self.id,
                Pass::Again => {
                    // Other tasks get their turn, however often this goes round.
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
        self.end_early().await;
        let Some(mut view) = self.shared.table.view(self.id) else {
            return Pass::Gone;
        };
        let own = self.own(&view.wish);
        let sight = observe::look(&self.shared, &view.record, &view.wish, own).await;
        let mut seen = match sight {
            Ok(sight) => {
                self.hypervisor = sight.hypervisor.or(self.hypervisor);
                let now = self.shared.now();
                self.drift = Drift::after(self.drift.take(), sight.drift, now);
                sight.seen
            }
            Err(failure) => {
                let step = self.step;
                let pause = self.failed(&view, None, step, failure);
                // It is over once looking succeeds.
                self.trouble_version = None;
                return pause;
            }
        };
        if matches!(view.wish, DesiredState::LeaveAlone) {
            return self.leave_alone(&seen, view.version).await;
        }
        let host_stopping = self.host_stopping(&view, &seen).await;
        if let Err(failure) = self.remember(&mut view, &seen, host_stopping) {
            return self.failed(&view, Some(&seen), Step::Idle, failure);
        }
        let mut now = self.circumstances(&view, &seen).await;
        now.host_stopping = host_stopping;
        let mut failed = false;
        loop {
            if self.shared.table.version(self.id) != Some(view.version) {
                return Pass::Again;
            }
            seen.settled = self.readiness.is_settled(&view.record.memory);
            let step = planner::next(&view.wish, &view.record.memory, &seen, now);
            if !failed {
                self.forget_trouble(step, view.version);
            }
            self.enter(step);
            self.report(&view, Some(&seen));
            match step {
                Step::Idle | Step::Wait(_) => {
                    if let (Step::Wait(Wait::Host), DesiredState::Keep(want)) = (step, &view.wish) {
                        let order = &self.shared.boot_order;
                        order.held_by_host(self.id, want.spec.priority);
                    }
                    self.had_its_turn(step);
                    let pause = self.pause(step, failed);
                    return Pass::Pause(pause);
                }
                Step::WatchReady => {
                    self.had_its_turn(step);
                    return self.watch_ready(&view, &mut seen, failed).await;
                }
                _ => {}
            }
            self.begin_early(step, &view, &seen);
            let begun = Instant::now();
            let outcome = self.carry_out(step, &view, &seen).await;
            let took = begun.elapsed();
            tracing::debug!(instance = %self.id, step = step.name(), ?took, "step");
            match outcome {
                Outcome::GivenUp => return Pass::Again,
                Outcome::Done => {
                    if !failed {
                        self.retry.reset();
                        self.trouble.take_if(|trouble| trouble.step == step);
                    }
                    if matches!(step, Step::ForceOff | Step::Undefine | Step::Start) {
                        // What these change is worth a look of its own.
                        return Pass::Again;
                    }
                    if step == Step::ConfirmDestroyed {
                        return Pass::Pause(self.shared.settings.timing.period);
                    }
                    // The record may remember more now.
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
                    // A guest that runs is left running, and one with its documents on a disk needs no service; the rest
                    // of the plan goes on without this.
                    self.note(step, failure);
                    failed = true;
                    now.port_failed |= step == Step::EnsurePort;
                    now.bundle_failed |= step == Step::EnsureBundle;
                    now.grow_failed |= step == Step::GrowDisks;
                }
                Outcome::Failed(failure) => {
                    if step == Step::Start {
                        // Perhaps a file of it is gone: look at everything before the next try.
                        self.prepared = None;
                        self.defined = None;
                        self.seeded = Seeded::Unknown;
                    }
                    return self.failed(&view, Some(&seen), step, failure);
                }
            }
        }
    }

    /// What left the slice: when nothing of it is on the node any more, its record and its lease may go too.
    async fn leave_alone(&mut self, seen: &Observed, version: u64) -> Pass {
        self.shared.reports.forget(self.id);
        let table = &self.shared.table;
        if seen.domain.is_none() && !seen.leftovers {
            let released = async {
                if seen.assigned {
                    steps::release_bundle(&self.shared, self.id).await?;
                }
                self.shared.network.release(table, self.id).await?;
                let files = self.shared.files.ensure_absent(self.id).await;
                files.map_err(|error| Failure::passing(error.to_string()))?;
                Ok::<_, Failure>(table.forget(self.id, version)?)
            };
            return match released.await {
                Ok(()) => Pass::Again,
                Err(_) => Pass::Pause(self.retry.pause()),
            };
        }
        if !seen.port {
            // Left running means: with its network.
            let _tried_again = self.shared.network.ensure(table, self.id).await;
        }
        Pass::Pause(jittered(self.shared.settings.timing.period))
    }

    fn own(&mut self, wish: &DesiredState) -> Own {
        self.choice = None;
        let DesiredState::Keep(want) = wish else {
            self.prepared = None;
            self.defined = None;
            self.seeded = Seeded::Unknown;
            return Own::default();
        };
        let choice = self.choice(want);
        let by_disk = choice.datasource == Datasource::Cidata;
        let same = self.prepared.as_ref().is_some_and(|(was, _)| {
            was.spec.disks == want.spec.disks
                && was.spec.image == want.spec.image
                && was.rescue_image == want.rescue_image
        });
        if !same {
            self.prepared = None;
            self.defined = None;
        }
        let defined = self.defined.as_ref().is_some_and(|spec| {
            spec.epoch == want.epoch
                && spec.name == want.name
                && spec.cpus == want.spec.cpus
                && spec.memory == want.spec.memory_bytes
                && spec.firmware == rescue::firmware(want)
                && spec.datasource == choice.datasource
                && self
                    .prepared
                    .as_ref()
                    .is_some_and(|(was, _)| was.spec.nics == want.spec.nics)
        });
        Own {
            volumes: self.prepared.is_some(),
            defined,
            seed: self.seeded == Seeded::wanted(want, by_disk),
            by_disk,
        }
    }

    /// How the next start finds its documents. It stays the same within a pass.
    fn choice(&mut self, want: &AgentInstance) -> Choice {
        let shared = &self.shared;
        *self
            .choice
            .get_or_insert_with(|| datasource::of_instance(shared, want))
    }

    /// Takes note of what was seen, durably before anything follows from it.
    fn remember(
        &mut self,
        view: &mut View,
        seen: &Observed,
        host_stopping: bool,
    ) -> Result<(), Failure> {
        let DesiredState::Keep(want) = &view.wish else {
            return Ok(());
        };
        let before = &view.record.memory;
        let mut after = restart_policy::remember(before, want, seen.domain, host_stopping);
        if seen.domain == Some(DomainState::Running) {
            self.running_since.get_or_insert_with(Instant::now);
        }
        if before.run == RunMemory::Started && after.run == RunMemory::Stopped {
            self.schedule_restart(&mut after, want.spec.restart);
            tracing::info!(instance = %self.id, name = %want.name, by = ?after.stopped_by, "it is off");
        }
        if !seen.is_on() {
            self.running_since = None;
            self.stopping_since = None;
            self.asked = None;
            self.readiness.look_again();
        } else if after.restarts > 0 && self.is_stable(&after) {
            after.restarts = 0;
        }
        if seen.is_on()
            && want.spec.run
            && !restart_policy::reboot_ordered(&after, want)
            && self.has_ignored_the_request()
        {
            // The wish changed and the guest stayed: a later end of it is its own.
            after.stop_requested = false;
            self.stopping_since = None;
            self.asked = None;
        }
        let evidence = self.shared.metadata.evidence(self.id);
        self.readiness.hear(&evidence);
        after.documents = pending::documents(before, want, seen, evidence.asked_for);
        if after != *before {
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
        self.restart_due = None;
        self.next_start = None;
        if !restart_policy::is_restart(memory) || !restart_policy::may_start(memory, policy) {
            return;
        }
        if self.is_stable(memory) {
            memory.restarts = 0;
        }
        let timing = &self.shared.settings.timing;
        let pause = backoff::nth(memory.restarts, timing.restart_min, timing.restart_max);
        memory.restarts = memory.restarts.saturating_add(1);
        self.restart_due = Some(Instant::now() + pause);
        self.next_start = self.shared.now().checked_add(pause).ok();
    }

    /// Whether its run is, or was, long enough to end a series of restarts. It may have begun before this process.
    fn is_stable(&self, memory: &Memory) -> bool {
        let stable = self.shared.settings.timing.stable;
        let here = self.running_since.map(|since| since.elapsed());
        let told = memory
            .started_at
            .and_then(|at| self.shared.now().duration_since(at).try_into().ok());
        here.max(told).is_some_and(|ran| ran >= stable)
    }

    /// Whether the host is going down, where that makes a difference: something went off, or would be started.
    async fn host_stopping(&self, view: &View, seen: &Observed) -> bool {
        let DesiredState::Keep(want) = &view.wish else {
            return false;
        };
        let memory = &view.record.memory;
        let matters = !seen.is_on()
            && want.spec.run
            && (memory.run == RunMemory::Started
                || restart_policy::may_start(memory, want.spec.restart));
        matters && self.shared.host.is_stopping().await
    }

    /// Those of a lower priority may start, once this one was started or has nothing to do but wait.
    fn had_its_turn(&self, step: Step) {
        let held_up = matches!(step, Step::Wait(Wait::StartAllowed | Wait::Host));
        if !held_up && self.shared.boot_order.had_its_turn(self.id) {
            self.shared.signals.nudge_all();
        }
    }

    fn has_ignored_the_request(&self) -> bool {
        self.stopping_since
            .is_some_and(|since| since.elapsed() >= self.shared.settings.timing.grace)
    }

    /// How long a guest may do nothing before it is asked again: one that was asked while it booted has not heard it.
    fn ask_after(&self) -> Duration {
        self.shared.settings.timing.grace / 4
    }

    async fn circumstances(&mut self, view: &View, seen: &Observed) -> Circumstances {
        let changed_back = matches!(&view.wish, DesiredState::Keep(want) if want.spec.run);
        if view.record.memory.stop_requested && seen.is_on() && changed_back {
            // Asked before, perhaps by an earlier process: for so long its end may still be the answer.
            self.stopping_since.get_or_insert_with(Instant::now);
        }
        let io_error = seen.domain == Some(DomainState::Paused { io_error: true });
        let rested = self.resume_after.is_none_or(|at| at <= Instant::now());
        let priority = match &view.wish {
            DesiredState::Keep(want) => want.spec.priority,
            _ => 0,
        };
        let start_allowed =
            *self.shared.start_allowed.borrow() && self.shared.boot_order.is_turn_of(priority);
        self.full = match &view.wish {
            DesiredState::Keep(want) if io_error => self.full_pool(want).await,
            _ => None,
        };
        Circumstances {
            start_allowed,
            restart_due: self.restart_due.is_none_or(|at| at <= Instant::now()),
            grace_over: self.has_ignored_the_request(),
            ask_again: self.asked.is_none_or(|at| at.elapsed() >= self.ask_after()),
            unconfirmed: self.shared.table.node().unconfirmed.is_some(),
            space_returned: io_error && rested && self.full.is_none(),
            host_stopping: false,
            grow_failed: false,
            port_failed: false,
            bundle_failed: false,
        }
    }

    /// The first of the instance's pools that has less room than 64 MiB, or can't be asked.
    async fn full_pool(&self, want: &AgentInstance) -> Option<Name> {
        for disk in &want.spec.disks {
            let usage = match self.shared.pool(&disk.pool) {
                Some(pool) => pool.usage().await.ok(),
                None => None,
            };
            let free = usage.map_or(0, |u| u.size.bytes().saturating_sub(u.used.bytes()));
            if free < 64 << 20 {
                return Some(disk.pool.clone());
            }
        }
        None
    }

    fn pause(&mut self, step: Step, failed: bool) -> Duration {
        let timing = &self.shared.settings.timing;
        if failed {
            return self.retry.pause();
        }
        let until = |at: Option<Instant>| {
            at.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
        };
        let soon = match step {
            Step::Wait(Wait::Backoff) => until(self.restart_due),
            Step::Wait(Wait::Shutdown) => {
                let end = self.stopping_since.map(|at| at + timing.grace);
                let again = self.asked.map(|at| at + self.ask_after());
                until(end.into_iter().chain(again).min())
            }
            Step::Wait(Wait::DiskSpace) => Some(Duration::from_secs(5)),
            // Nobody tells when a host stays up after all.
            Step::Wait(Wait::Host) => Some(Duration::from_secs(3)),
            _ => None,
        };
        soon.unwrap_or_else(|| jittered(timing.period))
            .min(timing.period)
    }

    fn note(&mut self, step: Step, failure: Failure) {
        let Failure { message, lasting } = failure;
        let changed = self
            .trouble
            .as_ref()
            .is_none_or(|known| known.message != message);
        if changed {
            tracing::warn!(instance = %self.id, step = step.name(), lasting, "{message}");
        }
        self.trouble = Some(Trouble {
            step,
            message,
            lasting,
        });
        self.trouble_version = self.shared.table.version(self.id);
    }

    /// What failed stays the instance's trouble while the same is tried again, and the steps before it: a retry is no
    /// news. It is over when the plan goes on after it, or when something else is wanted.
    fn forget_trouble(&mut self, step: Step, version: u64) {
        let same = self.trouble_version == Some(version);
        self.trouble
            .take_if(|trouble| !(same && planner::leads_to(step, trouble.step)));
    }

    fn failed(
        &mut self,
        view: &View,
        seen: Option<&Observed>,
        step: Step,
        failure: Failure,
    ) -> Pass {
        self.note(step, failure);
        self.report(view, seen);
        self.had_its_turn(step);
        Pass::Pause(self.retry.pause())
    }

    fn enter(&mut self, step: Step) {
        if self.step != step {
            self.step = step;
            self.since = self.shared.now();
            self.percent = None;
        }
    }

    fn report(&self, view: &View, seen: Option<&Observed>) {
        let situation = Situation {
            record: &view.record,
            wish: &view.wish,
            seen,
            hypervisor: self.hypervisor,
            step: self.step,
            since: self.since,
            percent: self.percent,
            module: self.shared.metadata.running_module(self.id),
            trouble: self.trouble.as_ref(),
            next_start: self.next_start,
            full: self.full.clone(),
            conditions: conditions::of_instance(
                &self.shared,
                &view.record,
                seen,
                self.trouble.as_ref(),
                self.drift.as_ref(),
            ),
        };
        if let Some(report) = status::report(situation) {
            self.shared.reports.instance(report);
        }
    }
}

/// Steps whose failure is no reason to leave a running guest's plan.
fn is_repair(step: Step) -> bool {
    matches!(
        step,
        Step::EnsurePort | Step::EnsureBundle | Step::GrowDisks
    )
}
