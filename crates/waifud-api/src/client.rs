//! The typed client of the user API: one method per route, over the unix socket or over HTTPS with a token.

mod capacity;
mod dns;
mod drain;
mod fabric;
mod firewall;
mod guest_command;
mod members;
mod moving;
mod networks;
mod nics;
mod recreate;
mod server;
mod stream;
mod templates;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eventsource_stream::{EventStreamError, Eventsource};
use futures::{Stream, StreamExt};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use waifud_types::event::Event;
use waifud_types::{Digest, Generation, Revision, Secret};

pub use capacity::CapacityQuery;
pub use eventsource_stream::Event as SseEvent;
pub use stream::{ClientStream, StreamEnd, StreamSink, StreamSource};

use crate::server_url::ServerUrl;
use crate::{
    CreateInstance, DryRun, Image, Instance, InstanceDescription, Node, Page, Problem,
    UpdateInstance, Why,
};

/// Timeout of a request, in addition to a requested wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// waifud answered with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The connection to waifud failed.
    #[error("waifud is unreachable at {at}")]
    Unreachable {
        /// The socket path or URL.
        at: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// waifud did not answer in time.
    #[error("waifud at {at} did not answer in time")]
    TimedOut {
        /// The socket path or URL.
        at: String,
    },
    /// The response could not be parsed.
    #[error("cannot parse the response of waifud: {0}")]
    Malformed(String),
    /// A local file could not be read.
    #[error("cannot read {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl ClientError {
    /// The problem, if waifud answered with one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}

/// Whether a change is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The change is complete.
    Done,
    /// The change was accepted and continues.
    Accepted,
}

/// Filters and paging of a list. A URL has no parameter for `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListQuery {
    /// Items per page; the server's default if `None`.
    pub limit: Option<u32>,
    /// `next` of the previous page.
    pub cursor: Option<String>,
    /// Only items in this state.
    pub state: Option<String>,
    /// Only items on this node.
    pub node: Option<String>,
    /// Only instances of this template.
    pub template: Option<String>,
    /// Only items with this label, `key` or `key=value`.
    pub label: Option<String>,
}

impl ListQuery {
    /// For reading a complete list: with the largest pages that the server allows.
    pub fn all() -> Self {
        Self {
            limit: Some(1000),
            ..Self::default()
        }
    }
}

/// Filters for events. A URL has no parameter for `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EventQuery {
    /// Only events after this revision.
    pub since: Option<Revision>,
    /// Only events of this object, by id or name.
    pub object: Option<String>,
    /// Maximum number of events; the newest are returned.
    pub limit: Option<u32>,
}

/// A client of waifud; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    at: String,
    /// Scheme, host and port of all requests.
    base: String,
    token: Option<Arc<Secret<String>>>,
}

/// Which servers a client trusts.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Servers with a certificate that the system trusts.
    System,
    /// Servers that this configuration trusts, usually by a private CA.
    Only(Arc<rustls::ClientConfig>),
}

impl Client {
    /// Creates a client for the unix socket at `path`. Does no I/O.
    pub fn unix(path: &Path) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(path)
            // No TLS is used, so the system's certificates are not loaded.
            .tls_backend_preconfigured(trusts_no_server()?)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("waifuctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| ClientError::Malformed(e.to_string()))?;
        Ok(Self {
            http,
            at: path.display().to_string(),
            // The host is a placeholder: the socket is used.
            base: "http://waifud".to_owned(),
            token: None,
        })
    }

    /// Creates a client for an HTTPS server, authenticated with a token. Redirects are not followed, so that the token
    /// is sent to this server only.
    pub fn https(
        server: &ServerUrl,
        trust: &Trust,
        token: Option<Secret<String>>,
    ) -> Result<Self, ClientError> {
        let builder = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("waifuctl/", env!("CARGO_PKG_VERSION")));
        // A proxy elsewhere cannot reach this machine's loopback.
        let builder = if server.is_loopback() {
            builder.no_proxy()
        } else {
            builder
        };
        let builder = match trust {
            Trust::Only(config) => builder.tls_backend_preconfigured((**config).clone()),
            Trust::System => {
                let _already_installed = rustls::crypto::ring::default_provider().install_default();
                builder.tls_backend_rustls()
            }
        };
        let http = builder
            .build()
            .map_err(|e| ClientError::Malformed(e.to_string()))?;
        Ok(Self {
            http,
            at: server.to_string(),
            base: server.to_string(),
            token: token.map(Arc::new),
        })
    }

    /// The socket path or URL, for messages.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// Lists instances.
    pub async fn instances(&self, query: &ListQuery) -> Result<Page<Instance>, ClientError> {
        self.json(self.get(&["instances"]).query(query)).await
    }

    /// Gets an instance by name or id.
    pub async fn instance(&self, name: &str) -> Result<Instance, ClientError> {
        self.json(self.get(&["instances", name])).await
    }

    /// Creates an instance. Repeating the request with the same key returns the same response.
    pub async fn create_instance(
        &self,
        request: &CreateInstance,
        key: &str,
    ) -> Result<Instance, ClientError> {
        self.json(
            self.request(Method::POST, &["instances"])
                .header("idempotency-key", key)
                .json(request),
        )
        .await
    }

    /// Validates a request to create an instance without creating it, and gets where it would be placed. An older server
    /// only validates.
    pub async fn check_instance(
        &self,
        request: &CreateInstance,
    ) -> Result<Option<DryRun>, ClientError> {
        let request = self
            .request(Method::POST, &["instances"])
            .query(&[("dry_run", "true")])
            .json(request);
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let body = response.bytes().await.map_err(|e| self.transport(e))?;
        let dry_run = serde_json::from_slice(&body);
        dry_run
            .map(Some)
            .map_err(|e| ClientError::Malformed(e.to_string()))
    }

    /// Gets the request that would create this instance again, and the generation it describes.
    pub async fn description(
        &self,
        name: &str,
    ) -> Result<(CreateInstance, Generation), ClientError> {
        let response = self
            .send(self.get(&["instances", name, "description"]))
            .await?;
        let generation = response
            .headers()
            .get("etag")
            .and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok())
            .map(Generation)
            .ok_or_else(|| ClientError::Malformed("a description without an ETag".to_owned()))?;
        let body = response.bytes().await.map_err(|e| self.transport(e))?;
        let description =
            serde_json::from_slice(&body).map_err(|e| ClientError::Malformed(e.to_string()))?;
        Ok((description, generation))
    }

    /// Lists descriptions of all instances; only paging is used of `query`.
    pub async fn descriptions(
        &self,
        query: &ListQuery,
    ) -> Result<Page<InstanceDescription>, ClientError> {
        self.json(self.get(&["descriptions"]).query(query)).await
    }

    /// Changes an instance; with `only_at`, only if it still has this generation.
    pub async fn update_instance(
        &self,
        name: &str,
        change: &UpdateInstance,
        only_at: Option<Generation>,
    ) -> Result<Instance, ClientError> {
        let mut request = self
            .request(Method::PATCH, &["instances", name])
            .json(change);
        if let Some(generation) = only_at {
            request = request.header("if-match", format!("\"{generation}\""));
        }
        self.json(request).await
    }

    /// Sends a request about an instance, if it has not changed since it was read.
    async fn post_if_unchanged(
        &self,
        instance: &Instance,
        action: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Instance, ClientError> {
        let path = ["instances", &instance.id.to_string(), action];
        let request = self
            .request(Method::POST, &path)
            .header("if-match", format!("\"{}\"", instance.generation))
            .json(body);
        self.json(request).await
    }

    /// Deletes an instance and waits up to `wait` for its end.
    pub async fn delete_instance(
        &self,
        name: &str,
        wait: Duration,
    ) -> Result<Progress, ClientError> {
        let request = self
            .request(Method::DELETE, &["instances", name])
            .query(&[("wait", format!("{}s", wait.as_secs()))])
            .timeout(REQUEST_TIMEOUT + wait);
        let response = self.send(request).await?;
        Ok(if response.status() == StatusCode::ACCEPTED {
            Progress::Accepted
        } else {
            Progress::Done
        })
    }

    /// Gets the explanation of an instance's state.
    pub async fn why(&self, name: &str) -> Result<Why, ClientError> {
        self.json(self.get(&["instances", name, "why"])).await
    }

    /// Lists images.
    pub async fn images(&self, query: &ListQuery) -> Result<Page<Image>, ClientError> {
        self.json(self.get(&["images"]).query(query)).await
    }

    /// Gets `version`, `api`, `schema` and `incarnation` of waifud.
    pub async fn version(&self) -> Result<serde_json::Value, ClientError> {
        self.json(self.get(&["version"])).await
    }

    /// Gets an image; `None` if waifud does not have it.
    pub async fn image(&self, digest: Digest) -> Result<Option<Image>, ClientError> {
        match self.json(self.get(&["images", &digest.to_string()])).await {
            Ok(image) => Ok(Some(image)),
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uploads an image; calls `progress` with the number of bytes sent so far.
    pub async fn upload_image(
        &self,
        digest: Digest,
        path: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Image, ClientError> {
        let file_error = |source| ClientError::File {
            path: path.to_owned(),
            source,
        };
        let file = tokio::fs::File::open(path).await.map_err(file_error)?;
        let size = file.metadata().await.map_err(file_error)?.len();
        let mut sent = 0;
        let body =
            tokio_util::io::ReaderStream::with_capacity(file, 256 << 10).inspect(move |chunk| {
                if let Ok(chunk) = chunk {
                    sent += chunk.len() as u64;
                    progress(sent);
                }
            });
        let request = self
            .request(Method::PUT, &["images", &digest.to_string()])
            .header("content-length", size)
            .body(reqwest::Body::wrap_stream(body))
            // Allows for a slow disk at 1 MiB/s.
            .timeout(REQUEST_TIMEOUT + Duration::from_secs(size >> 20));
        self.json(request).await
    }

    /// Deletes an image that is not in use.
    pub async fn delete_image(&self, digest: Digest) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["images", &digest.to_string()]))
            .await
            .map(drop)
    }

    /// Lists nodes.
    pub async fn nodes(&self, query: &ListQuery) -> Result<Page<Node>, ClientError> {
        self.json(self.get(&["nodes"]).query(query)).await
    }

    /// Gets a node by name or id.
    pub async fn node(&self, name: &str) -> Result<Node, ClientError> {
        self.json(self.get(&["nodes", name])).await
    }

    /// Lists events, oldest first.
    pub async fn events(&self, query: &EventQuery) -> Result<Page<Event>, ClientError> {
        self.json(self.get(&["events"]).query(query)).await
    }

    /// Watches events after `query.since`. The stream ends with the connection; the id of the last event is the
    /// revision to resume from. Progress frames have the event type `progress`.
    pub async fn watch_events(
        &self,
        query: &EventQuery,
    ) -> Result<impl Stream<Item = Result<SseEvent, ClientError>> + Send + use<>, ClientError> {
        let request = self
            .timeless(Method::GET, &["events"])
            .query(query)
            .header("accept", "text/event-stream");
        let response = self.send(request).await?;
        let at = self.at.clone();
        let events = response.bytes_stream().eventsource();
        Ok(events.map(move |event| {
            event.map_err(|error| match error {
                EventStreamError::Transport(source) => ClientError::Unreachable {
                    at: at.clone(),
                    source,
                },
                error => ClientError::Malformed(error.to_string()),
            })
        }))
    }

    fn get(&self, path: &[&str]) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.timeless(method, path).timeout(REQUEST_TIMEOUT)
    }

    /// A request without a timeout.
    fn timeless(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let request = self.http.request(method, url(&self.base, path));
        match &self.token {
            // reqwest marks the header as sensitive and does not log it.
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|e| self.transport(e))?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Malformed(e.to_string()))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.transport(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|e| self.transport(e))?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => {
                ClientError::Malformed(format!("status {status} without a problem in the body"))
            }
        })
    }

    fn transport(&self, error: reqwest::Error) -> ClientError {
        if error.is_timeout() {
            ClientError::TimedOut {
                at: self.at.clone(),
            }
        } else {
            ClientError::Unreachable {
                at: self.at.clone(),
                source: error,
            }
        }
    }
}

/// A configuration that trusts no server.
fn trusts_no_server() -> Result<rustls::ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Malformed(e.to_string()))?;
    Ok(builder
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

/// The URL of a path below `/v1`, with each segment escaped.
fn url(base: &str, path: &[&str]) -> reqwest::Url {
    let mut text = format!("{base}/v1");
    for segment in path {
        text.push('/');
        // URL parsers treat %2E%2E as `..` too; escaped twice, it is an ordinary name that cannot exist.
        let dots = matches!(*segment, "." | "..");
        for byte in segment.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_~:".contains(&byte) || (byte == b'.' && !dots) {
                text.push(char::from(byte));
            } else {
                use std::fmt::Write;
                let percent = if dots { "%25" } else { "%" };
                let _infallible = write!(text, "{percent}{byte:02X}");
            }
        }
    }
    reqwest::Url::parse(&text).unwrap_or_else(|_| unreachable_url())
}

/// A fallback for `url`, whose result of a server URL and escaped ASCII always parses.
fn unreachable_url() -> reqwest::Url {
    #[expect(clippy::unwrap_used, reason = "a constant that parses")]
    reqwest::Url::parse("http://waifud.invalid/").unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_one_path_segment() {
        assert_eq!(
            url("http://waifud", &["instances", "web"]).path(),
            "/v1/instances/web"
        );
        for name in ["../nodes", "a/b", "a?x=1", "..", "a#b", "ü"] {
            let url = url("http://waifud", &["instances", name]);
            assert!(url.path().starts_with("/v1/instances/"), "{name}: {url}");
            assert_eq!(url.path_segments().unwrap().count(), 3, "{name}: {url}");
            assert_eq!(url.query(), None, "{name}");
        }
    }

    const STREAM: &str = ": hello\n\nid: 0000000a.1\nevent: instance.created\ndata: {\"a\":1}\n\ndata: x\ndata: y\r\n\r\n";

    proptest::proptest! {
        #[test]
        fn events_do_not_depend_on_where_the_stream_is_split(cut in 0_usize..STREAM.len()) {
            let (head, tail) = STREAM.as_bytes().split_at(cut);
            let chunks = [head, tail].map(Ok::<_, std::io::Error>);
            let events = futures::stream::iter(chunks).eventsource();
            let events = futures::executor::block_on(events.collect::<Vec<_>>());
            let fields: Vec<_> = events.iter().flatten().map(|it| (&*it.event, &*it.data, &*it.id)).collect();
            proptest::prop_assert_eq!(fields, [
                ("instance.created", "{\"a\":1}", "0000000a.1"),
                ("message", "x\ny", "0000000a.1"),
            ]);
        }
    }
}
