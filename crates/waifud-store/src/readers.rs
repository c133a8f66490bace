//! Connections that only read. In WAL mode, readers and the writer do not wait for each other.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use crate::{StoreError, connection};

/// A few open connections, handed out one at a time.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// One concurrent read per connection; more reads would only compete for the CPU.
    pub(crate) permits: Semaphore,
}

impl Readers {
    pub(crate) fn new(path: &Path, connections: usize) -> Self {
        Self {
            path: path.to_owned(),
            idle: Mutex::default(),
            permits: Semaphore::new(connections.max(1)),
        }
    }

    /// Closes the idle connections.
    pub(crate) fn close(&self) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Lends a connection for one read; opens it if none is idle.
    pub(crate) fn with<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let conn = match idle {
            Some(conn) => conn,
            None => open(&self.path)?,
        };
        // One transaction, so that a job reads a consistent state.
        connection::run(&conn, "BEGIN")?;
        let answer = read(&conn);
        connection::run(&conn, "COMMIT")?;
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(conn);
        answer
    }
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(|source| StoreError::Open {
        path: path.to_owned(),
        source,
    })?;
    connection::configure(&conn, 64)?;
    Ok(conn)
}
