//! `/v1/instances/{name}/console` and its like: requests that become streams, and the log, which needs not.

use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use waifud_api::Problem;
use waifud_api::stream::{LOG_LINES_MAX, StreamKind};

use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::streams::problems as stream_problems;
use crate::{Control, problems, streams};

/// Lines of a log when nobody says how many.
const LINES_DEFAULT: u32 = 1000;

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

async fn open(
    control: Control,
    asker: AuthenticatedUser,
    upgrade: Upgrade,
    name: &str,
    kind: StreamKind,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|_| stream_problems::upgrade_required())?;
    let stream = control.open_stream(name, kind, asker.principal).await?;
    let limits = control.shared.config.streams;
    Ok(upgrade
        .max_message_size(limits.message)
        .max_frame_size(limits.message)
        .on_upgrade(move |socket| streams::join(socket, stream, limits)))
}

/// Opens the serial console: a WebSocket whose binary messages are its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/console", tag = "streams", operation_id = "console",
    params(("name" = String, Path, description = "Its name or id.")),
    responses(
        (status = 101, description = "The connection is a WebSocket (RFC 6455) now. An empty binary message says that the sender has no more to send."),
        (status = 404, description = "There is no such instance.", body = Problem),
        (status = 409, description = "It does not run, or the node refuses.", body = Problem),
        (status = 426, description = "The request asks for no upgrade.", body = Problem),
        (status = 429, description = "Too many streams are open.", body = Problem),
        (status = 504, description = "Its node is away, or its agent did not come.", body = Problem),
    )
)]
pub async fn console(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    params.finish()?;
    open(control, asker, upgrade, &name, StreamKind::Console).await
}

/// Opens TCP to port 22 of the instance: a WebSocket whose binary messages are its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/ssh", tag = "streams", operation_id = "ssh",
    params(("name" = String, Path, description = "Its name or id.")),
    responses(
        (status = 101, description = "The connection is a WebSocket (RFC 6455) now."),
        (status = 404, description = "There is no such instance.", body = Problem),
        (status = 409, description = "It does not run, or the node refuses.", body = Problem),
        (status = 426, description = "The request asks for no upgrade.", body = Problem),
        (status = 429, description = "Too many streams are open.", body = Problem),
        (status = 504, description = "Its node is away, or its agent did not come.", body = Problem),
    )
)]
pub async fn ssh(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    params.finish()?;
    open(control, asker, upgrade, &name, StreamKind::Ssh).await
}

/// Opens the screen, which speaks RFB (RFC 6143): a WebSocket whose binary messages are its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/screen", tag = "streams", operation_id = "screen",
    params(("name" = String, Path, description = "Its name or id.")),
    responses(
        (status = 101, description = "The connection is a WebSocket (RFC 6455) now."),
        (status = 404, description = "There is no such instance.", body = Problem),
        (status = 409, description = "It does not run, or the node refuses.", body = Problem),
        (status = 426, description = "The request asks for no upgrade.", body = Problem),
        (status = 429, description = "Too many streams are open.", body = Problem),
        (status = 504, description = "Its node is away, or its agent did not come.", body = Problem),
    )
)]
pub async fn screen(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    params: Params,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    params.finish()?;
    open(control, asker, upgrade, &name, StreamKind::Screen).await
}

/// Opens TCP to a port of the instance, and of nothing else: a WebSocket whose binary messages are its bytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/forward", tag = "streams", operation_id = "forward",
    params(("name" = String, Path, description = "Its name or id."),
        ("port" = u16, Query, description = "The guest's port, 1 to 65535.")),
    responses(
        (status = 101, description = "The connection is a WebSocket (RFC 6455) now."),
        (status = 404, description = "There is no such instance.", body = Problem),
        (status = 409, description = "It does not run, or the node refuses.", body = Problem),
        (status = 426, description = "The request asks for no upgrade.", body = Problem),
        (status = 429, description = "Too many streams are open.", body = Problem),
        (status = 504, description = "Its node is away, or its agent did not come.", body = Problem),
    )
)]
pub async fn forward(
    State(control): State<Control>,
    asker: AuthenticatedUser,
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
            "no port of the guest is named",
            "?port=80; from 1 to 65535",
        )
    })?;
    params.finish()?;
    open(control, asker, upgrade, &name, StreamKind::Forward { port }).await
}

/// Gives the last lines of a log, as the guest wrote them, and with `follow` what is added.
#[utoipa::path(
    get, path = "/v1/instances/{name}/log", tag = "streams", operation_id = "log",
    params(
        ("name" = String, Path, description = "Its name or id."),
        ("source" = Option<String>, Query, description = "`console` (the default), or `cloud-init`: what its stages printed, read by the guest agent."),
        ("lines" = Option<u32>, Query, description = "So many of the last lines; 1000 by default."),
        ("follow" = Option<bool>, Query, description = "Goes on with what is added; of the console only."),
    ),
    responses(
        (status = 200, description = "Bytes of the guest: escape them before they reach a terminal.", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "There is no such instance, or no log of it.", body = Problem),
        (status = 409, description = "No guest agent answers, or the node refuses.", body = Problem),
        (status = 504, description = "Its node is away, or its agent did not come.", body = Problem),
    )
)]
pub async fn log(
    State(control): State<Control>,
    asker: AuthenticatedUser,
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
            format!("from 0 to {LOG_LINES_MAX}"),
        )
        .into());
    }
    let kind = match source.as_deref() {
        None | Some("console") => StreamKind::ConsoleLog { lines, follow },
        Some("cloud-init") if follow => {
            return Err(problems::bad_query(
                "follow",
                "the log of cloud-init can't be followed",
                "follow the console: cloud-init prints there too",
            )
            .into());
        }
        Some("cloud-init") => StreamKind::CloudInitLog { lines },
        Some(_) => {
            return Err(problems::bad_query(
                "source",
                "source is not a log",
                "console or cloud-init",
            )
            .into());
        }
    };
    let stream = control.open_stream(&name, kind, asker.principal).await?;
    let body = streams::read_only(stream, control.shared.config.streams);
    Ok((
        [
            (header::CONTENT_TYPE, "application/octet-stream"),
            // What guests write must not become a page of ours in a browser.
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        Body::from_stream(body),
    )
        .into_response())
}
