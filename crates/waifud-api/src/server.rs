//! The state of waifud itself in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::status::Condition;
use waifud_types::{ByteSize, DiskSpaceState, Timestamp};

/// `GET /v1/server`: the state of waifud itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// Version of waifud.
    pub version: String,
    /// Current time of waifud's clock.
    #[schema(value_type = String)]
    pub now: Timestamp,
    /// The directory with waifud's database, images and keys.
    pub state_dir: DirectorySpace,
    /// State of the database.
    #[serde(default)]
    pub database: Database,
    /// waifud's certificates.
    pub certificates: Vec<Certificate>,
    /// State of the Redis that caches bundles; null if none is configured.
    #[serde(default)]
    pub redis: Option<RedisState>,
    /// State of the regular backups; null if none were made.
    #[serde(default)]
    pub backup: Option<BackupState>,
}

/// State of the regular backups, which `waifud backup --to` makes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackupState {
    /// Directory, or host and directory.
    pub target: String,
    /// Time of the last backup that was made and read back; null if there was none.
    #[schema(value_type = Option<String>)]
    pub last_at: Option<Timestamp>,
    /// Seconds between two backups; null if the command does not repeat them.
    pub every_s: Option<u64>,
    /// Why the last attempt failed; null if it did not.
    pub error: Option<String>,
}

impl BackupState {
    /// The file in waifud's state directory that has it.
    pub const FILE: &'static str = "regular-backup.json";
}

/// State of the Redis that caches encrypted bundles.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RedisState {
    /// URL, without credentials.
    pub url: String,
    /// Time of the last complete comparison with waifud's bundles; null if there was none yet.
    #[schema(value_type = Option<String>)]
    pub compared_at: Option<Timestamp>,
    /// Number of bundles at that time.
    pub bundles: u64,
    /// What is wrong; empty if nothing is.
    pub conditions: Vec<Condition>,
}

/// State of waifud's database.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Database {
    /// Why changes cannot be stored; null if they can.
    pub trouble: Option<String>,
}

/// A certificate of waifud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// `ca`, which nodes and contexts trust, or `server`, which waifud presents to clients.
    pub name: String,
    /// End of its validity.
    #[schema(value_type = String)]
    pub not_after: Timestamp,
}

/// A directory and the space on its filesystem.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DirectorySpace {
    /// Path of the directory.
    pub path: String,
    /// Size of the filesystem in bytes.
    pub size_bytes: ByteSize,
    /// Free space for unprivileged users in bytes.
    pub free_bytes: ByteSize,
    /// Whether the free space is sufficient.
    pub state: DiskSpaceState,
    /// Time of the last change of the state.
    #[schema(value_type = String)]
    pub since: Timestamp,
}
