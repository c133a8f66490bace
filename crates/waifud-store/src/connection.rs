//! How every connection is set, and statements that have neither values nor rows.

use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::StoreError;

/// How long a connection waits for another process's lock (a backup by hand, the `sqlite3` shell).
pub(crate) const BUSY: Duration = Duration::from_secs(5);

/// What every connection needs. `statements` are kept prepared.
pub(crate) fn settle(conn: &Connection, statements: usize) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(statements);
    // Else a kept statement with a join is planned anew at each use, because its values are others than before: that
    // was an eighth of a create. No plan here hangs on values, there being no statistics.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Runs a statement that has neither values nor rows, kept prepared.
pub(crate) fn run(conn: &Connection, statement: &str) -> Result<(), StoreError> {
    conn.prepare_cached(statement)?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_kept_statement_with_a_join_is_planned_once() -> Result<(), StoreError> {
        let conn = Connection::open_in_memory()?;
        settle(&conn, 8)?;
        conn.execute_batch("CREATE TABLE a (id, b, c); CREATE TABLE b (id, d)")?;
        let join = "SELECT * FROM a JOIN b ON b.id = a.b WHERE a.id = ?1";
        for value in ["one", "two", "three"] {
            assert!(!conn.prepare_cached(join)?.exists([value])?);
        }
        let kept = conn.prepare_cached(join)?;
        assert_eq!(kept.get_status(StatementStatus::RePrepare), 0);
        assert_eq!(kept.get_status(StatementStatus::Run), 3);
        Ok(())
    }
}
