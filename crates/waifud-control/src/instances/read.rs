//! Read one instance, a page of instances, or wait for a state.

use std::time::Duration;

use waifud_api::{Instance, Page};
use waifud_store::{InstanceFilter, ReadTx, Topic};
use waifud_types::status::CloudInitState;
use waifud_types::{Generation, InstanceId, InstanceState, Secret};

use super::find;
use crate::pagination::{self, PageRequest};
use crate::{Control, ControlError};

/// The state that a request waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// The instance is running.
    Running,
    /// cloud-init has finished.
    Ready,
    /// The instance is stopped.
    Stopped,
    /// The instance is removed.
    Gone,
    /// The node has applied this generation, and the instance is on or off as `run` requires.
    Applied(Generation),
}

/// How a wait ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Waited {
    /// The goal is reached.
    Reached(Box<Instance>),
    /// The deadline passed, or the goal cannot be reached without another change.
    NotYet(Box<Instance>),
    /// The instance does not exist any more.
    Gone,
}

impl Goal {
    fn is_reached(self, instance: &Instance) -> bool {
        let status = &instance.status;
        match self {
            Self::Running => status.state == InstanceState::Running,
            Self::Ready => status.ready,
            Self::Stopped => status.state == InstanceState::Stopped,
            Self::Gone => false,
            Self::Applied(generation) => {
                let wanted = if instance.spec.run {
                    InstanceState::Running
                } else {
                    InstanceState::Stopped
                };
                status.observed_generation >= Some(generation) && status.state == wanted
            }
        }
    }

    /// Whether the goal cannot be reached without another change.
    fn is_unreachable(self, instance: &Instance) -> bool {
        let status = &instance.status;
        match self {
            Self::Gone => false,
            // After a stop, the state of cloud-init is about the previous boot.
            Self::Ready
                if status.state == InstanceState::Running
                    && matches!(
                        status.cloud_init.state,
                        CloudInitState::Degraded
                            | CloudInitState::Error
                            | CloudInitState::Disabled
                            | CloudInitState::Unknown
                    ) =>
            {
                !status.ready
            }
            // A failure before the node knew the generation does not concern the change.
            Self::Applied(generation) if status.observed_generation < Some(generation) => {
                status.state == InstanceState::Deleting
            }
            _ => matches!(
                status.state,
                InstanceState::Failed | InstanceState::Deleting
            ),
        }
    }
}

impl Control {
    /// One instance by name or id.
    pub async fn instance(&self, name_or_id: &str) -> Result<Instance, ControlError> {
        let wanted = name_or_id.to_owned();
        let row = self.store().read(move |tx| find(&tx, &wanted)).await?;
        Ok(self.instance_view(row))
    }

    /// A page of instances, by name.
    pub async fn instances(
        &self,
        filter: InstanceFilter,
        page: PageRequest,
    ) -> Result<Page<Instance>, ControlError> {
        let rows = move |tx: &ReadTx<'_>, after: &str, limit| tx.instances(&filter, after, limit);
        let page = pagination::read(self.store(), page, rows, |row| row.name.as_str()).await?;
        Ok(page.map(|row| self.instance_view(row)))
    }

    /// The user-data.
    pub async fn user_data(
        &self,
        name_or_id: &str,
    ) -> Result<Option<Secret<String>>, ControlError> {
        let wanted = name_or_id.to_owned();
        self.store()
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                Ok(tx.user_data(row.id)?)
            })
            .await
    }

    /// Waits until the goal is reached, the deadline passes, or the goal becomes unreachable.
    pub async fn wait_for(
        &self,
        id: InstanceId,
        goal: Goal,
        wait: Duration,
    ) -> Result<Waited, ControlError> {
        // Subscribe before reading, so that no change is missed.
        let mut changes = self.store().subscribe_topic(Topic::Instance(id));
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            changes.mark_unchanged();
            let row = self.store().read(move |tx| tx.instance(id)).await?;
            let Some(row) = row else {
                return Ok(Waited::Gone);
            };
            let instance = Box::new(self.instance_view(row));
            if goal.is_reached(&instance) {
                return Ok(Waited::Reached(instance));
            }
            if goal.is_unreachable(&instance) {
                return Ok(Waited::NotYet(instance));
            }
            tokio::select! {
                woken = changes.changed() => if woken.is_err() {
                    return Ok(Waited::NotYet(instance));
                },
                () = tokio::time::sleep_until(deadline) => return Ok(Waited::NotYet(instance)),
                () = self.stop_token().cancelled() => return Ok(Waited::NotYet(instance)),
            }
        }
    }
}
