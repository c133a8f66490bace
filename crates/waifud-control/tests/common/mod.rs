//! A control server without sockets, a client that calls its routers, and an agent that a test drives step by step.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers may stop at the first surprise"
)]
#![allow(
    dead_code,
    reason = "each test file uses its own part of these helpers"
)]

mod setup;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use waifud_api::agent::{
    AgentReport, Hello, InstanceReport, SliceObject, Tombstone, WatchFrame, Welcome,
};
use waifud_api::join::{CreatedJoinToken, JoinRequest, JoinToken, Joined};
use waifud_api::{Instance, Problem};
use waifud_control::env::{Clock, Entropy, SystemClock, SystemEntropy};
use waifud_control::{Control, ControlConfig, Peer, http};
use waifud_pki::NodeKey;
use waifud_store::{Mode, Store};
use waifud_types::node::{HypervisorFacts, NodeFacts, PoolFacts, Resources};
use waifud_types::status::{CloudInitStatus, HypervisorKind};
use waifud_types::{
    ByteSize, Digest, Epoch, Generation, Incarnation, InstanceId, InstanceState, NodeId, Timestamp,
};

/// Longer than any operation in the tests; reached only after a failure.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub struct Server {
    pub dir: tempfile::TempDir,
    pub control: Control,
    user: Router,
    agent: Router,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|_| panic!("no JSON: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn instance(&self) -> Instance {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn problem(&self) -> Problem {
        assert_eq!(
            self.headers.get("content-type").unwrap(),
            "application/problem+json"
        );
        let problem: Problem = serde_json::from_slice(&self.bytes).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        assert_eq!(
            problem.request_id.as_deref(),
            self.headers
                .get("x-request-id")
                .map(|v| v.to_str().unwrap())
        );
        problem
    }

    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::open(dir, change).await
    }

    async fn open(dir: tempfile::TempDir, change: impl FnOnce(&mut ControlConfig)) -> Self {
        let mut config = ControlConfig::new(dir.path().to_owned());
        change(&mut config);
        let threads = Mode::Threads { readers: 2 };
        Self::of(
            dir,
            config,
            threads,
            Arc::new(SystemClock),
            Arc::new(SystemEntropy),
        )
        .await
    }

    pub async fn of(
        dir: tempfile::TempDir,
        config: ControlConfig,
        mode: Mode,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let store = Store::open(&dir.path().join("waifud.db"), mode, Incarnation(0xa)).unwrap();
        let control = Control::new(store, config, clock, entropy).await.unwrap();
        Self {
            user: http::user_router(control.clone()),
            agent: http::tls_router(control.clone()),
            dir,
            control,
        }
    }

    /// The state after a kill: memory is lost, the disk is kept.
    pub async fn restart(self, change: impl FnOnce(&mut ControlConfig)) -> Self {
        self.control.stop_token().cancel();
        let Self { dir, control, .. } = self;
        drop(control);
        Self::open(dir, change).await
    }

    pub async fn raw(&self, request: Request<Body>) -> axum::response::Response {
        call(&self.user, request, Peer::Unix { uid: 0 }).await
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        collect(self.raw(request.body(body.into()).unwrap()).await).await
    }

    /// A request of another peer than root, to the router of its listener, with an optional bearer token.
    pub async fn call_as(
        &self,
        peer: Peer,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> axum::response::Response {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let router = match peer {
            Peer::Unix { .. } | Peer::Unknown => &self.user,
            Peer::Tls { .. } | Peer::Certificate { .. } => &self.agent,
        };
        call(router, request.body(body.into()).unwrap(), peer).await
    }

    /// Creates a token and returns its secret.
    pub async fn token(&self, name: &str, role: &str, expires_in_s: Option<u64>) -> String {
        let body = json!({"name": name, "role": role, "expires_in_s": expires_in_s});
        let created = self.post("/v1/tokens", &body).await.expect(201).json();
        created["secret"].as_str().unwrap().to_owned()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Body::empty()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, &[], Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, &[], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PATCH, path, &[], body.to_string()).await
    }

    pub async fn create(&self, body: &Value) -> Answer {
        self.post("/v1/instances", body).await
    }

    /// Uploads an image of 2 GiB and names it `debian-12`.
    pub async fn template(&self) -> Digest {
        let bytes = image(2 << 30);
        let digest = digest(&bytes);
        self.call(Method::PUT, &format!("/v1/images/{digest}"), &[], bytes)
            .await
            .expect(201);
        self.post(
            "/v1/templates",
            &json!({"name": "debian-12", "image": digest}),
        )
        .await
        .expect(201);
        digest
    }

    /// A request to the routes for nodes, from the given peer.
    pub async fn agent(
        &self,
        method: Method,
        path: &str,
        peer: Peer,
        body: impl Into<Body>,
    ) -> axum::response::Response {
        let request = Request::builder().method(method).uri(path);
        call(&self.agent, request.body(body.into()).unwrap(), peer).await
    }

    /// The same with headers, and the whole answer.
    pub async fn agent_with(
        &self,
        path: &str,
        header: (&str, &str),
        peer: Peer,
        body: Body,
    ) -> Answer {
        let request = Request::builder().method(Method::POST).uri(path);
        let request = request.header(header.0, header.1).body(body).unwrap();
        collect(call(&self.agent, request, peer).await).await
    }

    /// A join token, for the node of this name when one is given.
    pub async fn join_token(&self, name: Option<&str>) -> JoinToken {
        let answer = self.post("/v1/join-tokens", &json!({"name": name})).await;
        let made: CreatedJoinToken = serde_json::from_slice(&answer.expect(201).bytes).unwrap();
        JoinToken::parse(made.token.expose()).unwrap()
    }

    /// The join request of a machine with this key.
    pub async fn ask_to_join(&self, token: &JoinToken, key: &NodeKey, name: &str) -> Answer {
        let csr = key.request().unwrap();
        let request = JoinRequest::new(token.secret.expose(), csr, name.parse().unwrap());
        let body = serde_json::to_vec(&request).unwrap();
        collect(
            self.agent(Method::POST, "/v1/agent/join", nobody(), body)
                .await,
        )
        .await
    }

    /// Joins a machine and sends its hello; a machine that joined before gets another key.
    pub async fn join(&self, name: &str, memory: ByteSize) -> Agent {
        let known = self.get(&format!("/v1/nodes/{name}")).await.status == 200;
        let token = self.join_token(known.then_some(name)).await;
        let key = NodeKey::generate().unwrap();
        let answer = self.ask_to_join(&token, &key, name).await.expect(200);
        let joined: Joined = serde_json::from_slice(&answer.bytes).unwrap();
        let agent = Agent {
            id: joined.node,
            key: key.digest(),
            router: self.agent.clone(),
            watch: None,
            line: Vec::new(),
        };
        let welcome = agent.hello(&hello(name, memory)).await.expect(200);
        let welcome: Welcome = serde_json::from_slice(&welcome.bytes).unwrap();
        assert_eq!(welcome.node, agent.id);
        agent
    }

    /// The agent of a node that another server knows, at this one.
    pub async fn agent_again(&self, agent: &Agent) -> Agent {
        let again = Agent {
            id: agent.id,
            key: agent.key,
            router: self.agent.clone(),
            watch: None,
            line: Vec::new(),
        };
        again
            .hello(&hello("alder", ByteSize::gib(8)))
            .await
            .expect(200);
        again
    }

    /// Everything that a refused request could leave behind: rows of every kind, and files.
    pub async fn footprint(&self) -> (usize, usize, u64, Vec<PathBuf>) {
        let (instances, images, newest) = self
            .control
            .store()
            .read(|tx| {
                Ok::<_, waifud_store::StoreError>((
                    tx.instances(&waifud_store::InstanceFilter::default(), "", 10_000)?
                        .len(),
                    tx.images(None, 10_000)?.len(),
                    tx.newest_event()?,
                ))
            })
            .await
            .unwrap();
        let mut files: Vec<_> = std::fs::read_dir(self.dir.path().join("images"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        (instances, images, newest, files)
    }

    pub async fn kinds(&self, object: &str) -> Vec<String> {
        let page = self
            .get(&format!("/v1/events?object={object}&limit=1000"))
            .await
            .expect(200)
            .json();
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["kind"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A TLS peer without a certificate.
pub fn nobody() -> Peer {
    Peer::Tls {
        from: "192.0.2.9:4321".parse().unwrap(),
    }
}

async fn call(router: &Router, mut request: Request<Body>, peer: Peer) -> axum::response::Response {
    request.extensions_mut().insert(ConnectInfo(peer));
    router.clone().oneshot(request).await.unwrap()
}

pub async fn collect(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        bytes: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}

pub fn image(virtual_size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&virtual_size.to_be_bytes());
    bytes
}

pub fn digest(bytes: &[u8]) -> Digest {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    Digest::from_bytes(hash.as_ref().try_into().unwrap())
}

pub fn facts(memory: ByteSize) -> NodeFacts {
    NodeFacts {
        arch: "x86_64".into(),
        cpu_model: "a CPU".into(),
        hypervisor: HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: "no /dev/kvm".into(),
        },
        agent_version: "0.1.0".into(),
        capacity: Resources {
            cpus: 8,
            memory_bytes: memory,
        },
        used: Resources::default(),
        pools: vec![PoolFacts {
            name: "main".parse().unwrap(),
            kind: "qcow2".into(),
            size_bytes: ByteSize::gib(500),
            used_bytes: ByteSize(0),
            promised_bytes: ByteSize(0),
            health: "ok".into(),
        }],
        bridges: Vec::new(),
        unfit_bridges: std::collections::BTreeMap::new(),
        routes: Vec::new(),
        conditions: Vec::new(),
        labels: std::collections::BTreeMap::default(),
    }
}

pub fn hello(name: &str, memory: ByteSize) -> Hello {
    Hello {
        name: name.parse().unwrap(),
        facts: facts(memory),
        now: Timestamp::now(),
        boot_id: None,
    }
}

pub fn report(id: InstanceId, state: InstanceState) -> InstanceReport {
    InstanceReport {
        id,
        epoch: Epoch::FIRST,
        observed_generation: Generation::FIRST,
        state,
        reason: None,
        started_at: None,
        stopped_by: None,
        hypervisor: Some(HypervisorKind::Tcg),
        ready: false,
        ready_by: None,
        addresses: Vec::new(),
        step: None,
        restart_needed: Vec::new(),
        cloud_init: CloudInitStatus::default(),
        conditions: Vec::new(),
        evidence: None,
    }
}

/// A node's agent, driven by a test.
pub struct Agent {
    pub id: NodeId,
    pub key: Digest,
    router: Router,
    watch: Option<Body>,
    line: Vec<u8>,
}

impl Agent {
    /// This node, by its certificate.
    pub fn peer(&self) -> Peer {
        Peer::Certificate {
            from: "192.0.2.2:4321".parse().unwrap(),
            node: self.id,
            key: self.key,
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> axum::response::Response {
        let request = Request::builder().method(method).uri(path);
        call(
            &self.router,
            request.body(body.into()).unwrap(),
            self.peer(),
        )
        .await
    }

    pub async fn hello(&self, hello: &Hello) -> Answer {
        let body = serde_json::to_vec(hello).unwrap();
        collect(self.call(Method::POST, "/v1/agent/hello", body).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        collect(self.call(Method::GET, path, Body::empty()).await).await
    }

    pub async fn get_from(&self, path: &str, from: usize) -> Answer {
        let request = Request::builder()
            .uri(path)
            .header("range", format!("bytes={from}-"));
        let request = request.body(Body::empty()).unwrap();
        collect(call(&self.router, request, self.peer()).await).await
    }

    pub async fn report(&self, report: &AgentReport) {
        self.try_send_report(report).await.expect(204);
    }

    pub async fn try_send_report(&self, report: &AgentReport) -> Answer {
        let body = serde_json::to_vec(report).unwrap();
        collect(self.call(Method::POST, "/v1/agent/report", body).await).await
    }

    pub async fn send_report(&self, instance: InstanceReport) {
        self.report(&AgentReport {
            instances: vec![instance],
            ..AgentReport::default()
        })
        .await;
    }

    pub async fn destroyed(&self, tombstone: Tombstone) {
        self.report(&AgentReport {
            destroyed: vec![tombstone],
            ..AgentReport::default()
        })
        .await;
    }

    pub async fn watch(&mut self, since: Option<&str>) {
        let path = since.map_or_else(
            || "/v1/agent/watch".to_owned(),
            |since| format!("/v1/agent/watch?since={since}"),
        );
        let response = self.call(Method::GET, &path, Body::empty()).await;
        assert_eq!(response.status(), StatusCode::OK);
        self.watch = Some(response.into_body());
        self.line.clear();
    }

    /// The watch's connection ends.
    pub fn hang_up(&mut self) {
        self.watch = None;
    }

    /// The next frame except pings.
    pub async fn frame(&mut self) -> WatchFrame {
        tokio::time::timeout(DEADLINE, async {
            loop {
                if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<_> = self.line.drain(..=end).collect();
                    match serde_json::from_slice(&line).unwrap() {
                        WatchFrame::Ping => {}
                        frame => return frame,
                    }
                    continue;
                }
                let chunk = self.watch.as_mut().unwrap().frame().await.unwrap().unwrap();
                self.line.extend_from_slice(&chunk.into_data().unwrap());
            }
        })
        .await
        .unwrap()
    }

    /// Whether the watch ends normally instead of with an error.
    pub async fn watch_ends(&mut self) -> bool {
        let ends = async { while let Some(Ok(_)) = self.watch.as_mut().unwrap().frame().await {} };
        tokio::time::timeout(DEADLINE, ends).await.is_ok()
    }

    /// Frames up to the `sync`, without it.
    pub async fn until_sync(&mut self) -> Vec<WatchFrame> {
        let mut frames = Vec::new();
        loop {
            match self.frame().await {
                WatchFrame::Sync { .. } => return frames,
                frame => frames.push(frame),
            }
        }
    }

    /// The next instance that is put.
    pub async fn put(&mut self) -> waifud_api::agent::AgentInstance {
        match self.frame().await {
            WatchFrame::Put {
                object: SliceObject::Instance(instance),
                ..
            } => *instance,
            other => panic!("an instance was expected, not {other:?}"),
        }
    }

    pub async fn tombstone(&mut self) -> Tombstone {
        match self.frame().await {
            WatchFrame::Tombstone { tombstone, .. } => tombstone,
            other => panic!("a tombstone was expected, not {other:?}"),
        }
    }
}
