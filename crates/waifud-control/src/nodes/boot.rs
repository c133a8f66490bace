//! After a machine was restarted, what ran on it does not run until its agent says so.
//!
//! A power cut leaves the last status of every guest as it was: running, ready. Each node says which boot of its machine
//! it runs in; another one than before means that everything on this node went off, and says nothing of other nodes.
//! waifud may be up long before the agent on its own machine, so it looks at its own boot, too: nodes that were last
//! heard of in the boot that waifud ran in before are on this machine.

use waifud_store::{InstanceRow, NodeRow, WriteTx};
use waifud_types::status::{InstanceStatus, StoppedBy};
use waifud_types::{BootId, InstanceState as S};

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::{Control, ControlError};

impl Control {
    /// Notes which boot of waifud's own machine this is; after another one, nothing runs on the nodes that are on it.
    /// Call it before serving.
    pub async fn note_boot(&self, boot: BootId) -> Result<(), ControlError> {
        let control = self.clone();
        self.shared
            .store
            .write(move |tx| {
                let Some(before) = tx.note_boot(boot)?.filter(|before| *before != boot) else {
                    return Ok(());
                };
                for node in tx.nodes("", u32::MAX)? {
                    if node.boot_id == Some(before) {
                        control.learn_boot(tx, &node, boot)?;
                    }
                }
                Ok::<_, ControlError>(())
            })
            .await
    }

    /// Notes which boot of its machine a node runs in; after another one, nothing runs on it.
    pub(crate) fn learn_boot(
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
            // The first that is heard of means nothing.
            return Ok(());
        }
        for id in tx.instances_on(node.id)? {
            let Some(row) = tx.instance(id)? else {
                continue;
            };
            let Some(status) = after_boot(&row) else {
                continue;
            };
            let event = event_builder::event(
                self.now(),
                "instance.stopped",
                event_builder::instance(row.id, &row.name),
                &Cause::system(),
                format!("its host, node {}, was restarted", node.name),
            )
            .reason("host");
            tx.emit(&event)?;
            tx.set_status(row.id, &status)?;
        }
        Ok(())
    }
}

/// What a restart makes of an instance; null when nothing of it was running.
fn after_boot(row: &InstanceRow) -> Option<InstanceStatus> {
    let ran = matches!(
        row.status.state,
        S::Starting | S::Running | S::Paused | S::Stopping
    );
    (ran && !row.deleting).then(|| InstanceStatus {
        state: S::Stopped,
        stopped_by: Some(StoppedBy::Host),
        reason: None,
        started_at: None,
        ready: false,
        ready_by: None,
        conditions: Vec::new(),
        ..row.status.clone()
    })
}
