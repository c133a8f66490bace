//! Stored responses: a repeated request with the same idempotency key gets the same response.

use rusqlite::OptionalExtension;
use waifud_types::{Digest, Timestamp};

use crate::codec::to_i64;
use crate::{ReadTx, StoreError, WriteTx};

/// A remembered answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Whether a request is a repetition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remembered {
    /// The key is new.
    New,
    /// The request is the same, and this was its answer.
    Same(StoredAnswer),
    /// The key was used for another request.
    Different,
}

impl ReadTx<'_> {
    /// Looks up the principal's key. `request` is the digest of the whole request. Stored answers are valid regardless
    /// of the system clock.
    pub fn remembered(
        &self,
        principal: &str,
        key: &str,
        request: Digest,
    ) -> Result<Remembered, StoreError> {
        let found: Option<([u8; 32], u16, Vec<u8>)> = self
            .conn
            .prepare_cached(
                "SELECT request, status, body FROM idempotency
                  WHERE principal = ?1 AND key = ?2",
            )?
            .query_row((principal, key), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        Ok(match found {
            None => Remembered::New,
            Some((same, status, body)) if &same == request.bytes() => {
                Remembered::Same(StoredAnswer { status, body })
            }
            Some(_) => Remembered::Different,
        })
    }
}

impl WriteTx<'_> {
    /// Stores an answer, in the transaction of the change that it reports.
    pub fn remember(
        &mut self,
        principal: &str,
        key: &str,
        request: Digest,
        answer: &StoredAnswer,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let newest = to_i64(self.newest());
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO idempotency (principal, key, request, status, body, created_at, revision)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute((
                principal,
                key,
                request.bytes(),
                answer.status,
                &answer.body,
                at.as_microsecond(),
                newest,
            ))?;
        Ok(())
    }

    /// Deletes the answers given up to revision `old`, and all but the newest `keep`, at most `limit` at once. Returns
    /// how many were deleted.
    pub fn forget_answers(&mut self, old: u64, keep: u64, limit: u64) -> Result<usize, StoreError> {
        let count: i64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM idempotency")?
            .query_row([], |row| row.get(0))?;
        let by_age = self
            .conn
            .prepare_cached(
                "DELETE FROM idempotency WHERE (principal, key) IN (
                     SELECT principal, key FROM idempotency WHERE revision <= ?1 ORDER BY revision LIMIT ?2)",
            )?
            .execute((to_i64(old), to_i64(limit)))?;
        let left = count.saturating_sub(i64::try_from(by_age).unwrap_or(i64::MAX));
        let too_many = left.saturating_sub(to_i64(keep)).clamp(0, to_i64(limit));
        let by_count = self
            .conn
            .prepare_cached(
                "DELETE FROM idempotency WHERE (principal, key) IN (
                     SELECT principal, key FROM idempotency ORDER BY revision LIMIT ?1)",
            )?
            .execute([too_many])?;
        Ok(by_age + by_count)
    }
}
