//! API tokens: who has access over the network, and until when.

use rusqlite::Row;
use waifud_types::{Digest, Name, Role, Timestamp};

use crate::codec::{digest, maybe_time, name, time, to_word, word};
use crate::error::taken;
use crate::{ReadTx, StoreError, Taken, WriteTx};

/// A stored token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenRow {
    /// Its name, unique.
    pub name: Name,
    /// The public part.
    pub id: [u8; 8],
    /// The SHA-256 of the whole token.
    pub secret: Digest,
    /// Its role.
    pub role: Role,
    /// When it was created.
    pub created_at: Timestamp,
    /// Who created it.
    pub created_by: String,
    /// When it expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, accurate to about a minute; `None` for never.
    pub last_used_at: Option<Timestamp>,
}

impl ReadTx<'_> {
    /// The token with this public part.
    pub fn token(&self, id: [u8; 8]) -> Result<Option<TokenRow>, StoreError> {
        self.first("SELECT * FROM tokens WHERE id = ?1", [id], token)
    }

    /// The token with this name.
    pub fn token_named(&self, wanted: &str) -> Result<Option<TokenRow>, StoreError> {
        self.first("SELECT * FROM tokens WHERE name = ?1", [wanted], token)
    }

    /// At most `limit` tokens in order of their names, starting after the name `after`.
    pub fn tokens(&self, after: &str, limit: u32) -> Result<Vec<TokenRow>, StoreError> {
        self.all(
            "SELECT * FROM tokens WHERE name > ?1 ORDER BY name LIMIT ?2",
            (after, limit),
            token,
        )
    }
}

impl WriteTx<'_> {
    /// Adds a token.
    pub fn insert_token(&mut self, new: &TokenRow) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO tokens (name, id, secret, role, created_at, created_by, expires_at, last_used_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute((
                new.name.as_str(),
                new.id,
                new.secret.bytes(),
                to_word("a role", &new.role)?,
                new.created_at.as_microsecond(),
                &new.created_by,
                new.expires_at.map(Timestamp::as_microsecond),
                new.last_used_at.map(Timestamp::as_microsecond),
            ))
            .map_err(|e| taken(e, &[("tokens.name", Taken::TokenName)]))?;
        Ok(())
    }

    /// Records that the token was used.
    pub fn set_token_used(&mut self, id: [u8; 8], at: Timestamp) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE tokens SET last_used_at = ?2 WHERE id = ?1 AND coalesce(last_used_at, 0) < ?2",
            )?
            .execute((id, at.as_microsecond()))?;
        Ok(())
    }

    /// Deletes a token. False if it does not exist.
    pub fn remove_token(&mut self, name: &str) -> Result<bool, StoreError> {
        self.delete("DELETE FROM tokens WHERE name = ?1", name)
    }
}

fn token(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        name: name(row, "name")?,
        id: row.get("id")?,
        secret: digest(row, "secret")?,
        role: word(row, "role")?,
        created_at: time(row, "created_at")?,
        created_by: row.get("created_by")?,
        expires_at: maybe_time(row, "expires_at")?,
        last_used_at: maybe_time(row, "last_used_at")?,
    })
}
