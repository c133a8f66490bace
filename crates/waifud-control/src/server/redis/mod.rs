//! Redis as a cache of bundles: waifud writes them in the background, nodes read them with a user of their own.
//!
//! ```text
//!  bundles in the database ──► rounds.rs: compare, write, remove, verify ──► Redis ──► nodes
//!                                   │                                          ▲
//!                                   ▼                                          └── checks.rs: what may the nodes' user do?
//!                              conditions ──► events, `GET /v1/server`
//! ```
//!
//! No request waits for Redis, and nothing depends on it: a node that does not find a bundle there gets it through its watch
//! connection. What is wrong is a condition.

mod checks;
mod rounds;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use waifud_api::RedisState;
use waifud_api::agent::RedisAccess;
use waifud_kit::sync::lock;
use waifud_redis::Connector;
use waifud_store::StoreError;
use waifud_types::event::Cause;
use waifud_types::status::Condition;
use waifud_types::{Digest, Timestamp};

use crate::events::condition_changes;
use crate::events::event_builder::{self, EventExt};
use crate::{Control, ControlError};

/// The Redis that caches bundles.
#[derive(Clone)]
pub struct RedisConfig {
    /// Connects to it.
    pub connector: Arc<dyn Connector>,
    /// The access of waifud, which writes.
    pub own: RedisAccess,
    /// The access of nodes, which only read.
    pub nodes: RedisAccess,
    /// The longest time between two comparisons.
    pub check_every: Duration,
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("own", &self.own)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// What is known about Redis.
#[derive(Debug, Default)]
pub(crate) struct RedisMonitor(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    compared_at: Option<Timestamp>,
    bundles: u64,
    conditions: Vec<Condition>,
    /// The conditions that have events.
    reported: Vec<Condition>,
}

impl RedisMonitor {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.0)
    }

    /// Replaces the conditions. Those that last keep their beginning.
    fn set_conditions(&self, mut conditions: Vec<Condition>) {
        let mut seen = self.seen();
        for condition in &mut conditions {
            let mut former = seen.conditions.iter();
            let same =
                |old: &&Condition| (&old.kind, &old.reason) == (&condition.kind, &condition.reason);
            if let Some(former) = former.find(same) {
                condition.since = former.since;
            }
        }
        seen.conditions = conditions;
    }

    fn set_compared(&self, bundles: u64, now: Timestamp) {
        let mut seen = self.seen();
        seen.bundles = bundles;
        seen.compared_at = Some(now);
    }
}

impl Control {
    /// The state of Redis, if there is one.
    pub(super) fn redis_state(&self) -> Option<RedisState> {
        let config = self.config().redis.as_ref()?;
        let seen = self.redis_monitor().seen();
        Some(RedisState {
            url: config.own.url.clone(),
            compared_at: seen.compared_at,
            bundles: seen.bundles,
            conditions: seen.conditions.clone(),
        })
    }

    /// The access that nodes get.
    pub(crate) fn redis_of_nodes(&self) -> Option<RedisAccess> {
        let config = self.config().redis.as_ref()?;
        Some(config.nodes.clone())
    }

    /// Sends the nodes the access again if it was changed since waifud ran before.
    pub async fn announce_redis(&self) -> Result<(), ControlError> {
        let access = self.redis_of_nodes();
        // The database has its digest only, not the password.
        let mark = match &access {
            None => String::new(),
            Some(access) => {
                let text = serde_json::to_vec(access);
                let text = text.map_err(|_| {
                    ControlError::Inconsistent("Redis' access is not JSON".to_owned())
                })?;
                Digest::of(&text).hex()
            }
        };
        let message = access.map_or_else(
            || "nodes do not use Redis any more".to_owned(),
            |access| format!("nodes read bundles from Redis at {}", access.url),
        );
        let (now, incarnation) = (self.now(), self.store().incarnation());
        self.store()
            .write(move |tx| {
                if tx.redis_mark()? == mark {
                    return Ok::<_, StoreError>(());
                }
                let object = event_builder::waifud(incarnation);
                let cause = Cause::system();
                let event = event_builder::event(now, "waifud.redis", object, &cause, message);
                let revision = tx.emit(&event)?;
                tx.set_redis_mark(&mark, revision)
            })
            .await?;
        Ok(())
    }

    /// Writes an event for each condition that began or ended.
    async fn report_redis(&self) -> Result<(), ControlError> {
        let (before, conditions) = {
            let seen = self.redis_monitor().seen();
            (seen.reported.clone(), seen.conditions.clone())
        };
        let changes = condition_changes(&before, &conditions);
        if changes.is_empty() {
            return Ok(());
        }
        for (reason, message) in &changes {
            tracing::warn!(reason, "{message}");
        }
        let (now, incarnation) = (self.now(), self.store().incarnation());
        self.store()
            .write(move |tx| {
                for (reason, message) in changes {
                    let object = event_builder::waifud(incarnation);
                    let cause = Cause::system();
                    let event =
                        event_builder::event(now, "waifud.condition", object, &cause, message);
                    tx.emit(&event.reason(reason))?;
                }
                Ok::<_, StoreError>(())
            })
            .await?;
        self.redis_monitor().seen().reported = conditions;
        Ok(())
    }
}
