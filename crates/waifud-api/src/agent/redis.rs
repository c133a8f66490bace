//! How Redis is reached, as waifud tells its nodes and an agent tells its metadata service.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Secret;

/// How to reach the Redis that caches encrypted bundles.
///
/// Nodes get a user that can only read. Bundles are verified by their digest, so Redis is trusted for availability only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RedisAccess {
    /// `redis://HOST:PORT`, or `rediss://HOST:PORT` for TLS. Contains no credentials.
    pub url: String,
    /// The certificates, in PEM, of the CAs that may have issued Redis' certificate; null without TLS.
    #[serde(default)]
    pub ca: Option<String>,
    /// The user; null for Redis' user `default`.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password; null for none.
    #[serde(default)]
    pub password: Option<Secret<String>>,
    /// Beginning of the names of all keys: a bundle has the key `PREFIX:bundle:DIGEST`, with 64 hexadecimal digits.
    pub prefix: String,
}
