//! The age of the history, in running time of waifud: the system clock may be wrong by years.

use std::time::Duration;

use rusqlite::OptionalExtension;

use crate::codec::to_i64;
use crate::{ReadTx, StoreError, WriteTx};

/// The minimum number of seconds between two marks, so ages are accurate to the hour.
const MARK_EVERY_S: i64 = 3600;

impl ReadTx<'_> {
    /// The newest revision that is known to be older than `age`; 0 if there is none.
    pub fn newest_revision_older_than(&self, age: Duration) -> Result<u64, StoreError> {
        let before = running(self)?.saturating_sub(to_i64(age.as_secs()));
        let revision: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(revision) FROM history_marks WHERE running_s <= ?1")?
            .query_row([before], |row| row.get(0))?;
        Ok(revision.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }
}

impl WriteTx<'_> {
    /// Adds to the running time of waifud. Marks are kept for `age`.
    pub fn add_running_time(&mut self, by: Duration, age: Duration) -> Result<(), StoreError> {
        let now = running(self)?.saturating_add(to_i64(by.as_secs()));
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('running_s', ?1)")?
            .execute([now.to_string()])?;
        let last: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(running_s) FROM history_marks")?
            .query_row([], |row| row.get(0))?;
        if last.is_some_and(|last| now - last < MARK_EVERY_S) {
            return Ok(());
        }
        let newest = to_i64(self.newest());
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO history_marks (running_s, revision) VALUES (?1, ?2)",
            )?
            .execute((now, newest))?;
        // Of the marks that are older than every age in use, only the newest is needed.
        let oldest = now.saturating_sub(to_i64(age.as_secs()));
        self.conn
            .prepare_cached(
                "DELETE FROM history_marks WHERE running_s <
                     (SELECT max(running_s) FROM history_marks WHERE running_s <= ?1)",
            )?
            .execute([oldest])?;
        Ok(())
    }
}

/// The total running time of waifud in seconds.
fn running(tx: &ReadTx<'_>) -> Result<i64, StoreError> {
    let text: Option<String> = tx
        .conn
        .prepare_cached("SELECT value FROM meta WHERE key = 'running_s'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}
