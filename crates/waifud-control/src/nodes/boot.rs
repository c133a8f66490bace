//! After a machine restarts, its instances are stopped until its agent reports otherwise.
//!
//! After a power failure, the stored status of each guest is still `running`. Each node reports its boot id; a new one means
//! that all guests of this node, and only of this node, are off. waifud may start long before the agent on its own machine,
//! so it also checks its own boot id: nodes with waifud's previous boot id are on the same machine.

use waifud_store::{InstanceRow, NodeRow, WriteTx};
use waifud_types::event::Cause;
use waifud_types::status::{InstanceStatus, StoppedBy};
use waifud_types::{BootId, InstanceState as S};

use crate::events::event_builder::{self, EventExt};
use crate::{Control, ControlError};

impl Control {
    /// Records the boot id of waifud's machine. After a restart, the instances on the same machine are marked as stopped.
    /// Call it before serving.
    pub async fn note_boot(&self, boot: BootId) -> Result<(), ControlError> {
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let Some(before) = tx.note_boot(boot)?.filter(|before| *before != boot) else {
                    return Ok(());
                };
                for node in tx.nodes("", u32::MAX)? {
                    if node.boot_id == Some(before) {
                        control.record_boot(tx, &node, boot)?;
                    }
                }
                Ok::<_, ControlError>(())
            })
            .await
    }

    /// Records the boot id of a node. After a restart, its instances are marked as stopped.
    pub(crate) fn record_boot(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        boot: BootId,
    ) -> Result<(), ControlError> {
        if node.boot_id == Some(boot) {
            return Ok(());
        }
        tx.set_node_boot(node.id, boot)?;
        if node.boot_id.is_none() {
            // The first boot id is not a restart.
            return Ok(());
        }
        for id in tx.instances_on(node.id)? {
            let Some(row) = tx.instance(id)? else {
                continue;
            };
            let Some(status) = after_boot(&row) else {
                continue;
            };
            let event = self
                .event(
                    "instance.stopped",
                    event_builder::instance(row.id, &row.name),
                    &Cause::system(),
                    format!("node {} was restarted", node.name),
                )
                .reason("host");
            tx.emit(&event)?;
            tx.set_status(row.id, &status)?;
        }
        Ok(())
    }
}

/// The status of an instance after a restart of its node; `None` if it was off.
fn after_boot(row: &InstanceRow) -> Option<InstanceStatus> {
    let ran = matches!(
        row.status.state,
        S::Starting | S::Running | S::Paused | S::Stopping
    );
    (ran && !row.deleting).then(|| InstanceStatus {
        state: S::Stopped,
        stopped_by: Some(StoppedBy::Host),
        reason: None,
        cause: None,
        started_at: None,
        ready: false,
        ready_by: None,
        conditions: Vec::new(),
        ..row.status.clone()
    })
}
