//! The link of an agent to waifud: the agent's own seam, over the simulated wire and waifud's own routes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use waifud_agent::interfaces::{ByteChunks, ControlLink, Destination, FrameStream, LinkError};
use waifud_api::agent::{AgentReport, DiskTicket, Hello, WatchFrame, WatchStart, Welcome};
use waifud_api::stream::{StreamId, StreamRefusal};
use waifud_control::Peer;
use waifud_hypervisor::ByteStream;
use waifud_types::{Digest, InstanceId};

use super::streams::{self, Disk, unreachable};
use super::wire::To;
use super::{Answer, Node, World};

/// How long the agent's client waits for an answer, and how long a watch may be silent (`waifud_api::agent_client`).
const ANSWER_MAX: Duration = Duration::from_secs(30);
const SILENCE_MAX: Duration = Duration::from_secs(35);

/// The link of one node.
pub(super) struct Link {
    pub world: Arc<World>,
    pub node: usize,
}

impl Link {
    fn node(&self) -> Result<&Node, LinkError> {
        let node = self.world.nodes.get(self.node);
        node.ok_or_else(|| unreachable("there is no such node"))
    }

    fn peer(&self) -> Result<Peer, LinkError> {
        let peer = self.node()?.peer();
        peer.ok_or_else(|| unreachable("the machine has not joined"))
    }

    /// Sends a request. It arrives at waifud even if the agent stops waiting.
    async fn request(
        &self,
        method: &'static str,
        path: String,
        body: Vec<u8>,
        repeat: bool,
    ) -> Result<Answer, LinkError> {
        let wire = &self.node()?.wire;
        let (answer, answered) = oneshot::channel();
        let sent = Message {
            world: self.world.clone(),
            node: self.node,
            peer: self.peer()?,
            process: self.world.waifud.starts(),
            method,
            path,
            body,
        };
        if repeat && let Some(later) = wire.repetition() {
            let again = sent.clone();
            wire.carry(async move {
                sleep(later).await;
                let _answer_is_not_needed = again.travel("again").await;
            });
        }
        wire.carry(async move {
            let arrived = sent.travel("").await;
            // The agent may have stopped waiting.
            let _gone = answer.send(arrived);
        });
        let arrived = match timeout(ANSWER_MAX, answered).await {
            Ok(Ok(Some(arrived))) => arrived,
            Ok(_) => return Err(unreachable("the connection failed")),
            Err(_) => return Err(unreachable("waifud did not answer in time")),
        };
        match arrived.status {
            410 => Err(LinkError::Gone),
            _ if arrived.is_success() => Ok(arrived),
            status => Err(LinkError::Refused {
                status,
                message: String::from_utf8_lossy(&arrived.bytes).into_owned(),
            }),
        }
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, LinkError> {
        let body = serde_json::to_vec(body).map_err(|error| unreachable(&error.to_string()))?;
        let repeat = path == "/v1/agent/report";
        self.request("POST", path.to_owned(), body, repeat).await
    }
}

fn parsed<T: DeserializeOwned>(answer: &Answer) -> Result<T, LinkError> {
    serde_json::from_slice(&answer.bytes).map_err(|error| unreachable(&error.to_string()))
}

/// A request on its way.
#[derive(Clone)]
struct Message {
    world: Arc<World>,
    node: usize,
    peer: Peer,
    /// The process of waifud that the connection leads to.
    process: u64,
    method: &'static str,
    path: String,
    body: Vec<u8>,
}

impl Message {
    /// Travels to waifud and back. `None` if either is lost, or if waifud does not answer.
    async fn travel(self, which: &str) -> Option<Answer> {
        let node = self.world.nodes.get(self.node)?;
        sleep(node.wire.delay()).await;
        let waifud = &self.world.waifud;
        if !node.wire.passes(To::Waifud).await || waifud.starts() != self.process {
            return None;
        }
        let content = Digest::of(&self.body).short();
        let (method, path) = (self.method, self.path);
        let answer = waifud.call(self.peer, method, &path, self.body).await;
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let history = &self.world.history;
        history.detail(&format!(
            "{} {method} {path} {content} {which} -> {status}",
            node.name
        ));
        self.world
            .require_no_failure(&format!("{} {method} {path}", node.name), answer.as_ref());
        self.world.check().await;
        let answer = answer?;
        sleep(node.wire.delay()).await;
        node.wire.passes(To::Node).await.then_some(answer)
    }
}

/// The frames of a watch, in order and each with its delay.
struct Frames {
    world: Arc<World>,
    node: usize,
    received: mpsc::UnboundedReceiver<WatchFrame>,
    /// The next frame, and when it arrives.
    next: Option<(Instant, WatchFrame)>,
    silent_since: Instant,
}

#[async_trait]
impl FrameStream for Frames {
    async fn next(&mut self) -> Result<Option<WatchFrame>, LinkError> {
        let world = self.world.clone();
        let Some(node) = world.nodes.get(self.node) else {
            return Ok(None);
        };
        let arrives = async {
            if self.next.is_none() {
                let Some(frame) = self.received.recv().await else {
                    return;
                };
                self.next = Some((Instant::now() + node.wire.delay(), frame));
            }
            if let Some((at, _)) = &self.next {
                sleep_until(*at).await;
                node.wire.open_to_node().await;
            }
        };
        let silent = self.silent_since + SILENCE_MAX;
        if tokio::time::timeout_at(silent, arrives).await.is_err() {
            return Err(unreachable("the watch was silent for too long"));
        }
        self.silent_since = Instant::now();
        let Some((_, frame)) = self.next.take() else {
            return Ok(None);
        };
        let text = serde_json::to_string(&frame).unwrap_or_default();
        if !matches!(frame, WatchFrame::Ping) {
            let history = &world.history;
            history.detail(&format!("{} receives {text}", node.name));
        }
        Ok(Some(frame))
    }
}

#[async_trait]
impl ControlLink for Link {
    fn local_address(&self) -> Option<IpAddr> {
        let number = u8::try_from(self.node).ok()?;
        Some(IpAddr::from([192, 0, 2, number]))
    }

    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError> {
        parsed(&self.post("/v1/agent/hello", hello).await?)
    }

    async fn watch(&self, start: WatchStart) -> Result<Box<dyn FrameStream>, LinkError> {
        let (node, peer) = (self.node()?, self.peer()?);
        let opened = async {
            sleep(node.wire.delay()).await;
            let passes = node.wire.passes(To::Waifud).await;
            if !passes {
                return None;
            }
            self.world.waifud.watch(peer, start).await
        };
        let opened = timeout(ANSWER_MAX, opened).await.ok().flatten();
        let watched = opened.ok_or_else(|| unreachable("the watch could not be opened"))?;
        match watched.status {
            200 => Ok(Box::new(Frames {
                world: self.world.clone(),
                node: self.node,
                received: watched.frames,
                next: None,
                silent_since: Instant::now(),
            })),
            410 => Err(LinkError::Gone),
            _ => Err(unreachable("the watch was refused")),
        }
    }

    async fn report(&self, report: &AgentReport) -> Result<(), LinkError> {
        self.post("/v1/agent/report", report).await.map(drop)
    }

    /// waifud reads image files on other threads, so the bytes come from the simulation.
    async fn fetch_image(&self, image: Digest, to: Destination<'_>) -> Result<(), LinkError> {
        let wire = &self.node()?.wire;
        sleep(wire.delay()).await;
        let passes = wire.passes(To::Waifud).await && wire.passes(To::Node).await;
        let (bytes, digest) = &self.world.image;
        if !passes || !self.world.waifud.is_running() || image != *digest {
            return Err(unreachable("the image cannot be fetched"));
        }
        std::fs::write(to.file, bytes).map_err(|source| LinkError::File {
            path: to.file.to_owned(),
            source,
        })?;
        (to.progress)(bytes.len() as u64);
        Ok(())
    }

    async fn fetch_disk(
        &self,
        instance: InstanceId,
        index: u32,
        from: u64,
    ) -> Result<Box<dyn ByteChunks>, LinkError> {
        let (node, peer) = (self.node()?, self.peer()?);
        let path = format!("/v1/agent/moves/{instance}/disks/{index}?from={from}");
        let opened = async {
            sleep(node.wire.delay()).await;
            if !node.wire.passes(To::Waifud).await {
                return None;
            }
            self.world.waifud.download(peer, &path).await
        };
        let opened = timeout(ANSWER_MAX, opened).await.ok().flatten();
        let status = opened.as_ref().map_or(0, |download| download.status);
        let history = &self.world.history;
        history.detail(&format!("{} GET {path} -> {status}", node.name));
        let download = opened.ok_or_else(|| unreachable("the disk cannot be fetched"))?;
        match download.status {
            200 => Ok(Box::new(Disk::new(self.world.clone(), self.node, download))),
            status => Err(LinkError::Refused {
                status,
                message: "waifud does not send the disk".to_owned(),
            }),
        }
    }

    async fn disk_ticket(&self, _: InstanceId, _: u32) -> Result<DiskTicket, LinkError> {
        Err(unreachable("no disks are copied directly"))
    }

    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError> {
        let path = format!("/v1/agent/bundles/{bundle}");
        let answer = self.request("GET", path, Vec::new(), false).await?;
        Ok(answer.bytes.into())
    }

    async fn stream(&self, id: StreamId) -> Result<Box<dyn ByteStream>, LinkError> {
        let (node, peer) = (self.node()?, self.peer()?);
        let path = format!("/v1/agent/streams/{id}");
        let connected = async {
            sleep(node.wire.delay()).await;
            if !node.wire.passes(To::Waifud).await {
                return None;
            }
            self.world.waifud.connect(peer, &path).await
        };
        match timeout(ANSWER_MAX, connected).await.ok().flatten() {
            None => Err(unreachable("the stream cannot be opened")),
            Some(Err(status)) => Err(LinkError::Refused {
                status,
                message: "waifud does not wait for the stream".to_owned(),
            }),
            Some(Ok(waifud)) => {
                let (ours, theirs) = streams::connection();
                let world = self.world.clone();
                node.wire
                    .carry(streams::carry(world, self.node, theirs, waifud));
                Ok(Box::new(ours))
            }
        }
    }

    async fn refuse_stream(&self, id: StreamId, refusal: &StreamRefusal) -> Result<(), LinkError> {
        let path = format!("/v1/agent/streams/{id}/refuse");
        self.post(&path, refusal).await.map(drop)
    }
}
