//! The agent's side: the wire of `waifud_api::metadatad` on a unix socket.
//!
//! Access is restricted by the socket's mode (0600), by the peer's uid (root or our own), and by the checks of each verb.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, FromRequestParts, Path as Segment, Query, State,
        rejection::QueryRejection,
    },
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::net::{UnixListener, UnixStream, unix};
use tokio_util::sync::CancellationToken;
use waifud_api::problem::{PROBLEM_JSON, Problem};
use waifud_types::{Digest, InstanceId};

use crate::{ControlError, MetadataService};

/// The maximum size of a request in bytes: user-data of 1 MiB in encrypted JSON, and some more.
const BODY_MAX: usize = 8 << 20;

/// How long to wait after a failed accept, so that file descriptors and other resources become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the control socket {}", path.display())]
pub struct ControlSocketError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The listening socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    own_uid: u32,
}

impl ControlSocket {
    /// Listens on `path` with mode 0600, and replaces the socket of a former process. The caller must hold a lock that
    /// excludes other running processes. The directory must exist.
    pub fn bind(path: &Path) -> Result<Self, ControlSocketError> {
        let failed = |source| ControlSocketError {
            path: path.to_owned(),
            source,
        };
        // Created under another name until its mode is set, so that others can never connect.
        let unfinished = path.with_extension("new");
        let remove = match fs::remove_file(&unfinished) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        remove.map_err(failed)?;
        let listener = UnixListener::bind(&unfinished).map_err(failed)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&unfinished, path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            own_uid: nix::unistd::geteuid().as_raw(),
        })
    }

    /// Serves the agent until `stop` is canceled. Running requests are completed.
    pub async fn serve(
        self,
        service: Arc<MetadataService>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        axum::serve(self, router(service))
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

impl axum::serve::Listener for ControlSocket {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (UnixStream, unix::SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 || peer.uid() == self.own_uid => {
                        return (stream, address);
                    }
                    Ok(peer) => {
                        tracing::warn!(
                            uid = peer.uid(),
                            "refused a connection to the control socket"
                        );
                    }
                    Err(error) => {
                        tracing::warn!(%error, "refused a connection without credentials");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.listener.local_addr()
    }
}

type Service = State<Arc<MetadataService>>;

fn router(service: Arc<MetadataService>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tunnel", put(put_tunnel))
        .route("/v1/redis", put(put_redis))
        .route(
            "/v1/bundles/{digest}",
            get(get_bundle).put(put_bundle).delete(delete_bundle),
        )
        .route(
            "/v1/instances/{id}",
            put(put_instance).delete(delete_instance),
        )
        .route("/v1/observations", get(observations))
        .fallback(async || Refused::new(Problem::new(404, "not-found", "unknown route")))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(service)
}

async fn status(State(service): Service) -> Response {
    Json(service.status().await).into_response()
}

async fn put_tunnel(State(service): Service, body: Bytes) -> Result<Response, Refused> {
    let tunnel = json(&body)?;
    let status = to_its_end(async move { service.put_tunnel(tunnel).await }).await?;
    Ok(Json(status).into_response())
}

async fn put_redis(State(service): Service, body: Bytes) -> NoContent {
    service.put_redis(json(&body)?);
    Ok(StatusCode::NO_CONTENT)
}

async fn get_bundle(
    State(service): Service,
    Named(digest): Named<Digest>,
) -> Result<Response, Refused> {
    let missing = || {
        let title = format!("the bundle {digest} is not stored here");
        Refused::new(Problem::new(404, "not-found", title))
    };
    let bundle = service.bundle(digest).await?.ok_or_else(missing)?;
    Ok(bundle.into_response())
}

async fn put_bundle(
    State(service): Service,
    Named(digest): Named<Digest>,
    body: Bytes,
) -> NoContent {
    no_content(async move { service.put_bundle(digest, body).await }).await
}

async fn delete_bundle(State(service): Service, Named(digest): Named<Digest>) -> NoContent {
    no_content(async move { service.delete_bundle(digest).await }).await
}

async fn put_instance(
    State(service): Service,
    Named(id): Named<InstanceId>,
    body: Bytes,
) -> NoContent {
    let assignment = json(&body)?;
    no_content(async move { service.put_instance(id, assignment).await }).await
}

async fn delete_instance(State(service): Service, Named(id): Named<InstanceId>) -> NoContent {
    no_content(async move { service.delete_instance(id).await }).await
}

/// The answer to a change: 204.
type NoContent = Result<StatusCode, Refused>;

async fn no_content(
    change: impl Future<Output = Result<(), ControlError>> + Send + 'static,
) -> NoContent {
    to_its_end(change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Runs a change in a separate task. When a client disconnects, the server drops the request's future; a change that was
/// dropped would be on disk but not in memory, or the reverse.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ControlError>> + Send + 'static,
) -> Result<T, Refused> {
    match tokio::spawn(change).await {
        Ok(done) => Ok(done?),
        Err(error) => {
            tracing::error!(%error, "a change failed, which is a bug");
            let problem = Problem::new(500, "internal", "the change failed unexpectedly");
            Err(Refused::new(
                problem.hint("try again, and please report this bug"),
            ))
        }
    }
}

/// The query of `GET /v1/observations`.
#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: u64,
}

async fn observations(
    State(service): Service,
    query: Result<Query<After>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(After { after, wait }) = query.map_err(|error| malformed(error.body_text()))?;
    let found = service.observations(after, Duration::from_secs(wait)).await;
    Ok(Json(found).into_response())
}

/// The object that the path names.
struct Named<T>(T);

impl<T, S> FromRequestParts<S> for Named<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    S: Send + Sync,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let segment = Segment::<String>::from_request_parts(parts, state).await;
        let Segment(text) = segment.map_err(|error| malformed(error.body_text()))?;
        let named = text.parse();
        named
            .map(Self)
            .map_err(|error: T::Err| malformed(error.to_string()))
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    // These bodies contain keys: the error has the place but not the text.
    serde_json::from_slice(body).map_err(|error| {
        malformed(format!(
            "the body is not valid JSON for this request (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

fn malformed(title: impl Into<String>) -> Refused {
    Refused::new(Problem::new(400, "malformed", title))
}

/// Converts a problem to a response.
struct Refused(Box<Problem>);

impl Refused {
    fn new(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<ControlError> for Refused {
    fn from(error: ControlError) -> Self {
        let (status, code, hint) = match &error {
            ControlError::DigestMismatch { .. } => {
                (400, "digest-mismatch", "send the bundle again")
            }
            ControlError::BundleMissing { .. } => (409, "bundle-missing", "put the bundle first"),
            ControlError::BundleUnreadable { .. } => (
                400,
                "bundle-unreadable",
                "the key belongs to another bundle, or this service is older than waifud",
            ),
            ControlError::BundleOfAnother { .. } => (
                409,
                "bundle-of-another",
                "assign the instance its own bundle",
            ),
            ControlError::AddressTaken { .. } => (
                409,
                "address-taken",
                "delete the assignment of the instance with this address first",
            ),
            ControlError::NodeKey(_) | ControlError::Tunnel(_) => {
                (400, "tunnel-refused", "check the node's key and endpoint")
            }
            ControlError::Store(error) if error.is_full() => (
                507,
                "no-space",
                "its filesystem is full; existing documents are still served, and new ones are accepted once there is space",
            ),
            ControlError::Store(_) => (
                500,
                "store-failed",
                "check whether the disk is read-only or damaged",
            ),
        };
        if status >= 500 {
            tracing::error!(error = &error as &dyn std::error::Error, "a change failed");
        }
        let mut problem = Problem::new(status, code, error.to_string()).hint(hint);
        if let Some(cause) = std::error::Error::source(&error) {
            problem = problem.detail(cause.to_string());
        }
        Self::new(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(PROBLEM_JSON),
        );
        response
    }
}
