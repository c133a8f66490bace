//! Numbered migrations, each in one transaction and after a backup of the database.
//!
//! The number of the schema is `SQLite`'s own `user_version`. A database that is newer than this program is not
//! opened: an old program would lose data of a newer schema.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::Backup;

use crate::StoreError;

/// Every migration, in order; number 1 is the first.
pub(crate) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_first.sql"),
    include_str!("migrations/0002_tokens.sql"),
    include_str!("migrations/0003_downloads.sql"),
    include_str!("migrations/0004_restore.sql"),
    include_str!("migrations/0005_joining.sql"),
    include_str!("migrations/0006_published.sql"),
    include_str!("migrations/0007_networks.sql"),
    include_str!("migrations/0008_rescue.sql"),
    include_str!("migrations/0009_node_care.sql"),
    include_str!("migrations/0010_template_origin.sql"),
    include_str!("migrations/0011_node_boots.sql"),
    include_str!("migrations/0012_bounds.sql"),
    include_str!("migrations/0013_unmanaged.sql"),
    include_str!("migrations/0014_ownership.sql"),
    include_str!("migrations/0015_release.sql"),
    include_str!("migrations/0016_peers.sql"),
    include_str!("migrations/0017_release_off.sql"),
    include_str!("migrations/0018_lost.sql"),
    include_str!("migrations/0019_moves.sql"),
    include_str!("migrations/0020_fabric.sql"),
    include_str!("migrations/0021_drain.sql"),
    include_str!("migrations/0022_names.sql"),
    include_str!("migrations/0023_home.sql"),
    include_str!("migrations/0024_firewall.sql"),
    include_str!("migrations/0025_fabric_clients.sql"),
    include_str!("migrations/0026_removed_nics.sql"),
];

/// The newest schema that this program supports.
pub const SCHEMA: u32 = 26;

/// Brings the database to the newest schema. Returns whether it was empty before.
pub(crate) fn migrate(conn: &mut Connection, path: &Path) -> Result<bool, StoreError> {
    run(conn, path, MIGRATIONS)
}

pub(crate) fn run(
    conn: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<bool, StoreError> {
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    let found: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        let copy = backup_path(path, known.saturating_add(1));
        return Err(StoreError::NewerSchema {
            path: path.to_owned(),
            found,
            known,
            copy: copy.exists().then_some(copy),
        });
    }
    for (number, sql) in (1..).zip(migrations).skip(found as usize) {
        // A new database has no rows to keep.
        if found > 0 {
            back_up(conn, &backup_path(path, number))?;
        }
        tracing::info!(number, "migrating the database");
        apply(conn, number, sql).map_err(|source| StoreError::Migration { number, source })?;
    }
    Ok(found == 0)
}

fn apply(conn: &mut Connection, number: u32, sql: &str) -> Result<(), rusqlite::Error> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    tx.execute_batch(sql)?;
    tx.pragma_update(None, "user_version", number)?;
    tx.commit()
}

fn backup_path(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-{number}"));
    name.into()
}

/// Writes a complete copy: into a temporary file that is renamed at the end.
fn back_up(conn: &Connection, to: &Path) -> Result<(), StoreError> {
    let partial = to.with_extension("partial");
    copy(conn, &partial)
        .and_then(|()| std::fs::rename(&partial, to).map_err(Into::into))
        .map_err(|source| {
            let _may_be_absent = std::fs::remove_file(&partial);
            StoreError::Backup {
                path: to.to_owned(),
                source,
            }
        })
}

fn copy(conn: &Connection, partial: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use std::os::unix::fs::OpenOptionsExt;
    // Like the database, the copy contains secrets.
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(partial)?;
    let mut target = Connection::open(partial)?;
    Backup::new(conn, &mut target)?.run_to_completion(256, Duration::ZERO, None)?;
    target.close().map_err(|(_, error)| error)?;
    std::fs::File::open(partial)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod rows;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_the_number_of_the_last_migration() {
        assert_eq!(SCHEMA as usize, MIGRATIONS.len());
    }

    const FIRST: &str = "CREATE TABLE t (a INTEGER) STRICT; INSERT INTO t VALUES (1);";
    const SECOND: &str = "ALTER TABLE t ADD COLUMN b INTEGER;";

    fn open(path: &Path) -> Connection {
        Connection::open(path).unwrap()
    }

    #[test]
    fn a_new_database_leaves_no_backup() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        assert!(run(&mut open(&path), &path, &[FIRST, SECOND]).unwrap());
        let files = std::fs::read_dir(dir.path()).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(names, ["waifud.db"]);
    }

    #[test]
    fn a_migration_of_a_used_database_leaves_a_backup_with_the_old_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        assert!(run(&mut open(&path), &path, &[FIRST]).unwrap());
        assert!(!dir.path().join("waifud.db.before-1").exists());
        assert!(!run(&mut open(&path), &path, &[FIRST, SECOND]).unwrap());
        let backup = open(&dir.path().join("waifud.db.before-2"));
        let rows: i64 = backup
            .query_row("SELECT count(*) FROM t", [], |r| r.get(0))
            .unwrap();
        let version: u32 = backup
            .query_row("PRAGMA user_version", [], |r| r.get(0))
            .unwrap();
        assert_eq!((rows, version), (1, 1));
    }

    #[test]
    fn a_failed_migration_leaves_the_database_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        run(&mut open(&path), &path, &[FIRST]).unwrap();
        let broken = "CREATE TABLE u (a INTEGER); SELECT nonsense;";
        let error = run(&mut open(&path), &path, &[FIRST, broken]).unwrap_err();
        assert!(
            matches!(error, StoreError::Migration { number: 2, .. }),
            "{error}"
        );
        let tables: i64 = open(&path)
            .query_row(
                "SELECT count(*) FROM sqlite_schema WHERE name = 'u'",
                [],
                |r| r.get(0),
            )
            .unwrap();
        assert_eq!(tables, 0);
    }

    #[test]
    fn a_newer_schema_is_refused_and_the_error_names_the_copy_only_if_it_exists() {
        for has_copy in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("waifud.db");
            if has_copy {
                run(&mut open(&path), &path, &[FIRST]).unwrap();
            }
            run(&mut open(&path), &path, &[FIRST, SECOND]).unwrap();
            let error = run(&mut open(&path), &path, &[FIRST]).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(
                    error,
                    StoreError::NewerSchema {
                        found: 2,
                        known: 1,
                        ..
                    }
                ),
                "{text}"
            );
            assert!(text.contains("newer waifud"), "{text}");
            assert_eq!(text.contains("waifud.db.before-2"), has_copy, "{text}");
            assert_eq!(text.ends_with("restore a backup"), !has_copy, "{text}");
        }
    }
}
