//! One instance's driver: the only task that changes anything of it.
//!
//! A *pass* looks at the instance, asks the plan for the next step, carries it out, and goes on until the plan says that
//! nothing is to be done or that something is waited for. Passes begin on a signal (a frame of the watch, an event of
//! the hypervisor, a repaired network, a new metadatad) and on a period, so a lost signal costs time and nothing else.
//! A failed step is tried again after a pause that grows; its reason is the instance's reason meanwhile.
//!
//! A changed wish ends a pass at the next step; steps that only wait for others are given up in the middle. So an
//! instance can be deleted at any point of its creation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::{DomainSpec, DomainState, HypervisorError};
use waifud_types::InstanceId;
use waifud_types::Timestamp;
use waifud_types::status::HypervisorKind;

use crate::backoff::{Backoff, jittered};
use crate::conditions;
use crate::life;
use crate::observe::{self, Own};
use crate::plan::{self, Circumstances, Observed, Step, Wait};
use crate::ready::Readiness;
use crate::record::{Memory, RunMemory, Wish};
use crate::shared::Shared;
use crate::signals::Signal;
use crate::status::{self, Situation, Trouble};
use crate::table::View;
use crate::trouble::Failure;
use crate::work::{self, Disks};

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
    retry: Backoff,
    restarts: Backoff,
    restart_due: Option<Instant>,
    running_since: Option<Instant>,
    stopping_since: Option<Instant>,
    resume_after: Option<Instant>,
    readiness: Readiness,
    step: Step,
    since: Timestamp,
    percent: Option<u8>,
    trouble: Option<Trouble>,
    hypervisor: Option<HypervisorKind>,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, id: InstanceId, signal: Arc<Signal>) -> Self {
        let timing = &shared.settings.timing;
        Self {
            prepared: None,
            defined: None,
            retry: Backoff::new(timing.retry_min, timing.retry_max),
            restarts: Backoff::new(timing.restart_min, timing.restart_max),
            restart_due: None,
            running_since: None,
            stopping_since: None,
            resume_after: None,
            readiness: Readiness::new(timing.ready_min, timing.ready_max),
            step: Step::Idle,
            since: shared.now(),
            percent: None,
            trouble: None,
            hypervisor: None,
            shared,
            id,
            signal,
        }
    }

    /// Drives until there is no record any more.
    pub async fn run(mut self) -> InstanceId {
        loop {
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
            if self.signal.take_reprobe() {
                self.readiness.look_again();
            }
        }
    }

    async fn pass(&mut self) -> Pass {
        let Some(mut view) = self.shared.table.view(self.id) else {
            return Pass::Gone;
        };
        let own = self.own(&view.wish);
        let sight = observe::look(&self.shared, &view.record, &view.wish, own).await;
        let mut seen = match sight {
            Ok(sight) => {
                self.hypervisor = sight.hypervisor.or(self.hypervisor);
                sight.seen
            }
            Err(failure) => {
                let step = self.step;
                return self.failed(&view, None, step, failure);
            }
        };
        if matches!(view.wish, Wish::LeaveAlone) {
            return self.leave_alone(&seen).await;
        }
        if let Err(failure) = self.remember(&mut view, &seen) {
            return self.failed(&view, Some(&seen), Step::Idle, failure);
        }
        let mut now = self.circumstances(&view, &seen).await;
        let mut failed = false;
        loop {
            if self.shared.table.version(self.id) != Some(view.version) {
                return Pass::Again;
            }
            if self.readiness.wants_look() {
                seen.settled = false;
            }
            let step = plan::next(&view.wish, &view.record.memory, &seen, now);
            if !failed {
                self.trouble = None;
            }
            self.enter(step);
            self.report(&view, Some(&seen));
            match step {
                Step::Idle | Step::Wait(_) => {
                    let pause = self.pause(step, failed);
                    return Pass::Pause(pause);
                }
                Step::WatchReady => return self.watch_ready(&view, &mut seen, failed).await,
                _ => {}
            }
            match self.carry_out(step, &view, &seen).await {
                Outcome::GivenUp => return Pass::Again,
                Outcome::Done => {
                    if !failed {
                        self.retry.reset();
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
                    apply(&mut seen, step);
                }
                Outcome::Failed(failure) if seen.is_on() && is_repair(step) => {
                    // A guest that runs is left running; the rest of the plan goes on without this.
                    self.note(step, failure);
                    failed = true;
                    now.port_failed |= step == Step::EnsurePort;
                    now.bundle_failed |= step == Step::EnsureBundle;
                }
                Outcome::Failed(failure) => {
                    if step == Step::Start {
                        // Perhaps a file of it is gone: look at everything before the next try.
                        self.prepared = None;
                        self.defined = None;
                    }
                    return self.failed(&view, Some(&seen), step, failure);
                }
            }
        }
    }

    /// What left the slice: when nothing of it is on the node any more, its record and its lease may go too.
    async fn leave_alone(&mut self, seen: &Observed) -> Pass {
        self.shared.reports.forget(self.id);
        let table = &self.shared.table;
        if seen.domain.is_none() && !seen.leftovers {
            let released = async {
                if seen.assigned {
                    work::release_bundle(&self.shared, self.id).await?;
                }
                self.shared.network.release(table, self.id).await?;
                Ok::<_, Failure>(table.forget(self.id)?)
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

    fn own(&mut self, wish: &Wish) -> Own {
        let Wish::Keep(want) = wish else {
            self.prepared = None;
            self.defined = None;
            return Own::default();
        };
        let same = self.prepared.as_ref().is_some_and(|(was, _)| {
            was.spec.disks == want.spec.disks && was.spec.image == want.spec.image
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
                && spec.firmware == want.firmware
                && spec.datasource == want.datasource
                && self
                    .prepared
                    .as_ref()
                    .is_some_and(|(was, _)| was.spec.nics == want.spec.nics)
        });
        Own {
            volumes: self.prepared.is_some(),
            defined,
        }
    }

    /// Takes note of what was seen, durably before anything follows from it.
    fn remember(&mut self, view: &mut View, seen: &Observed) -> Result<(), Failure> {
        let Wish::Keep(want) = &view.wish else {
            return Ok(());
        };
        let before = &view.record.memory;
        let mut after = life::remember(before, want, seen.domain);
        if seen.domain == Some(DomainState::Running) {
            self.running_since.get_or_insert_with(Instant::now);
        }
        if before.run == RunMemory::Started && after.run == RunMemory::Stopped {
            self.schedule_restart(&after);
            tracing::info!(instance = %self.id, name = %want.name, by = ?after.stopped_by, "it is off");
        }
        if !seen.is_on() {
            self.running_since = None;
            self.stopping_since = None;
            self.readiness.look_again();
        } else if want.spec.run && self.has_ignored_the_request() {
            // The wish changed and the guest stayed: a later end of it is its own.
            after.stop_requested = false;
            self.stopping_since = None;
        }
        if after != *before {
            self.shared.table.remember(self.id, |memory| {
                memory.run = after.run;
                memory.stopped_by = after.stopped_by;
                memory.stop_requested = after.stop_requested;
            })?;
            view.record.memory = after;
        }
        Ok(())
    }

    fn schedule_restart(&mut self, memory: &Memory) {
        let stable = self.shared.settings.timing.stable;
        if self
            .running_since
            .is_some_and(|since| since.elapsed() >= stable)
        {
            self.restarts.reset();
        }
        self.restart_due = life::is_restart(memory).then(|| Instant::now() + self.restarts.pause());
    }

    fn has_ignored_the_request(&self) -> bool {
        self.stopping_since
            .is_some_and(|since| since.elapsed() >= self.shared.settings.timing.grace)
    }

    async fn circumstances(&mut self, view: &View, seen: &Observed) -> Circumstances {
        if view.record.memory.stop_requested && seen.is_on() {
            self.stopping_since.get_or_insert_with(Instant::now);
        }
        let io_error = seen.domain == Some(DomainState::Paused { io_error: true });
        let rested = self.resume_after.is_none_or(|at| at <= Instant::now());
        let start_allowed = *self.shared.start_allowed.borrow();
        Circumstances {
            start_allowed,
            restart_due: self.restart_due.is_none_or(|at| at <= Instant::now()),
            grace_over: self.has_ignored_the_request(),
            room: io_error && rested && self.has_room(&view.wish).await,
            port_failed: false,
            bundle_failed: false,
        }
    }

    /// Whether every pool of the instance has some room, 64 MiB or more.
    async fn has_room(&self, wish: &Wish) -> bool {
        let Wish::Keep(want) = wish else {
            return false;
        };
        for disk in &want.spec.disks {
            let usage = match self.shared.pool(&disk.pool) {
                Some(pool) => pool.usage().await,
                None => return false,
            };
            let free = usage.map_or(0, |u| u.size.bytes().saturating_sub(u.used.bytes()));
            if free < 64 << 20 {
                return false;
            }
        }
        true
    }

    async fn carry_out(&mut self, step: Step, view: &View, seen: &Observed) -> Outcome {
        let shared = self.shared.clone();
        let done = match (&view.wish, step) {
            (Wish::Keep(want), Step::EnsureImage) => {
                return self.ensure_image(want, view, seen).await;
            }
            (Wish::Keep(want), Step::EnsureBundle) => {
                return self
                    .until_the_wish_changes(view.version, work::ensure_bundle(&shared, want))
                    .await;
            }
            (Wish::Keep(want), Step::EnsureVolumes) => {
                work::ensure_volumes(&shared, want).await.map(|disks| {
                    self.prepared = Some(((**want).clone(), disks));
                })
            }
            (Wish::Keep(_), Step::EnsurePort) => shared
                .network
                .ensure(&shared.table, self.id)
                .await
                .map_err(Failure::from),
            (Wish::Keep(want), Step::Define) => self.define(want).await,
            (Wish::Keep(want), Step::Start) => {
                self.resume_after = Some(Instant::now() + Duration::from_secs(5));
                work::start(&shared, want, seen.is_on()).await
            }
            (_, Step::RequestShutdown) => {
                self.stopping_since = Some(Instant::now());
                work::request_shutdown(&shared, self.id).await
            }
            (_, Step::ForceOff) => shared
                .hypervisor
                .ensure_off(self.id)
                .await
                .map_err(Failure::from),
            (Wish::Destroy(_), Step::Undefine) => shared
                .hypervisor
                .ensure_absent(self.id)
                .await
                .map_err(Failure::from),
            (Wish::Destroy(_), Step::DestroyVolumes) => {
                work::destroy_volumes(&shared, self.id).await
            }
            (Wish::Destroy(_), Step::ReleaseBundle) => work::release_bundle(&shared, self.id).await,
            (Wish::Destroy(_), Step::ReleasePort) => shared
                .network
                .release(&shared.table, self.id)
                .await
                .map_err(Failure::from),
            (Wish::Destroy(order), Step::ConfirmDestroyed) => {
                match shared.table.destroyed(self.id) {
                    Ok(()) => {
                        shared.reports.destroyed(order.tombstone.clone());
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                }
            }
            // The plan never asks for these: nothing is done rather than something wrong.
            (Wish::Keep(_) | Wish::Destroy(_) | Wish::LeaveAlone, _) => Ok(()),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(failure) => Outcome::Failed(failure),
        }
    }

    async fn define(&mut self, want: &AgentInstance) -> Result<(), Failure> {
        let Some((_, disks)) = &self.prepared else {
            return Err(Failure::passing("its disks are not ready yet"));
        };
        let spec = work::domain_spec(&self.shared, want, disks).await?;
        work::define(&self.shared, &spec).await?;
        self.defined = Some(spec);
        if let Some((was, _)) = &mut self.prepared {
            *was = want.clone();
        }
        Ok(())
    }

    /// Gets the image, and reports how far it is.
    async fn ensure_image(
        &mut self,
        want: &AgentInstance,
        view: &View,
        seen: &Observed,
    ) -> Outcome {
        let shared = self.shared.clone();
        let (percent, mut percents) = tokio::sync::watch::channel(0_u8);
        let tell = |value: u8| {
            percent.send_replace(value);
        };
        let fetch = work::ensure_image(&shared, want, tell);
        let mut fetch = std::pin::pin!(fetch);
        let outcome = loop {
            tokio::select! {
                done = &mut fetch => break match done {
                    Ok(()) => Outcome::Done,
                    Err(failure) => Outcome::Failed(failure),
                },
                Ok(()) = percents.changed() => {
                    self.percent = Some(*percents.borrow_and_update());
                    self.report(view, Some(seen));
                }
                () = self.signal.raised() => {
                    if shared.table.version(self.id) != Some(view.version) {
                        break Outcome::GivenUp;
                    }
                }
            }
        };
        self.percent = None;
        outcome
    }

    /// Goes on with the work until it ends or the wish is another.
    async fn until_the_wish_changes(
        &self,
        version: u64,
        work: impl Future<Output = Result<(), Failure>>,
    ) -> Outcome {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return match done {
                    Ok(()) => Outcome::Done,
                    Err(failure) => Outcome::Failed(failure),
                },
                () = self.signal.raised() => {
                    if self.shared.table.version(self.id) != Some(version) {
                        return Outcome::GivenUp;
                    }
                }
            }
        }
    }

    async fn watch_ready(&mut self, view: &View, seen: &mut Observed, failed: bool) -> Pass {
        let evidence = self.shared.metadata.evidence(self.id);
        if let Some(wait) = self.readiness.not_before(Instant::now()) {
            if let Err(failure) =
                self.learned(view, |memory| Readiness::from_evidence(memory, &evidence))
            {
                return self.failed(view, Some(seen), Step::WatchReady, failure);
            }
            return self.pause_after_look(view, seen, wait, failed);
        }
        let shared = self.shared.clone();
        let probe = crate::readiness::probe(&shared.hypervisor, self.id);
        let mut probe = std::pin::pin!(probe);
        let found = loop {
            tokio::select! {
                found = &mut probe => break found,
                () = self.signal.raised() => {
                    if shared.table.version(self.id) != Some(view.version) {
                        return Pass::Again;
                    }
                }
            }
        };
        let found = match found {
            Ok(status) => Some(status),
            Err(HypervisorError::AgentSilent(_) | HypervisorError::TimedOut { .. }) => None,
            // Off in the meantime, or libvirt is away: the next look will tell.
            Err(_) => return Pass::Pause(self.retry.pause()),
        };
        let learned = self.learned(view, |memory| {
            Readiness::from_guest(memory, found.as_ref());
            Readiness::from_evidence(memory, &evidence);
        });
        if let Err(failure) = learned {
            return self.failed(view, Some(seen), Step::WatchReady, failure);
        }
        let wait = self.readiness.looked(found.as_ref());
        self.pause_after_look(view, seen, wait, failed)
    }

    fn learned(&self, view: &View, change: impl Fn(&mut Memory)) -> Result<(), Failure> {
        let mut after = view.record.memory.clone();
        change(&mut after);
        if after.cloud_init.state.is_final() || after.ready_by != view.record.memory.ready_by {
            tracing::debug!(instance = %self.id, state = ?after.cloud_init.state, "cloud-init");
        }
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
        let settled = fresh.record.memory.cloud_init.state.is_final();
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
            Step::Wait(Wait::Shutdown) => until(self.stopping_since.map(|at| at + timing.grace)),
            Step::Wait(Wait::Room) => Some(Duration::from_secs(5)),
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
            trouble: self.trouble.as_ref(),
            conditions: conditions::of_instance(
                &self.shared,
                &view.record,
                seen,
                self.trouble.as_ref(),
            ),
        };
        if let Some(report) = status::report(situation) {
            self.shared.reports.instance(report);
        }
    }
}

/// Steps whose failure is no reason to leave a running guest's plan.
fn is_repair(step: Step) -> bool {
    matches!(step, Step::EnsurePort | Step::EnsureBundle)
}

/// What a step changes, so that not every step costs a look.
pub(crate) fn apply(seen: &mut Observed, step: Step) {
    match step {
        Step::EnsureImage => seen.image = true,
        Step::EnsureVolumes => {
            seen.volumes = true;
            seen.leftovers = true;
        }
        Step::EnsurePort => seen.port = true,
        Step::EnsureBundle => {
            seen.bundle = true;
            seen.assigned = true;
        }
        Step::Define => {
            seen.defined = true;
            if seen.domain.is_none() {
                seen.domain = Some(DomainState::Off(waifud_hypervisor::OffReason::Unknown));
            }
        }
        Step::Start => seen.domain = Some(DomainState::Running),
        Step::ForceOff => {
            seen.domain = Some(DomainState::Off(waifud_hypervisor::OffReason::Destroyed));
        }
        Step::Undefine => seen.domain = None,
        Step::DestroyVolumes => seen.leftovers = false,
        Step::ReleaseBundle => seen.assigned = false,
        Step::ReleasePort => seen.port = false,
        Step::WatchReady => seen.settled = true,
        Step::RequestShutdown | Step::ConfirmDestroyed | Step::Wait(_) | Step::Idle => {}
    }
}
