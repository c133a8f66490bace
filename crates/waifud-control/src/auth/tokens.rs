//! Tokens: created, listed, revoked, and checked at each request over the network.
//!
//! A token is `waifud_`, 16 hexadecimal digits that identify its row, `_`, and 256 random bits in base64url. The database
//! contains the SHA-256 of the whole token: 256 random bits cannot be found by brute force, so a slow hash would only slow
//! down requests. The row is found by the public part; the rest is compared in constant time. All failures have the same
//! answer.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use waifud_api::token::TOKEN_PREFIX;
use waifud_api::{CreateToken, CreatedToken, Page, Problem, Token};
use waifud_store::{ReadTx, StoreError, Taken, TokenRow};
use waifud_types::event::Cause;
use waifud_types::{Digest, Secret, Timestamp};

use crate::auth::failed_logins::FailedLogins;
use crate::auth::holdings::{Held, Holdings, Kind};
use crate::auth::principal::Principal;
use crate::auth::problems as auth_problems;
use crate::events::event_builder;
use crate::pagination::{self, PageRequest};
use crate::{Control, ControlError, problems};

/// The interval at which the last use is recorded: a busy token causes one write per minute.
const USED_EVERY: Duration = Duration::from_mins(1);
/// The shortest lifetime of a token.
pub(crate) const LIFETIME_MIN: Duration = Duration::from_mins(1);
/// The longest lifetime of a token that expires: ten years.
pub(crate) const LIFETIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);
/// How often a stream checks its token at least, since clocks can jump.
const RECHECK_INTERVAL: Duration = Duration::from_mins(10);

/// The state of tokens in memory.
#[derive(Debug, Default)]
pub(crate) struct TokenState {
    failed: FailedLogins,
    holdings: Holdings,
    revoked: watch::Sender<()>,
}

impl TokenState {
    /// Counts one more of what a token holds, within its limit.
    pub(crate) fn hold(&self, caller: &Principal, kind: Kind) -> Result<Option<Held>, Problem> {
        self.holdings.take(caller, kind)
    }
}

/// Why a token was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The token is unknown, revoked or expired.
    Invalid,
    /// The token is invalid, and too many invalid tokens came from the address; retry after this time.
    TooMany(Duration),
}

/// The public part of a token; `None` if the text does not have the form of a token.
fn public_part(token: &str) -> Option<[u8; 8]> {
    let (id, secret) = token.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    if id.len() != 16 || !id.bytes().all(|b| b.is_ascii_hexdigit()) || secret.len() != 43 {
        return None;
    }
    Some(u64::from_str_radix(id, 16).ok()?.to_be_bytes())
}

fn digest(token: &str) -> Digest {
    waifud_types::Digest::of(token.as_bytes())
}

fn token_view(row: TokenRow) -> Token {
    Token {
        name: row.name,
        id: format!("{:016x}", u64::from_be_bytes(row.id)),
        role: row.role,
        created_at: row.created_at,
        created_by: row.created_by,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
    }
}

fn is_valid_at(row: &TokenRow, now: Timestamp) -> bool {
    row.expires_at.is_none_or(|end| now < end)
}

impl Control {
    /// Creates a token. Only the answer contains its secret.
    pub async fn create_token(
        &self,
        request: CreateToken,
        by: &Principal,
        cause: Cause,
    ) -> Result<CreatedToken, ControlError> {
        let name = request
            .name
            .parse()
            .map_err(|e| problems::bad_name("name", &e))?;
        let at = self.now();
        let expires_at = request
            .expires_in_s
            .map(|seconds| expiry(at, seconds))
            .transpose()?;
        let (mut id, mut bits) = ([0; 8], [0; 32]);
        self.entropy().fill(&mut id);
        self.entropy().fill(&mut bits);
        let secret = format!(
            "{TOKEN_PREFIX}{:016x}_{}",
            u64::from_be_bytes(id),
            URL_SAFE_NO_PAD.encode(bits)
        );
        let row = TokenRow {
            name,
            id,
            secret: digest(&secret),
            role: request.role,
            created_at: at,
            created_by: by.name.clone(),
            expires_at,
            last_used_at: None,
        };
        let stored = row.clone();
        self.store()
            .write(move |tx| {
                let until = stored.expires_at.map_or_else(
                    || "without expiry".to_owned(),
                    |end| format!("until {}", event_builder::to_the_second(end)),
                );
                tx.emit(&event_builder::event(
                    at,
                    "token.created",
                    event_builder::token(&stored),
                    &cause,
                    format!("role {}, {until}", stored.role),
                ))?;
                tx.insert_token(&stored).map_err(|error| match error {
                    StoreError::Taken(Taken::TokenName) => {
                        auth_problems::token_name_taken(&stored.name).into()
                    }
                    other => ControlError::from(other),
                })
            })
            .await?;
        Ok(CreatedToken {
            token: token_view(row),
            secret: Secret::new(secret),
            addresses: self.config().addresses.clone(),
            ca_fingerprint: Some(self.authority().fingerprint()),
        })
    }

    /// A page of tokens, by name.
    pub async fn tokens(&self, page: PageRequest) -> Result<Page<Token>, ControlError> {
        let rows = |tx: &ReadTx<'_>, after: &str, limit| tx.tokens(after, limit);
        let page = pagination::read(self.store(), page, rows, |row| row.name.as_str()).await?;
        Ok(page.map(token_view))
    }

    /// Revokes a token. It stops working with the commit, and its streams end.
    pub async fn revoke_token(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        let wanted = name.to_owned();
        let at = self.now();
        self.store()
            .write(move |tx| {
                let row = tx
                    .token_named(&wanted)?
                    .ok_or_else(|| problems::not_found("token", &wanted))?;
                tx.emit(&event_builder::event(
                    at,
                    "token.revoked",
                    event_builder::token(&row),
                    &cause,
                    "revoked",
                ))?;
                tx.remove_token(&wanted)?;
                Ok::<_, ControlError>(())
            })
            .await?;
        self.token_state().revoked.send_replace(());
        Ok(())
    }

    /// Authenticates a token. `from` is the caller's address; local users have none.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        from: Option<IpAddr>,
        shown_from: String,
    ) -> Result<Result<Principal, Refused>, ControlError> {
        let now = self.now();
        let row = match public_part(token) {
            Some(id) => self.store().read(move |tx| tx.token(id)).await?,
            None => None,
        };
        let given = digest(token);
        let proven = |row: &TokenRow| bool::from(row.secret.bytes().ct_eq(given.bytes()));
        let Some(row) = row.filter(|row| proven(row) && is_valid_at(row, now)) else {
            // Checked only for invalid tokens: a valid one is accepted, even from an address with failures.
            let (failed, at) = (&self.token_state().failed, self.clock().monotonic());
            if let Some(address) = from {
                if let Some(left) = failed.blocked(address, at) {
                    return Ok(Err(Refused::TooMany(left)));
                }
                failed.record(address, at);
            }
            tracing::info!(from = %shown_from, "refused an unknown, revoked or expired token");
            return Ok(Err(Refused::Invalid));
        };
        if row.last_used_at.is_none_or(|last| last + USED_EVERY <= now) {
            let id = row.id;
            let recorded = self
                .store()
                .write(move |tx| tx.set_token_used(id, now))
                .await;
            if let Err(error) = recorded {
                // A full disk does not prevent logins.
                let error: StoreError = error;
                tracing::warn!(%error, "cannot record the last use of a token");
            }
        }
        Ok(Ok(Principal::token(&row, shown_from)))
    }

    /// Completes when the principal's token is revoked or expires. For streams and waits, which outlive the check at their
    /// start.
    pub async fn until_revoked(&self, principal: &Principal) {
        let Some(id) = principal.token else {
            return std::future::pending().await;
        };
        let mut revoked = self.token_state().revoked.subscribe();
        loop {
            revoked.mark_unchanged();
            let read: Result<_, StoreError> = self.store().read(move |tx| tx.token(id)).await;
            let now = self.now();
            // If the token cannot be read, it is treated as revoked.
            let Some(row) = read.ok().flatten().filter(|row| is_valid_at(row, now)) else {
                return;
            };
            let left = row
                .expires_at
                .and_then(|end| Duration::try_from(end.duration_since(now)).ok())
                .map_or(RECHECK_INTERVAL, |left| left.min(RECHECK_INTERVAL));
            tokio::select! {
                changed = revoked.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

fn expiry(now: Timestamp, seconds: u64) -> Result<Timestamp, Problem> {
    let life = Duration::from_secs(seconds);
    if !(LIFETIME_MIN..=LIFETIME_MAX).contains(&life) {
        return Err(problems::out_of_range(
            "expires_in_s",
            "the lifetime of the token",
            "60 (a minute)",
            format!("{} (ten years)", LIFETIME_MAX.as_secs()),
        ));
    }
    now.checked_add(life).map_err(|_| {
        problems::out_of_range(
            "expires_in_s",
            "the lifetime of the token",
            60,
            LIFETIME_MAX.as_secs(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_tokens_are_looked_up() {
        let secret = "A".repeat(43);
        assert_eq!(
            public_part(&format!("waifud_00000000000000ff_{secret}")),
            Some([0, 0, 0, 0, 0, 0, 0, 0xff])
        );
        for bad in [
            "",
            "waifud_",
            "waifud_00ff",
            &format!("waifud_00ff_{secret}"),
            &format!("waifud_+0000000000000ff_{secret}"),
            &format!("waifud_00000000000000ff_{secret}A"),
            &format!("other_00000000000000ff_{secret}"),
        ] {
            assert_eq!(public_part(bad), None, "{bad}");
        }
    }
}
