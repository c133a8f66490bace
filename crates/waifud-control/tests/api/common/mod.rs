//! A control server without sockets. Tests call its routers directly, as a user or as the agent of a node.

mod agent;
mod answer;
mod clock;
mod facts;
mod samples;
mod scenarios;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt;
use waifud_api::agent::Welcome;
use waifud_api::join::{CreatedJoinToken, JoinRequest, JoinToken, Joined};
use waifud_control::env::{Clock, Entropy, SystemClock, SystemEntropy};
use waifud_control::{Control, ControlConfig, Peer, http};
use waifud_pki::NodeKey;
use waifud_store::{Mode, Store};
use waifud_types::{ByteSize, Digest, Incarnation};

pub use agent::Agent;
pub use answer::{Answer, collect};
pub use clock::ManualClock;
pub use samples::{digest, facts, hello, image, ready_report, report, step, tombstone};
pub use scenarios::node_name;

/// Longer than any step of these tests takes. A test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Checks that a text of an answer contains `part`.
#[track_caller]
pub fn assert_contains(text: &Value, part: &str) {
    let text = text.as_str().unwrap();
    assert!(text.contains(part), "{text}");
}

/// A control server in a temporary directory.
pub struct Server {
    pub dir: tempfile::TempDir,
    pub control: Control,
    user: Router,
    agent: Router,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ControlConfig::new(dir.path().to_owned());
        change(&mut config);
        Self::with_config(dir, config).await
    }

    pub async fn with_config(dir: tempfile::TempDir, config: ControlConfig) -> Self {
        let mode = Mode::Threads { readers: 2 };
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        Self::of(dir, config, mode, clock, entropy).await
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

    /// Restarts as after a kill: with the data on disk, and without any state in memory.
    pub async fn restart(self, change: impl FnOnce(&mut ControlConfig)) -> Self {
        self.control.stop_token().cancel();
        let Self { dir, control, .. } = self;
        drop(control);
        let mut config = ControlConfig::new(dir.path().to_owned());
        change(&mut config);
        Self::with_config(dir, config).await
    }

    /// A request of root at the unix socket, whose answer may be a stream.
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

    /// A request of this peer at the listener that serves it, with `token` as its bearer token.
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

    /// Chooses the fabric, as an administrator.
    pub async fn set_fabric(&self, kind: &str) -> Answer {
        let body = json!({"kind": kind});
        self.call(Method::PUT, "/v1/fabric", &[], body.to_string())
            .await
    }

    pub async fn create(&self, body: &Value) -> Answer {
        self.post("/v1/instances", body).await
    }

    /// Uploads an image with a virtual size of 2 GiB and creates the template `debian-12` from it.
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

    /// A request of this peer at the TLS listener.
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

    /// A request of this peer at the TLS listener with a header.
    pub async fn agent_with(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
        peer: Peer,
        body: Body,
    ) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header.0, header.1).body(body).unwrap();
        collect(call(&self.agent, request, peer).await).await
    }

    /// Creates a join token, valid only for this node name if there is one.
    pub async fn join_token(&self, name: Option<&str>) -> JoinToken {
        let answer = self.post("/v1/join-tokens", &json!({"name": name})).await;
        let made: CreatedJoinToken = serde_json::from_slice(&answer.expect(201).bytes).unwrap();
        JoinToken::parse(made.token.expose()).unwrap()
    }

    /// Requests a certificate for this key with the join token.
    pub async fn ask_to_join(&self, token: &JoinToken, key: &NodeKey, name: &str) -> Answer {
        let csr = key.request().unwrap();
        let request = JoinRequest::new(token.secret.expose(), csr, name.parse().unwrap());
        let body = serde_json::to_vec(&request).unwrap();
        collect(
            self.agent(Method::POST, "/v1/agent/join", anonymous(), body)
                .await,
        )
        .await
    }

    /// Admits a node. A node that was admitted before joins again with a new key.
    pub async fn admit(&self, name: &str) -> Agent {
        let known = self.get(&format!("/v1/nodes/{name}")).await.status == 200;
        let token = self.join_token(known.then_some(name)).await;
        let key = NodeKey::generate().unwrap();
        let answer = self.ask_to_join(&token, &key, name).await.expect(200);
        let joined: Joined = serde_json::from_slice(&answer.bytes).unwrap();
        Agent::new(joined.node, key.digest(), &self.agent)
    }

    /// The agent of a node that another server with the same database has admitted. It has not sent a hello here.
    pub fn agent_of(&self, agent: &Agent) -> Agent {
        Agent::new(agent.id, agent.key, &self.agent)
    }

    /// Admits a node and sends its hello.
    pub async fn join(&self, name: &str, memory: ByteSize) -> Agent {
        let agent = self.admit(name).await;
        let welcome = agent.hello(&hello(name, memory)).await.expect(200);
        let welcome: Welcome = serde_json::from_slice(&welcome.bytes).unwrap();
        assert_eq!(welcome.node, agent.id);
        agent
    }

    /// Connects the agent of `alder`, admitted by another server with the same database, to this server.
    pub async fn agent_again(&self, agent: &Agent) -> Agent {
        let again = self.agent_of(agent);
        again
            .hello(&hello("alder", ByteSize::gib(8)))
            .await
            .expect(200);
        again
    }

    /// What a refused request could leave behind: the number of instances, of images, the newest event, and the
    /// files of the image store.
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

    /// The kinds of the object's events, oldest first.
    pub async fn kinds(&self, object: &str) -> Vec<String> {
        let path = format!("/v1/events?object={object}&limit=1000");
        self.items(&path)
            .await
            .iter()
            .map(|e| e["kind"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A TLS client without a certificate.
pub fn anonymous() -> Peer {
    Peer::Tls {
        from: "192.0.2.9:4321".parse().unwrap(),
    }
}

async fn call(router: &Router, mut request: Request<Body>, peer: Peer) -> axum::response::Response {
    request.extensions_mut().insert(ConnectInfo(peer));
    router.clone().oneshot(request).await.unwrap()
}
