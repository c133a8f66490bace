//! Bytes that move between nodes through waifud: the disks of moving instances. Each connection belongs to a process of
//! waifud and ends with it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;
use waifud_agent::interfaces::{ByteChunks, LinkError};
use waifud_api::stream::STREAM_PROTOCOL;
use waifud_control::Peer;

use super::waifud::{next_chunk, send};
use super::wire::To;
use super::{Waifud, World};

/// The bytes that a connection holds.
const BUFFER: usize = 256 << 10;
/// How long a transfer may be silent (`waifud_api::agent_client`).
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// waifud cannot be reached, or a connection to it has failed.
pub(super) fn unreachable(message: &str) -> LinkError {
    LinkError::Unreachable {
        message: message.to_owned(),
    }
}

/// The answer to a request for bytes.
pub(super) struct Download {
    /// The HTTP status; bytes follow only after 200.
    pub status: u16,
    received: mpsc::UnboundedReceiver<Bytes>,
}

impl Waifud {
    /// A request of a node whose answer are bytes that arrive over time.
    pub(super) async fn download(&self, peer: Peer, path: &str) -> Option<Download> {
        let request = self.request("GET", path, Vec::new())?;
        let process = self.process()?;
        let router = process.router(peer);
        let (answer, answered) = oneshot::channel();
        let (sender, received) = mpsc::unbounded_channel();
        process.spawn(async move {
            let response = send(router, request, peer).await;
            let status = response.status().as_u16();
            if answer.send(status).is_err() || status != 200 {
                return;
            }
            let mut body = response.into_body();
            loop {
                let Some(bytes) = next_chunk(&sender, &mut body).await else {
                    return;
                };
                if sender.send(bytes).is_err() {
                    return;
                }
            }
        });
        drop(process);
        let status = answered.await.ok()?;
        Some(Download { status, received })
    }

    /// Connects a node to a stream that waifud has ordered from it. `None` if waifud does not answer; an HTTP status if it
    /// refuses.
    pub(super) async fn connect(
        &self,
        peer: Peer,
        path: &str,
    ) -> Option<Result<TokioIo<Upgraded>, u16>> {
        let mut request = self.request("GET", path, Vec::new())?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, "upgrade".parse().ok()?);
        headers.insert(header::UPGRADE, STREAM_PROTOCOL.parse().ok()?);
        headers.insert(header::HOST, "waifud".parse().ok()?);
        let process = self.process()?;
        let (ours, theirs) = duplex(BUFFER);
        let router = process.router(peer);
        process.spawn(async move {
            let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(ConnectInfo(peer));
                router.clone().oneshot(request)
            });
            let connection = server::Builder::new().serve_connection(TokioIo::new(theirs), service);
            // It ends when waifud or the node closes it.
            let _ended = connection.with_upgrades().await;
        });
        let (mut sender, connection) = client::handshake::<_, Body>(TokioIo::new(ours))
            .await
            .ok()?;
        process.spawn(async move {
            let _ended = connection.with_upgrades().await;
        });
        // Nothing of the process may be held here while it may be killed.
        drop(process);
        let response = sender.send_request(request).await.ok()?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Some(Err(response.status().as_u16()));
        }
        let upgraded = hyper::upgrade::on(response).await.ok()?;
        Some(Ok(TokioIo::new(upgraded)))
    }
}

/// A disk that arrives at a node.
pub(super) struct Disk {
    world: Arc<World>,
    node: usize,
    download: Download,
}

impl Disk {
    pub(super) fn new(world: Arc<World>, node: usize, download: Download) -> Self {
        Self {
            world,
            node,
            download,
        }
    }
}

#[async_trait]
impl ByteChunks for Disk {
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        let received = timeout(SILENCE_MAX, self.download.received.recv()).await;
        let Ok(chunk) = received else {
            return Err(unreachable("the transfer was silent for too long"));
        };
        let Some(node) = self.world.nodes.get(self.node) else {
            return Ok(None);
        };
        sleep(node.wire.delay()).await;
        if !node.wire.passes(To::Node).await {
            return Err(unreachable("the transfer was interrupted"));
        }
        let length = chunk.as_ref().map_or(0, Bytes::len);
        let history = &self.world.history;
        history.detail(&format!("{} receives {length} bytes of a disk", node.name));
        Ok(chunk)
    }
}

/// Carries what the agent of a node sends to waifud, until either end is gone or the wire is cut for too long.
pub(super) async fn carry(
    world: Arc<World>,
    node: usize,
    agent: DuplexStream,
    waifud: TokioIo<Upgraded>,
) {
    let Some(node) = world.nodes.get(node) else {
        return;
    };
    let (mut from_agent, mut to_agent) = tokio::io::split(agent);
    let (mut from_waifud, mut to_waifud) = tokio::io::split(waifud);
    let there = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from_agent.read(&mut buffer).await.unwrap_or(0);
            sleep(node.wire.delay()).await;
            if read == 0 || !node.wire.passes(To::Waifud).await {
                return;
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            if to_waifud.write_all(bytes).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        let _gone = tokio::io::copy(&mut from_waifud, &mut to_agent).await;
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

/// The two ends of a connection between an agent and its wire.
pub(super) fn connection() -> (DuplexStream, DuplexStream) {
    duplex(BUFFER)
}
