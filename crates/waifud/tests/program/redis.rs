//! waifud with a real Redis, and every way in which it can fail: requests are acknowledged regardless, nodes get bundles from
//! waifud, what is wrong is a condition, and Redis is filled again as soon as it works.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use waifud_agent::interfaces::{ControlLink, FrameStream, HttpLink};
use waifud_api::agent::{
    AgentReport, NodeSlice, RedisAccess, SliceObject, Tombstone, WatchFrame, WatchStart,
};
use waifud_api::client::EventQuery;
use waifud_api::{CreateInstance, RedisState};
use waifud_redis::testing::{
    READER, READER_PASSWORD, RealRedis, SlowRelay, WRITER, WRITER_PASSWORD,
};
use waifud_types::node::Resources;
use waifud_types::{ByteSize, Digest, Secret};

use crate::joining::{hello, join_ready, name};
use crate::kit::{DEADLINE, Waifud, upload_template};

/// What the section `[redis]` has.
struct Setting {
    port: u16,
    password: &'static str,
    node_user: &'static str,
    node_password: &'static str,
}

impl Setting {
    fn of(redis: &RealRedis) -> Self {
        Self {
            port: redis.port(),
            password: WRITER_PASSWORD,
            node_user: READER,
            node_password: READER_PASSWORD,
        }
    }

    /// As text, with the passwords in this directory.
    fn text(&self, redis: &RealRedis, dir: &std::path::Path) -> String {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        format!(
            "[redis]\nurl = 'rediss://127.0.0.1:{}'\nca_file = '{}'\nusername = '{WRITER}'\npassword_file = '{}'\n\
             node_username = '{}'\nnode_password_file = '{}'\ncheck_every = '200ms'\n",
            self.port,
            redis.ca_file().display(),
            file("writer", self.password),
            self.node_user,
            file("reader", self.node_password),
        )
    }
}

/// waifud with a node that has joined and that only listens.
struct Cluster {
    waifud: Waifud,
    link: HttpLink,
    created: usize,
    _dirs: [tempfile::TempDir; 2],
}

impl Cluster {
    async fn start(redis: &RealRedis, setting: &Setting) -> Self {
        let passwords = tempfile::tempdir().unwrap();
        let waifud = Waifud::start_with(&setting.text(redis, passwords.path()));
        let home = tempfile::tempdir().unwrap();
        let capacity = Resources {
            cpus: 64,
            memory_bytes: ByteSize::gib(64),
        };
        let link = join_ready(&waifud, name(), home.path(), capacity).await;
        upload_template(waifud.dir.path(), &waifud.client()).await;
        Self {
            waifud,
            link,
            created: 0,
            _dirs: [passwords, home],
        }
    }

    /// Creates an instance, which is acknowledged, and returns what its node reads from waifud: the bundle, verified.
    async fn create(&mut self) -> Digest {
        self.created += 1;
        let name = format!("i{}", self.created);
        let body =
            format!(r#"{{"name": "{name}", "template": "debian-12", "memory_bytes": 134217728}}"#);
        let request: CreateInstance = serde_json::from_str(&body).unwrap();
        let client = self.waifud.client();
        client.create_instance(&request, &name).await.unwrap();
        let bundle = self
            .slice()
            .await
            .1
            .into_iter()
            .find(|(of, ..)| *of == name);
        let (_, bundle, _) = bundle.unwrap();
        let bytes = self.link.fetch_bundle(bundle).await.unwrap();
        assert_eq!(Digest::of(&bytes), bundle);
        bundle
    }

    /// What the node has: its configuration, and each instance's name and bundle.
    async fn slice(&self) -> (NodeSlice, Vec<(String, Digest, waifud_types::InstanceId)>) {
        let mut frames = self.link.watch(WatchStart::default()).await.unwrap();
        let (mut slice, mut instances) = (None, Vec::new());
        loop {
            match frames.next().await.unwrap().unwrap() {
                WatchFrame::Sync { .. } => return (slice.unwrap(), instances),
                WatchFrame::Put { object, .. } => match object {
                    SliceObject::Node(node) => slice = Some(node),
                    SliceObject::Instance(it) => {
                        instances.push((it.name.to_string(), it.bundle.digest, it.id));
                    }
                    SliceObject::Peer(_) | SliceObject::Incoming(_) => {}
                },
                _ => {}
            }
        }
    }

    async fn redis(&self) -> RedisState {
        let server = self.waifud.client().server().await.unwrap().unwrap();
        server.redis.unwrap()
    }

    /// Waits until exactly this is wrong, as kind and reason.
    async fn until(&self, wanted: &[(&str, &str)]) {
        let begun = Instant::now();
        loop {
            let state = self.redis().await;
            let conditions = state.conditions.iter();
            let found: Vec<_> = conditions
                .map(|c| (c.kind.as_str(), c.reason.as_str()))
                .collect();
            if found == wanted && (state.compared_at.is_some() || !wanted.is_empty()) {
                return;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "waiting for {wanted:?}: {state:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until Redis has exactly these bundles.
    async fn until_in(&self, redis: &RealRedis, bundles: &[Digest]) {
        let begun = Instant::now();
        let wanted: BTreeSet<Digest> = bundles.iter().copied().collect();
        loop {
            let found: BTreeSet<Digest> = redis.bundles().into_iter().collect();
            if found == wanted {
                return;
            }
            let state = self.redis().await;
            assert!(
                begun.elapsed() < DEADLINE,
                "{found:?} instead of {wanted:?}: {state:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The reasons of the events about conditions, in order.
    async fn reasons(&self) -> Vec<String> {
        let events = self.waifud.client().events(&EventQuery::default()).await;
        let events = events.unwrap().items.into_iter();
        let of_it = events.filter(|event| event.kind == "waifud.condition");
        of_it.map(|event| event.reason.unwrap()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_are_written_and_those_of_deleted_instances_are_removed() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let mut cluster = Cluster::start(&redis, &Setting::of(&redis)).await;
    let (a, b) = (cluster.create().await, cluster.create().await);
    cluster.until_in(&redis, &[a, b]).await;
    cluster.until(&[]).await;
    assert_eq!(cluster.redis().await.bundles, 2);
    // The node gets the user that only reads.
    let access = cluster.slice().await.0.redis;
    assert_eq!(access, Some(redis.reader()));

    let (_, _, id) = cluster.slice().await.1.swap_remove(0);
    let client = cluster.waifud.client();
    let deleted = client
        .delete_instance(&id.to_string(), Duration::ZERO)
        .await;
    deleted.unwrap();
    let destroyed = AgentReport {
        destroyed: vec![Tombstone {
            instance: id,
            name: "i1".parse().unwrap(),
            epoch: waifud_types::Epoch::FIRST,
        }],
        ..serde_json::from_str(
            r#"{"facts":null,"now":null,"instances":[],"destroyed":[],"unmanaged":null}"#,
        )
        .unwrap()
    };
    cluster.link.report(&destroyed).await.unwrap();
    let left = redis_without(&[a, b], cluster.slice().await.1[0].1);
    cluster.until_in(&redis, &left).await;
    let log = cluster.waifud.kill();
    assert!(!log.contains("password-of"), "{log}");
}

/// Those bundles that are the node's.
fn redis_without(all: &[Digest], left: Digest) -> Vec<Digest> {
    all.iter()
        .copied()
        .filter(|bundle| *bundle == left)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_emptied_or_killed_or_has_an_old_dump_is_filled_again() {
    let Some(mut redis) = RealRedis::start_or_skip() else {
        return;
    };
    let mut cluster = Cluster::start(&redis, &Setting::of(&redis)).await;
    let first = cluster.create().await;
    cluster.until_in(&redis, &[first]).await;
    redis.overwrite(Digest::of(b"of an instance that is gone"), "x");
    redis.dump();
    let second = cluster.create().await;
    redis.admin(&["FLUSHALL"]);
    cluster.until_in(&redis, &[first, second]).await;
    redis.kill();
    cluster.until(&[("redis", "unreachable")]).await;
    let third = cluster.create().await;
    // The dump lacks two bundles, and has one that nothing uses.
    redis.start_again();
    cluster.until_in(&redis, &[first, second, third]).await;
    cluster.until(&[]).await;
    assert_eq!(cluster.reasons().await, ["unreachable", "ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_reported_and_gets_the_rest_once_there_is_room() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    redis.admin(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.admin(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut cluster = Cluster::start(&redis, &Setting::of(&redis)).await;
    let (a, b) = (cluster.create().await, cluster.create().await);
    cluster.until(&[("redis", "full")]).await;
    redis.admin(&["CONFIG", "SET", "maxmemory", "0"]);
    cluster.until_in(&redis, &[a, b]).await;
    cluster.until(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_created_while_the_answer_of_a_slow_redis_is_outstanding() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let relay = SlowRelay::start(redis.port()).await;
    let setting = Setting {
        port: relay.port(),
        ..Setting::of(&redis)
    };
    let mut cluster = Cluster::start(&redis, &setting).await;
    cluster.until(&[]).await;
    relay.set_slow(true);
    cluster.until(&[("redis", "slow")]).await;
    let begun = Instant::now();
    let mut a = cluster.create().await;
    while relay.held() == 0 {
        // Between two attempts of waifud.
        assert!(begun.elapsed() < DEADLINE, "waifud does not try again");
        a = cluster.create().await;
    }
    relay.set_slow(false);
    cluster.until(&[]).await;
    assert!(redis.bundles().contains(&a));
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_another_writer_swaps_are_replaced_and_reported() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let mut cluster = Cluster::start(&redis, &Setting::of(&redis)).await;
    let (a, b) = (cluster.create().await, cluster.create().await);
    cluster.until_in(&redis, &[a, b]).await;
    for wrong in ["x", &"x".repeat(100_000)] {
        redis.overwrite(a, wrong);
        let key = format!("waifud:bundle:{}", a.hex());
        let begun = Instant::now();
        while redis.admin(&["STRLEN", &key]) == wrong.len().to_string() {
            assert!(
                begun.elapsed() < DEADLINE,
                "the wrong bundle is not replaced"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.until(&[]).await;
    assert!(
        cluster
            .reasons()
            .await
            .contains(&"wrong-contents".to_owned())
    );

    // Another waifud with the same prefix: nothing of it is removed, and own bundles are still written.
    redis.overwrite(Digest::of(b"of the other waifud"), "y");
    redis.admin(&["SET", "waifud:contents", "deadbeef.1"]);
    cluster.until(&[("redis-contents", "shared-prefix")]).await;
    let c = cluster.create().await;
    let all = [a, b, c, Digest::of(b"of the other waifud")];
    cluster.until_in(&redis, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_permissions_are_reported() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let own = Setting {
        password: "hunter2",
        ..Setting::of(&redis)
    };
    let nodes = Setting {
        node_password: "hunter2",
        ..Setting::of(&redis)
    };
    let writable = Setting::of(&redis);
    for (setting, wanted, is_filled) in [
        (own, ("redis", "wrong-credentials"), false),
        (nodes, ("redis-nodes", "wrong-credentials"), true),
        (writable, ("redis-nodes", "writable"), true),
    ] {
        if wanted.1 == "writable" {
            redis.admin(&["ACL", "SETUSER", READER, "+set"]);
        }
        let mut cluster = Cluster::start(&redis, &setting).await;
        cluster.until(&[wanted]).await;
        let a = cluster.create().await;
        if is_filled {
            cluster.until_in(&redis, &[a]).await;
        }
        let server = cluster.waifud.client().server().await.unwrap();
        let shown = format!("{server:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("password-of"),
            "{shown}"
        );
        let log = cluster.waifud.kill();
        assert!(log.contains(wanted.1) && !log.contains("hunter2"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_setting_reaches_the_nodes_and_an_unchanged_one_changes_nothing() {
    let Some(redis) = RealRedis::start_or_skip() else {
        return;
    };
    let mut cluster = Cluster::start(&redis, &Setting::of(&redis)).await;
    let config = cluster.waifud.dir.path().join("waifud.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let reader: RedisAccess = redis.reader();
    let other = RedisAccess {
        prefix: "other".to_owned(),
        ..reader.clone()
    };
    let mut since = newest(&cluster.link).await;
    for (section, wanted) in [
        ("[redis]", None),
        ("[redis]\nprefix = 'other'", Some(Some(other))),
        ("", Some(None)),
    ] {
        cluster.waifud.kill();
        let (head, tail) = text.split_once("[redis]").unwrap();
        // The node finds waifud at the same port.
        let head = head.replace("127.0.0.1:0", &cluster.waifud.at.to_string());
        let text = match section {
            "" => head,
            section => format!("{head}{section}{tail}"),
        };
        std::fs::write(&config, text).unwrap();
        cluster.waifud.start_again();
        cluster.link.hello(&hello()).await.unwrap();
        let mut frames = cluster
            .link
            .watch(WatchStart {
                since: Some(since),
                names: None,
            })
            .await
            .unwrap();
        let mut sent = None;
        since = loop {
            match frames.next().await.unwrap().unwrap() {
                WatchFrame::Sync { revision } => break revision,
                WatchFrame::Put {
                    object: SliceObject::Node(node),
                    ..
                } => sent = Some(node.redis),
                _ => {}
            }
        };
        assert_eq!(sent, wanted, "{section}");
    }
    assert_eq!(
        reader.password,
        Some(Secret::new(READER_PASSWORD.to_owned()))
    );
}

/// The newest revision of the node's slice.
async fn newest(link: &HttpLink) -> waifud_types::Revision {
    let mut frames: Box<dyn FrameStream> = link.watch(WatchStart::default()).await.unwrap();
    loop {
        if let Some(WatchFrame::Sync { revision }) = frames.next().await.unwrap() {
            return revision;
        }
    }
}
