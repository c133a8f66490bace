//! Copies the database while it is in use, and prepares a copy to replace it.
//!
//! Neither needs a running [`Store`](crate::Store). A copy is made by another process in one read transaction, so it is
//! a consistent snapshot and does not block writes.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use waifud_types::{Epoch, Incarnation, Revision, Timestamp};

use crate::{StoreError, codec, events, migrate};

/// The state that a copy contains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The newest revision.
    pub revision: Revision,
    /// The schema version.
    pub schema: u32,
}

/// Copies the database at `from` to the new file `to` (0600), and syncs it.
pub fn snapshot(from: &Path, to: &Path) -> Result<Snapshot, StoreError> {
    let failed = |source: rusqlite::Error| StoreError::Backup {
        path: to.to_owned(),
        source: source.into(),
    };
    let conn = open(from)?;
    // SQLite writes to the existing empty file and keeps its mode.
    private(to).map_err(|error| StoreError::Backup {
        path: to.to_owned(),
        source: error.into(),
    })?;
    let target = to.to_str().ok_or_else(|| StoreError::Backup {
        path: to.to_owned(),
        source: "its path is not valid UTF-8".into(),
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

/// The minimum growth of the lowest epoch with each restore, regardless of the clock: more than an instance changes its
/// owner between two restores.
const FLOOR_STEP: u64 = 1 << 20;

/// The lowest epoch that may be assigned after a restore at `now`, from those of the copy and of the database that it
/// replaces.
///
/// The copy alone does not determine it: the same copy may be restored several times.
fn next_floor(copy: Epoch, replaced: Epoch, now: Timestamp) -> u64 {
    let now = u64::try_from(now.as_millisecond()).unwrap_or(0);
    // Only a clock that was set back is earlier than the copy.
    let after_copy = if now > copy.0 {
        now
    } else {
        copy.0.saturating_add(FLOOR_STEP)
    };
    after_copy.max(match replaced {
        Epoch(0) => 0,
        Epoch(known) => known.saturating_add(FLOOR_STEP),
    })
}

/// The lowest epoch that may be assigned by the database at `path`; 0 unless it was restored.
pub fn floor_of(path: &Path) -> Result<Epoch, StoreError> {
    let conn = open(path)?;
    let floor = epoch_floor(&conn)?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(floor)
}

/// Prepares the copy at `path` to replace the database: checks it, migrates it, and gives it a new incarnation.
///
/// The copy does not contain what happened since it was made. So no node is given an instance before it has reported
/// what runs on it, and no node destroys anything before an administrator has confirmed it. Epochs that were assigned since the
/// copy was made are not assigned again: new ones begin at the milliseconds of `now`, a number that no instance has
/// reached by changes of its owner and that is higher than at any earlier restore. `replaced` is [`floor_of`] the database
/// that the copy replaces, 0 if that is not readable.
pub fn prepare_restored(
    path: &Path,
    fresh: Incarnation,
    now: Timestamp,
    replaced: Epoch,
) -> Result<Snapshot, StoreError> {
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
    let floor = next_floor(epoch_floor(&tx)?, replaced, now);
    tx.execute(
        "INSERT OR REPLACE INTO meta (key, value) VALUES ('epoch-floor', ?1)",
        [floor.to_string()],
    )?;
    // The copy may be restored on another machine.
    tx.execute("DELETE FROM meta WHERE key = 'boot'", [])?;
    tx.execute(
        "UPDATE nodes SET swept = 0, confirmed = 0, unmanaged_count = 0, unmanaged_addresses = '[]'",
        [],
    )?;
    tx.execute("DELETE FROM unmanaged", [])?;
    tx.execute("UPDATE instances SET restored = 1", [])?;
    tx.commit()?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(before)
}

/// The lowest epoch that may be assigned; 0 unless the database was restored.
pub(crate) fn epoch_floor(conn: &Connection) -> Result<Epoch, StoreError> {
    let stored: Option<String> = conn
        .prepare_cached("SELECT value FROM meta WHERE key = 'epoch-floor'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    stored.map_or(Ok(Epoch(0)), |text| {
        text.parse()
            .map(Epoch)
            .map_err(|e: std::num::ParseIntError| codec::corrupt("epoch-floor")(e.into()))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    #[test]
    fn each_restore_has_a_higher_floor_also_with_the_same_copy_and_a_clock_that_was_set_back() {
        let floor = |copy, replaced, now| Epoch(next_floor(copy, replaced, at(now)));
        let copy = Epoch(5_000_000);
        let mut replaced = copy;
        for now in [5_000_001, 5_000_002, 4_000_000, 0, 9_000_000] {
            let next = floor(copy, replaced, now);
            assert!(next > replaced, "{next} at {now}");
            replaced = next;
        }
        // The database was lost, and the copy is restored twice within days after the restore that it contains.
        let twice = [5_000_001, 5_000_002].map(|now| floor(copy, Epoch(0), now));
        assert!(twice.is_sorted_by(|a, b| a < b));
        assert_eq!(floor(Epoch(0), Epoch(0), 7), Epoch(7));
    }
}
