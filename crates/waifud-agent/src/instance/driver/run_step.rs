//! Runs one step of the plan.

use std::time::Duration;

use tokio::time::Instant;
use waifud_api::agent::AgentInstance;

use super::{Driver, Outcome};
use crate::control_link::record::DesiredState;
use crate::control_link::table::View;
use crate::instance::datasource::Seeded;
use crate::instance::disks;
use crate::instance::domain_spec;
use crate::instance::failure::Failure;
use crate::instance::nics::EnsuredNics;
use crate::instance::planner::{Observed, Step};
use crate::instance::steps;

impl Driver {
    pub(super) async fn run_step(&mut self, step: Step, view: &View, seen: &Observed) -> Outcome {
        let shared = self.shared.clone();
        let done = match (&view.desired, step) {
            (DesiredState::Keep(want), Step::EnsureImage) => {
                return self.ensure_image(want, view, seen).await;
            }
            (DesiredState::Keep(want), Step::EnsureBundle) => {
                let begun = self.background.bundle.take();
                let ensured = async {
                    if let Some(begun) = begun {
                        let _asked_again = begun.await;
                    }
                    if shared.metadata.serves(want, &view.record.memory) {
                        return Ok(());
                    }
                    steps::ensure_bundle(&shared, want).await
                };
                match self
                    .unless_desired_state_changes(view.version, ensured)
                    .await
                {
                    Some(done) => done,
                    None => return Outcome::Canceled,
                }
            }
            (DesiredState::Keep(want), Step::EnsureVolumes) => {
                let memory = &view.record.memory;
                let ensured = disks::ensure_volumes(&shared, want, memory).await;
                ensured.map(|disks| {
                    self.prepared = Some(((**want).clone(), disks));
                })
            }
            (DesiredState::Keep(want), Step::EnsureSeed) => {
                let by_disk = seen.by_disk;
                let ensured = steps::ensure_seed(&shared, want, by_disk);
                match self
                    .unless_desired_state_changes(view.version, ensured)
                    .await
                {
                    Some(done) => {
                        if done.is_ok() {
                            self.seeded = Seeded::wanted(want, by_disk);
                        }
                        done
                    }
                    None => return Outcome::Canceled,
                }
            }
            (DesiredState::Keep(_), Step::EnsurePort) => {
                if let Some(begun) = self.background.port.take() {
                    let _asked_again = begun.await;
                }
                self.ensure_ports(view, seen).await
            }
            (DesiredState::Keep(want), Step::EnsureNics) => self.ensure_nics(want).await,
            (DesiredState::Keep(want), Step::Define) => self.define(want).await,
            (DesiredState::Keep(want), Step::Start) => {
                self.resume_after = Some(Instant::now() + Duration::from_secs(5));
                let choice = self.choice(want);
                let started = steps::start(&shared, want, choice, seen.is_on()).await;
                if started.is_ok() && !seen.is_on() {
                    self.nics = Some(EnsuredNics::of_start(want));
                }
                started
            }
            (DesiredState::Keep(want), Step::GrowDisks) => disks::grow_disks(&shared, want).await,
            (_, Step::RequestShutdown) => {
                let asked = steps::request_shutdown(&shared, self.id).await;
                if asked.is_ok() {
                    self.shutdown.record_request();
                }
                asked
            }
            (_, Step::ForceOff) => steps::force_off(&shared, self.id).await,
            (DesiredState::Destroy(_), Step::Undefine) => steps::undefine(&shared, self.id).await,
            (DesiredState::Destroy(_), Step::DestroyVolumes) => {
                steps::destroy_volumes(&shared, self.id).await
            }
            (DesiredState::Destroy(_) | DesiredState::Release(_), Step::ReleaseBundle) => {
                steps::release_bundle(&shared, self.id).await
            }
            (DesiredState::Destroy(_) | DesiredState::Release(_), Step::ReleasePort) => shared
                .network
                .release(&shared.table, self.id)
                .await
                .map_err(Failure::from),
            (DesiredState::Destroy(deletion), Step::ConfirmDestroyed) => {
                match shared.table.mark_destroyed(self.id) {
                    Ok(()) => {
                        shared.reports.destroyed(deletion.tombstone.clone());
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                }
            }
            (DesiredState::Release(_), Step::CompleteRelease) => shared
                .table
                .complete_release(self.id, view.version)
                .map_err(Failure::from),
            // The planner never returns these combinations. Doing nothing is the safe answer.
            (
                DesiredState::Keep(_)
                | DesiredState::Destroy(_)
                | DesiredState::Release(_)
                | DesiredState::Receive(_)
                | DesiredState::LeaveAlone,
                _,
            ) => Ok(()),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(failure) => Outcome::Failed(failure),
        }
    }

    async fn define(&mut self, want: &AgentInstance) -> Result<(), Failure> {
        let datasource = self.choice(want).datasource;
        let Some((_, disks)) = &self.prepared else {
            return Err(Failure::passing("the disks are not ready yet"));
        };
        let spec = domain_spec::build(&self.shared, want, datasource, disks).await?;
        steps::define(&self.shared, &spec).await?;
        self.defined = Some(spec);
        if let Some((was, _)) = &mut self.prepared {
            *was = want.clone();
        }
        Ok(())
    }

    /// Downloads the image, and reports the progress.
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
        let fetch = disks::ensure_image(&shared, want, tell);
        let mut fetch = std::pin::pin!(fetch);
        let mut signaled = false;
        let outcome = loop {
            tokio::select! {
                done = &mut fetch => break match done {
                    Ok(()) => Outcome::Done,
                    Err(failure) => Outcome::Failed(failure),
                },
                Ok(()) = percents.changed() => {
                    self.progress.percent = Some(*percents.borrow_and_update());
                    self.report(view, Some(seen));
                }
                () = self.signal.raised() => {
                    signaled = true;
                    if shared.table.version(self.id) != Some(view.version) {
                        break Outcome::Canceled;
                    }
                }
            }
        };
        if signaled {
            self.signal.raise();
        }
        self.progress.percent = None;
        outcome
    }

    /// Runs the work to its end; `None` if the desired state changed first. Signals that arrive meanwhile are kept.
    pub(super) async fn unless_desired_state_changes<T>(
        &self,
        version: u64,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut signaled = false;
        let done = loop {
            tokio::select! {
                done = &mut work => break Some(done),
                () = self.signal.raised() => {
                    signaled = true;
                    if self.shared.table.version(self.id) != Some(version) {
                        break None;
                    }
                }
            }
        };
        if signaled {
            self.signal.raise();
        }
        done
    }
}
