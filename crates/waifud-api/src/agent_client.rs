//! The typed client of the agent routes ([`crate::agent`]): one method per route, over TLS.
//!
//! A connection is reused for small requests, since a handshake costs more than a request; a broken one is replaced.
//! Long bodies (a watch, an image) use their own connection and are read in chunks. A silent peer ends them, so every
//! method ends. Dropping such a body closes its connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::{collections::BTreeSet, io, net::IpAddr, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header,
    header::HeaderName,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};
use tokio_util::task::AbortOnDropHandle;
use waifud_types::{Digest, InstanceId};

mod stream;
mod tickets;

pub use stream::AgentStream;

use crate::{
    Problem,
    agent::{
        AgentReport, Hello, NAMES_HEADER, OwnNode, SliceObject, WatchFrame, WatchStart, Welcome,
    },
    join::{JOIN_TOKEN_HEADER, JoinRequest, Joined},
};

mod dial;

use dial::{Endpoint, Stream};

/// Timeout for a response with a small body.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum silence of a watch or an image. waifud pings a watch every 10 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// Maximum size of a small response in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// Maximum size of an encrypted bundle in bytes: 1 MiB of user-data, rendered in several formats.
const BUNDLE_MAX: usize = 16 << 20;
/// Maximum length of a line of a watch in bytes.
const LINE_MAX: usize = 4 << 20;
/// Maximum number of unknown kinds that are logged for one watch.
const IGNORED_MAX: usize = 32;

/// Why a request to waifud failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentClientError {
    /// No connection could be made, or it broke. Can be retried.
    #[error("waifud is unreachable at {at}")]
    Unreachable {
        /// The addresses tried.
        at: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No response arrived in time. Can be retried.
    #[error("no data from waifud for {} s", after.as_secs())]
    Timeout {
        /// The timeout.
        after: Duration,
    },
    /// waifud answered with a problem.
    #[error("waifud refused the request: {0}")]
    Problem(#[source] Box<Problem>),
    /// The response does not conform to the protocol.
    #[error("unexpected response from waifud (HTTP {status})")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// Why the body could not be parsed, if it is JSON.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The response is too large.
    #[error("the response of waifud exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The bundle does not have the requested digest.
    #[error("the received bundle has the digest {actual} instead of {expected}")]
    DigestMismatch {
        /// The requested digest.
        expected: Digest,
        /// The digest of the received bytes.
        actual: Digest,
    },
}

impl AgentClientError {
    /// The HTTP status of a problem.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::Unexpected { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the history after `since` was trimmed (410): watch again without it.
    pub fn is_gone(&self) -> bool {
        self.status() == Some(410)
    }
}

/// A client of waifud's agent routes. Cheap to clone; clones share the addresses and the connection.
#[derive(Clone, Debug)]
pub struct AgentClient {
    way: Endpoint,
    kept: Arc<Mutex<Option<Connection>>>,
    timeout: Duration,
}

impl AgentClient {
    /// A client for waifud at one of these URLs (`https://HOST:PORT`), whose certificate must be valid for `name`.
    /// Does no I/O.
    pub fn tls(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        addresses: Vec<String>,
    ) -> Self {
        Self::by(Endpoint::Tls {
            config,
            name,
            addresses: Arc::new(addresses.into()),
            local: Arc::default(),
        })
    }

    /// A client for a unix socket, for tests. Does no I/O.
    pub fn unix(socket: PathBuf) -> Self {
        Self::by(Endpoint::Unix(socket))
    }

    fn by(way: Endpoint) -> Self {
        Self {
            way,
            kept: Arc::default(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Addresses of waifud, beginning with the one that answered last.
    pub fn addresses(&self) -> Vec<String> {
        self.way.addresses()
    }

    /// This host's own address in the last connection to waifud; `None` before the first one, and for a unix socket.
    pub fn local_address(&self) -> Option<IpAddr> {
        self.way.local_address()
    }

    /// Sets new addresses of waifud. Previous ones are tried after them.
    pub fn set_addresses(&self, addresses: &[String]) {
        self.way.set_addresses(addresses);
    }

    /// Sets the timeout of a response (30 s by default).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Joins as a node. The only request without a client certificate.
    pub async fn join(&self, request: &JoinRequest) -> Result<Joined, AgentClientError> {
        let open = self
            .open(
                Method::POST,
                "/v1/agent/join",
                body(request)?,
                Some((
                    HeaderName::from_static(JOIN_TOKEN_HEADER),
                    request.secret.expose().clone(),
                )),
            )
            .await?;
        self.json(open).await
    }

    /// The node that the certificate belongs to; refused if waifud does not admit it any more.
    pub async fn own_node(&self) -> Result<OwnNode, AgentClientError> {
        let open = self
            .open(Method::GET, "/v1/agent/node", Bytes::new(), None)
            .await?;
        self.json(open).await
    }

    /// Sends the node's hello.
    pub async fn hello(&self, hello: &Hello) -> Result<Welcome, AgentClientError> {
        let open = self
            .open(Method::POST, "/v1/agent/hello", body(hello)?, None)
            .await?;
        self.json(open).await
    }

    /// Watches the node's slice, and the names of other nodes' instances.
    pub async fn watch(&self, start: WatchStart) -> Result<WatchStream, AgentClientError> {
        let names = (HeaderName::from_static(NAMES_HEADER), start.names_header());
        Ok(WatchStream {
            body: self
                .open(Method::GET, &start.path(), Bytes::new(), Some(names))
                .await?,
            buffer: BytesMut::new(),
            searched: 0,
            ignored: BTreeSet::new(),
        })
    }

    /// Sends a report; returns `Ok` once it is durable.
    pub async fn report(&self, report: &AgentReport) -> Result<(), AgentClientError> {
        let open = self
            .open(Method::POST, "/v1/agent/report", body(report)?, None)
            .await?;
        self.collect(open, ANSWER_MAX).await.map(drop)
    }

    /// Downloads an image, beginning at byte `from` if waifud supports it, otherwise at the start; see
    /// [`ImageBody::from`]. 416 if the image has no such byte.
    pub async fn image(&self, image: Digest, from: u64) -> Result<ImageBody, AgentClientError> {
        let path = format!("/v1/agent/images/{image}");
        let range = (from > 0).then(|| (header::RANGE, format!("bytes={from}-")));
        let open = self.open(Method::GET, &path, Bytes::new(), range).await?;
        let partial = open.status == StatusCode::PARTIAL_CONTENT;
        Ok(ImageBody {
            from: if partial { from } else { 0 },
            body: open,
        })
    }

    /// Downloads an encrypted bundle and verifies its digest.
    pub async fn bundle(&self, digest: Digest) -> Result<Bytes, AgentClientError> {
        let path = format!("/v1/agent/bundles/{digest}");
        let open = self.open(Method::GET, &path, Bytes::new(), None).await?;
        let bytes = self.collect(open, BUNDLE_MAX).await?;
        let actual = Digest::of(&bytes);
        if actual == digest {
            Ok(bytes)
        } else {
            Err(AgentClientError::DigestMismatch {
                expected: digest,
                actual,
            })
        }
    }

    /// Opens a disk of an instance that the node receives, for a transfer in the format of [`crate::disk_transfer`]. Blocks
    /// before byte `from` are omitted.
    pub async fn disk(
        &self,
        instance: InstanceId,
        index: u32,
        from: u64,
    ) -> Result<DiskBody, AgentClientError> {
        let path = format!("/v1/agent/moves/{instance}/disks/{index}?from={from}");
        let open = self.open(Method::GET, &path, Bytes::new(), None).await?;
        Ok(DiskBody(open))
    }

    fn unreachable(&self, source: io::Error) -> AgentClientError {
        AgentClientError::Unreachable {
            at: self.way.shown(),
            source,
        }
    }

    /// Sends a request and waits for the head of a successful response; otherwise reads the problem.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        extra: Option<(HeaderName, String)>,
    ) -> Result<OpenBody, AgentClientError> {
        let after = self.timeout;
        let (response, connection) = timeout(after, self.exchange(method, path, body, extra))
            .await
            .map_err(|_| AgentClientError::Timeout { after })?
            .map_err(|source| self.unreachable(source))?;
        let open = OpenBody {
            status: response.status(),
            at: self.way.shown(),
            body: response.into_body(),
            connection,
        };
        if open.status.is_success() {
            return Ok(open);
        }
        let status = open.status.as_u16();
        let bytes = self.collect(open, ANSWER_MAX).await?;
        Err(serde_json::from_slice(&bytes).map_or_else(
            |source| AgentClientError::Unexpected {
                status,
                source: Some(source),
            },
            |problem| AgentClientError::Problem(Box::new(problem)),
        ))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        extra: Option<(HeaderName, String)>,
    ) -> io::Result<(Response<Incoming>, Connection)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "waifud")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some((name, value)) = extra {
            request = request.header(name, value);
        }
        let mut request = request.body(Full::new(body)).map_err(io::Error::other)?;
        let kept = self.kept().take();
        if let Some(mut connection) = kept
            && connection.sender.ready().await.is_ok()
        {
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                // The connection broke before the request was sent, so the request is returned and sent on a new
                // connection.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(io::Error::other(error.into_error())),
                },
            }
        }
        let mut connection = Connection::open(self.way.connect().await?).await?;
        let response = connection
            .sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        Ok((response, connection))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn json<T: DeserializeOwned>(&self, open: OpenBody) -> Result<T, AgentClientError> {
        let status = open.status.as_u16();
        let bytes = self.collect(open, ANSWER_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|source| AgentClientError::Unexpected {
            status,
            source: Some(source),
        })
    }

    async fn collect(&self, open: OpenBody, limit: usize) -> Result<Bytes, AgentClientError> {
        let after = self.timeout;
        let bytes = timeout(after, Limited::new(open.body, limit).collect())
            .await
            .map_err(|_| AgentClientError::Timeout { after })?
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    AgentClientError::TooLarge { limit }
                } else {
                    self.unreachable(io::Error::other(error))
                }
            })?;
        // The body was read completely, so the connection can be reused.
        if !open.connection.sender.is_closed() {
            *self.kept() = Some(open.connection);
        }
        Ok(bytes)
    }
}

/// A connection, which is closed when this is dropped.
#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    async fn open(stream: Box<dyn Stream>) -> io::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // The reader of the body receives the connection's errors too.
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let _seen_by_the_reader = connection.await;
        }));
        Ok(Self {
            sender,
            _task: task,
        })
    }
}

/// A response with an unread body, and its connection.
#[derive(Debug)]
struct OpenBody {
    status: StatusCode,
    at: String,
    body: Incoming,
    connection: Connection,
}

impl OpenBody {
    /// Receives the next chunk; `None` at the end. Cancel-safe: no bytes are lost if the future is dropped.
    async fn chunk(&mut self) -> Result<Option<Bytes>, AgentClientError> {
        loop {
            let frame = timeout(SILENCE_MAX, self.body.frame())
                .await
                .map_err(|_| AgentClientError::Timeout { after: SILENCE_MAX })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(AgentClientError::Unreachable {
                        at: self.at.clone(),
                        source: io::Error::other(error),
                    });
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// A disk that arrives.
#[derive(Debug)]
pub struct DiskBody(OpenBody);

impl DiskBody {
    /// Receives the next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, AgentClientError> {
        self.0.chunk().await
    }
}

/// An open watch.
#[derive(Debug)]
pub struct WatchStream {
    body: OpenBody,
    buffer: BytesMut,
    /// Bytes of the buffer that contain no newline.
    searched: usize,
    /// Unknown kinds that were received.
    ignored: BTreeSet<String>,
}

impl WatchStream {
    /// Receives the next frame; `None` if waifud ended the watch. Unknown kinds of frames and objects are ignored.
    /// Cancel-safe: no frame is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<WatchFrame>, AgentClientError> {
        loop {
            if let Some(line) = self.line()? {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let source = match serde_json::from_slice(&line) {
                    Ok(frame) => return Ok(Some(frame)),
                    Err(error) => error,
                };
                let Some(kind) = unknown_kind(&line) else {
                    return Err(AgentClientError::Unexpected {
                        status: self.body.status.as_u16(),
                        source: Some(source),
                    });
                };
                self.ignore(&kind);
                continue;
            }
            match self.body.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// Logs the kind, once per watch.
    fn ignore(&mut self, kind: &str) {
        if self.ignored.len() < IGNORED_MAX && self.ignored.insert(kind.to_owned()) {
            tracing::warn!(
                ?kind,
                "ignoring objects of a kind that this version does not support; upgrade waifud-agentd on this node"
            );
        }
    }

    fn line(&mut self) -> Result<Option<BytesMut>, AgentClientError> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return if self.buffer.len() > LINE_MAX {
                Err(AgentClientError::TooLarge { limit: LINE_MAX })
            } else {
                Ok(None)
            };
        };
        let line = self.buffer.split_to(self.searched + at + 1);
        self.searched = 0;
        Ok(Some(line))
    }
}

/// The kind of a frame or object that only a newer version of waifud knows. Such a line is ignored.
fn unknown_kind(line: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Kinds {
        #[serde(rename = "type")]
        frame: String,
        /// Of a `delete`.
        kind: Option<String>,
        /// Of a `put`.
        object: Option<Object>,
    }
    #[derive(serde::Deserialize)]
    struct Object {
        kind: String,
    }
    let kinds: Kinds = serde_json::from_slice(line).ok()?;
    match kinds.frame.as_str() {
        "put" | "delete" => kinds
            .object
            .map(|object| object.kind)
            .or(kinds.kind)
            .filter(|kind| !SliceObject::KINDS.contains(&kind.as_str())),
        "tombstone" | "release" | "sync" | "ticket" | "image-ticket" | "ping" => None,
        // This also applies to a kind of stream that only a newer waifud knows.
        _ => Some(kinds.frame),
    }
}

/// A download of an image.
#[derive(Debug)]
pub struct ImageBody {
    from: u64,
    body: OpenBody,
}

impl ImageBody {
    /// Offset of the first byte.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Receives the next chunk; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, AgentClientError> {
        self.body.chunk().await
    }
}

fn body(value: &impl serde::Serialize) -> Result<Bytes, AgentClientError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|source| AgentClientError::Unexpected {
            status: 0,
            source: Some(source),
        })
}

#[cfg(test)]
mod tests;
