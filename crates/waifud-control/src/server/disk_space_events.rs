//! Events about the free space of the state directory.

use waifud_store::StoreError;
use waifud_types::event::Cause;
use waifud_types::{DiskSpace, DiskSpaceState};

use super::disk_space_monitor::Change;
use crate::events::event_builder::{self, EventExt};
use crate::{Control, ControlError};

impl Control {
    /// Measures the free space, and writes an event for each change as soon as the database takes it.
    pub async fn check_disk_space(&self) -> Result<(), ControlError> {
        self.disk_space().observe(self.now());
        let changes = self.disk_space().unreported();
        if changes.is_empty() {
            return Ok(());
        }
        let dir = self.disk_space().dir().display().to_string();
        let incarnation = self.store().incarnation();
        let reported = changes.clone();
        self.store()
            .write(move |tx| {
                for change in &changes {
                    let object = event_builder::waifud(incarnation);
                    let (kind, message) = describe(change, &dir);
                    let event =
                        event_builder::event(change.at, kind, object, &Cause::system(), message);
                    tx.emit(&event.details(serde_json::json!({
                        "directory": dir,
                        "free_bytes": change.disk_space.free,
                        "size_bytes": change.disk_space.size,
                    })))?;
                }
                Ok::<_, StoreError>(())
            })
            .await?;
        self.disk_space().mark_reported(&reported);
        Ok(())
    }
}

/// The kind and the message of the event of a change.
fn describe(change: &Change, dir: &str) -> (&'static str, String) {
    let DiskSpace { size, free } = change.disk_space;
    let space = format!("{free} of {size} is free in {dir}");
    match (change.state, change.before) {
        (DiskSpaceState::Full, _) => (
            "waifud.disk-full",
            format!("{space}: new requests are refused; guests keep running"),
        ),
        (DiskSpaceState::Low, DiskSpaceState::Full) => (
            "waifud.disk-low",
            format!("{space}: requests are accepted again, but there is little free space"),
        ),
        (DiskSpaceState::Low, _) => (
            "waifud.disk-low",
            format!("{space}: when it is full, new requests are refused"),
        ),
        (DiskSpaceState::Ok, _) => (
            "waifud.disk-ok",
            format!("{space}: there is enough free space again"),
        ),
    }
}
