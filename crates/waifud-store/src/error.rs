//! Errors of the store.

use std::path::PathBuf;

/// A failure of the store. None of these carries a stored value: user-data and keys live in the same file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened as a database.
    #[error("cannot open the database {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a newer waifud.
    #[error(
        "the database {path:?} has schema {found}, and this waifud supports schemas up to {known}: it was written by a \
         newer waifud; run that version, or restore {}",
        copy.as_ref().map_or_else(|| "a backup".to_owned(), |copy| format!("the copy {}", copy.display()))
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The schema in the file.
        found: u32,
        /// The newest schema that this program knows.
        known: u32,
        /// The copy that the newer version made before it migrated the database; `None` if there is none.
        copy: Option<PathBuf>,
    },
    /// The copy before a migration could not be made; nothing was migrated.
    #[error("cannot write the backup {path:?}; the database was not changed")]
    Backup {
        /// The backup's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file, its directory or its filesystem is not writable.
    #[error(
        "the database {path:?} is read-only; check its owner and permissions, those of its directory, and whether \
         the filesystem is mounted read-only"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The error of `SQLite`, if it was asked to write.
        #[source]
        source: Option<rusqlite::Error>,
    },
    /// The file is a database of another program.
    #[error("the file is not a database of waifud")]
    NoDatabase,
    /// The file is broken.
    #[error("the database {path:?} is damaged: {verdict}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The result of `SQLite`'s check.
        verdict: String,
    },
    /// A migration failed and was rolled back.
    #[error("migration {number} of the database failed; the database was not changed")]
    Migration {
        /// The migration's number.
        number: u32,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// `SQLite` refused a statement: a full disk, a broken file, a violated constraint.
    #[error("a database statement failed")]
    Sql(#[from] rusqlite::Error),
    /// A stored value cannot be parsed.
    #[error("cannot parse a stored value: {what}")]
    Corrupt {
        /// The kind of value.
        what: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value cannot be serialized.
    #[error("cannot store {what}")]
    Encode {
        /// The kind of value.
        what: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The name, the MAC or the address is in use.
    #[error("{0} is in use")]
    Taken(Taken),
    /// The group of changes was not made durable, and none of them is stored.
    #[error("the change could not be made durable: {why}")]
    Commit {
        /// The error of `SQLite` as text, because it cannot be shared among the jobs of the group.
        why: String,
        /// Whether the filesystem is full.
        full: bool,
    },
    /// The writer could not be started.
    #[error("cannot start the writer of the database")]
    Thread(#[source] std::io::Error),
    /// A job panicked; its changes were rolled back.
    #[error("a change of the database failed with an internal error and was rolled back")]
    Panicked,
    /// The store was closed.
    #[error("the database is closed")]
    Closed,
}

impl StoreError {
    /// Whether the filesystem is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sql(error) | Self::Open { source: error, .. } => is_full(error),
            Self::Commit { full, .. } => *full,
            _ => false,
        }
    }
}

/// The kind of value that is already in use.
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
    /// A bridge, which another network uses.
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
    // The file that readers and the writer share cannot grow, for which SQLite has another code.
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
