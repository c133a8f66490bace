//! The daemons and the node's fakes. Each daemon can be killed and started again while everything else keeps running.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use waifud_agent::fake::{FakeDialer, FakeHost, FakeTunnel, fast_timing, sample_settings};
use waifud_agent::interfaces::{NoPeers, SystemClock};
use waifud_agent::{Adapters, Agent, Settings, Timing};
use waifud_api::join::{CreatedJoinToken, JoinRequest, JoinToken, Joined};
use waifud_control::Peer;
use waifud_kit::failpoints::testing;
use waifud_network::HostNetworkFacts;
use waifud_network::fabric::fake::FakeFabric;
use waifud_network::fake::FakeNetwork;
use waifud_pki::NodeKey;
use waifud_storage::fake::{FakePool, image_bytes};
use waifud_types::ByteSize;

use crate::DEADLINE;
use crate::answer::Answer;
use crate::birch::Birch;
use crate::machine::Machine;
use crate::metadatad::{self, Metadatad};
use crate::verbs::{InitialState, NICS, RELEASE, Verb};
use crate::waifud::{self, Waifud};

/// The bridge of the network `lan`.
const BRIDGE: &str = "br0";

pub struct Cluster {
    pub waifud: Arc<Waifud>,
    pub metadatad: Arc<Metadatad>,
    pub machine: Arc<dyn Machine>,
    pub pool: FakePool,
    pub network: Arc<FakeNetwork>,
    pub settings: Settings,
    tunnel: FakeTunnel,
    agent: Mutex<Option<JoinHandle<()>>>,
    deaths: AtomicU32,
    /// Another node, if the verb needs one.
    birch: Option<Birch>,
    pub dir: tempfile::TempDir,
}

impl Cluster {
    /// A cluster in the initial state of a verb.
    pub async fn prepared(begin: InitialState, machine: Arc<dyn Machine>) -> Self {
        let mut cluster = Self::new(machine).await;
        if begin == InitialState::Empty {
            // The verb itself starts the daemons of the node, because their start is part of it.
            return cluster;
        }
        cluster.start_node().await;
        if begin == InitialState::Unmanaged {
            cluster
                .until("known", async |cluster| {
                    cluster.node().await["state"] == "ready"
                })
                .await;
            cluster.waifud.back_up();
        }
        if begin == InitialState::Elsewhere {
            cluster.birch = Some(Birch::with_web(&cluster).await);
            return cluster;
        }
        let body = json!({"name": "web", "template": "debian-12", "run": begin != InitialState::Stopped,
            "user_data": "#cloud-config\n# first\n"});
        let created = cluster.post("/v1/instances", &body).await;
        created.expect(201);
        let as_asked =
            async |cluster: &Self| crate::verbs::is_observed(cluster.web().await.as_ref());
        cluster.until("prepared", as_asked).await;
        if begin == InitialState::TwoNics {
            let nic = json!({"network": "lan"});
            cluster.post(NICS, &nic).await.expect(200);
            cluster.until("prepared", as_asked).await;
        }
        if begin == InitialState::Rescued {
            let order = json!({"rescue": {"begin": {"template": "small"}}}).to_string();
            let path = "/v1/instances/web";
            let answer = cluster.waifud.request(Method::PATCH, path, order).await;
            answer.expect(200);
            cluster.until("rescued", as_asked).await;
        }
        if begin == InitialState::Unmanaged {
            cluster.waifud.kill();
            cluster.waifud.restore();
            cluster.waifud.start().await;
            cluster
                .until("unmanaged", async |cluster| {
                    let unmanaged = &cluster.node().await["unmanaged"];
                    unmanaged.as_array().is_some_and(|all| all.len() == 2)
                })
                .await;
            let confirm = "/v1/nodes/alder/confirm";
            let answer = cluster.waifud.request(Method::POST, confirm, "").await;
            answer.expect(200);
        }
        cluster
    }

    async fn new(machine: Arc<dyn Machine>) -> Self {
        let dir = directory();
        let path = |name: &str| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (begin, node) = SEED.get_or_init(seed);
        copy(begin.path(), &path("waifud"));
        let mut settings = sample_settings(path("state"), path("run"), fast());
        machine.adapt(&mut settings);
        let cluster = Self {
            waifud: Arc::new(Waifud::new(dir.path().join("waifud"))),
            metadatad: Arc::default(),
            machine,
            pool: FakePool::new("main".parse().unwrap(), path("pool")),
            network: FakeNetwork::new(),
            tunnel: FakeTunnel::default(),
            settings,
            agent: Mutex::default(),
            deaths: AtomicU32::new(0),
            birch: None,
            dir,
        };
        cluster.network.set_facts(HostNetworkFacts {
            bridges: vec![BRIDGE.to_owned()],
            ..HostNetworkFacts::default()
        });
        cluster.waifud.admit(*node);
        cluster.waifud.start().await;
        cluster
    }

    pub async fn start_node(&self) {
        self.metadatad.start().await;
        self.start_agent();
    }

    fn start_agent(&self) {
        let adapters = Adapters {
            hypervisor: self.machine.connect(),
            pools: vec![Arc::new(self.pool.clone())],
            network: self.network.clone(),
            fabric: FakeFabric::new(1),
            link: Arc::new(waifud::Link(self.waifud.clone())),
            metadata: Arc::new(metadatad::Link(self.metadatad.clone())),
            peers: Arc::new(NoPeers),
            tunnel: Arc::new(self.tunnel.clone()),
            dialer: Arc::new(FakeDialer::default()),
            clock: Arc::new(SystemClock),
            host: Arc::new(FakeHost::default()),
        };
        let agent = Agent::open(self.settings.clone(), adapters).unwrap();
        let task = tokio::spawn(agent.run(CancellationToken::new()));
        *self.agent.lock().unwrap() = Some(task);
    }

    /// Drops what is left of a daemon that was killed at its point, and starts it again.
    pub async fn replace_the_dead(&self) {
        if testing::is_dead("waifud") {
            self.waifud.kill();
            self.buried("waifud").await;
            self.waifud.start().await;
        }
        if testing::is_dead("metadatad") {
            self.metadatad.kill();
            self.buried("metadatad").await;
            self.metadatad.start().await;
        }
        if testing::is_dead("agentd") {
            self.kill_agent().await;
            self.buried("agentd").await;
            self.start_agent();
        }
    }

    async fn buried(&self, daemon: &str) {
        // Tasks that were woken by the end of their connections run before the restart.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        testing::revive(daemon);
        self.deaths.fetch_add(1, Ordering::Relaxed);
    }

    async fn kill_agent(&self) {
        let task = self.agent.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _killed = task.await;
        }
        // Its tunnel link is lost with it.
        self.tunnel.lose();
    }

    /// Starts another agent with this pause before the first restart of a guest.
    pub async fn restart_agent(&mut self, restart_min: Duration) {
        self.kill_agent().await;
        self.settings.timing.restart_min = restart_min;
        self.settings.timing.restart_max = restart_min * 64;
        self.start_agent();
    }

    /// How often a daemon was killed.
    pub fn deaths(&self) -> u32 {
        self.deaths.load(Ordering::Relaxed)
    }

    /// Sends the request of the verb, again while waifud does not answer, and waits for its end.
    pub async fn carry_out(&self, verb: &Verb) {
        if verb.begin == InitialState::Empty {
            self.start_node().await;
        }
        let before = self.web().await;
        let generation = before.as_ref().map(|web| web["generation"].clone());
        loop {
            let mut request = Request::builder()
                .method(verb.method.clone())
                .uri(verb.path);
            request = match &generation {
                // A request that has taken effect is not repeated.
                Some(generation) if is_conditional(verb) => {
                    request.header("if-match", format!("\"{generation}\""))
                }
                _ => request.header("idempotency-key", "once"),
            };
            let request = request.body(Body::from((verb.body)().to_string())).unwrap();
            let waifud = self.waifud.clone();
            let release = verb.path == RELEASE;
            let asked = tokio::spawn(async move {
                if release {
                    waifud.release().await
                } else {
                    waifud.ask(request).await
                }
            });
            while !asked.is_finished() {
                self.replace_the_dead().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // A task that unwound was killed with its daemon.
            let answer = asked.await.ok().flatten();
            let Some(answer) = answer.filter(|answer| !answer.status.is_server_error()) else {
                self.replace_the_dead().await;
                continue;
            };
            let done_before = match answer.status.as_u16() {
                412 => is_conditional(verb),
                404 | 409 => {
                    verb.method == Method::DELETE
                        || verb.begin == InitialState::Unmanaged
                        || verb.begin == InitialState::Elsewhere
                        || release
                }
                _ => false,
            };
            let body = String::from_utf8_lossy(&answer.bytes);
            assert!(
                answer.status.is_success() || self.deaths() > 0 && done_before,
                "{}: {} {body}",
                verb.name,
                answer.status
            );
            break;
        }
        self.until(verb.name, async |cluster| {
            cluster.replace_the_dead().await;
            if let Some(birch) = &cluster.birch {
                birch.play(cluster).await;
            }
            (verb.done)(cluster.web().await.as_ref())
        })
        .await;
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.waifud.request(Method::POST, path, body).await
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = self.waifud.ask(request).await?;
        (answer.status == 200).then(|| answer.json())
    }

    pub async fn node(&self) -> Value {
        self.get("/v1/nodes/alder").await.unwrap_or_default()
    }

    /// The one instance of every verb.
    pub async fn web(&self) -> Option<Value> {
        self.get("/v1/instances/web").await
    }

    pub async fn until(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self).await {
            assert!(
                begun.elapsed() < DEADLINE,
                "never {what}: {:#?}",
                self.web().await
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops everything, so that nothing affects the next test.
    pub async fn end(self) {
        self.kill_agent().await;
        self.waifud.kill();
        self.metadatad.kill();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.machine.clear().await;
        testing::reset();
    }
}

/// waifud's directory with a template and a joined node, created once; and that node.
static SEED: OnceLock<(tempfile::TempDir, Peer)> = OnceLock::new();

fn seed() -> (tempfile::TempDir, Peer) {
    // On a separate thread, because the first caller is already in a runtime.
    let made = std::thread::spawn(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // Requests have deadlines.
        let runtime = runtime.enable_time().build().unwrap();
        let dir = directory();
        let node = runtime.block_on(async {
            let waifud = Waifud::new(dir.path().to_owned());
            waifud.start().await;
            let node = join(&waifud, "alder").await;
            let (bytes, digest) = image_bytes(ByteSize::mib(1), 1);
            let path = format!("/v1/images/{digest}");
            let uploaded = waifud.request(Method::PUT, &path, bytes).await;
            uploaded.expect(201);
            for (name, datasource) in [("debian-12", "openstack"), ("appliance", "cidata")] {
                let template = json!({"name": name, "image": digest, "datasource": datasource});
                let template = template.to_string();
                let named = waifud
                    .request(Method::POST, "/v1/templates", template)
                    .await;
                named.expect(201);
            }
            let (bytes, digest) = image_bytes(ByteSize::mib(1), 2);
            let path = format!("/v1/images/{digest}");
            let uploaded = waifud.request(Method::PUT, &path, bytes).await;
            uploaded.expect(201);
            let lan = json!({"name": "lan", "bridge": BRIDGE}).to_string();
            let named = waifud.request(Method::POST, "/v1/networks", lan).await;
            named.expect(201);
            let small = json!({"name": "small", "image": digest}).to_string();
            let named = waifud.request(Method::POST, "/v1/templates", small).await;
            named.expect(201);
            waifud.kill();
            node
        });
        (dir, node)
    });
    made.join().unwrap()
}

/// Whether the verb's request names the generation that it changes.
fn is_conditional(verb: &Verb) -> bool {
    verb.method == Method::PATCH || verb.path.starts_with(NICS)
}

/// Lets a machine join as a node of this name.
pub async fn join(waifud: &Waifud, name: &str) -> Peer {
    let made = waifud.request(Method::POST, "/v1/join-tokens", "{}").await;
    let made: CreatedJoinToken = serde_json::from_slice(&made.expect(201).bytes).unwrap();
    let token = JoinToken::parse(made.token.expose()).unwrap();
    let key = NodeKey::generate().unwrap();
    let request = key.request().unwrap();
    let asks = JoinRequest::new(token.secret.expose(), request, name.parse().unwrap());
    let body = serde_json::to_vec(&asks).unwrap();
    let joined = waifud.stranger("/v1/agent/join", body).await;
    let joined: Joined = serde_json::from_slice(&joined.expect(200).bytes).unwrap();
    Peer::Certificate {
        from: "192.0.2.2:4321".parse().unwrap(),
        node: joined.node,
        key: key.digest(),
    }
}

/// In memory if possible: a kill does not lose written data, so a disk would only be slower.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// Short waits, and periods longer than any verb takes even on a busy machine, so that a verb passes only its own points. The
/// heartbeat is what waifud waits for.
fn fast() -> Timing {
    let ms = Duration::from_millis;
    let never = DEADLINE * 10;
    Timing {
        heartbeat: ms(10_000),
        facts: never,
        bridges: never,
        sweep: ms(30),
        network: never,
        metadata: ms(20),
        report_port: never,
        refuse_reports_after: ms(0),
        retry_max: ms(20),
        grace: ms(2000),
        ready_max: ms(20),
        ..fast_timing()
    }
}
