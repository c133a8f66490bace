//! How far moves are and why they do not go on: in memory only, like the steps of instances.

use std::collections::HashMap;
use std::sync::Mutex;

use waifud_api::agent::Receiving;
use waifud_kit::sync::lock;
use waifud_types::{CopyPath, InstanceId};

/// What is known of each move.
#[derive(Debug, Default)]
pub(crate) struct MoveProgress(Mutex<HashMap<InstanceId, Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The last report of the receiving node.
    report: Option<Receiving>,
    /// Why waifud does not let the move go on.
    obstacle: Option<String>,
    /// The path of the last disk that was copied, or begun.
    path: Option<CopyPath>,
}

impl MoveProgress {
    /// Records a report. Returns whether it differs from the last one.
    pub(super) fn record(&self, report: &Receiving) -> bool {
        let mut known = lock(&self.0);
        let known = known.entry(report.instance).or_default();
        known.path = report.path.or(known.path);
        let before = known.report.replace(report.clone());
        before.as_ref() != Some(report)
    }

    /// Records why waifud does not let a move go on; `None` if it does.
    pub(super) fn set_obstacle(&self, instance: InstanceId, obstacle: Option<String>) {
        let mut known = lock(&self.0);
        match obstacle {
            Some(_) => known.entry(instance).or_default().obstacle = obstacle,
            None => {
                if let Some(known) = known.get_mut(&instance) {
                    known.obstacle = None;
                }
            }
        }
    }

    /// The last report of the receiving node.
    pub(super) fn report(&self, instance: InstanceId) -> Option<Receiving> {
        lock(&self.0).get(&instance)?.report.clone()
    }

    /// The path of the last disk that was copied.
    pub(super) fn path(&self, instance: InstanceId) -> Option<CopyPath> {
        lock(&self.0).get(&instance)?.path
    }

    /// Why waifud does not let the move go on.
    pub(super) fn obstacle(&self, instance: InstanceId) -> Option<String> {
        lock(&self.0).get(&instance)?.obstacle.clone()
    }

    /// Forgets an instance that is not being moved any more.
    pub(crate) fn forget(&self, instance: InstanceId) {
        lock(&self.0).remove(&instance);
    }
}
