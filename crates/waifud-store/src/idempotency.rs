//! Answers that were given, remembered so that a repeated request gets the same one.

use rusqlite::OptionalExtension;
use waifud_types::{Digest, Timestamp};

use crate::{ReadTx, StoreError, WriteTx};

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Whether a request was seen before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remembered {
    /// Never.
    New,
    /// With the same body: this was the answer.
    Same(StoredAnswer),
    /// With another body.
    Different,
}

impl ReadTx<'_> {
    /// Looks up the principal's key; `request` is the digest of the whole request.
    pub fn remembered(
        &self,
        principal: &str,
        key: &str,
        request: Digest,
        not_before: Timestamp,
    ) -> Result<Remembered, StoreError> {
        let found: Option<([u8; 32], u16, Vec<u8>)> = self
            .conn
            .prepare_cached(
                "SELECT request, status, body FROM idempotency
                  WHERE principal = ?1 AND key = ?2 AND created_at >= ?3",
            )?
            .query_row((principal, key, not_before.as_microsecond()), |row| {
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
    /// Remembers an answer, in the transaction of the change it tells of.
    pub fn remember(
        &mut self,
        principal: &str,
        key: &str,
        request: Digest,
        answer: &StoredAnswer,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute((
                principal,
                key,
                request.bytes(),
                answer.status,
                &answer.body,
                at.as_microsecond(),
            ))?;
        Ok(())
    }

    /// Forgets answers from before that time.
    pub fn forget_answers(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        Ok(self
            .conn
            .prepare_cached("DELETE FROM idempotency WHERE created_at < ?1")?
            .execute([before.as_microsecond()])?)
    }
}
