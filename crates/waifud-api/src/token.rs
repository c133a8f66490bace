//! Tokens on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Name, Role, Secret, Timestamp};

/// What every token begins with, so that scanners of source code find one that was committed by mistake.
pub const TOKEN_PREFIX: &str = "waifud_";

/// `POST /v1/tokens`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Its name: who or what uses it, such as `laptop`.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// After so many seconds it is worth nothing; null is never.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

/// A token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    pub name: Name,
    /// The part of the token that is no secret: `waifud_` and 16 digits, then `_` and the secret.
    pub id: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// From when on it is worth nothing; null is never.
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute or so; null is never.
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
}

/// The answer to `POST /v1/tokens`: the only one that ever has the secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    pub token: Token,
    /// What proves it: send it as `Authorization: Bearer …`. It is shown this once.
    #[schema(value_type = String)]
    pub secret: Secret<String>,
}

/// `GET /v1/whoami`: who asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// `uid=1000` at the unix socket, `token=laptop` with a token; as events name it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where from, as waifud sees it.
    pub from: String,
}
