//! Conditions that follow from the settings and the permissions in Redis.

use std::time::Duration;

use waifud_redis::{Endpoint, Limits, Trouble};
use waifud_types::Timestamp;
use waifud_types::status::Condition;

use super::RedisConfig;

/// Generous limits of what happens in the background. A Redis that is slower is reported.
pub(super) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    answer: Duration::from_secs(3),
};

pub(super) fn condition(kind: &str, reason: &str, message: String, now: Timestamp) -> Condition {
    Condition {
        kind: kind.to_owned(),
        ok: false,
        reason: reason.to_owned(),
        message,
        since: now,
    }
}

/// waifud itself cannot use Redis.
pub(super) fn own_trouble(trouble: &Trouble, now: Timestamp) -> Condition {
    condition("redis", trouble.reason(), trouble.to_string(), now)
}

/// The connection is not encrypted although it leaves the machine.
pub(super) fn no_tls(config: &RedisConfig, now: Timestamp) -> Option<Condition> {
    let endpoint: Endpoint = config.own.url.parse().ok()?;
    (!endpoint.tls && !endpoint.is_loopback()).then(|| {
        let message = format!(
            "the connection to Redis at {endpoint} is not encrypted: others on the network can read the passwords"
        );
        condition("redis-tls", "no-tls", message, now)
    })
}

/// What is wrong with the nodes' user, as far as this machine can tell. A Redis that waifud itself cannot reach says nothing
/// about it.
pub(super) async fn nodes_user(config: &RedisConfig, now: Timestamp) -> Option<Condition> {
    let user = config.nodes.username.as_deref().unwrap_or("default");
    let may_write = async {
        let connection = config.connector.connect(&config.nodes, LIMITS).await?;
        // Which bundle it reads does not matter.
        connection
            .read(&[(waifud_types::Digest::from_bytes([0; 32]), 1)])
            .await?;
        connection.may_write().await
    };
    match may_write.await {
        Ok(false) => None,
        Ok(true) => {
            let message = format!(
                "Redis lets the user of the nodes ({user}) write: a node could fill it or remove bundles"
            );
            Some(condition("redis-nodes", "writable", message, now))
        }
        Err(trouble) => {
            let message = format!("nodes cannot read from Redis: {trouble}");
            Some(condition("redis-nodes", trouble.reason(), message, now))
        }
    }
}
