//! What happens without being asked for: silent nodes become unreachable, old history goes.

use std::time::Duration;

use waifud_store::StoreError;
use waifud_types::{NodeId, Timestamp};

use crate::instances::create::REMEMBERED;
use crate::principal::Cause;
use crate::{Control, ControlError, note};

/// Between two looks at old history.
const TRIM_EVERY: Duration = Duration::from_mins(10);
/// Between two looks at the room in the state directory: a question to the kernel.
const ROOM_EVERY: Duration = Duration::from_secs(2);
/// Events removed in one transaction: bounds how long others wait.
const TRIM_AT_ONCE: u64 = 10_000;

impl Control {
    /// Runs until waifud stops.
    pub async fn monitor(&self) -> Result<(), ControlError> {
        self.expect_reachable_nodes().await?;
        let look = (self.shared.config.unreachable_after / 4)
            .clamp(Duration::from_millis(50), Duration::from_secs(1));
        let mut look = tokio::time::interval(look);
        let mut room = tokio::time::interval(ROOM_EVERY);
        let mut trim = tokio::time::interval(TRIM_EVERY);
        loop {
            let done = tokio::select! {
                () = self.shared.stop.cancelled() => return Ok(()),
                _ = look.tick() => self.sweep().await,
                _ = room.tick() => self.look_at_room().await,
                _ = trim.tick() => self.trim().await,
            };
            match done {
                Ok(()) => {}
                // The store has said so, once; and every look would say it again.
                Err(error) if error.is_no_room() => {
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
            self.shared.live.expect(row.id, self.shared.started);
        }
        Ok(())
    }

    /// Notes which nodes have been silent for too long.
    pub async fn sweep(&self) -> Result<(), ControlError> {
        let limit = self.now() - self.shared.config.unreachable_after;
        let mut outcome = Ok(());
        for (node, last_contact) in self.shared.live.fallen_silent(limit) {
            if let Err(error) = self.lose(node, last_contact).await {
                // Each of them is told of once: one that could not be written down is looked at again.
                self.shared.live.expect(node, last_contact);
                outcome = Err(error);
            }
        }
        outcome
    }

    async fn lose(&self, node: NodeId, last_contact: Timestamp) -> Result<(), ControlError> {
        let now = self.now();
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
                tx.emit(&note::event(
                    now,
                    "node.unreachable",
                    note::node(node, &row.name),
                    &Cause::system(),
                    format!("silent since {}", crate::view::shown(last_contact)),
                ))?;
                tx.set_node_reachable(node, false, last_contact)
            })
            .await
            .map_err(|error: StoreError| error.into())
    }

    async fn trim(&self) -> Result<(), ControlError> {
        let config = &self.shared.config;
        let (keep, before) = (config.events_kept, self.now() - config.events_kept_for);
        let answers = self.now() - REMEMBERED;
        loop {
            let removed = self
                .shared
                .store
                .write(move |tx| {
                    tx.forget_answers(answers)?;
                    tx.trim_events(keep, before, TRIM_AT_ONCE)
                })
                .await
                .map_err(|error: StoreError| ControlError::from(error))?;
            if (removed as u64) < TRIM_AT_ONCE {
                return Ok(());
            }
        }
    }
}
