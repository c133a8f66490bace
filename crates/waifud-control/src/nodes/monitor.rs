//! What happens without being asked for: silent nodes become unreachable, old history goes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use waifud_store::StoreError;
use waifud_types::NodeId;

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::instances::create::REMEMBERED;
use crate::nodes::live::Sign;
use crate::{Control, ControlError};

/// Between two looks at old history.
const TRIM_EVERY: Duration = Duration::from_mins(10);
/// Between two looks at the room in the state directory: a question to the kernel.
const DISK_SPACE_INTERVAL: Duration = Duration::from_secs(2);
/// Events removed in one transaction: bounds how long others wait.
const TRIM_AT_ONCE: u64 = 10_000;
/// Answers that are remembered at most.
const ANSWERS_KEPT: u64 = 100_000;
/// Between two tries to place those that wait, whatever happened.
const RETRY_EVERY: Duration = Duration::from_secs(30);

impl Control {
    /// Runs until waifud stops.
    pub async fn monitor(&self) -> Result<(), ControlError> {
        self.expect_reachable_nodes().await?;
        tokio::join!(self.look_after(), self.retry());
        Ok(())
    }

    /// Tries again to place those that wait, when something was freed and now and then.
    async fn retry(&self) {
        let mut timer = tokio::time::interval(RETRY_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut thorough = true;
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                () = self.shared.retry.notified() => {}
                _ = timer.tick() => {}
            }
            let done = tokio::select! {
                () = self.shared.stop.cancelled() => return,
                done = self.retry_waiting(thorough) => done,
            };
            match done {
                Ok(()) => thorough = false,
                Err(error) if error.is_disk_full() => {
                    tracing::debug!(%error, "no room to place those that wait");
                }
                Err(error) => {
                    tracing::error!(%error, "placing those that wait failed; it is tried again");
                }
            }
        }
    }

    async fn look_after(&self) {
        let look = (self.shared.config.unreachable_after / 4)
            .clamp(Duration::from_millis(50), Duration::from_secs(1));
        let mut look = tokio::time::interval(look);
        let mut disk_space = tokio::time::interval(DISK_SPACE_INTERVAL);
        let mut trim = tokio::time::interval(TRIM_EVERY);
        loop {
            let done = tokio::select! {
                () = self.shared.stop.cancelled() => return,
                _ = look.tick() => self.sweep().await,
                _ = disk_space.tick() => self.check_disk_space().await,
                _ = trim.tick() => self.trim().await,
            };
            match done {
                Ok(()) => {}
                // The store has said so, once; and every look would say it again.
                Err(error) if error.is_disk_full() => {
                    tracing::debug!(%error, "no room to write down what was seen");
                }
                Err(error) => {
                    tracing::error!(%error, "looking after nodes and history failed; it is tried again");
                }
            }
        }
    }

    /// Nodes that were reachable when waifud stopped have the usual time, from now, to show themselves.
    async fn expect_reachable_nodes(&self) -> Result<(), ControlError> {
        let rows = self.shared.store.read(|tx| tx.nodes("", u32::MAX)).await?;
        for row in rows.into_iter().filter(|row| row.reachable) {
            self.shared.live.expect(row.id, self.sign());
        }
        Ok(())
    }

    /// Notes which nodes have been silent for too long.
    pub async fn sweep(&self) -> Result<(), ControlError> {
        let limit = self.shared.config.unreachable_after;
        let mut outcome = Ok(());
        for (node, sign) in self.shared.live.take_expired(self.running(), limit) {
            if let Err(error) = self.mark_unreachable(node, sign).await {
                // Each of them is told of once: one that could not be written down is looked at again.
                self.shared.live.expect(node, sign);
                outcome = Err(error);
            }
        }
        outcome
    }

    async fn mark_unreachable(&self, node: NodeId, sign: Sign) -> Result<(), ControlError> {
        let (now, last_contact) = (self.now(), sign.at);
        let control = self.clone();
        self.shared
            .store
            .write(move |tx| {
                if control.shared.live.has_spoken(node) {
                    return Ok(());
                }
                let Some(row) = tx.node(node)?.filter(|row| row.reachable) else {
                    return Ok(());
                };
                tx.emit(&event_builder::event(
                    now,
                    "node.unreachable",
                    event_builder::node(node, &row.name),
                    &Cause::system(),
                    format!(
                        "silent since {}",
                        event_builder::to_the_second(last_contact)
                    ),
                ))?;
                tx.set_node_reachable(node, false, last_contact)
            })
            .await
            .map_err(|error: StoreError| error.into())
    }

    /// Removes old history, and what is remembered of what is no more. Age is counted in the time that waifud ran: a
    /// clock that is wrong by years, for a minute, removes nothing.
    pub async fn trim(&self) -> Result<(), ControlError> {
        let passed = self.shared.trimmed.since_last(self.running());
        let config = &self.shared.config;
        let (keep, age) = (config.events_kept, config.events_kept_for);
        self.shared
            .store
            .write(move |tx| tx.grow_older(passed, age.max(REMEMBERED)))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        loop {
            let (events, answers) = self
                .shared
                .store
                .write(move |tx| {
                    let old = tx.older_than(age)?;
                    let old_answers = tx.older_than(REMEMBERED)?;
                    let answers = tx.forget_answers(old_answers, ANSWERS_KEPT, TRIM_AT_ONCE)?;
                    Ok((tx.trim_events(keep, old, TRIM_AT_ONCE)?, answers))
                })
                .await
                .map_err(|error: StoreError| ControlError::from(error))?;
            if (events.max(answers) as u64) < TRIM_AT_ONCE {
                break;
            }
        }
        self.forget_what_is_gone().await
    }

    /// Reports that were under way when a node or an instance was removed may have been remembered after that.
    async fn forget_what_is_gone(&self) -> Result<(), ControlError> {
        let (nodes, instances) = (self.shared.live.nodes(), self.shared.live.instances());
        let (nodes, instances) = self
            .shared
            .store
            .read(move |tx| {
                let mut gone = (Vec::new(), Vec::new());
                for id in nodes {
                    if tx.node(id)?.is_none() {
                        gone.0.push(id);
                    }
                }
                for id in instances {
                    if tx.instance(id)?.is_none() {
                        gone.1.push(id);
                    }
                }
                Ok::<_, ControlError>(gone)
            })
            .await?;
        for node in nodes {
            self.shared.live.forget_node(node);
        }
        for instance in instances {
            self.shared.live.forget(instance);
        }
        Ok(())
    }
}

/// When history was last trimmed, as the process runs.
#[derive(Debug, Default)]
pub(crate) struct Trimmed(Mutex<Duration>);

impl Trimmed {
    /// The time that passed since this was asked last.
    fn since_last(&self, running: Duration) -> Duration {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.saturating_sub(std::mem::replace(&mut last, running))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use waifud_store::{Mode, Store};
    use waifud_types::evidence::GuestEvidence;
    use waifud_types::{Incarnation, InstanceId};

    use super::*;
    use crate::ControlConfig;
    use crate::env::{SystemClock, SystemEntropy};

    #[tokio::test]
    async fn what_is_remembered_of_nodes_and_instances_that_are_no_more_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        let store = Store::open(&path, Mode::Inline, Incarnation(1)).unwrap();
        let config = ControlConfig::new(dir.path().to_owned());
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let control = Control::new(store, config, clock, entropy).await.unwrap();
        let live = &control.shared.live;
        live.set_evidence(InstanceId::generate(), GuestEvidence::default());
        live.record_contact(NodeId::generate(), control.sign(), None);
        assert!(live.may_write(NodeId::generate(), control.running()));
        assert_eq!((live.nodes().len(), live.instances().len()), (2, 1));
        control.trim().await.unwrap();
        assert_eq!((live.nodes().len(), live.instances().len()), (0, 0));
    }
}
