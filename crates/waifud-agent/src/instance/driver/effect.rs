//! The effect of a step on the observation, so that not every step needs a new one.

use waifud_hypervisor::{DomainState, OffReason};

use crate::instance::planner::{Observed, Step};

/// Updates the observation as if it was made after the step.
pub(crate) fn apply(seen: &mut Observed, step: Step) {
    match step {
        Step::EnsureImage => seen.image = true,
        Step::GrowDisks => seen.grown = true,
        Step::EnsureVolumes => {
            seen.grown = true;
            seen.volumes = true;
            seen.leftovers = true;
        }
        Step::EnsureSeed => seen.seed = true,
        Step::EnsurePort => seen.port = true,
        Step::EnsureNics => seen.nics = true,
        Step::EnsureBundle => {
            seen.bundle = true;
            seen.assigned = true;
        }
        Step::Define => {
            seen.defined = true;
            if seen.domain.is_none() {
                seen.domain = Some(DomainState::Off(OffReason::Unknown));
            }
        }
        Step::Start => {
            seen.domain = Some(DomainState::Running);
            // It is started from a definition with all of them.
            seen.nics = true;
        }
        Step::ForceOff => {
            seen.domain = Some(DomainState::Off(OffReason::Destroyed));
        }
        Step::Undefine => seen.domain = None,
        Step::DestroyVolumes => seen.leftovers = false,
        Step::ReleaseBundle => seen.assigned = false,
        Step::ReleasePort => seen.port = false,
        Step::WatchReady => seen.readiness_final = true,
        Step::RequestShutdown
        | Step::ConfirmDestroyed
        | Step::CompleteRelease
        | Step::Wait(_)
        | Step::Idle => {}
    }
}
