//! Bundles from a real Redis, and every way in which it can fail: what the guest reads never changes, the bundle comes from the
//! agent instead, and the status says why.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use waifud_api::metadatad::RedisSetting;
use waifud_metadata::{
    BundleStore, ControlError, FakeStore, MetadataService, Parts, RedisBundles, serve_guests,
    system_clock,
};
use waifud_redis::testing::{READER, READER_PASSWORD, RealRedis, SlowRelay, WRITER};
use waifud_redis::{Connection, Connector, Limits, Redis, RedisAccess, Trouble};
use waifud_types::Secret;
use waifud_wireguard::fake::{FakeDialer, listener};

use crate::fixture::{A, B, Guest, parts, status};

const PATIENCE: Duration = Duration::from_mins(1);

/// Where the bundle of a started guest came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Redis,
    Agent,
}

/// A metadata service with its task for Redis, and its agent.
struct Node {
    service: Arc<MetadataService>,
    redis: Arc<RedisBundles>,
    store: FakeStore,
    guests: FakeDialer,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    async fn new(connector: Arc<dyn Connector>) -> Self {
        let store = FakeStore::default();
        let redis = Arc::new(RedisBundles::new(connector, system_clock));
        let stop = CancellationToken::new();
        let service = MetadataService::start(Parts {
            redis: Arc::clone(&redis),
            ..parts(store.clone(), store.clone())
        });
        let service = service.await.unwrap();
        let (guests, listener) = listener();
        tokio::spawn(serve_guests(listener, Arc::clone(&service), stop.clone()));
        let running = Arc::clone(&redis);
        let task = tokio::spawn(async move { running.run(stop).await });
        Self {
            service,
            redis,
            store,
            guests,
            task,
        }
    }

    /// With this access, once Redis is connected.
    async fn connected(access: RedisAccess) -> Self {
        let node = Self::new(Arc::new(Redis)).await;
        node.configure(access);
        node.until("a connection", |node| node.redis.is_connected())
            .await;
        node
    }

    fn configure(&self, access: RedisAccess) {
        self.service.put_redis(RedisSetting {
            access: Some(access),
        });
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "waited for {what}: {:?}",
                self.redis.trouble()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The reason of the trouble in the status, which shows no password.
    async fn reason(&self) -> Option<String> {
        let status = self.service.status().await;
        let shown = format!("{status:?} {}", serde_json::to_string(&status).unwrap());
        assert!(
            !shown.contains("password-of") && !shown.contains("hunter2"),
            "{shown}"
        );
        status.redis.map(|condition| condition.reason)
    }

    async fn until_reason(&self, reason: Option<&str>) {
        let is = |node: &Self| node.redis.trouble().map(|c| c.reason).as_deref() == reason;
        self.until(&format!("{reason:?}"), is).await;
        assert_eq!(self.reason().await.as_deref(), reason);
    }

    /// Starts a guest as the agent does, and checks what it reads.
    async fn boot(&self, guest: &Guest) -> From {
        let assign = || {
            self.service
                .put_instance(guest.id, guest.assignment.clone())
        };
        let from = match assign().await {
            Ok(()) => From::Redis,
            Err(ControlError::BundleMissing { .. }) => {
                let bytes = guest.sealed.ciphertext.clone().into();
                let put = self.service.put_bundle(guest.sealed.digest, bytes);
                put.await.unwrap();
                assign().await.unwrap();
                From::Agent
            }
            Err(error) => panic!("{error}"),
        };
        let read = self.read(guest.assignment.address).await;
        assert!(read.contains(&guest.secret()), "{read}");
        from
    }

    async fn read(&self, from: Ipv4Addr) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let from = SocketAddrV4::new(from, 40_000);
        let mut stream = self.guests.connect(from).unwrap();
        let request = "GET /openstack/latest/user_data HTTP/1.1\r\nConnection: close\r\n\
                       Host: 169.254.169.254\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
        answer
    }
}

/// Writes the guests' bundles, as waifud does.
async fn publish(redis: &RealRedis, guests: &[&Guest]) {
    let limits = Limits {
        connect: PATIENCE,
        answer: PATIENCE,
    };
    let writer = Redis.connect(&redis.writer(), limits).await.unwrap();
    let bundle = |guest: &&Guest| (guest.sealed.digest, guest.sealed.ciphertext.clone());
    writer
        .write(guests.iter().map(bundle).collect())
        .await
        .unwrap();
}

fn two() -> (Guest, Guest) {
    (Guest::new("a", A), Guest::new("b", B))
}

#[tokio::test]
async fn a_bundle_is_read_from_redis_and_kept_on_disk() {
    let Some(mut redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    publish(&redis, &[&a, &b]).await;
    let node = Node::connected(redis.reader()).await;
    assert_eq!(node.boot(&a).await, From::Redis);
    let held = node.service.bundle(a.sealed.digest).await.unwrap();
    assert_eq!(held.as_deref(), Some(a.sealed.ciphertext.as_slice()));
    assert_eq!(node.store.bundles().await.unwrap(), [a.sealed.digest]);
    assert!(node.service.status().await.unused_bundles.is_empty());
    // What is on disk is served without Redis, and Redis can be taken away.
    redis.kill();
    assert!(node.read(A).await.contains(&a.secret()));
    node.service.put_redis(RedisSetting::default());
    assert_eq!(node.boot(&b).await, From::Agent);
    node.until_reason(None).await;
}

#[tokio::test]
async fn an_emptied_redis_and_one_with_an_old_dump_only_lack_bundles() {
    let Some(mut redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    publish(&redis, &[&a]).await;
    redis.dump();
    publish(&redis, &[&b]).await;
    redis.kill();
    redis.start_again();
    let node = Node::connected(redis.reader()).await;
    assert_eq!(node.boot(&b).await, From::Agent);
    redis.admin(&["FLUSHALL"]);
    assert_eq!(node.boot(&a).await, From::Agent);
    // waifud reports this, and refills Redis.
    assert_eq!(node.reason().await, None);
}

#[tokio::test]
async fn a_killed_redis_is_reported_and_used_again_once_it_is_back() {
    let Some(mut redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    let node = Node::connected(redis.reader()).await;
    redis.kill();
    assert_eq!(node.boot(&a).await, From::Agent);
    node.until_reason(Some("unreachable")).await;
    redis.start_again();
    publish(&redis, &[&b]).await;
    node.until_reason(None).await;
    assert_eq!(node.boot(&b).await, From::Redis);
}

#[tokio::test]
async fn a_guest_is_started_while_the_answer_of_a_slow_redis_is_outstanding() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    publish(&redis, &[&a, &b]).await;
    let relay = SlowRelay::start(redis.port()).await;
    let node = Node::connected(redis.access(relay.port(), READER, READER_PASSWORD)).await;
    relay.set_slow(true);
    assert_eq!(node.boot(&a).await, From::Agent);
    assert!(relay.held() > 0, "the guest did not wait for this answer");
    node.until_reason(Some("slow")).await;
    relay.set_slow(false);
    node.until_reason(None).await;
    assert_eq!(node.boot(&b).await, From::Redis);
}

#[tokio::test]
async fn a_wrong_password_is_reported() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    publish(&redis, &[&a, &b]).await;
    let node = Node::new(Arc::new(Redis)).await;
    node.configure(redis.access(redis.port(), READER, "hunter2"));
    node.until_reason(Some("wrong-credentials")).await;
    assert_eq!(node.boot(&a).await, From::Agent);
    // The administrator corrects the setting.
    node.configure(redis.reader());
    node.until("a connection", |node| node.redis.is_connected())
        .await;
    node.until_reason(None).await;
    assert_eq!(node.boot(&b).await, From::Redis);
}

#[tokio::test]
async fn a_swapped_bundle_is_never_served_and_is_reported_until_it_is_repaired() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    let node = Node::connected(redis.reader()).await;
    // The complete bundle of another guest, and one that only begins like the right one.
    let swapped: [(&Guest, Vec<u8>); 2] = [
        (&a, b.sealed.ciphertext.clone()),
        (&b, [&b.sealed.ciphertext[..], b"more"].concat()),
    ];
    for (guest, bytes) in swapped {
        let limits = Limits {
            connect: PATIENCE,
            answer: PATIENCE,
        };
        let writer = Redis.connect(&redis.writer(), limits).await.unwrap();
        let wrong = vec![(guest.sealed.digest, bytes)];
        writer.write(wrong).await.unwrap();
        assert_eq!(node.boot(guest).await, From::Agent, "{}", guest.name);
        assert_eq!(node.reason().await.as_deref(), Some("wrong-contents"));
    }
    publish(&redis, &[&a, &b]).await;
    node.until_reason(None).await;
}

#[tokio::test]
async fn a_user_without_permission_is_reported() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let (a, b) = two();
    publish(&redis, &[&a, &b]).await;
    let node = Node::connected(redis.reader()).await;
    redis.admin(&["ACL", "SETUSER", READER, "-getrange"]);
    assert_eq!(node.boot(&a).await, From::Agent);
    node.until_reason(Some("denied")).await;
    assert_ne!(READER, WRITER);
}

/// Connects at once, and never answers a request for bundles in time.
#[derive(Default)]
struct NeverInTime {
    reads: Arc<AtomicUsize>,
    limit: Duration,
}

#[async_trait::async_trait]
impl Connector for NeverInTime {
    async fn connect(
        &self,
        _access: &RedisAccess,
        limits: Limits,
    ) -> Result<Arc<dyn Connection>, Trouble> {
        Ok(Arc::new(Self {
            reads: Arc::clone(&self.reads),
            limit: limits.answer,
        }))
    }
}

#[async_trait::async_trait]
impl Connection for NeverInTime {
    async fn ping(&self) -> Result<(), Trouble> {
        Ok(())
    }

    async fn read(
        &self,
        _wanted: &[(waifud_types::Digest, u64)],
    ) -> Result<Vec<Option<bytes::Bytes>>, Trouble> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        sleep(self.limit).await;
        Err(Trouble::Slow {
            address: "redis:6379".to_owned(),
            after: self.limit,
        })
    }

    async fn list(&self) -> Result<std::collections::BTreeSet<waifud_types::Digest>, Trouble> {
        unreachable!("only waifud lists")
    }

    async fn write(&self, _: Vec<(waifud_types::Digest, Vec<u8>)>) -> Result<(), Trouble> {
        unreachable!("only waifud writes")
    }

    async fn remove(&self, _: Vec<waifud_types::Digest>) -> Result<(), Trouble> {
        unreachable!("only waifud removes")
    }

    async fn contents(&self) -> Result<Option<String>, Trouble> {
        unreachable!("only waifud compares")
    }

    async fn set_contents(&self, _: &str) -> Result<(), Trouble> {
        unreachable!("only waifud writes")
    }

    async fn may_write(&self) -> Result<bool, Trouble> {
        unreachable!("only waifud checks")
    }
}

/// On simulated time, which only passes while everything waits.
#[tokio::test(start_paused = true)]
async fn one_boot_waits_for_a_late_answer_and_the_others_do_not() {
    let connector = Arc::new(NeverInTime::default());
    let reads = Arc::clone(&connector.reads);
    let node = Node::new(connector).await;
    node.configure(RedisAccess {
        url: "redis://127.0.0.1:6379".to_owned(),
        ca: None,
        username: None,
        password: Some(Secret::new("hunter2".to_owned())),
        prefix: "waifud".to_owned(),
    });
    node.until("a connection", |node| node.redis.is_connected())
        .await;
    let begun = Instant::now();
    for number in 1..=20 {
        let guest = Guest::new(&format!("g{number}"), [10, 144, 3, 100 + number].into());
        let assigned = node
            .service
            .put_instance(guest.id, guest.assignment.clone());
        assert!(matches!(
            assigned.await,
            Err(ControlError::BundleMissing { .. })
        ));
    }
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(node.reason().await.as_deref(), Some("slow"));
}
