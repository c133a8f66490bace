//! Tokens in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Digest, Name, Role, Secret, Timestamp};

/// The prefix of every token, which secret scanners can recognize in source code.
pub const TOKEN_PREFIX: &str = "waifud_";

/// `POST /v1/tokens`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Name of the token: the user or program that it is for, for example `laptop`.
    pub name: String,
    /// Role of the token.
    pub role: Role,
    /// Lifetime of the token in seconds; unlimited if null.
    pub expires_in_s: Option<u64>,
}

/// A token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Name of the token.
    pub name: Name,
    /// The public part of the token: `waifud_` and 16 digits, which are followed by `_` and the secret.
    pub id: String,
    /// Role of the token.
    pub role: Role,
    /// Creation time.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// The user that created it.
    pub created_by: String,
    /// Expiry time; null if it does not expire.
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    /// Time of the last use, accurate to about a minute; null if never used.
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
}

/// The answer to `POST /v1/tokens`, the only one that contains the secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    pub token: Token,
    /// The secret, to be sent as `Authorization: Bearer …`. It is shown only once.
    #[schema(value_type = String)]
    pub secret: Secret<String>,
    /// The URLs of waifud, `https://HOST:PORT`, at which the token can be used; empty if waifud only has the unix socket.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The SHA-256 of the certificate of waifud's CA, for `waifuctl login --fingerprint`. Older versions do not send it.
    #[serde(default)]
    pub ca_fingerprint: Option<Digest>,
}

/// `GET /v1/whoami`: the authenticated caller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The caller as named in events: `uid=1000` on the unix socket, `token=laptop` with a token.
    pub name: String,
    /// Role of the caller.
    pub role: Role,
    /// The address that the request came from.
    pub from: String,
}
