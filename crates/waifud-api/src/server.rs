//! The control server itself on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{ByteSize, DiskSpaceState, Timestamp};

/// `GET /v1/server`: how waifud itself is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// The program's version.
    pub version: String,
    /// Its clock.
    #[schema(value_type = String)]
    pub now: Timestamp,
    /// Where its database, images and keys lie.
    pub state_dir: DirectorySpace,
    /// Whether its database works.
    #[serde(default)]
    pub database: Database,
    /// Its certificates.
    pub certificates: Vec<Certificate>,
}

/// Whether waifud's database works.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Database {
    /// Why changes can't be stored; null when they can.
    pub trouble: Option<String>,
}

/// A certificate of waifud's own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// `ca`, which nodes and contexts trust, or `server`, which waifud shows.
    pub name: String,
    /// Until when it is valid.
    #[schema(value_type = String)]
    pub not_after: Timestamp,
}

/// A directory, and the room on its filesystem.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DirectorySpace {
    /// Its path.
    pub path: String,
    /// The filesystem's size.
    pub size_bytes: ByteSize,
    /// What is free for who is not root.
    pub free_bytes: ByteSize,
    /// Whether that is enough.
    pub state: DiskSpaceState,
    /// Since when it is in that state.
    #[schema(value_type = String)]
    pub since: Timestamp,
}
