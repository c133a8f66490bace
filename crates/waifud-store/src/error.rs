//! What can go wrong in the database.

use std::path::PathBuf;

/// A failure of the store. None of these carries a stored value: user-data and keys live in the same file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened as a database.
    #[error("the database {path:?} can't be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a newer waifud.
    #[error(
        "the database {path:?} has schema {found}, and this waifud knows schemas up to {known}: it was written by a \
         newer waifud; run that version, or put back the backup {path:?}.before-{}", known + 1
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The schema in the file.
        found: u32,
        /// The newest schema that this program knows.
        known: u32,
    },
    /// The copy before a migration could not be made; nothing was migrated.
    #[error("the backup {path:?} can't be written, so the database was left as it is")]
    Backup {
        /// The backup's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file, its directory or its filesystem can't be written.
    #[error(
        "the database {path:?} is read-only; look at its owner and permissions, at those of its directory, and whether \
         the filesystem is mounted read-only"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What `SQLite` said, where it was asked to write.
        #[source]
        source: Option<rusqlite::Error>,
    },
    /// The file is a database and none of waifud's.
    #[error("there is no database of waifud in the file")]
    NoDatabase,
    /// The file is broken.
    #[error("the database {path:?} is damaged: {verdict}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What `SQLite` found.
        verdict: String,
    },
    /// A migration failed and was rolled back.
    #[error("migration {number} of the database failed; the database was left as it is")]
    Migration {
        /// Which one.
        number: u32,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// `SQLite` refused a statement: a full disk, a broken file, a violated constraint.
    #[error("the database refused a statement")]
    Sql(#[from] rusqlite::Error),
    /// A stored value can't be read as what it should be.
    #[error("the database holds {what} that can't be read")]
    Corrupt {
        /// Which kind of value.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value can't be written as JSON.
    #[error("{what} can't be stored")]
    Encode {
        /// Which kind of value.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The name, the MAC or the address is in use.
    #[error("{0} is in use")]
    Taken(Taken),
    /// The group of changes could not be made durable; none of it happened.
    #[error("the change could not be made durable: {why}")]
    Commit {
        /// What `SQLite` said; its error can't be shared among the jobs of the group.
        why: String,
        /// Whether the filesystem has no room left.
        full: bool,
    },
    /// The writer could not be started.
    #[error("the database's writer can't be started")]
    Thread(#[source] std::io::Error),
    /// A job panicked; its changes were rolled back.
    #[error("a change of the database failed in an unforeseen way and was rolled back")]
    Panicked,
    /// The store was closed.
    #[error("the database is closed")]
    Closed,
}

impl StoreError {
    /// Whether the filesystem has no room left.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sql(error) | Self::Open { source: error, .. } => is_full(error),
            Self::Commit { full, .. } => *full,
            _ => false,
        }
    }
}

/// What must be unique and is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// An instance's name.
    InstanceName,
    /// A nic's MAC address.
    Mac,
    /// A nic's address.
    Address,
    /// A node's name.
    NodeName,
    /// A node's subnet.
    Subnet,
    /// A token's name.
    TokenName,
    /// A port of a node.
    Port,
    /// A network's name.
    NetworkName,
    /// A bridge: it is another network.
    Bridge,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InstanceName => "the instance's name",
            Self::Mac => "the MAC address",
            Self::Address => "the address",
            Self::NodeName => "the node's name",
            Self::Subnet => "the subnet",
            Self::TokenName => "the token's name",
            Self::Port => "the port",
            Self::NetworkName => "the network's name",
            Self::Bridge => "the bridge",
        })
    }
}

pub(crate) fn is_full(error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(code, _) = error else {
        return false;
    };
    // The file that readers and the writer share can't grow: SQLite has another code for that.
    code.code == rusqlite::ErrorCode::DiskFull
        || code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
}

/// Turns a violated UNIQUE constraint into `Taken`; `SQLite` names the column in its message.
pub(crate) fn taken(error: rusqlite::Error, columns: &[(&str, Taken)]) -> StoreError {
    if let rusqlite::Error::SqliteFailure(code, Some(message)) = &error
        && code.code == rusqlite::ErrorCode::ConstraintViolation
        && let Some((_, what)) = columns.iter().find(|(column, _)| message.contains(column))
    {
        return StoreError::Taken(*what);
    }
    StoreError::Sql(error)
}
