//! Read: one, many, and until something is true.

use std::time::Duration;

use waifud_api::{Instance, Page};
use waifud_store::{InstanceFilter, Topic};
use waifud_types::status::CloudInitState;
use waifud_types::{Generation, InstanceId, InstanceState, Secret};

use super::find;
use crate::instances::view;
use crate::pagination::{Cursor, PageRequest};
use crate::{Control, ControlError};

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// It runs.
    Running,
    /// cloud-init is done.
    Ready,
    /// It is off.
    Stopped,
    /// Nothing of it is left.
    Gone,
    /// Its node has taken up this generation, and it is as `run` says.
    Settled(Generation),
}

/// How a wait ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Waited {
    /// The goal is reached.
    Reached(Box<Instance>),
    /// It is not, and the deadline passed, or it can't be reached as things are.
    NotYet(Box<Instance>),
    /// There is no such instance any more.
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
            Self::Settled(generation) => {
                let wanted = if instance.spec.run {
                    InstanceState::Running
                } else {
                    InstanceState::Stopped
                };
                status.observed_generation >= Some(generation) && status.state == wanted
            }
        }
    }

    /// Nothing will change by itself: there is no point in waiting on.
    fn is_hopeless(self, instance: &Instance) -> bool {
        let status = &instance.status;
        match self {
            Self::Gone => false,
            // What cloud-init said counts while the guest runs: after a stop it is of the boot before.
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
            // What failed before the node knew of the order says nothing about the order.
            Self::Settled(generation) if status.observed_generation < Some(generation) => {
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
        let row = self.shared.store.read(move |tx| find(&tx, &wanted)).await?;
        Ok(view::instance(row, &self.shared.live))
    }

    /// A page of instances, by name.
    pub async fn instances(
        &self,
        filter: InstanceFilter,
        page: PageRequest,
    ) -> Result<Page<Instance>, ControlError> {
        let limit = page.limit;
        let (rows, revision) = self
            .shared
            .store
            .read(move |tx| {
                let rows = tx.instances(&filter, page.after(), page.limit + 1)?;
                Ok::<_, ControlError>((rows, tx.at(tx.newest_event()?)))
            })
            .await?;
        let (rows, next) = Cursor::cut(rows, limit, |row| row.name.as_str());
        let items = rows
            .into_iter()
            .map(|row| view::instance(row, &self.shared.live))
            .collect();
        Ok(Page {
            items,
            next,
            revision,
        })
    }

    /// The user-data's text.
    pub async fn user_data(
        &self,
        name_or_id: &str,
    ) -> Result<Option<Secret<String>>, ControlError> {
        let wanted = name_or_id.to_owned();
        self.shared
            .store
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                Ok(tx.user_data(row.id)?)
            })
            .await
    }

    /// Waits until the goal is reached, the deadline passes, or waiting is pointless.
    pub async fn wait_for(
        &self,
        id: InstanceId,
        goal: Goal,
        wait: Duration,
    ) -> Result<Waited, ControlError> {
        // Subscribe before reading, so that no change falls in between.
        let mut changes = self.shared.store.subscribe_topic(Topic::Instance(id));
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            changes.mark_unchanged();
            let row = self.shared.store.read(move |tx| tx.instance(id)).await?;
            let Some(row) = row else {
                return Ok(Waited::Gone);
            };
            let instance = Box::new(view::instance(row, &self.shared.live));
            if goal.is_reached(&instance) {
                return Ok(Waited::Reached(instance));
            }
            if goal.is_hopeless(&instance) {
                return Ok(Waited::NotYet(instance));
            }
            tokio::select! {
                woken = changes.changed() => if woken.is_err() {
                    return Ok(Waited::NotYet(instance));
                },
                () = tokio::time::sleep_until(deadline) => return Ok(Waited::NotYet(instance)),
                () = self.shared.stop.cancelled() => return Ok(Waited::NotYet(instance)),
            }
        }
    }
}
