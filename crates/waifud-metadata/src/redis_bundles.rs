//! Bundles from Redis: a guest's boot never depends on it, and waits for it at most [`ANSWER`] once.
//!
//! A background task keeps one connection. A request that finds none, or whose answer is late or wrong, goes on without
//! Redis at once: the agent then sends the bundle. After a failure the connection is not used again, and the task connects
//! anew after a pause, until Redis answers in time. So a Redis that is down, slow, empty or manipulated delays one request by
//! the limit, and the others not at all.
//!
//! What is read is verified by its digest; Redis' contents are never trusted. Credentials stay in memory.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use waifud_cloudinit::digest_of;
use waifud_kit::sync::lock;
use waifud_redis::{Connection, Connector, Limits, RedisAccess, Trouble};
use waifud_types::status::Condition;
use waifud_types::{Digest, Timestamp};

/// How long a request waits for Redis. A guest is started later by at most this much.
pub const ANSWER: Duration = Duration::from_millis(300);
/// Connecting happens in the background.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two checks of a connection that works.
const CHECK: Duration = Duration::from_secs(10);
/// The pauses between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The largest bundle that is read.
const SIZE_MAX: u64 = 8 << 20;

/// Reads bundles from Redis, if there is one; see the module documentation.
pub struct RedisBundles {
    connector: Arc<dyn Connector>,
    clock: fn() -> Timestamp,
    inner: Mutex<Inner>,
    /// The setting was changed.
    changed: Notify,
    /// The connection failed, or a bundle was wrong.
    failed: Notify,
}

#[derive(Default)]
struct Inner {
    access: Option<RedisAccess>,
    /// Counts settings, so that a connection for an earlier one is not used.
    setting: u64,
    connection: Option<Arc<dyn Connection>>,
    trouble: Option<Condition>,
    /// A bundle that was read with wrong contents, and its size.
    wrong: Option<(Digest, u64)>,
}

impl RedisBundles {
    /// Without a setting, so without Redis.
    pub fn new(connector: Arc<dyn Connector>, clock: fn() -> Timestamp) -> Self {
        Self {
            connector,
            clock,
            inner: Mutex::default(),
            changed: Notify::new(),
            failed: Notify::new(),
        }
    }

    /// Uses this Redis from now on, or none.
    pub fn configure(&self, access: Option<RedisAccess>) {
        let mut inner = self.inner();
        if inner.access == access {
            return;
        }
        let url = access.as_ref().map(|access| access.url.as_str());
        tracing::info!(url, "the Redis to read bundles from has changed");
        *inner = Inner {
            access,
            setting: inner.setting + 1,
            ..Inner::default()
        };
        drop(inner);
        self.changed.notify_one();
    }

    /// What is wrong with Redis; `None` if nothing is, as far as known.
    pub fn trouble(&self) -> Option<Condition> {
        self.inner().trouble.clone()
    }

    /// Whether there is a connection that worked when it was last used.
    pub fn is_connected(&self) -> bool {
        self.inner().connection.is_some()
    }

    /// The bundle, verified. `None` if Redis does not supply it in time.
    pub async fn bundle(&self, digest: Digest, size: u64) -> Option<Bytes> {
        let (connection, setting) = {
            let inner = self.inner();
            (inner.connection.clone()?, inner.setting)
        };
        match connection.read(&[(digest, size.min(SIZE_MAX))]).await {
            Ok(mut found) => {
                let bytes = found.pop()??;
                if digest_of(&bytes) == digest {
                    return Some(bytes);
                }
                self.found_wrong(setting, digest, size);
                self.failed.notify_one();
                None
            }
            Err(trouble) => {
                self.disconnect(setting, &trouble);
                self.failed.notify_one();
                None
            }
        }
    }

    /// Keeps a connection until `stop` is canceled.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_connected() => {}
        }
    }

    async fn keep_connected(&self) {
        let mut pause = PAUSE_MIN;
        loop {
            let (access, setting) = {
                let inner = self.inner();
                (inner.access.clone(), inner.setting)
            };
            let Some(access) = access else {
                self.changed.notified().await;
                continue;
            };
            match self.connect(&access, setting).await {
                Ok(connection) => {
                    pause = PAUSE_MIN;
                    self.watch(&connection, setting).await;
                }
                Err(trouble) => self.disconnect(setting, &trouble),
            }
            if self.inner().setting == setting {
                tokio::select! {
                    () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                    () = self.changed.notified() => pause = PAUSE_MIN,
                }
            }
        }
    }

    async fn connect(
        &self,
        access: &RedisAccess,
        setting: u64,
    ) -> Result<Arc<dyn Connection>, Trouble> {
        let limits = Limits {
            connect: CONNECT,
            answer: ANSWER,
        };
        let connection = self.connector.connect(access, limits).await?;
        self.check(&connection, setting).await?;
        let mut inner = self.inner();
        if inner.setting == setting {
            inner.connection = Some(Arc::clone(&connection));
        }
        Ok(connection)
    }

    /// Returns when the connection has failed, or the setting was changed.
    async fn watch(&self, connection: &Arc<dyn Connection>, setting: u64) {
        loop {
            let is_wrong = self.inner().wrong.is_some();
            tokio::select! {
                () = sleep(if is_wrong { PAUSE_MIN } else { CHECK }) => {}
                () = self.changed.notified() => {}
                () = self.failed.notified() => {}
            }
            {
                let inner = self.inner();
                if inner.setting != setting || inner.connection.is_none() {
                    return;
                }
            }
            if let Err(trouble) = self.check(connection, setting).await {
                self.disconnect(setting, &trouble);
                return;
            }
        }
    }

    /// Checks that Redis answers in time, and whether the wrong bundle is still there.
    async fn check(&self, connection: &Arc<dyn Connection>, setting: u64) -> Result<(), Trouble> {
        connection.ping().await?;
        let wrong = self.inner().wrong;
        let still_wrong = match wrong {
            None => false,
            Some((digest, size)) => {
                let found = connection.read(&[(digest, size.min(SIZE_MAX))]).await?;
                let found = found.into_iter().flatten().next();
                found.is_some_and(|bytes| digest_of(&bytes) != digest)
            }
        };
        let mut inner = self.inner();
        // A wrong bundle that was read in the meantime counts, too.
        if inner.setting == setting && !still_wrong && inner.wrong == wrong {
            inner.wrong = None;
            if inner.trouble.take().is_some() {
                tracing::info!("bundles can be read from Redis again");
            }
        }
        Ok(())
    }

    fn disconnect(&self, setting: u64, trouble: &Trouble) {
        let mut inner = self.inner();
        if inner.setting == setting {
            inner.connection = None;
            self.set_trouble(&mut inner, trouble.reason(), &trouble.to_string());
        }
    }

    fn found_wrong(&self, setting: u64, digest: Digest, size: u64) {
        let mut inner = self.inner();
        if inner.setting == setting {
            inner.wrong = Some((digest, size));
            let message = format!(
                "the bundle {} in Redis has other contents than its digest says",
                digest.short()
            );
            self.set_trouble(&mut inner, "wrong-contents", &message);
        }
    }

    fn set_trouble(&self, inner: &mut Inner, reason: &str, message: &str) {
        let known = inner
            .trouble
            .as_ref()
            .filter(|known| known.reason == reason);
        let since = known.map_or_else(self.clock, |known| known.since);
        if known.is_none() {
            tracing::warn!("{message}; the agent sends bundles instead");
        }
        inner.trouble = Some(Condition {
            kind: "redis".to_owned(),
            ok: false,
            reason: reason.to_owned(),
            message: format!("{message}; bundles are fetched from waifud instead"),
            since,
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}
