//! The state of waifud itself in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
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
