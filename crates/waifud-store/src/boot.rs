//! Which boot of the machine the database was last used in.

use rusqlite::OptionalExtension;

use crate::{StoreError, WriteTx};

impl WriteTx<'_> {
    /// Notes this boot of the machine and returns the one that was noted before, if any.
    pub fn note_boot(&mut self, boot: &str) -> Result<Option<String>, StoreError> {
        let before = self
            .conn
            .query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| {
                row.get(0)
            })
            .optional()?;
        // The usual restart of the daemon writes nothing.
        if before.as_deref() != Some(boot) {
            self.conn.execute(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('boot', ?1)",
                [boot],
            )?;
        }
        Ok(before)
    }
}
