//! Nodes without contact become unreachable.

use waifud_store::StoreError;
use waifud_types::NodeId;
use waifud_types::event::Cause;

use crate::events::event_builder;
use crate::nodes::contacts::ContactTime;
use crate::{Control, ControlError};

impl Control {
    /// Nodes that were reachable when waifud stopped must be in contact within the usual time from now.
    pub(crate) async fn expect_reachable_nodes(&self) -> Result<(), ControlError> {
        let rows = self.store().read(|tx| tx.nodes("", u32::MAX)).await?;
        for row in rows.into_iter().filter(|row| row.reachable) {
            self.contacts().expect(row.id, self.contact_time());
        }
        Ok(())
    }

    /// Marks nodes without contact for too long as unreachable.
    pub async fn check_contacts(&self) -> Result<(), ControlError> {
        let limit = self.config().unreachable_after;
        let mut outcome = Ok(());
        for (node, sign) in self.contacts().take_expired(self.running(), limit) {
            if let Err(error) = self.mark_unreachable(node, sign).await {
                // Each node is taken only once, so one that could not be recorded is put back.
                self.contacts().expect(node, sign);
                outcome = Err(error);
            }
        }
        outcome
    }

    async fn mark_unreachable(&self, node: NodeId, sign: ContactTime) -> Result<(), ControlError> {
        let (now, last_contact) = (self.now(), sign.at);
        let control = self.clone();
        self.store()
            .write(move |tx| {
                if control.contacts().is_reachable(node) {
                    return Ok(());
                }
                let Some(row) = tx.node(node)?.filter(|row| row.reachable) else {
                    return Ok(());
                };
                let revision = tx.emit(&event_builder::event(
                    now,
                    "node.unreachable",
                    event_builder::node(node, &row.name),
                    &Cause::system(),
                    format!(
                        "no contact since {}",
                        event_builder::to_the_second(last_contact)
                    ),
                ))?;
                tx.set_node_reachable(node, false, last_contact, revision)
            })
            .await
            .map_err(|error: StoreError| error.into())
    }
}
