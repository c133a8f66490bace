//! Trims the history and the stored responses, and removes in-memory state about deleted objects.

use std::sync::Mutex;
use std::time::Duration;

use waifud_kit::sync::lock;
use waifud_store::StoreError;

use crate::instances::idempotency::RETENTION;
use crate::{Control, ControlError};

/// Events removed in one transaction, which bounds how long other writes wait.
const TRIM_AT_ONCE: u64 = 10_000;
/// Remembered answers at most.
const ANSWERS_KEPT: u64 = 100_000;

impl Control {
    /// Removes old events and answers, and entries in memory about deleted objects. Age is measured in running time of
    /// waifud, so a wrong system clock removes nothing.
    pub async fn trim(&self) -> Result<(), ControlError> {
        let passed = self.history_clock().since_last(self.running());
        let config = self.config();
        let (keep, age) = (config.events_kept, config.events_kept_for);
        self.store()
            .write(move |tx| tx.add_running_time(passed, age.max(RETENTION)))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        loop {
            let (events, answers) = self
                .store()
                .write(move |tx| {
                    let old = tx.newest_revision_older_than(age)?;
                    let old_answers = tx.newest_revision_older_than(RETENTION)?;
                    let answers = tx.forget_answers(old_answers, ANSWERS_KEPT, TRIM_AT_ONCE)?;
                    Ok((tx.trim_events(keep, old, TRIM_AT_ONCE)?, answers))
                })
                .await
                .map_err(|error: StoreError| ControlError::from(error))?;
            if (events.max(answers) as u64) < TRIM_AT_ONCE {
                break;
            }
        }
        self.forget_deleted_objects().await
    }

    /// Removes entries in memory of deleted nodes and instances. A report that was processed during the removal may have
    /// created one.
    async fn forget_deleted_objects(&self) -> Result<(), ControlError> {
        let (nodes, instances) = (
            self.contacts().known_nodes(),
            self.instance_progress().known_instances(),
        );
        let (nodes, instances) = self
            .store()
            .read(move |tx| {
                let mut deleted = (Vec::new(), Vec::new());
                for id in nodes {
                    if tx.node(id)?.is_none() {
                        deleted.0.push(id);
                    }
                }
                for id in instances {
                    if tx.instance(id)?.is_none() {
                        deleted.1.push(id);
                    }
                }
                Ok::<_, ControlError>(deleted)
            })
            .await?;
        for node in nodes {
            self.contacts().forget(node);
        }
        for instance in instances {
            self.instance_progress().forget(instance);
        }
        Ok(())
    }
}

/// The running time of the process at the last trim.
#[derive(Debug, Default)]
pub(crate) struct HistoryClock(Mutex<Duration>);

impl HistoryClock {
    /// The time since the previous call.
    fn since_last(&self, running: Duration) -> Duration {
        let mut last = lock(&self.0);
        running.saturating_sub(std::mem::replace(&mut last, running))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use waifud_store::{Mode, Store};
    use waifud_types::evidence::GuestEvidence;
    use waifud_types::{Incarnation, InstanceId, NodeId};

    use super::*;
    use crate::ControlConfig;
    use crate::env::{SystemClock, SystemEntropy};
    use waifud_kit::testing::temp_path;

    #[tokio::test]
    async fn entries_of_unknown_nodes_and_instances_are_removed_from_memory() {
        let (dir, path) = temp_path("waifud.db");
        let store = Store::open(&path, Mode::Inline, Incarnation(1)).unwrap();
        let config = ControlConfig::new(dir.path().to_owned());
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let control = Control::new(store, config, clock, entropy).await.unwrap();
        let (contacts, progress) = (control.contacts(), control.instance_progress());
        progress.set_evidence(InstanceId::generate(), GuestEvidence::default());
        contacts.record_contact(NodeId::generate(), control.contact_time(), None);
        assert!(contacts.may_write(NodeId::generate(), control.running()));
        let known = || {
            (
                contacts.known_nodes().len(),
                progress.known_instances().len(),
            )
        };
        assert_eq!(known(), (2, 1));
        control.trim().await.unwrap();
        assert_eq!(known(), (0, 0));
    }
}
