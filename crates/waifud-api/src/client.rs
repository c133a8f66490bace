//! The typed client of the user's API: one method per route, over the unix socket or over HTTPS with a token.

mod guest_command;
mod members;
mod networks;
mod server;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use waifud_types::event::Event;
use waifud_types::template::Template;
use waifud_types::{Digest, Generation, Revision, Secret};

pub use stream::{ClientStream, StreamEnd, StreamSink, StreamSource};

use crate::server_url::ServerUrl;
use crate::sse::{SseEvent, SseParser};
use crate::{
    CatalogEntry, CreateDownload, CreateInstance, CreateTemplate, Download, Image, Instance, Node,
    Page, Problem, UpdateInstance, Why,
};

/// How long an ordinary request may take beyond the wait that it asks for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// waifud answered with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// No connection to waifud.
    #[error("waifud can't be reached at {at}")]
    Unreachable {
        /// The socket.
        at: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// waifud did not answer in time.
    #[error("waifud at {at} did not answer in time")]
    TimedOut {
        /// The socket.
        at: String,
    },
    /// The answer was not what this client understands.
    #[error("waifud's answer could not be understood: {0}")]
    Malformed(String),
    /// A local file could not be read.
    #[error("{path:?} can't be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ClientError {
    /// The problem, when waifud answered with one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}

/// What an answer to a change or a wait says beside its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// What was asked for is reached.
    Done,
    /// Accepted, or the wait passed; the work goes on.
    Accepted,
}

/// Which items of a list.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListQuery {
    /// Items a page; the server's default without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only from this template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Only with this label, `key` or `key=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl ListQuery {
    /// For reading a whole list: in pages as large as the server gives.
    pub fn all() -> Self {
        Self {
            limit: Some(1000),
            ..Self::default()
        }
    }
}

/// Which events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EventQuery {
    /// Only after this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
    /// Only about this object: an id, or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// At most so many, the newest ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A connection to waifud; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    at: String,
    /// The scheme, host and port of every request.
    base: String,
    token: Option<Arc<Secret<String>>>,
}

/// Which servers a client believes.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those that the system trusts.
    System,
    /// What this configuration says: a private CA, usually.
    Only(Arc<rustls::ClientConfig>),
}

impl Client {
    /// Talks to the unix socket at `path`. Nothing is sent before the first request.
    pub fn unix(path: &Path) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(path)
            // Nothing here is TLS: the system's certificates need not be read.
            .tls_backend_preconfigured(trusts_nobody()?)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("waifuctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| ClientError::Malformed(e.to_string()))?;
        Ok(Self {
            http,
            at: path.display().to_string(),
            // The host is for form: the socket decides.
            base: "http://waifud".to_owned(),
            token: None,
        })
    }

    /// Talks HTTPS to this server, and proves itself with a token. Redirections are not followed: a token goes where it
    /// was meant to go, or nowhere.
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
        // A proxy elsewhere can't reach this machine's loopback.
        let builder = if server.is_loopback() {
            builder.no_proxy()
        } else {
            builder
        };
        let builder = match trust {
            Trust::Only(config) => builder.tls_backend_preconfigured((**config).clone()),
            Trust::System => {
                let _somebody_was_faster =
                    rustls::crypto::ring::default_provider().install_default();
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

    /// Where it talks to, for messages.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// One page of instances.
    pub async fn instances(&self, query: &ListQuery) -> Result<Page<Instance>, ClientError> {
        self.json(self.get(&["instances"]).query(query)).await
    }

    /// One instance by name or id.
    pub async fn instance(&self, name: &str) -> Result<Instance, ClientError> {
        self.json(self.get(&["instances", name])).await
    }

    /// Creates an instance. The same key with the same request gives the same answer again.
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

    /// Whether a request to create would be accepted now; nothing is done.
    pub async fn check_instance(&self, request: &CreateInstance) -> Result<(), ClientError> {
        let request = self
            .request(Method::POST, &["instances"])
            .query(&[("dry_run", "true")])
            .json(request);
        self.send(request).await.map(drop)
    }

    /// The request that would create this instance again, and the generation that it is of.
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
            .ok_or_else(|| ClientError::Malformed("a description without ETag".to_owned()))?;
        let body = response.bytes().await.map_err(|e| self.transport(e))?;
        let description =
            serde_json::from_slice(&body).map_err(|e| ClientError::Malformed(e.to_string()))?;
        Ok((description, generation))
    }

    /// Changes an instance, if it still is at this generation (or whatever it is, without one).
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

    /// Orders an instance's deletion and waits up to `wait` for its end.
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

    /// The story of one instance.
    pub async fn why(&self, name: &str) -> Result<Why, ClientError> {
        self.json(self.get(&["instances", name, "why"])).await
    }

    /// One page of templates.
    pub async fn templates(&self, query: &ListQuery) -> Result<Page<Template>, ClientError> {
        self.json(self.get(&["templates"]).query(query)).await
    }

    /// One template.
    pub async fn template(&self, name: &str) -> Result<Template, ClientError> {
        self.json(self.get(&["templates", name])).await
    }

    /// Names an uploaded image.
    pub async fn create_template(&self, request: &CreateTemplate) -> Result<Template, ClientError> {
        self.json(self.request(Method::POST, &["templates"]).json(request))
            .await
    }

    /// Asks a template's source again.
    pub async fn refresh_template(&self, name: &str) -> Result<Download, ClientError> {
        self.json(self.request(Method::POST, &["templates", name, "refresh"]))
            .await
    }

    /// Forgets a template.
    pub async fn delete_template(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["templates", name]))
            .await
            .map(drop)
    }

    /// Has an image fetched that becomes a template.
    pub async fn create_download(&self, request: &CreateDownload) -> Result<Download, ClientError> {
        self.json(self.request(Method::POST, &["downloads"]).json(request))
            .await
    }

    /// Every template on its way.
    pub async fn downloads(&self) -> Result<Page<Download>, ClientError> {
        self.json(self.get(&["downloads"])).await
    }

    /// One template on its way; `None` when it is not: it is there, or was given up.
    pub async fn download(&self, name: &str) -> Result<Option<Download>, ClientError> {
        match self.json(self.get(&["downloads", name])).await {
            Ok(download) => Ok(Some(download)),
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The catalog of well-known images.
    pub async fn catalog(&self) -> Result<Page<CatalogEntry>, ClientError> {
        self.json(self.get(&["catalog"])).await
    }

    /// One page of images.
    pub async fn images(&self, query: &ListQuery) -> Result<Page<Image>, ClientError> {
        self.json(self.get(&["images"]).query(query)).await
    }

    /// Which waifud answers: `version`, `api`, `schema`, `incarnation`.
    pub async fn version(&self) -> Result<serde_json::Value, ClientError> {
        self.json(self.get(&["version"])).await
    }

    /// What is known of an image; `None` when waifud does not have it.
    pub async fn image(&self, digest: Digest) -> Result<Option<Image>, ClientError> {
        match self.json(self.get(&["images", &digest.to_string()])).await {
            Ok(image) => Ok(Some(image)),
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uploads an image; `progress` is told the bytes that went out so far.
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
            // A slow disk at 1 MiB/s should still get there.
            .timeout(REQUEST_TIMEOUT + Duration::from_secs(size >> 20));
        self.json(request).await
    }

    /// Removes an image that nothing needs.
    pub async fn delete_image(&self, digest: Digest) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["images", &digest.to_string()]))
            .await
            .map(drop)
    }

    /// One page of nodes.
    pub async fn nodes(&self, query: &ListQuery) -> Result<Page<Node>, ClientError> {
        self.json(self.get(&["nodes"]).query(query)).await
    }

    /// One node by name or id.
    pub async fn node(&self, name: &str) -> Result<Node, ClientError> {
        self.json(self.get(&["nodes", name])).await
    }

    /// Events, oldest first.
    pub async fn events(&self, query: &EventQuery) -> Result<Page<Event>, ClientError> {
        self.json(self.get(&["events"]).query(query)).await
    }

    /// Events as they happen, after `query.since`. The stream ends when the connection does; resume from the last
    /// event's id. Progress frames come with the event type `progress`.
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
        let mut parser = SseParser::default();
        Ok(response.bytes_stream().flat_map(move |chunk| {
            let events: Vec<_> = match chunk {
                Ok(bytes) => parser.push(&bytes).into_iter().map(Ok).collect(),
                Err(source) => vec![Err(ClientError::Unreachable {
                    at: at.clone(),
                    source,
                })],
            };
            futures::stream::iter(events)
        }))
    }

    fn get(&self, path: &[&str]) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.timeless(method, path).timeout(REQUEST_TIMEOUT)
    }

    /// A request that may take as long as it likes.
    fn timeless(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let request = self.http.request(method, url(&self.base, path));
        match &self.token {
            // reqwest marks the header as sensitive: its own logs leave it out.
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
            Err(_) => ClientError::Malformed(format!("status {status} without a problem body")),
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

/// A configuration that believes no server.
fn trusts_nobody() -> Result<rustls::ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Malformed(e.to_string()))?;
    Ok(builder
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

/// The URL of a path below `/v1`, each segment escaped.
fn url(base: &str, path: &[&str]) -> reqwest::Url {
    let mut text = format!("{base}/v1");
    for segment in path {
        text.push('/');
        // URL parsers take %2E%2E for `..` too; escaped twice it is only a name that nobody has.
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

/// Only for a URL that `url` built from a server's URL and escaped ASCII, and that can't fail to parse.
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
}
