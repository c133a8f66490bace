//! The last known boot ids of waifud's machine and of the nodes.

use rusqlite::OptionalExtension;
use waifud_types::{BootId, NodeId};

use crate::codec::node16;
use crate::{StoreError, WriteTx};

impl WriteTx<'_> {
    /// Stores the current boot id of waifud's machine and returns the previous one, if any.
    pub fn note_boot(&mut self, boot: BootId) -> Result<Option<BootId>, StoreError> {
        let before: Option<String> = self
            .conn
            .query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| {
                row.get(0)
            })
            .optional()?;
        let before = before.and_then(|text| text.parse().ok());
        // If only the daemon was restarted, nothing is written.
        if before != Some(boot) {
            self.conn.execute(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('boot', ?1)",
                [boot.to_string()],
            )?;
        }
        Ok(before)
    }

    /// Stores the current boot id of a node.
    pub fn set_node_boot(&mut self, node: NodeId, boot: BootId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET boot_id = ?2 WHERE id = ?1")?
            .execute((node16(&node), boot.to_string()))?;
        Ok(())
    }
}
