//! `/v1/instances/{name}/console`, `ssh`, `screen` and `forward` as `WebSockets`, and `log` as a plain response.

use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use waifud_api::stream::{LOG_LINES_MAX, StreamKind};

use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use super::web_socket;
use crate::streams::problems as stream_problems;
use crate::{Control, problems, streams};

/// Lines of a log without the parameter `lines`.
const LINES_DEFAULT: u32 = 1000;

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

async fn open(
    control: Control,
    caller: AuthenticatedUser,
    upgrade: Upgrade,
    name: &str,
    kind: StreamKind,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|_| stream_problems::upgrade_required())?;
    let stream = control.open_stream(name, kind, caller.principal).await?;
    let limits = control.config().streams;
    Ok(upgrade
        .max_message_size(limits.message)
        .max_frame_size(limits.message)
        .on_upgrade(move |socket| web_socket::join(socket, stream, limits)))
}

/// Opens the serial console as a WebSocket. Binary messages carry its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/console", tag = "streams", operation_id = "console",
    params(("name" = String, Path, description = "The instance's name or id.")),
    responses(
        (status = 101, description = "The connection is now a WebSocket (RFC 6455). An empty binary message marks the end of the sender's data."),
    )
)]
pub async fn console(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    params.finish()?;
    open(control, caller, upgrade, &name, StreamKind::Console).await
}

/// Opens a TCP connection to port 22 of the instance as a WebSocket. Binary messages carry its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/ssh", tag = "streams", operation_id = "ssh",
    params(("name" = String, Path, description = "The instance's name or id.")),
    responses(
        (status = 101, description = "The connection is now a WebSocket (RFC 6455)."),
    )
)]
pub async fn ssh(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    params.finish()?;
    open(control, caller, upgrade, &name, StreamKind::Ssh).await
}

/// Opens the screen (RFB, RFC 6143) as a WebSocket. Binary messages carry its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/screen", tag = "streams", operation_id = "screen",
    params(("name" = String, Path, description = "The instance's name or id.")),
    responses(
        (status = 101, description = "The connection is now a WebSocket (RFC 6455)."),
    )
)]
pub async fn screen(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    params.finish()?;
    open(control, caller, upgrade, &name, StreamKind::Screen).await
}

/// Opens a TCP connection to a port of the instance as a WebSocket. Binary messages carry its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/forward", tag = "streams", operation_id = "forward",
    params(("name" = String, Path, description = "The instance's name or id."),
        ("port" = u16, Query, description = "The guest's port, 1 to 65535.")),
    responses(
        (status = 101, description = "The connection is now a WebSocket (RFC 6455)."),
    )
)]
pub async fn forward(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let port = params
        .number("port")?
        .and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| *port > 0).ok_or_else(|| {
        problems::bad_query(
            "port",
            "port is missing or out of range",
            "use a port from 1 to 65535, for example ?port=80",
        )
    })?;
    params.finish()?;
    open(
        control,
        caller,
        upgrade,
        &name,
        StreamKind::Forward { port },
    )
    .await
}

/// Returns the last lines of a log as the guest wrote them, and with `follow` also new output.
#[utoipa::path(
    get, path = "/v1/instances/{name}/log", tag = "streams", operation_id = "log",
    params(
        ("name" = String, Path, description = "The instance's name or id."),
        ("source" = Option<String>, Query, description = "`console` (the default), or `cloud-init`: the output of its stages, read by the guest agent."),
        ("lines" = Option<u32>, Query, description = "The number of lines from the end; 1000 by default."),
        ("follow" = Option<bool>, Query, description = "Also return new output until the client disconnects. Only for the console."),
    ),
    responses(
        (status = 200, description = "Output of the guest: escape it before writing it to a terminal.", content_type = "application/octet-stream", body = Vec<u8>),
    )
)]
pub async fn log(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
) -> Result<Response, Refusal> {
    let lines = params.number("lines")?.unwrap_or(LINES_DEFAULT);
    let follow = params.flag("follow")?;
    let source = params.one("source")?;
    params.finish()?;
    if lines > LOG_LINES_MAX {
        return Err(problems::bad_query(
            "lines",
            "lines is out of range",
            format!("use a value from 0 to {LOG_LINES_MAX}"),
        )
        .into());
    }
    let kind = match source.as_deref() {
        None | Some("console") => StreamKind::ConsoleLog { lines, follow },
        Some("cloud-init") if follow => {
            return Err(problems::bad_query(
                "follow",
                "the log of cloud-init cannot be followed",
                "follow the console instead: cloud-init also prints there",
            )
            .into());
        }
        Some("cloud-init") => StreamKind::CloudInitLog { lines },
        Some(_) => {
            return Err(problems::bad_query(
                "source",
                "source is not a log",
                "use console or cloud-init",
            )
            .into());
        }
    };
    let stream = control.open_stream(&name, kind, caller.principal).await?;
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
