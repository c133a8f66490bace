//! A whole copy of the database while it is in use, and what has to change in a copy before it may take over.
//!
//! Neither needs a running [`Store`](crate::Store): a copy is made from outside of the process that writes, in one read
//! transaction, so it is the state of one instant and holds nobody up.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use waifud_types::{Incarnation, Revision};

use crate::{StoreError, events, migrate};

/// Which state a copy has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The newest revision in it.
    pub revision: Revision,
    /// Its schema.
    pub schema: u32,
}

/// Copies the database at `from` to the new file `to` (0600), and syncs it.
pub fn snapshot(from: &Path, to: &Path) -> Result<Snapshot, StoreError> {
    let failed = |source: rusqlite::Error| StoreError::Backup {
        path: to.to_owned(),
        source: source.into(),
    };
    let conn = open(from)?;
    // SQLite writes into the empty file that is there, with the mode that it has.
    private(to).map_err(|error| StoreError::Backup {
        path: to.to_owned(),
        source: error.into(),
    })?;
    let target = to.to_str().ok_or_else(|| StoreError::Backup {
        path: to.to_owned(),
        source: "its name is no UTF-8".into(),
    })?;
    conn.execute("VACUUM INTO ?1", [target]).map_err(failed)?;
    drop(conn);
    let copy = open(to)?;
    let snapshot = describe(&copy)?;
    copy.close().map_err(|(_, error)| failed(error))?;
    std::fs::File::open(to)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::Backup {
            path: to.to_owned(),
            source: error.into(),
        })?;
    Ok(snapshot)
}

/// Makes the copy at `path` ready to take over: checks it, brings it to the newest schema, and begins another life.
///
/// What happened since the copy was made is not in it, so from then on nothing is taken for granted: nodes are given
/// no instance before they have said what runs on them, and destroy nothing before an operator has confirmed.
pub fn begin_again(path: &Path, fresh: Incarnation) -> Result<Snapshot, StoreError> {
    let mut conn = open(path)?;
    let verdict: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            verdict,
        });
    }
    let before = describe(&conn)?;
    migrate::migrate(&mut conn, path)?;
    let tx = conn.transaction()?;
    tx.execute(
        "UPDATE meta SET value = ?1 WHERE key = 'incarnation'",
        [fresh.to_string()],
    )?;
    // The machine that takes over need not be the one that the copy was made on.
    tx.execute("DELETE FROM meta WHERE key = 'boot'", [])?;
    tx.execute(
        "UPDATE nodes SET swept = 0, confirmed = 0, unmanaged_count = 0, unmanaged_addresses = '[]'",
        [],
    )?;
    tx.execute("DELETE FROM unmanaged", [])?;
    tx.execute(
        "UPDATE instances SET restored = 1 WHERE node IS NOT NULL",
        [],
    )?;
    tx.commit()?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(before)
}

pub(crate) fn open(path: &Path) -> Result<Connection, StoreError> {
    let open_error = |source| StoreError::Open {
        path: path.to_owned(),
        source,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(open_error)?;
    conn.busy_timeout(crate::connection::BUSY)
        .map_err(open_error)?;
    Ok(conn)
}

fn describe(conn: &Connection) -> Result<Snapshot, StoreError> {
    let schema: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if schema == 0 {
        return Err(StoreError::NoDatabase);
    }
    let incarnation = crate::incarnation(conn, Incarnation(0))?;
    Ok(Snapshot {
        revision: Revision {
            incarnation,
            number: events::newest(conn)?,
        },
        schema,
    })
}

fn private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}
