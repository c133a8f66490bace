//! The client against a real `redis-server` with TLS and users.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use waifud_redis::testing::{READER, RealRedis, SlowRelay, WRITER};
use waifud_redis::{Connection, Connector, Limits, Redis, RedisAccess, Trouble};
use waifud_types::{Digest, Secret};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(30),
    answer: Duration::from_secs(30),
};
const HURRY: Limits = Limits {
    connect: Duration::from_millis(200),
    answer: Duration::from_millis(200),
};

async fn connect(access: &RedisAccess) -> Arc<dyn Connection> {
    Redis.connect(access, LIMITS).await.unwrap()
}

/// The trouble with an access. Nothing that it shows contains a password.
async fn trouble(access: &RedisAccess, limits: Limits) -> Trouble {
    let trouble = match Redis.connect(access, limits).await {
        Ok(connection) => connection.ping().await.unwrap_err(),
        Err(trouble) => trouble,
    };
    let shown = format!("{trouble} {trouble:?} {access:?}");
    for secret in ["password-of", "hunter2"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    trouble
}

fn bundle(text: &str) -> (Digest, Vec<u8>) {
    (Digest::of(text.as_bytes()), text.as_bytes().to_vec())
}

#[tokio::test]
async fn the_writer_writes_lists_and_removes_and_the_reader_only_reads() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (writer, reader) = (
        connect(&redis.writer()).await,
        connect(&redis.reader()).await,
    );
    writer.ping().await.unwrap();
    reader.ping().await.unwrap();
    let (a, b) = (bundle("a"), bundle("bundle b"));
    writer.write(vec![a.clone(), b.clone()]).await.unwrap();
    redis.admin(&["SET", "waifud:bundle:foreign", "x"]);
    redis.admin(&["SET", "other:bundle:foreign", "x"]);
    assert_eq!(writer.list().await.unwrap(), BTreeSet::from([a.0, b.0]));
    let missing = Digest::of(b"missing");
    // The size limits what is read: one byte more than it.
    let read = reader.read(&[(a.0, 1), (missing, 5), (b.0, 2)]).await;
    let read: Vec<Option<Vec<u8>>> = read
        .unwrap()
        .into_iter()
        .map(|b| b.map(Into::into))
        .collect();
    assert_eq!(read, [Some(b"a".to_vec()), None, Some(b"bun".to_vec())]);

    assert_eq!(writer.contents().await.unwrap(), None);
    writer.set_contents("ab.1").await.unwrap();
    assert_eq!(writer.contents().await.unwrap().as_deref(), Some("ab.1"));
    assert!(writer.may_write().await.unwrap());
    assert!(!reader.may_write().await.unwrap());
    let denied = reader.write(vec![a.clone()]).await.unwrap_err();
    assert_eq!(denied.reason(), "denied");
    assert!(denied.to_string().contains(READER), "{denied}");

    writer.remove(vec![a.0, missing]).await.unwrap();
    assert_eq!(writer.list().await.unwrap(), BTreeSet::from([b.0]));
}

#[tokio::test]
async fn more_bundles_than_one_request_takes_are_all_processed() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let writer = connect(&redis.writer()).await;
    let bundles: Vec<_> = (0..2500).map(|n| bundle(&format!("bundle {n}"))).collect();
    let names: Vec<Digest> = bundles.iter().map(|(name, _)| *name).collect();
    writer.write(bundles.clone()).await.unwrap();
    assert_eq!(writer.list().await.unwrap().len(), names.len());
    let wanted: Vec<_> = bundles.iter().map(|(n, b)| (*n, b.len() as u64)).collect();
    let read = writer.read(&wanted).await.unwrap();
    let same = read
        .iter()
        .zip(&bundles)
        .all(|(read, (_, bytes))| read.as_deref() == Some(bytes));
    assert!(same);
    writer.remove(names).await.unwrap();
    assert!(writer.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn each_trouble_has_its_reason_and_shows_no_password() {
    let Some(mut redis) = RealRedis::start_or_skip() else {
        return;
    };
    let good = redis.writer();
    let with = |change: fn(&mut RedisAccess)| {
        let mut access = good.clone();
        change(&mut access);
        access
    };
    let wrong = with(|a| a.password = Some(Secret::new("hunter2".to_owned())));
    let none = with(|a| a.password = None);
    let anonymous = with(|a| (a.username, a.password) = (None, None));
    let plain = with(|a| a.url = a.url.replace("rediss:", "redis:"));
    let no_ca = with(|a| a.ca = None);
    let other = waifud_pki::Authority::generate().unwrap().to_pem();
    let mut other_ca = good.clone();
    other_ca.ca = Some(other);
    let reasons = [
        (wrong, "wrong-credentials"),
        (none, "wrong-credentials"),
        (anonymous, "wrong-credentials"),
        (no_ca, "invalid-setting"),
        (other_ca, "tls-failed"),
    ];
    for (access, reason) in reasons {
        let trouble = trouble(&access, LIMITS).await;
        assert_eq!(trouble.reason(), reason, "{trouble}");
    }
    // A server with TLS closes such a connection, or does not answer.
    let plain = trouble(&plain, HURRY).await;
    assert!(["unreachable", "slow"].contains(&plain.reason()), "{plain}");

    let writer = connect(&good).await;
    redis.admin(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = writer.write(vec![bundle("a")]).await.unwrap_err();
    assert_eq!(full.reason(), "full", "{full}");
    assert!(writer.may_write().await.unwrap());
    redis.admin(&["CONFIG", "SET", "maxmemory", "0"]);
    redis.admin(&["ACL", "SETUSER", WRITER, "-scan"]);
    let denied = writer.list().await.unwrap_err();
    assert_eq!(denied.reason(), "denied", "{denied}");

    redis.kill();
    assert_eq!(writer.ping().await.unwrap_err().reason(), "unreachable");
    assert_eq!(trouble(&good, LIMITS).await.reason(), "unreachable");
    redis.start_again();
    connect(&good).await.ping().await.unwrap();
}

#[tokio::test]
async fn a_slow_server_costs_no_more_than_the_limit() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let relay = SlowRelay::start(redis.port()).await;
    let access = redis.access(relay.port(), READER, waifud_redis::testing::READER_PASSWORD);
    let limits = Limits {
        answer: HURRY.answer,
        ..LIMITS
    };
    let reader = Redis.connect(&access, limits).await.unwrap();
    relay.set_slow(true);
    let slow = reader.read(&[bundle("a")].map(|(name, _)| (name, 1))).await;
    assert_eq!(slow.unwrap_err().reason(), "slow");
    assert_eq!(relay.held(), 1, "the answer is still on its way");
    assert_eq!(trouble(&access, HURRY).await.reason(), "slow");
}
