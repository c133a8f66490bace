//! `/v1/nodes/{name}/unmanaged` and `/v1/nodes/{name}/confirm`: unmanaged instances, and nodes after a restore.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{AdoptInstance, Instance, Node, Problem};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Adopts an unmanaged instance as it is on its node.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/unmanaged/{instance}/adopt", tag = "nodes", operation_id = "adopt_instance",
    params(
        ("name" = String, Path, description = "The node's name or id."),
        ("instance" = String, Path, description = "The instance's id or former name."),
    ),
    request_body = AdoptInstance,
    responses(
        (status = 201, description = "The adopted instance.", body = Instance),
        (status = 409, description = "The name or an address is taken, or the node has no record of the instance.", body = Problem),
    )
)]
pub async fn adopt(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path((name, instance)): Path<(String, String)>,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Instance>), Refusal> {
    let request: AdoptInstance = parse(&bytes, str::to_owned)?;
    let adopted = control
        .adopt(&name, &instance, request, caller.cause)
        .await?;
    Ok((StatusCode::CREATED, Json(adopted)))
}

/// Deletes an unmanaged instance, including its disks.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}/unmanaged/{instance}", tag = "nodes", operation_id = "delete_unmanaged",
    params(
        ("name" = String, Path, description = "The node's name or id."),
        ("instance" = String, Path, description = "The instance's id or former name."),
    ),
    responses(
        (status = 202, description = "The deletion is durable; the node destroys the instance."),
        (status = 409, description = "The instance is managed.", body = Problem),
    )
)]
pub async fn delete(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path((name, instance)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    control
        .delete_unmanaged(&name, &instance, caller.cause)
        .await?;
    Ok(StatusCode::ACCEPTED)
}

/// Confirms for a node that the restored database is correct, so that it deletes instances again.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/confirm", tag = "nodes", operation_id = "confirm_node",
    params(("name" = String, Path, description = "The node's name or id.")),
    responses(
        (status = 200, description = "The node.", body = Node),
    )
)]
pub async fn confirm(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Node>, Refusal> {
    Ok(Json(control.confirm_node(&name, caller.cause).await?))
}
