//! A table in a temporary directory, and frames for it, for tests.

use tempfile::TempDir;
use waifud_api::agent::WatchFrame;
use waifud_types::{Incarnation, Revision};

use crate::control_link::table::Table;

/// A new table. It is kept while the directory exists.
pub fn new_table() -> (TempDir, Table) {
    let dir = tempfile::tempdir().unwrap();
    let table = open(&dir);
    (dir, table)
}

/// The table in this directory, as after a restart.
pub fn open(dir: &TempDir) -> Table {
    let (table, damaged) = Table::open(dir.path().to_owned()).unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    table
}

pub fn revision(number: u64) -> Revision {
    Revision {
        incarnation: Incarnation(1),
        number,
    }
}

pub fn sync(number: u64) -> WatchFrame {
    WatchFrame::Sync {
        revision: revision(number),
    }
}
