//! The typed client of the node's metadata service ([`crate::metadatad`]): one method per route.
//!
//! Each request opens a connection: on a local socket this takes microseconds, and a restarted service needs no
//! special handling. Every method ends within its timeout.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};
use waifud_types::{Digest, InstanceId};

use crate::{
    Problem,
    metadatad::{Assignment, Observations, RedisSetting, Status, Tunnel},
};

/// Timeout of a request. The service answers from memory or after an fsync.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a response in bytes; enough for thousands of instances.
const ANSWER_MAX: usize = 16 << 20;

/// Why a request to the metadata service failed.
#[derive(Debug, thiserror::Error)]
pub enum MetadatadError {
    /// No connection could be made, or it broke: the service is not running or is being restarted. Can be retried.
    #[error("the metadata service is unreachable at {}", socket.display())]
    Unreachable {
        /// The unix socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The service did not answer in time. Can be retried.
    #[error("the metadata service did not answer within {} s", after.as_secs())]
    Timeout {
        /// The timeout.
        after: Duration,
    },
    /// The service answered with a problem. [`MetadatadError::is_bundle_missing`] identifies the expected one.
    #[error("the metadata service refused the request: {0}")]
    Problem(#[source] Box<Problem>),
    /// The response does not conform to the protocol: another version or another program.
    #[error("unexpected response from the metadata service (HTTP {status})")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// Why the body could not be parsed, if it is JSON.
        #[source]
        source: Option<serde_json::Error>,
    },
}

impl MetadatadError {
    /// Whether the bundle must be sent before the assignment (409 `bundle-missing`).
    pub fn is_bundle_missing(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.code == "bundle-missing")
    }
}

/// A client of the metadata service on this node. Cheap to clone; holds no connection.
#[derive(Clone, Debug)]
pub struct MetadatadClient {
    socket: PathBuf,
    timeout: Duration,
}

impl MetadatadClient {
    /// A client for the service that listens on `socket`, usually `/run/waifud-metadata/control.sock`. Does no I/O.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Sets the timeout of a request (10 s by default).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Gets the running process and what it serves.
    pub async fn status(&self) -> Result<Status, MetadatadError> {
        self.json(Method::GET, "/v1/status", Bytes::new()).await
    }

    /// Ensures that this end of the tunnel is accepted and no other.
    pub async fn put_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadatadError> {
        self.json(Method::PUT, "/v1/tunnel", body(tunnel)?).await
    }

    /// Ensures that the service reads bundles from this Redis, or from none.
    pub async fn put_redis(&self, setting: &RedisSetting) -> Result<(), MetadatadError> {
        self.done(Method::PUT, "/v1/redis", body(setting)?).await
    }

    /// Gets a stored bundle. `None` if it is not stored. The bytes are not verified here.
    pub async fn bundle(&self, digest: Digest) -> Result<Option<Bytes>, MetadatadError> {
        let path = format!("/v1/bundles/{digest}");
        match self.request(Method::GET, &path, Bytes::new()).await {
            Ok((_, bytes)) => Ok(Some(bytes)),
            Err(MetadatadError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ensures that the service has stored the bundle. 400 `digest-mismatch` if the bytes have another digest.
    pub async fn put_bundle(
        &self,
        digest: Digest,
        ciphertext: impl Into<Bytes>,
    ) -> Result<(), MetadatadError> {
        let path = format!("/v1/bundles/{digest}");
        self.done(Method::PUT, &path, ciphertext.into()).await
    }

    /// Ensures that the service does not store the bundle unless an instance uses it.
    pub async fn drop_bundle(&self, digest: Digest) -> Result<(), MetadatadError> {
        self.delete(&format!("/v1/bundles/{digest}")).await
    }

    /// Ensures that the service serves the documents of this instance. After `Ok`, the guest can be started.
    ///
    /// The assignment replaces an earlier one of the instance. Problems: 409 `bundle-missing` (send the bundle first),
    /// 409 `address-taken` (another instance has the address), 400 `bundle-unreadable` (the key does not decrypt it).
    pub async fn put_instance(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadatadError> {
        let path = format!("/v1/instances/{instance}");
        self.done(Method::PUT, &path, body(assignment)?).await
    }

    /// Ensures that the service neither stores nor serves anything of the instance.
    pub async fn delete_instance(&self, instance: InstanceId) -> Result<(), MetadatadError> {
        self.delete(&format!("/v1/instances/{instance}")).await
    }

    /// Gets observations after number `after` (0 for all stored ones). Waits up to `wait`, in whole seconds and at
    /// most 60, for the first one; otherwise returns an empty list.
    pub async fn observations(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<Observations, MetadatadError> {
        let seconds = wait.as_secs().min(60);
        let path = format!("/v1/observations?after={after}&wait={seconds}");
        let patient = Self {
            socket: self.socket.clone(),
            timeout: self.timeout.saturating_add(Duration::from_secs(seconds)),
        };
        patient.json(Method::GET, &path, Bytes::new()).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, MetadatadError> {
        let (status, bytes) = self.request(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|source| MetadatadError::Unexpected {
            status: status.as_u16(),
            source: Some(source),
        })
    }

    async fn delete(&self, path: &str) -> Result<(), MetadatadError> {
        self.done(Method::DELETE, path, Bytes::new()).await
    }

    async fn done(&self, method: Method, path: &str, body: Bytes) -> Result<(), MetadatadError> {
        self.request(method, path, body).await.map(|_| ())
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), MetadatadError> {
        let after = self.timeout;
        let (status, bytes) = timeout(after, self.exchange(method, path, body))
            .await
            .map_err(|_| MetadatadError::Timeout { after })?
            .map_err(|source| MetadatadError::Unreachable {
                socket: self.socket.clone(),
                source,
            })?;
        if status.is_success() {
            return Ok((status, bytes));
        }
        Err(serde_json::from_slice(&bytes).map_or_else(
            |source| MetadatadError::Unexpected {
                status: status.as_u16(),
                source: Some(source),
            },
            |problem| MetadatadError::Problem(Box::new(problem)),
        ))
    }

    /// Opens a connection, sends a request and reads the response.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> io::Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), ANSWER_MAX)
                .collect()
                .await
                .map_err(io::Error::other)?
                .to_bytes();
            Ok((status, bytes))
        };
        // The connection is driven here and not in a task: when the caller gives up, nothing stays behind.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => return answer,
            ended = &mut connection => ended.map_err(io::Error::other)?,
        }
        answer.await
    }
}

fn body(value: &impl serde::Serialize) -> Result<Bytes, MetadatadError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|source| MetadatadError::Unexpected {
            status: 0,
            source: Some(source),
        })
}
