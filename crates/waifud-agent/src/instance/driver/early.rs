//! Work begun before its turn: a new guest's port and documents come about while its disk and domain are made.
//!
//! The plan stays a single line. When its turn comes, the step waits for what was begun and does it again where that
//! failed; both are *ensure* verbs, so doing them early or twice changes nothing.

use tokio_util::task::AbortOnDropHandle;

use super::Driver;
use crate::control_link::record::DesiredState;
use crate::control_link::table::View;
use crate::instance::planner::{Observed, Step};
use crate::instance::steps;

/// What was begun.
#[derive(Default)]
pub(super) struct Early {
    pub port: Option<AbortOnDropHandle<()>>,
    pub bundle: Option<AbortOnDropHandle<()>>,
}

impl Driver {
    /// Begins what can be begun beside this step.
    pub(super) fn begin_early(&mut self, step: Step, view: &View, seen: &Observed) {
        let DesiredState::Keep(want) = &view.wish else {
            return;
        };
        let beside = matches!(step, Step::EnsureImage | Step::EnsureVolumes | Step::Define);
        if !beside {
            return;
        }
        if !seen.port && self.early.port.is_none() {
            let (shared, id) = (self.shared.clone(), self.id);
            self.early.port = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                // Its outcome is asked for again when its turn comes.
                let _asked_again = shared.network.ensure(&shared.table, id).await;
            })));
        }
        if !seen.bundle && self.early.bundle.is_none() {
            let (shared, want) = (self.shared.clone(), want.clone());
            self.early.bundle = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let _asked_again = steps::ensure_bundle(&shared, &want).await;
            })));
        }
    }

    /// Nothing that was begun is at work any more when this returns: another wish may contradict it.
    pub(super) async fn end_early(&mut self) {
        let Early { port, bundle } = std::mem::take(&mut self.early);
        if let Some(bundle) = bundle {
            // It may wait for waifud for long; being dropped harms nothing.
            bundle.abort();
            let _ended = bundle.await;
        }
        if let Some(port) = port {
            let _ended = port.await;
        }
    }
}
