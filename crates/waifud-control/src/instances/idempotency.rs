//! Idempotency keys: a repeated request with the same key gets the stored response.

use waifud_api::Instance;
use waifud_store::{ReadTx, Remembered, StoredAnswer, WriteTx};
use waifud_types::Digest;

use super::problems;
use crate::auth::principal::Principal;
use crate::{Control, ControlError};

/// How long an answer is remembered for its Idempotency-Key, in running time of waifud: 24 h.
pub const RETENTION: std::time::Duration = std::time::Duration::from_hours(24);

/// An idempotency key, its owner, and the request that it was sent with.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The owner of the key.
    pub principal: String,
    /// The key itself.
    pub key: String,
    /// The digest of the path and the body.
    pub request: Digest,
}

impl IdempotencyKey {
    /// The key of a request with this path and body.
    pub fn new(principal: &Principal, key: &str, path: &str, body: &[u8]) -> Self {
        let request = [path.as_bytes(), b"\0", body].concat();
        Self {
            principal: principal.key_owner(),
            key: key.to_owned(),
            request: waifud_types::Digest::of(&request),
        }
    }
}

impl Control {
    /// The remembered answer for the key; an error if the key was used for another request.
    pub(super) async fn stored_response(
        &self,
        key: Option<IdempotencyKey>,
    ) -> Result<Option<Instance>, ControlError> {
        let Some(key) = key else { return Ok(None) };
        let read = move |tx: ReadTx<'_>| Self::replay(&tx, &key);
        self.store().read(read).await
    }

    pub(super) fn replay(
        tx: &ReadTx<'_>,
        key: &IdempotencyKey,
    ) -> Result<Option<Instance>, ControlError> {
        match tx.remembered(&key.principal, &key.key, key.request)? {
            Remembered::New => Ok(None),
            Remembered::Different => Err(problems::idempotency_mismatch().into()),
            Remembered::Same(answer) => {
                serde_json::from_slice(&answer.body).map(Some).map_err(|e| {
                    ControlError::Inconsistent(format!("cannot parse a stored response: {e}"))
                })
            }
        }
    }

    pub(super) fn remember(
        &self,
        tx: &mut WriteTx<'_>,
        key: &IdempotencyKey,
        instance: &Instance,
    ) -> Result<(), ControlError> {
        let answer = StoredAnswer {
            status: 201,
            body: serde_json::to_vec(instance).map_err(|e| {
                ControlError::Inconsistent(format!("cannot serialize a response: {e}"))
            })?,
        };
        tx.remember(&key.principal, &key.key, key.request, &answer, self.now())?;
        Ok(())
    }
}
