//! Keeps Redis' bundles the same as the database's, round by round.
//!
//! A round writes what is missing and removes what nothing uses. Between complete comparisons, waifud remembers what Redis has,
//! so that a change of one instance costs one write. The text at `PREFIX:contents` shows whether that memory is right: it is
//! another one after Redis was emptied, replaced, or started from an older dump. Then, after a new connection, and every few
//! minutes, everything is compared. Each round also reads some of the bundles, all in turn, and replaces wrong ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use waifud_redis::{Connection, Trouble};
use waifud_types::Digest;
use waifud_types::status::Condition;

use super::RedisConfig;
use super::checks::{self, LIMITS, condition};
use crate::{Control, ControlError};

/// Everything is compared at least this often.
const COMPARE_EVERY: Duration = Duration::from_mins(5);
/// The nodes' user is checked this often.
const NODES_EVERY: Duration = Duration::from_mins(1);
/// Changes of the database are collected for this long. A node needs longer before it reads a new bundle.
const COLLECT: Duration = Duration::from_millis(20);
/// How many bundles are read back in a round.
const VERIFIED: usize = 256;
/// How many bundles, and bytes of them, are processed at once.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1 << 20;

/// Why a round ended early.
enum Failure {
    Redis(Trouble),
    Database(ControlError),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Redis(trouble)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Database(error)
    }
}

/// What is remembered between rounds.
#[derive(Default)]
struct Memory {
    connection: Option<Arc<dyn Connection>>,
    /// What Redis has.
    present: BTreeSet<Digest>,
    /// The text that was last written to `PREFIX:contents`.
    contents: Option<String>,
    compared: Option<Instant>,
    /// When bundles were read back last, and the last one of them if there are more.
    verified: Option<(Instant, Option<Digest>)>,
    /// How many of them were wrong.
    wrong: usize,
    /// When the nodes' user was checked, and what is wrong with it.
    nodes: Option<(Instant, Option<Condition>)>,
}

impl Control {
    /// Keeps Redis up to date until waifud stops.
    pub(crate) async fn run_redis(&self) {
        let Some(config) = self.config().redis.clone() else {
            return;
        };
        tokio::select! {
            () = self.stop_token().cancelled() => {}
            () = self.redis_rounds(&config) => {}
        }
    }

    async fn redis_rounds(&self, config: &RedisConfig) {
        let mut commits = self.store().subscribe();
        let mut memory = Memory::default();
        loop {
            commits.mark_unchanged();
            let begun = Instant::now();
            let outcome = self.redis_round(config, &mut memory).await;
            let mut conditions: Vec<Condition> =
                checks::no_tls(config, self.now()).into_iter().collect();
            let works = match outcome {
                Ok(found) => {
                    conditions.extend(found);
                    conditions.extend(self.check_nodes_user(config, &mut memory).await);
                    true
                }
                Err(Failure::Redis(trouble)) => {
                    memory.connection = None;
                    memory.nodes = None;
                    conditions.push(checks::own_trouble(&trouble, self.now()));
                    false
                }
                Err(Failure::Database(error)) => {
                    tracing::warn!(%error, "cannot compare Redis with the database; retrying later");
                    false
                }
            };
            self.redis_monitor().set_conditions(conditions);
            if let Err(error) = self.report_redis().await {
                tracing::debug!(%error, "cannot record the state of Redis yet");
            }
            let took = begun.elapsed();
            let next = async {
                // After a failure, changes do not lead to more attempts.
                if !works || commits.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            if timeout(config.check_every, next).await.is_ok() {
                // Rounds that take long, because there are many bundles, are rarer.
                sleep(COLLECT.max(took)).await;
            }
        }
    }

    /// One round. Returns what is wrong with Redis' contents.
    async fn redis_round(
        &self,
        config: &RedisConfig,
        memory: &mut Memory,
    ) -> Result<Option<Condition>, Failure> {
        let connection = if let Some(connection) = &memory.connection {
            Arc::clone(connection)
        } else {
            let made = config.connector.connect(&config.own, LIMITS).await?;
            memory.compared = None;
            memory.connection = Some(Arc::clone(&made));
            made
        };
        let wanted = self
            .store()
            .read(|tx| Ok::<_, ControlError>(tx.bundle_sizes()?));
        let wanted = wanted.await?;
        let contents = connection.contents().await?;
        let complete = contents != memory.contents
            || memory
                .compared
                .is_none_or(|at| at.elapsed() >= COMPARE_EVERY);
        if complete {
            memory.present = connection.list().await?;
        }
        let shared = memory.contents.is_some() && self.is_of_another_waifud(contents.as_deref());
        let missing: Vec<Digest> = wanted
            .iter()
            .map(|(digest, _)| *digest)
            .filter(|digest| !memory.present.contains(digest))
            .collect();
        let names: BTreeSet<Digest> = wanted.iter().map(|(digest, _)| *digest).collect();
        let unused: Vec<Digest> = memory.present.difference(&names).copied().collect();
        self.write_bundles(&connection, &missing, memory).await?;
        if shared {
            let message = format!(
                "another waifud writes to Redis with the same prefix ({}), so nothing is removed there",
                config.own.prefix
            );
            let now = self.now();
            return Ok(Some(condition(
                "redis-contents",
                "shared-prefix",
                message,
                now,
            )));
        }
        if !unused.is_empty() {
            connection.remove(unused.clone()).await?;
            for bundle in &unused {
                memory.present.remove(bundle);
            }
        }
        if complete || !missing.is_empty() || !unused.is_empty() {
            tracing::debug!(
                written = missing.len(),
                removed = unused.len(),
                "compared Redis"
            );
        }
        if contents.is_none() || contents != memory.contents || !missing.is_empty() {
            let text = self.new_contents();
            connection.set_contents(&text).await?;
            memory.contents = Some(text);
        }
        if complete {
            memory.compared = Some(Instant::now());
        }
        self.redis_monitor()
            .set_compared(wanted.len() as u64, self.now());
        let last = memory.verified.map(|(at, _)| at);
        if last.is_none_or(|at| at.elapsed() >= config.check_every / 2) {
            memory.wrong = self.verify(&connection, &wanted, memory).await?;
        }
        let wrong = memory.wrong;
        Ok((wrong > 0).then(|| {
            let message = format!(
                "{wrong} bundles in Redis had other contents than their digests say, and were replaced: another program writes to it"
            );
            condition("redis-contents", "wrong-contents", message, self.now())
        }))
    }

    /// Writes these bundles, unless they were deleted from the database meanwhile.
    async fn write_bundles(
        &self,
        connection: &Arc<dyn Connection>,
        bundles: &[Digest],
        memory: &mut Memory,
    ) -> Result<(), Failure> {
        for names in bundles.chunks(BATCH) {
            let names = names.to_vec();
            let read = self
                .store()
                .read(move |tx| Ok::<_, ControlError>(tx.bundle_ciphertexts(&names)?));
            let mut batch = Vec::new();
            let mut size = 0;
            for (name, bytes) in read.await? {
                if size + bytes.len() > BATCH_BYTES && !batch.is_empty() {
                    connection.write(std::mem::take(&mut batch)).await?;
                    size = 0;
                }
                size += bytes.len();
                memory.present.insert(name);
                batch.push((name, bytes));
            }
            if !batch.is_empty() {
                connection.write(batch).await?;
            }
        }
        Ok(())
    }

    /// Reads some bundles back and replaces wrong ones. Returns their number.
    async fn verify(
        &self,
        connection: &Arc<dyn Connection>,
        wanted: &[(Digest, u64)],
        memory: &mut Memory,
    ) -> Result<usize, Failure> {
        let after = memory.verified.and_then(|(_, last)| last);
        let next = wanted.iter().copied();
        let mut next: Vec<(Digest, u64)> = next
            .filter(|(digest, _)| after.is_none_or(|after| *digest > after))
            .collect();
        next.sort_unstable();
        next.truncate(VERIFIED);
        // At the end, it begins again with the next round.
        let last = next.last().map(|(digest, _)| *digest);
        memory.verified = Some((Instant::now(), last.filter(|_| next.len() == VERIFIED)));
        let mut wrong = Vec::new();
        for (wanted, found) in next.iter().zip(connection.read(&next).await?) {
            match found {
                Some(bytes) if Digest::of(&bytes) == wanted.0 => {}
                Some(_) => wrong.push(wanted.0),
                // Something else removed it: the next round compares everything.
                None => memory.compared = None,
            }
        }
        self.write_bundles(connection, &wrong, memory).await?;
        Ok(wrong.len())
    }

    async fn check_nodes_user(
        &self,
        config: &RedisConfig,
        memory: &mut Memory,
    ) -> Option<Condition> {
        let known = memory.nodes.as_ref();
        // What is wrong may have been repaired.
        let known = known.filter(|(at, bad)| bad.is_none() && at.elapsed() < NODES_EVERY);
        if known.is_none() {
            let found = checks::nodes_user(config, self.now()).await;
            memory.nodes = Some((Instant::now(), found));
        }
        memory.nodes.as_ref().and_then(|(_, found)| found.clone())
    }

    /// Whether waifud with another database has written this text.
    fn is_of_another_waifud(&self, contents: Option<&str>) -> bool {
        let own = self.store().incarnation().to_string();
        let writer = contents.and_then(|text| text.split_once('.'));
        writer.is_some_and(|(writer, _)| writer != own)
    }

    fn new_contents(&self) -> String {
        let mut random = [0; 8];
        self.entropy().fill(&mut random);
        let number = u64::from_le_bytes(random);
        format!("{}.{number:x}", self.store().incarnation())
    }
}
