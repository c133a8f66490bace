//! Work started ahead of its step: the port and the documents of a new guest are prepared while its disk and its domain
//! are created.
//!
//! The plan stays sequential. When the step is reached, it waits for the work that was started and repeats it if it
//! failed. Both are *ensure* verbs, so starting early or running twice changes nothing.

use tokio_util::task::AbortOnDropHandle;

use super::Driver;
use crate::control_link::record::DesiredState;
use crate::control_link::table::View;
use crate::instance::planner::{Observed, Step};
use crate::instance::steps;

#[derive(Default)]
pub(super) struct BackgroundWork {
    pub port: Option<AbortOnDropHandle<()>>,
    pub bundle: Option<AbortOnDropHandle<()>>,
}

impl Driver {
    /// Starts the work that can run in parallel with this step.
    pub(super) fn begin_background_work(&mut self, step: Step, view: &View, seen: &Observed) {
        let DesiredState::Keep(want) = &view.desired else {
            return;
        };
        let can_run_in_parallel =
            matches!(step, Step::EnsureImage | Step::EnsureVolumes | Step::Define);
        if !can_run_in_parallel {
            return;
        }
        if !seen.port && self.background.port.is_none() {
            let (shared, id) = (self.shared.clone(), self.id);
            self.background.port = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                // The step itself checks the outcome.
                let _asked_again = shared.network.ensure(&shared.table, id).await;
            })));
        }
        if !seen.bundle && self.background.bundle.is_none() {
            let (shared, want) = (self.shared.clone(), want.clone());
            self.background.bundle = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let _asked_again = steps::ensure_bundle(&shared, &want).await;
            })));
        }
    }

    /// Stops the work, and returns once it has ended: a new desired state may contradict it.
    pub(super) async fn end_background_work(&mut self) {
        let BackgroundWork { port, bundle } = std::mem::take(&mut self.background);
        if let Some(bundle) = bundle {
            // It may wait for waifud for a long time, and may be dropped at any point.
            bundle.abort();
            let _ended = bundle.await;
        }
        if let Some(port) = port {
            let _ended = port.await;
        }
    }
}
