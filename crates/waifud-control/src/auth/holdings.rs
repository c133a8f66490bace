//! Limits of concurrent requests, waits and streams per token, so that one misused token does not block others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use waifud_api::Problem;
use waifud_kit::sync::lock;

use crate::auth::principal::Principal;
use crate::auth::problems as auth_problems;

/// The kinds of open requests that are counted per token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A request, from its header to the end of its answer.
    Request,
    /// A request that waits for an instance (`?wait=`).
    Wait,
    /// An event stream.
    Follower,
    /// A console, forwarded port, screen, log or guest command.
    Stream,
}

const KINDS: usize = 4;

impl Kind {
    const fn index(self) -> usize {
        match self {
            Self::Request => 0,
            Self::Wait => 1,
            Self::Follower => 2,
            Self::Stream => 3,
        }
    }

    /// The limit per token.
    pub const fn limit(self) -> usize {
        match self {
            Self::Request => 512,
            Self::Wait | Self::Follower | Self::Stream => 128,
        }
    }

    /// The name in errors.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Request => "requests",
            Self::Wait => "waiting requests",
            Self::Follower => "event streams",
            Self::Stream => "streams to instances",
        }
    }
}

/// The counts of all tokens. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holdings(Arc<Mutex<HashMap<[u8; 8], [usize; KINDS]>>>);

/// One counted item; released when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    holdings: Holdings,
    token: [u8; 8],
    kind: Kind,
}

impl Holdings {
    fn counts(&self) -> MutexGuard<'_, HashMap<[u8; 8], [usize; KINDS]>> {
        lock(&self.0)
    }

    /// Counts one more. Local users have no token and are not counted.
    pub fn take(&self, principal: &Principal, kind: Kind) -> Result<Option<Held>, Problem> {
        let Some(token) = principal.token else {
            return Ok(None);
        };
        let mut counts = self.counts();
        let held = counts.entry(token).or_default();
        if held[kind.index()] >= kind.limit() {
            return Err(auth_problems::too_many_open_requests(
                kind.plural(),
                kind.limit(),
            ));
        }
        held[kind.index()] += 1;
        drop(counts);
        Ok(Some(Held {
            holdings: self.clone(),
            token,
            kind,
        }))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.holdings.counts();
        if let Some(held) = counts.get_mut(&self.token) {
            held[self.kind.index()] -= 1;
            if held.iter().all(|count| *count == 0) {
                counts.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::Role;

    fn token(id: u8) -> Principal {
        Principal {
            token: Some([id; 8]),
            role: Role::Viewer,
            ..Principal::local(0)
        }
    }

    #[test]
    fn each_token_has_its_own_limit_for_each_kind() {
        // The numbers in docs/reference/api.md.
        for (kind, limit, called, other) in [
            (Kind::Request, 512, "requests", Kind::Wait),
            (Kind::Wait, 128, "waiting requests", Kind::Request),
            (Kind::Follower, 128, "event streams", Kind::Stream),
            (Kind::Stream, 128, "streams to instances", Kind::Follower),
        ] {
            let holdings = Holdings::default();
            let take = |id, kind| holdings.take(&token(id), kind);
            let held: Vec<_> = (0..limit).map(|_| take(1, kind).unwrap()).collect();
            let problem = take(1, kind).unwrap_err();
            assert_eq!(
                (problem.status, problem.code.as_str()),
                (429, "too-many-open-requests")
            );
            assert!(problem.title.contains(called), "{problem:?}");
            assert!(take(1, other).unwrap().is_some());
            assert!(take(2, kind).unwrap().is_some());
            let local = holdings.take(&Principal::local(0), kind);
            assert!(local.unwrap().is_none());
            drop(held);
            assert!(take(1, kind).unwrap().is_some());
            assert!(holdings.counts().is_empty());
        }
    }
}
