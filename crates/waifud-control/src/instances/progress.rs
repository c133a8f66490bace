//! The current step of each instance and what was observed of its guest: in memory only, and sent to followers of events.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::broadcast;
use waifud_api::agent::InstanceReport;
use waifud_kit::sync::lock;
use waifud_types::evidence::GuestEvidence;
use waifud_types::status::StepStatus;
use waifud_types::{InstanceId, Name};

/// Frames that a slow follower may be behind before it misses some.
const FRAMES: usize = 1024;

/// A change of an instance's current step. It is sent to followers of events and never stored.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ProgressFrame {
    /// The instance's id.
    pub instance: InstanceId,
    /// The instance's name.
    pub name: Name,
    /// The current step; null when it has ended.
    pub step: Option<StepStatus>,
}

/// The steps and guest observations of all instances.
#[derive(Debug)]
pub(crate) struct InstanceProgress {
    tables: Mutex<Tables>,
    frames: broadcast::Sender<Arc<ProgressFrame>>,
}

#[derive(Default, Debug)]
struct Tables {
    steps: HashMap<InstanceId, StepStatus>,
    evidence: HashMap<InstanceId, GuestEvidence>,
}

impl Default for InstanceProgress {
    fn default() -> Self {
        Self {
            tables: Mutex::default(),
            frames: broadcast::Sender::new(FRAMES),
        }
    }
}

impl InstanceProgress {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// Records what a node reported of an instance, and sends a changed step to followers.
    pub(crate) fn record(&self, name: &Name, report: &InstanceReport) {
        if let Some(evidence) = &report.evidence {
            self.set_evidence(report.id, evidence.clone());
        }
        if self.set_step(report.id, report.step.clone()) {
            self.publish(report.id, name, report.step.clone());
        }
    }

    /// Sends a step to followers.
    pub(crate) fn publish(&self, instance: InstanceId, name: &Name, step: Option<StepStatus>) {
        if self.frames.receiver_count() > 0 {
            let frame = ProgressFrame {
                instance,
                name: name.clone(),
                step,
            };
            let _no_followers = self.frames.send(Arc::new(frame));
        }
    }

    /// Follows changes of steps.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<ProgressFrame>> {
        self.frames.subscribe()
    }

    /// Whether the step, or its progress, has changed.
    fn set_step(&self, instance: InstanceId, step: Option<StepStatus>) -> bool {
        let mut tables = self.lock();
        match step {
            Some(step) => tables.steps.insert(instance, step.clone()) != Some(step),
            None => tables.steps.remove(&instance).is_some(),
        }
    }

    /// Forgets the current step of an instance whose deletion was ordered.
    pub(crate) fn clear_step(&self, instance: InstanceId) {
        self.set_step(instance, None);
    }

    pub(crate) fn set_evidence(&self, instance: InstanceId, evidence: GuestEvidence) {
        self.lock().evidence.insert(instance, evidence);
    }

    /// What was observed of the guest; `None` when its node has not reported since this process started.
    pub(crate) fn evidence(&self, instance: InstanceId) -> Option<GuestEvidence> {
        self.lock().evidence.get(&instance).cloned()
    }

    /// The step that the instance's driver is at.
    pub(crate) fn step(&self, instance: InstanceId) -> Option<StepStatus> {
        self.lock().steps.get(&instance).cloned()
    }

    /// Forgets a deleted instance.
    pub(crate) fn forget(&self, instance: InstanceId) {
        let mut tables = self.lock();
        tables.steps.remove(&instance);
        tables.evidence.remove(&instance);
    }

    /// The instances that have any entry here.
    pub(crate) fn known_instances(&self) -> Vec<InstanceId> {
        let tables = self.lock();
        let all: HashSet<_> = tables.steps.keys().chain(tables.evidence.keys()).collect();
        all.into_iter().copied().collect()
    }
}
