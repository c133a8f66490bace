//! waifud: the real control service over its real database, without sockets. It can be killed and started again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tower::ServiceExt;
use waifud_api::agent::{NAMES_HEADER, WatchFrame, WatchStart};
use waifud_api::join::{CreatedJoinToken, JoinRequest, JoinToken, Joined};
use waifud_control::env::Disk;
use waifud_control::{Cause, Control, ControlConfig, ControlError, Peer, http};
use waifud_kit::clock::Clock;
use waifud_kit::sync::lock;
use waifud_pki::NodeKey;
use waifud_store::{Mode, ReadTx, Store, StoreError};
use waifud_types::{ByteSize, Digest, DiskSpace, Incarnation, InstanceId};

use crate::clock::SimClock;
use crate::random::Random;

/// Only its directory survives a kill.
pub struct Waifud {
    dir: PathBuf,
    /// The clock of its machine.
    pub clock: SimClock,
    entropy: Arc<Random>,
    requests: AtomicU64,
    starts: AtomicU64,
    restores: AtomicU64,
    process: Mutex<Option<Process>>,
}

#[derive(Clone)]
pub(super) struct Process {
    control: Control,
    user: Router,
    tls: Router,
    /// Everything that it is doing. A kill ends all of it before another process starts.
    work: Arc<Mutex<JoinSet<()>>>,
}

/// A filesystem on which there is always room, so that this machine's free space plays no part.
#[derive(Debug)]
struct EmptyDisk;

impl Disk for EmptyDisk {
    fn disk_space(&self, _: &Path) -> io::Result<DiskSpace> {
        Ok(DiskSpace {
            size: ByteSize::gib(100),
            free: ByteSize::gib(100),
        })
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// Whether the request was accepted.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The next bytes of a response, until its end, an error, or the end of the channel that they go to.
pub(super) async fn next_chunk<T>(to: &mpsc::UnboundedSender<T>, body: &mut Body) -> Option<Bytes> {
    let chunk = tokio::select! {
        () = to.closed() => return None,
        chunk = body.frame() => chunk,
    };
    Some(chunk?.ok()?.into_data().unwrap_or_default())
}

/// A started watch: its status, then its frames until it ends.
pub struct Watched {
    /// The HTTP status; frames follow only after 200.
    pub status: u16,
    /// The frames.
    pub frames: mpsc::UnboundedReceiver<WatchFrame>,
}

impl Waifud {
    /// With its state in this directory.
    pub fn new(dir: PathBuf, clock: SimClock, seed: u64) -> Self {
        Self {
            dir,
            clock,
            entropy: Arc::new(Random::new(seed, 1)),
            requests: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            restores: AtomicU64::new(0),
            process: Mutex::default(),
        }
    }

    /// Starts a process on what its directory contains.
    pub async fn start(&self) -> Result<()> {
        let database = self.dir.join("waifud.db");
        let store = Store::open(&database, Mode::Inline, Incarnation(1))?;
        let mut config = ControlConfig::new(self.dir.clone());
        config.disk = Arc::new(EmptyDisk);
        let clock = Arc::new(self.clock.clone());
        let control = Control::new(store, config, clock, self.entropy.clone()).await?;
        let mut work = JoinSet::new();
        let background = control.clone();
        work.spawn(async move {
            let ended = background.run_background_tasks().await;
            // They end only if they could not begin.
            tracing::error!(?ended, "the background tasks of waifud ended");
        });
        self.starts.fetch_add(1, Ordering::SeqCst);
        *lock(&self.process) = Some(Process {
            user: http::user_router(control.clone()),
            tls: http::tls_router(control.clone()),
            control,
            work: Arc::new(Mutex::new(work)),
        });
        Ok(())
    }

    /// Copies the database, while it is in use.
    pub fn back_up(&self) -> Result<()> {
        let copy = self.dir.join("backup.db");
        if copy.exists() {
            std::fs::remove_file(&copy)?;
        }
        waifud_store::backup::snapshot(&self.dir.join("waifud.db"), &copy)?;
        Ok(())
    }

    /// Replaces the database with the copy, as `waifud restore` does, and starts a process on it.
    pub async fn restore(&self) -> Result<()> {
        self.kill().await;
        let database = self.dir.join("waifud.db");
        let replaced = waifud_store::backup::floor_of(&database)?;
        for file in ["waifud.db-wal", "waifud.db-shm"] {
            let file = self.dir.join(file);
            if file.exists() {
                std::fs::remove_file(file)?;
            }
        }
        std::fs::copy(self.dir.join("backup.db"), &database)?;
        let number = self.restores.fetch_add(1, Ordering::SeqCst);
        let fresh = Incarnation(u32::try_from(number + 2)?);
        waifud_store::backup::prepare_restored(&database, fresh, self.clock.now(), replaced)?;
        self.start().await
    }

    /// Ends the process at once, with everything that it was doing.
    pub async fn kill(&self) {
        let Some(process) = lock(&self.process).take() else {
            return;
        };
        let mut work = std::mem::take(&mut *lock(&process.work));
        work.shutdown().await;
    }

    /// The running process.
    pub(super) fn process(&self) -> Option<Process> {
        lock(&self.process).clone()
    }

    /// How often the database was restored.
    pub fn restores(&self) -> u64 {
        self.restores.load(Ordering::SeqCst)
    }

    /// Whether a process runs.
    pub fn is_running(&self) -> bool {
        lock(&self.process).is_some()
    }

    /// How often it was started. A connection to one process does not continue with the next.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::SeqCst)
    }

    /// A request of root at the socket; `None` if waifud does not run or is killed before it answers.
    pub async fn as_user(&self, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.call(Peer::Unix { uid: 0 }, method, path, body).await
    }

    /// A request of this peer.
    pub async fn call(
        &self,
        peer: Peer,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Option<Answer> {
        let request = self.request(method, path, body)?;
        self.work(move |process| async move {
            let router = process.router(peer);
            drop(process);
            let (parts, body) = send(router, request, peer).await.into_parts();
            let bytes = body.collect().await.map(|body| body.to_bytes().to_vec());
            Answer {
                status: parts.status.as_u16(),
                bytes: bytes.unwrap_or_default(),
            }
        })
        .await
    }

    /// Starts a watch of a node.
    pub async fn watch(&self, peer: Peer, start: WatchStart) -> Option<Watched> {
        let mut request = self.request("GET", &start.path(), Vec::new())?;
        let names = HeaderValue::from_str(&start.names_header()).ok()?;
        request.headers_mut().insert(NAMES_HEADER, names);
        let process = lock(&self.process).clone()?;
        let router = process.router(peer);
        let (answer, answered) = oneshot::channel();
        let (sender, frames) = mpsc::unbounded_channel();
        process.spawn(async move {
            let response = send(router, request, peer).await;
            let status = response.status().as_u16();
            if answer.send(status).is_err() || status != 200 {
                return;
            }
            let mut body = response.into_body();
            let mut line = Vec::new();
            loop {
                let Some(chunk) = next_chunk(&sender, &mut body).await else {
                    return;
                };
                line.extend(chunk);
                while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                    let one: Vec<u8> = line.drain(..=end).collect();
                    let Ok(frame) = serde_json::from_slice(&one) else {
                        return;
                    };
                    if sender.send(frame).is_err() {
                        return;
                    }
                }
            }
        });
        drop(process);
        let status = answered.await.ok()?;
        Some(Watched { status, frames })
    }

    /// Orders the owner of an instance to release it, or withdraws that, which no request does yet. The answer is the status
    /// that a request would have.
    pub async fn release(&self, instance: InstanceId, withdraw: bool, stop: bool) -> Option<u16> {
        self.work(move |process| async move {
            let control = &process.control;
            let done = if withdraw {
                control.withdraw_release(instance, Cause::system()).await
            } else {
                control.begin_release(instance, stop, Cause::system()).await
            };
            match done {
                Ok(()) => 204,
                Err(ControlError::Problem(problem)) => problem.status,
                Err(_) => 500,
            }
        })
        .await
    }

    /// The number of the process and of its last commit; `None` if waifud does not run.
    pub fn commits(&self) -> Option<(u64, u64)> {
        let process = self.process()?;
        Some((self.starts(), process.control.store().commits()))
    }

    /// Reads from the database; `None` if waifud does not run.
    pub async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(ReadTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Option<Result<T, StoreError>> {
        let control = lock(&self.process).as_ref()?.control.clone();
        Some(control.store().read(job).await)
    }

    /// Admits a node. The result identifies its requests.
    pub async fn join(&self, name: &str) -> Result<Peer> {
        let made = self
            .as_user("POST", "/v1/join-tokens", &json!({"name": name}))
            .await;
        let made: CreatedJoinToken = parsed(made)?;
        let token = JoinToken::parse(made.token.expose()).context("a bad join token")?;
        let key = NodeKey::generate()?;
        let request = JoinRequest::new(token.secret.expose(), key.request()?, name.parse()?);
        let stranger = Peer::Tls {
            from: "192.0.2.9:4321".parse()?,
        };
        let body = serde_json::to_vec(&request)?;
        let joined = self.call(stranger, "POST", "/v1/agent/join", body).await;
        let joined: Joined = parsed(joined)?;
        Ok(Peer::Certificate {
            from: "192.0.2.2:4321".parse()?,
            node: joined.node,
            key: key.digest(),
        })
    }

    /// Uploads the image and names it.
    pub async fn set_up_template(&self, image: &(Vec<u8>, Digest)) -> Result<()> {
        let (bytes, digest) = image;
        let path = format!("/v1/images/{digest}");
        let root = Peer::Unix { uid: 0 };
        let uploaded = self.call(root, "PUT", &path, bytes.clone()).await;
        let _image: Value = parsed(uploaded)?;
        let template = json!({"name": "debian-12", "image": digest});
        let _template: Value = parsed(self.as_user("POST", "/v1/templates", &template).await)?;
        Ok(())
    }

    /// Creates a network on a bridge that every host has.
    pub async fn set_up_network(&self, name: &str, bridge: &str) -> Result<()> {
        let network = json!({"name": name, "bridge": bridge});
        let _network: Value = parsed(self.as_user("POST", "/v1/networks", &network).await)?;
        Ok(())
    }

    pub(super) fn request(&self, method: &str, path: &str, body: Vec<u8>) -> Option<Request<Body>> {
        // Without an id of its own, a request gets a random one from the machine.
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-request-id", format!("sim-{number}"));
        request.body(Body::from(body)).ok()
    }

    /// Lets the process do something; `None` if there is none, or if it is killed before the end.
    async fn work<T, F>(&self, work: impl FnOnce(Process) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let process = lock(&self.process).clone()?;
        let work = work(process.clone());
        let (done, result) = oneshot::channel();
        process.spawn(async move {
            // The caller may have stopped waiting.
            let _gone = done.send(work.await);
        });
        // Nothing of the process may be held here while it may be killed.
        drop(process);
        result.await.ok()
    }
}

impl Process {
    pub(super) fn router(&self, peer: Peer) -> Router {
        match peer {
            Peer::Unix { .. } | Peer::Unknown => self.user.clone(),
            Peer::Tls { .. } | Peer::Certificate { .. } => self.tls.clone(),
        }
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut all = lock(&self.work);
        while all.try_join_next().is_some() {}
        all.spawn(work);
    }
}

pub(super) async fn send(
    router: Router,
    mut request: Request<Body>,
    peer: Peer,
) -> axum::response::Response {
    request.extensions_mut().insert(ConnectInfo(peer));
    let Ok(response) = router.oneshot(request).await;
    response
}

fn parsed<T: serde::de::DeserializeOwned>(answer: Option<Answer>) -> Result<T> {
    let answer = answer.context("waifud does not answer")?;
    if !answer.is_success() {
        bail!(
            "waifud refused with {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.bytes)
        );
    }
    Ok(serde_json::from_slice(&answer.bytes)?)
}
