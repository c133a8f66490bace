//! `/v1/agent`: the routes for nodes, as described in `waifud_api::agent`.

use std::io::SeekFrom;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper::upgrade::OnUpgrade;
use tokio::io::AsyncSeekExt;
use tokio_util::io::ReaderStream;
use waifud_api::agent::{
    AgentReport, Hello, ImageCopied, ImageTickets, NAMES_HEADER, OwnNode, Welcome,
};
use waifud_api::join::{
    INSTALL_PATH, JOIN_TOKEN_HEADER, JoinRequest, Joined, PACKAGES_PATH, PackageKind,
};
use waifud_api::stream::{STREAM_PROTOCOL, StreamId, StreamRefusal};
use waifud_pki::NodePeer;

use super::answers::NoStore;
use super::body::{Json, small_json};
use super::envelope::OwnBody;
use super::paths::digest;
use super::peer::{AgentPeer, Newcomer};
use super::query::Params;
use super::refusal::Refusal;
use crate::images::problems as image_problems;
use crate::nodes::install::error_script;
use crate::nodes::{NamesRequest, SliceWatch};
use crate::streams::problems as stream_problems;
use crate::{Control, ControlError, problems};

/// Bytes of an image per chunk.
const CHUNK: usize = 256 << 10;

pub fn routes() -> Router<Control> {
    Router::new()
        .route("/v1/agent/join", post(join))
        .route(INSTALL_PATH, get(install))
        .route(&format!("{PACKAGES_PATH}/{{kind}}"), get(package))
        .route("/v1/agent/node", get(own_node))
        .route("/v1/agent/hello", post(hello))
        .route("/v1/agent/watch", get(watch))
        .route("/v1/agent/report", post(report))
        .route("/v1/agent/images/{digest}", get(image))
        .route("/v1/agent/images/{digest}/tickets", post(image_tickets))
        .route("/v1/agent/images/{digest}/copied", post(image_copied))
        .route("/v1/agent/bundles/{digest}", get(bundle))
        .route(
            "/v1/agent/moves/{instance}/disks/{index}",
            get(super::moving::disk),
        )
        .route(
            "/v1/agent/moves/{instance}/disks/{index}/ticket",
            post(super::moving::ticket),
        )
        .route("/v1/agent/streams/{id}", get(stream))
        .route("/v1/agent/streams/{id}/refuse", post(refuse_stream))
}

async fn join(
    State(control): State<Control>,
    newcomer: Newcomer,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Joined>, Refusal> {
    // A token in the header is checked before the body is read. Older agents send it in the body only.
    if headers.contains_key(JOIN_TOKEN_HEADER) {
        control.require_join_token(secret(&headers)).await?;
    }
    let request: JoinRequest = small_json(request).await?;
    Ok(Json(
        control
            .join(request, newcomer.peer, &newcomer.request_id)
            .await?,
    ))
}

/// The secret of the join token in the header; empty, which is never valid, if there is none.
fn secret(headers: &HeaderMap) -> &str {
    let value = headers.get(JOIN_TOKEN_HEADER);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The script of `waifuctl node add`. Errors are scripts too: a shell runs whatever this returns.
async fn install(State(control): State<Control>, headers: HeaderMap) -> Response {
    let (status, text) = match control.install_script(secret(&headers)).await {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => {
            let problem = error.into_problem();
            let status = StatusCode::from_u16(problem.status);
            (
                status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                error_script(&problem),
            )
        }
    };
    let kind = [(header::CONTENT_TYPE, "text/x-shellscript; charset=utf-8")];
    NoStore((status, kind, Extension(OwnBody), text)).into_response()
}

async fn package(
    State(control): State<Control>,
    Path(kind): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    control.require_join_token(secret(&headers)).await?;
    let kind = PackageKind::named(&kind).ok_or_else(|| problems::not_found("package", &kind))?;
    let path = control.node_packages().package(kind).await?;
    file(&path, &headers).await
}

/// The node that the certificate belongs to. Refused if waifud does not admit it any more.
async fn own_node(agent: AgentPeer) -> Json<OwnNode> {
    Json(OwnNode { node: agent.node })
}

async fn hello(
    State(control): State<Control>,
    agent: AgentPeer,
    Json(hello): Json<Hello>,
) -> Result<Json<Welcome>, Refusal> {
    Ok(Json(
        control
            .hello(agent.node, hello, agent.peer, &agent.request_id)
            .await?,
    ))
}

async fn report(
    State(control): State<Control>,
    agent: AgentPeer,
    Json(report): Json<AgentReport>,
) -> Result<StatusCode, Refusal> {
    control
        .report(agent.node, report, agent.peer, &agent.request_id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn watch(
    State(control): State<Control>,
    agent: AgentPeer,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Refusal> {
    let since = params.revision("since")?;
    params.finish()?;
    let names = headers.get(NAMES_HEADER).map(|value| {
        // Anything that is no revision asks for all names.
        let stored = value.to_str().ok().and_then(|text| text.parse().ok());
        NamesRequest { stored }
    });
    let watch = control.watch_slice(agent.node, agent.key, since, names)?;
    let lines = futures::stream::unfold(watch, |mut watch| async move {
        let line = next_line(&mut watch).await?;
        Some((line, watch))
    });
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response())
}

/// One line. An error ends the response, and the agent reconnects.
async fn next_line(watch: &mut SliceWatch) -> Option<Result<Bytes, ControlError>> {
    match watch.next().await {
        Ok(Some(frame)) => {
            let line = serde_json::to_vec(&frame).map(|mut line| {
                line.push(b'\n');
                Bytes::from(line)
            });
            Some(line.map_err(|e| {
                ControlError::Inconsistent(format!("serializing a frame failed: {e}"))
            }))
        }
        Ok(None) => None,
        // Its certificate is not admitted any more, because the node was removed.
        Err(ControlError::Problem(problem)) => {
            tracing::info!("a node's watch ends: {}", problem.title);
            Some(Err(ControlError::Problem(problem)))
        }
        Err(error) => {
            tracing::error!(%error, "a node's watch ends");
            Some(Err(error))
        }
    }
}

async fn image(
    State(control): State<Control>,
    agent: AgentPeer,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let path = control.image_for(agent.node, digest(&text)?).await?;
    file(&path, &headers).await
}

/// Tickets for an image that the node needs, to copy it from other nodes.
async fn image_tickets(
    State(control): State<Control>,
    agent: AgentPeer,
    Path(text): Path<String>,
    params: Params,
) -> Result<NoStore<Json<ImageTickets>>, Refusal> {
    params.finish()?;
    let receiver = NodePeer {
        node: agent.node,
        key: agent.key,
    };
    let tickets = control.issue_image_tickets(receiver, digest(&text)?);
    Ok(NoStore(Json(tickets.await?)))
}

/// The node has got an image from another one.
async fn image_copied(
    State(control): State<Control>,
    agent: AgentPeer,
    Path(text): Path<String>,
    Json(copied): Json<ImageCopied>,
) -> Result<StatusCode, Refusal> {
    let AgentPeer {
        node,
        peer,
        request_id,
        ..
    } = agent;
    control
        .record_image_copied(node, digest(&text)?, copied.source, peer, &request_id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A file, from the requested offset.
async fn file(path: &std::path::Path, headers: &HeaderMap) -> Result<Response, Refusal> {
    let from = resume_from(headers);
    let open = async {
        let mut file = tokio::fs::File::open(path).await?;
        let length = file.metadata().await?.len();
        file.seek(SeekFrom::Start(from.unwrap_or(0))).await?;
        Ok((file, length))
    };
    let (file, length) = open
        .await
        .map_err(ControlError::io(format!("opening {}", path.display())))?;
    let mut response = Body::from_stream(ReaderStream::with_capacity(file, CHUNK)).into_response();
    let mut put = |name, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    put(header::ACCEPT_RANGES, "bytes".to_owned());
    put(
        header::CONTENT_LENGTH,
        length.saturating_sub(from.unwrap_or(0)).to_string(),
    );
    if let Some(from) = from {
        if from >= length {
            return Err(image_problems::range_not_satisfiable(length).into());
        }
        put(
            header::CONTENT_RANGE,
            format!("bytes {from}-{}/{length}", length - 1),
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Where to resume an interrupted download: `Range: bytes=N-`. Other forms of Range are ignored, as RFC 9110
/// (section 14.2) allows.
fn resume_from(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    range
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

async fn bundle(
    State(control): State<Control>,
    agent: AgentPeer,
    Path(text): Path<String>,
) -> Result<Response, Refusal> {
    let ciphertext = control.bundle(agent.node, digest(&text)?).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/octet-stream")],
        ciphertext,
    )
        .into_response())
}

fn stream_id(text: &str) -> Result<StreamId, Refusal> {
    text.parse()
        .map_err(|_| stream_problems::no_such_stream().into())
}

async fn stream(
    State(control): State<Control>,
    AgentPeer { node, .. }: AgentPeer,
    Path(text): Path<String>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let id = stream_id(&text)?;
    let wants = |name, value: &str| {
        let sent = request.headers().get(name).and_then(|v| v.to_str().ok());
        sent.is_some_and(|sent| sent.eq_ignore_ascii_case(value))
    };
    if !(wants(header::CONNECTION, "upgrade") && wants(header::UPGRADE, STREAM_PROTOCOL)) {
        return Err(stream_problems::upgrade_required().into());
    }
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(stream_problems::upgrade_required)?;
    control.stream_broker().accept(node, id, upgrade)?;
    Ok((
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, STREAM_PROTOCOL),
        ],
    )
        .into_response())
}

async fn refuse_stream(
    State(control): State<Control>,
    AgentPeer { node, .. }: AgentPeer,
    Path(text): Path<String>,
    Json(refusal): Json<StreamRefusal>,
) -> Result<StatusCode, Refusal> {
    control
        .stream_broker()
        .refuse(node, stream_id(&text)?, refusal)?;
    Ok(StatusCode::NO_CONTENT)
}
