//! `/v1/nodes/{name}/unmanaged` and `/v1/nodes/{name}/confirm`: what an operator decides about a node's leftovers.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{AdoptInstance, Instance, Node, Problem};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Takes an unmanaged instance into the list, as it is on its node.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/unmanaged/{instance}/adopt", tag = "nodes", operation_id = "adopt_instance",
    params(
        ("name" = String, Path, description = "The node's name or id."),
        ("instance" = String, Path, description = "The instance's id, or the name that it had."),
    ),
    request_body = AdoptInstance,
    responses(
        (status = 201, description = "It is in the list.", body = Instance),
        (status = 404, description = "There is no such node, or nothing unmanaged of that name on it.", body = Problem),
        (status = 409, description = "Its name or address is taken, or the node remembers too little of it.", body = Problem),
    )
)]
pub async fn adopt(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path((name, instance)): Path<(String, String)>,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Instance>), Refusal> {
    let request: AdoptInstance = parse(&bytes, str::to_owned)?;
    let adopted = control
        .adopt(&name, &instance, request, asker.cause)
        .await?;
    Ok((StatusCode::CREATED, Json(adopted)))
}

/// Orders an unmanaged instance to be destroyed, disks included.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}/unmanaged/{instance}", tag = "nodes", operation_id = "delete_unmanaged",
    params(
        ("name" = String, Path, description = "The node's name or id."),
        ("instance" = String, Path, description = "The instance's id, or the name that it had."),
    ),
    responses(
        (status = 202, description = "The node is told."),
        (status = 404, description = "There is no such node, or nothing unmanaged of that name on it.", body = Problem),
        (status = 409, description = "It is in the list.", body = Problem),
    )
)]
pub async fn delete(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path((name, instance)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    control
        .delete_unmanaged(&name, &instance, asker.cause)
        .await?;
    Ok(StatusCode::ACCEPTED)
}

/// Confirms for a node that the restored database is the right one.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/confirm", tag = "nodes", operation_id = "confirm_node",
    params(("name" = String, Path, description = "The node's name or id.")),
    responses(
        (status = 200, description = "As it is.", body = Node),
        (status = 404, description = "There is none.", body = Problem),
    )
)]
pub async fn confirm(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Node>, Refusal> {
    Ok(Json(control.confirm_node(&name, asker.cause).await?))
}
