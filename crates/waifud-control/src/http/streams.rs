//! `/v1/instances/{name}/console`, `ssh`, `screen` and `forward` as `WebSockets`, and `log` as a plain response.

use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use utoipa::{IntoParams, IntoResponses};
use waifud_api::Problem;
use waifud_api::stream::{LOG_LINES_MAX, StreamKind};

use super::paths::InstanceName;
use super::peer::AuthenticatedUser;
use super::query::{FromParams, NoParams, Params, Query};
use super::refusal::Refusal;
use super::web_socket;
use crate::streams::problems as stream_problems;
use crate::{Control, problems, streams};

/// Lines of a log without the parameter `lines`.
const LINES_DEFAULT: u32 = 1000;

/// A request that turns its connection into a stream of an instance.
pub struct StreamRequest {
    user: AuthenticatedUser,
    instance: String,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
}

/// The answer to a [`StreamRequest`].
#[derive(IntoResponses)]
#[response(
    status = 101,
    description = "The connection is now a WebSocket (RFC 6455). An empty binary message marks the end of the sender's data."
)]
pub struct Upgraded;

impl FromRequestParts<Control> for StreamRequest {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self, Response> {
        let user = AuthenticatedUser::from_request_parts(parts, control).await;
        let path = Path::<InstanceName>::from_request_parts(parts, control).await;
        Ok(Self {
            user: user.map_err(IntoResponse::into_response)?,
            instance: path.map_err(IntoResponse::into_response)?.0.name,
            upgrade: WebSocketUpgrade::from_request_parts(parts, control).await,
        })
    }
}

impl StreamRequest {
    async fn open(self, kind: StreamKind) -> Result<Response, Refusal> {
        let upgrade = self
            .upgrade
            .map_err(|_| stream_problems::upgrade_required())?;
        let AuthenticatedUser {
            control, principal, ..
        } = self.user;
        let stream = control.open_stream(&self.instance, kind, principal).await?;
        let limits = control.config().streams;
        Ok(upgrade
            .max_message_size(limits.message)
            .max_frame_size(limits.message)
            .on_upgrade(move |socket| web_socket::join(socket, stream, limits)))
    }
}

/// Defines the handlers of streams without parameters.
macro_rules! stream_handlers {
    ($($(#[$about:meta])* $name:ident, $path:literal, $id:literal => $kind:ident;)+) => {$(
        $(#[$about])*
        #[utoipa::path(
            get, path = $path, tag = "streams", operation_id = $id,
            params(InstanceName), responses(Upgraded)
        )]
        pub async fn $name(request: StreamRequest, _: NoParams) -> Result<Response, Refusal> {
            request.open(StreamKind::$kind).await
        }
    )+};
}

stream_handlers! {
    /// Opens the serial console as a WebSocket. Binary messages carry its bytes.
    console, "/v1/instances/{name}/console", "console" => Console;
    /// Opens a TCP connection to port 22 of the instance as a WebSocket. Binary messages carry its bytes.
    ssh, "/v1/instances/{name}/ssh", "ssh" => Ssh;
    /// Opens the screen (RFB, RFC 6143) as a WebSocket. Binary messages carry its bytes.
    screen, "/v1/instances/{name}/screen", "screen" => Screen;
}

/// Where a forwarded connection leads.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct ForwardParams {
    /// The guest's port, 1 to 65535.
    port: u16,
}

impl FromParams for ForwardParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let port = params.number("port")?.map(u16::try_from);
        match port {
            Some(Ok(port)) if port > 0 => Ok(Self { port }),
            _ => Err(problems::bad_query(
                "port",
                "the parameter `port` is missing or out of range",
                "use a port from 1 to 65535, for example ?port=80",
            )),
        }
    }
}

/// Opens a TCP connection to a port of the instance as a WebSocket. Binary messages carry its bytes.
#[utoipa::path(
    get,
    path = "/v1/instances/{name}/forward",
    tag = "streams",
    operation_id = "forward",
    params(InstanceName, ForwardParams),
    responses(Upgraded)
)]
pub async fn forward(
    request: StreamRequest,
    Query(ForwardParams { port }): Query<ForwardParams>,
) -> Result<Response, Refusal> {
    request.open(StreamKind::Forward { port }).await
}

/// Which part of which log is read.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct LogParams {
    /// `console` (the default), or `cloud-init`: the output of its stages, read by the guest agent.
    source: Option<String>,
    /// The number of lines from the end; 1000 by default.
    #[param(value_type = Option<u32>)]
    lines: u32,
    /// Also return new output until the client disconnects. Only for the console.
    #[param(value_type = Option<bool>)]
    follow: bool,
}

impl FromParams for LogParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let lines = params.number("lines")?.unwrap_or(LINES_DEFAULT);
        if lines > LOG_LINES_MAX {
            return Err(problems::bad_query(
                "lines",
                "the parameter `lines` is out of range",
                format!("use a value from 0 to {LOG_LINES_MAX}"),
            ));
        }
        Ok(Self {
            source: params.one("source")?,
            lines,
            follow: params.flag("follow")?,
        })
    }
}

impl LogParams {
    fn kind(self) -> Result<StreamKind, Problem> {
        let Self { lines, follow, .. } = self;
        match self.source.as_deref() {
            None | Some("console") => Ok(StreamKind::ConsoleLog { lines, follow }),
            Some("cloud-init") if follow => Err(problems::bad_query(
                "follow",
                "the log of cloud-init cannot be followed",
                "follow the console instead: cloud-init also prints there",
            )),
            Some("cloud-init") => Ok(StreamKind::CloudInitLog { lines }),
            Some(_) => Err(problems::bad_query(
                "source",
                "unknown log in the parameter `source`",
                "use console or cloud-init",
            )),
        }
    }
}

/// Returns the last lines of a log as the guest wrote them, and with `follow` also new output.
#[utoipa::path(
    get, path = "/v1/instances/{name}/log", tag = "streams", operation_id = "log",
    params(InstanceName, LogParams),
    responses(
        (status = 200, description = "Output of the guest: escape it before writing it to a terminal.", content_type = "application/octet-stream", body = Vec<u8>),
    )
)]
pub async fn log(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    Query(params): Query<LogParams>,
) -> Result<Response, Refusal> {
    let control = user.control;
    let stream = control
        .open_stream(&name, params.kind()?, user.principal)
        .await?;
    let body = streams::read_only(stream, control.config().streams);
    Ok((
        [
            (header::CONTENT_TYPE, "application/octet-stream"),
            // A browser must not render the guest's output as a page of waifud.
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        Body::from_stream(body),
    )
        .into_response())
}
