//! After the machine was restarted, what ran on it does not run until its agent says so.
//!
//! A power cut leaves the last status of every guest as it was: running, ready. waifud may be up long before the agent
//! has looked around, so it says itself what a restart means. Every node is on waifud's own machine, since agents come
//! by a local socket only; a node elsewhere will have to tell its own boots.

use waifud_store::{InstanceFilter, InstanceRow, StoreError};
use waifud_types::InstanceState as S;
use waifud_types::status::{InstanceStatus, StoppedBy};

use crate::note::EventExt;
use crate::principal::Cause;
use crate::{Control, ControlError, note};

/// Instances that are read at once.
const BATCH: u32 = 1000;

impl Control {
    /// Notes which boot of the machine this is; after another one, nothing runs. Call it before serving.
    pub async fn note_boot(&self, boot: &str) -> Result<(), ControlError> {
        let (boot, now) = (boot.to_owned(), self.now());
        self.shared
            .store
            .write(move |tx| {
                let before = tx.note_boot(&boot)?;
                if before.is_none_or(|before| before == boot) {
                    return Ok(());
                }
                let mut after = String::new();
                loop {
                    let rows = tx.instances(&InstanceFilter::default(), &after, BATCH)?;
                    let Some(last) = rows.last() else {
                        return Ok::<_, StoreError>(());
                    };
                    last.name.as_str().clone_into(&mut after);
                    for row in rows {
                        let Some(status) = after_boot(&row) else {
                            continue;
                        };
                        let event = note::event(
                            now,
                            "instance.stopped",
                            note::instance(row.id, &row.name),
                            &Cause::system(),
                            "its host was restarted",
                        )
                        .reason("host");
                        tx.emit(&event)?;
                        tx.set_status(row.id, &status)?;
                    }
                }
            })
            .await?;
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
