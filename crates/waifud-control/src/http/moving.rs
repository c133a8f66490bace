//! `/v1/instances/{name}/move`: moves of instances between nodes, and for the receiving node their disks.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::agent::DiskTicket;
use waifud_api::{Instance, MoveInstance, Problem};
use waifud_pki::NodePeer;
use waifud_types::InstanceId;

use super::answers::NoStore;
use super::body::Json;
use super::instances::answer;
use super::paths::InstanceName;
use super::peer::{AgentPeer, AuthenticatedUser};
use super::query::Params;
use super::refusal::Refusal;
use crate::instances::IfMatch;
use crate::{Control, problems};

/// Moves an instance to another node, with its disks. The guest is off while they are copied. The answer does not wait for
/// the move: follow `move` of the instance. It keeps its id, name, MAC addresses and settings; addresses on `default` change.
#[utoipa::path(
    post, path = "/v1/instances/{name}/move", tag = "instances", operation_id = "move_instance",
    params(InstanceName, ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag.")),
    request_body = MoveInstance,
    responses(
        (status = 200, description = "The move has begun, or was begun before.", body = Instance),
        (status = 409, description = "The instance cannot be moved now, or not to this node.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
        (status = 422, description = "The node does not exist.", body = Problem),
    )
)]
pub async fn begin(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    if_match: IfMatch,
    Json(request): Json<MoveInstance>,
) -> Result<Response, Refusal> {
    let moving = user
        .control
        .move_instance(&name, request, if_match, user.cause)
        .await?;
    Ok(answer(StatusCode::OK, moving))
}

/// Cancels the move of an instance: it stays on its node, where it is started again. Refused once the new node owns it.
#[utoipa::path(
    delete, path = "/v1/instances/{name}/move", tag = "instances", operation_id = "cancel_move",
    params(InstanceName),
    responses(
        (status = 200, description = "The move is canceled, and the other node deletes what it has received.", body = Instance),
        (status = 409, description = "The instance is not being moved, or was handed over.", body = Problem),
    )
)]
pub async fn cancel(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
) -> Result<Response, Refusal> {
    let kept = user.control.cancel_move(&name, user.cause).await?;
    Ok(answer(StatusCode::OK, kept))
}

/// A disk of an instance that the node receives, in the format of [`waifud_api::disk_transfer`].
pub(super) async fn disk(
    State(control): State<Control>,
    agent: AgentPeer,
    Path((instance, index)): Path<(String, String)>,
    mut params: Params,
) -> Result<Response, Refusal> {
    let from = params.big_number("from")?.unwrap_or(0);
    params.finish()?;
    let (id, index) = disk_of(&instance, &index)?;
    let bytes = control.disk_to_receive(agent.node, id, index, from).await?;
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(bytes)).into_response())
}

/// A ticket for a disk of an instance that the node receives, to copy it from the node that has it.
pub(super) async fn ticket(
    State(control): State<Control>,
    agent: AgentPeer,
    Path((instance, index)): Path<(String, String)>,
    params: Params,
) -> Result<NoStore<Json<DiskTicket>>, Refusal> {
    params.finish()?;
    let (id, index) = disk_of(&instance, &index)?;
    let receiver = NodePeer {
        node: agent.node,
        key: agent.key,
    };
    let ticket = control.issue_disk_ticket(receiver, id, index).await?;
    Ok(NoStore(Json(ticket)))
}

fn disk_of(instance: &str, index: &str) -> Result<(InstanceId, u32), Problem> {
    let id = instance.parse();
    let id = id.map_err(|_| problems::not_found("instance", instance))?;
    let number = index.parse();
    let number = number.map_err(|_| problems::not_found("disk", index))?;
    Ok((id, number))
}
