//! The settings of every connection, and statements without values and rows.

use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::StoreError;

/// How long a connection waits for another process's lock (a backup by hand, the `sqlite3` shell).
pub(crate) const BUSY: Duration = Duration::from_secs(5);

/// Applies the settings of every connection. `statements` is the number of cached statements.
pub(crate) fn configure(conn: &Connection, statements: usize) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(statements);
    // Otherwise SQLite plans a cached statement with a join again whenever its values change, which took an eighth of a
    // create. No plan here depends on values, because there are no statistics.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Runs and caches a statement without values and rows.
pub(crate) fn run(conn: &Connection, statement: &str) -> Result<(), StoreError> {
    conn.prepare_cached(statement)?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_cached_statement_with_a_join_is_planned_once() -> Result<(), StoreError> {
        let conn = Connection::open_in_memory()?;
        configure(&conn, 8)?;
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
