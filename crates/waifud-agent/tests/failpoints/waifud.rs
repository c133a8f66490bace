//! waifud with its real database and routes, without sockets; and the node's link to it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use waifud_agent::fake::encoded_disk;
use waifud_agent::interfaces::{ByteChunks, ControlLink, Destination, FrameStream, LinkError};
use waifud_api::agent::{
    AgentReport, DiskTicket, Hello, NAMES_HEADER, WatchFrame, WatchStart, Welcome,
};
use waifud_api::stream::{StreamId, StreamRefusal};
use waifud_control::env::{SystemClock, SystemEntropy};
use waifud_control::{Cause, Control, ControlConfig, ControlError, Peer, http};
use waifud_hypervisor::ByteStream;
use waifud_storage::fake::image_bytes;
use waifud_store::{Mode, Store, StoreError};
use waifud_types::{ByteSize, Digest, Epoch, Incarnation, InstanceId};

use crate::answer::{Answer, collect};

/// Only its directory survives when waifud is killed.
pub struct Waifud {
    dir: PathBuf,
    process: Mutex<Option<Process>>,
    /// The joined node.
    node: Mutex<Option<Peer>>,
}

#[derive(Clone)]
struct Process {
    control: Control,
    user: Router,
    tls: Router,
    alive: CancellationToken,
}

impl Waifud {
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            process: Mutex::default(),
            node: Mutex::default(),
        }
    }

    pub async fn start(&self) {
        let database = self.database();
        // Inline: everything runs on the thread of the test.
        let store = Store::open(&database, Mode::Inline, Incarnation(1)).unwrap();
        let config = ControlConfig::new(self.dir.clone());
        let surroundings = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let control = Control::new(store, config, surroundings.0, surroundings.1)
            .await
            .unwrap();
        *self.process.lock().unwrap() = Some(Process {
            user: http::user_router(control.clone()),
            tls: http::tls_router(control.clone()),
            control,
            alive: CancellationToken::new(),
        });
    }

    fn database(&self) -> PathBuf {
        self.dir.join("waifud.db")
    }

    fn backup(&self) -> PathBuf {
        self.dir.join("yesterday.db")
    }

    /// Copies the database, like `waifud backup`.
    pub fn back_up(&self) {
        waifud_store::backup::snapshot(&self.database(), &self.backup()).unwrap();
    }

    /// Replaces the database with the copy, like `waifud restore`. waifud must not run.
    pub fn restore(&self) {
        for end in ["", "-wal", "-shm"] {
            let _may_be_absent = std::fs::remove_file(self.dir.join(format!("waifud.db{end}")));
        }
        std::fs::rename(self.backup(), self.database()).unwrap();
        let now = waifud_types::Timestamp::now();
        waifud_store::backup::prepare_restored(&self.database(), Incarnation(2), now, Epoch(0))
            .unwrap();
    }

    /// Everything that it was doing ends at once, including its connections.
    pub fn kill(&self) {
        if let Some(process) = self.process.lock().unwrap().take() {
            process.alive.cancel();
            process.control.stop_token().cancel();
        }
    }

    pub fn control(&self) -> Control {
        self.process().unwrap().control
    }

    fn process(&self) -> Option<Process> {
        self.process.lock().unwrap().clone()
    }

    pub fn admit(&self, node: Peer) {
        *self.node.lock().unwrap() = Some(node);
    }

    /// Sends a request of a user at the socket. `None` if waifud was killed before it answered.
    pub async fn ask(&self, request: Request<Body>) -> Option<Answer> {
        let process = self.process()?;
        let call = call(process.user, request, Peer::Unix { uid: 0 });
        process.alive.run_until_cancelled(call).await
    }

    /// Orders the node to release the instance `web`, which no request does yet. `None` if waifud was killed before it
    /// answered.
    pub async fn release(&self) -> Option<Answer> {
        let Process { control, alive, .. } = self.process()?;
        let release = async {
            let found = control.store().read(|tx| {
                let web = tx.find_instance("web")?;
                Ok::<_, StoreError>(web.unwrap().id)
            });
            let web = found.await.unwrap();
            let status = match control.begin_release(web, true, Cause::system()).await {
                Ok(()) => 204,
                Err(ControlError::Problem(problem)) => problem.status,
                Err(_) => 500,
            };
            Answer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: HeaderMap::new(),
                bytes: Vec::new(),
            }
        };
        alive.run_until_cancelled(release).await
    }

    /// Sends a request without a kill.
    pub async fn request(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(body.into()).unwrap();
        self.ask(request).await.unwrap()
    }

    /// Sends a request without a certificate, like a machine that joins.
    pub async fn stranger(&self, path: &str, body: Vec<u8>) -> Answer {
        let request = Request::post(path).body(Body::from(body)).unwrap();
        let from = "192.0.2.9:4321".parse().unwrap();
        let process = self.process().unwrap();
        call(process.tls, request, Peer::Tls { from }).await
    }

    async fn of_node(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer, LinkError> {
        let peer = (*self.node.lock().unwrap()).ok_or_else(gone)?;
        self.as_node(peer, method, path, body).await
    }

    /// Sends a request of a node.
    pub async fn as_node(
        &self,
        peer: Peer,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer, LinkError> {
        let process = self.process().ok_or_else(gone)?;
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::from(body)).unwrap();
        let call = call(process.tls, request, peer);
        let answer = process
            .alive
            .run_until_cancelled(call)
            .await
            .ok_or_else(gone)?;
        if answer.status == StatusCode::GONE {
            return Err(LinkError::Gone);
        }
        if !answer.status.is_success() {
            return Err(LinkError::Refused {
                status: answer.status.as_u16(),
                message: String::from_utf8_lossy(&answer.bytes).into_owned(),
            });
        }
        Ok(answer)
    }
}

fn gone() -> LinkError {
    LinkError::Unreachable {
        message: "waifud was killed".to_owned(),
    }
}

async fn send(router: Router, mut request: Request<Body>, peer: Peer) -> axum::response::Response {
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request).await.unwrap()
}

async fn call(router: Router, request: Request<Body>, peer: Peer) -> Answer {
    collect(send(router, request, peer).await).await
}

/// The node's connection to a waifud.
pub struct Link(pub Arc<Waifud>);

struct Frames {
    body: Body,
    alive: CancellationToken,
    line: Vec<u8>,
}

#[async_trait]
impl FrameStream for Frames {
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).unwrap()));
            }
            let alive = self.alive.clone();
            let chunk = alive.run_until_cancelled(self.body.frame()).await;
            match chunk.ok_or_else(gone)? {
                Some(Ok(chunk)) => self.line.extend(chunk.into_data().unwrap_or_default()),
                Some(Err(_)) => return Err(gone()),
                None => return Ok(None),
            }
        }
    }
}

#[async_trait]
impl ControlLink for Link {
    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError> {
        let body = serde_json::to_vec(hello).unwrap();
        let answer = self
            .0
            .of_node(Method::POST, "/v1/agent/hello", body)
            .await?;
        Ok(serde_json::from_slice(&answer.bytes).unwrap())
    }

    async fn watch(&self, start: WatchStart) -> Result<Box<dyn FrameStream>, LinkError> {
        let process = self.0.process().ok_or_else(gone)?;
        let peer = (*self.0.node.lock().unwrap()).ok_or_else(gone)?;
        let request = Request::get(start.path()).header(NAMES_HEADER, start.names_header());
        let send = send(process.tls, request.body(Body::empty()).unwrap(), peer);
        let response = process
            .alive
            .run_until_cancelled(send)
            .await
            .ok_or_else(gone)?;
        match response.status().as_u16() {
            200 => Ok(Box::new(Frames {
                body: response.into_body(),
                alive: process.alive,
                line: Vec::new(),
            })),
            410 => Err(LinkError::Gone),
            _ => Err(gone()),
        }
    }

    async fn report(&self, report: &AgentReport) -> Result<(), LinkError> {
        let body = serde_json::to_vec(report).unwrap();
        let answer = self.0.of_node(Method::POST, "/v1/agent/report", body).await;
        answer.map(drop)
    }

    async fn fetch_image(&self, image: Digest, to: Destination<'_>) -> Result<(), LinkError> {
        let Destination { file: to, progress } = to;
        let path = format!("/v1/agent/images/{image}");
        let answer = self.0.of_node(Method::GET, &path, Vec::new()).await?;
        std::fs::write(to, &answer.bytes).unwrap();
        progress(answer.bytes.len() as u64);
        Ok(())
    }

    /// What the other node would send. waifud's part in it needs connections that stay open.
    async fn fetch_disk(
        &self,
        _: InstanceId,
        _: u32,
        from: u64,
    ) -> Result<Box<dyn ByteChunks>, LinkError> {
        self.0.process().ok_or_else(gone)?;
        let (contents, _) = image_bytes(ByteSize::gib(10), 1);
        let frames = encoded_disk(&contents, from).map_err(|_| gone())?;
        Ok(Box::new(Chunks(frames.into())))
    }

    async fn disk_ticket(&self, _: InstanceId, _: u32) -> Result<DiskTicket, LinkError> {
        Err(gone())
    }

    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError> {
        let path = format!("/v1/agent/bundles/{bundle}");
        let answer = self.0.of_node(Method::GET, &path, Vec::new()).await?;
        Ok(answer.bytes.into())
    }

    async fn stream(&self, _: StreamId) -> Result<Box<dyn ByteStream>, LinkError> {
        Err(gone())
    }

    async fn refuse_stream(&self, _: StreamId, _: &StreamRefusal) -> Result<(), LinkError> {
        Err(gone())
    }
}

struct Chunks(VecDeque<Bytes>);

#[async_trait]
impl ByteChunks for Chunks {
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        Ok(self.0.pop_front())
    }
}
