//! `/v1/nodes/{name}/unmanaged` and `/v1/nodes/{name}/confirm`: unmanaged instances, and nodes after a restore.

use axum::extract::Path;
use axum::http::StatusCode;
use waifud_api::{AdoptInstance, Instance, Node, Problem};

use super::answers::{Answer, NoContent, StatusAnswer, created};
use super::body::Json;
use super::paths::{NodeName, UnmanagedInstance};
use super::peer::AuthenticatedUser;

/// Adopts an unmanaged instance as it is on its node.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/unmanaged/{instance}/adopt", tag = "nodes", operation_id = "adopt_instance",
    params(UnmanagedInstance),
    responses(
        (status = 201, description = "The adopted instance.", body = Instance),
        (status = 409, description = "The name or an address is taken, or the node has no record of the instance.", body = Problem),
    )
)]
pub async fn adopt(
    user: AuthenticatedUser,
    Path(UnmanagedInstance { name, instance }): Path<UnmanagedInstance>,
    Json(request): Json<AdoptInstance>,
) -> StatusAnswer<Instance> {
    created(
        user.control
            .adopt(&name, &instance, request, user.cause)
            .await,
    )
}

/// Deletes an unmanaged instance, including its disks.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}/unmanaged/{instance}", tag = "nodes", operation_id = "delete_unmanaged",
    params(UnmanagedInstance),
    responses(
        (status = 202, description = "The deletion is durable; the node destroys the instance."),
        (status = 409, description = "The instance is managed.", body = Problem),
    )
)]
pub async fn delete(
    user: AuthenticatedUser,
    Path(UnmanagedInstance { name, instance }): Path<UnmanagedInstance>,
) -> NoContent {
    user.control
        .delete_unmanaged(&name, &instance, user.cause)
        .await?;
    Ok(StatusCode::ACCEPTED)
}

/// Confirms for a node that the restored database is correct, so that it deletes instances again.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/confirm", tag = "nodes", operation_id = "confirm_node",
    params(NodeName), responses((status = 200, description = "The node.", body = Node))
)]
pub async fn confirm(user: AuthenticatedUser, node: Path<NodeName>) -> Answer<Node> {
    Ok(Json(
        user.control.confirm_node(&node.name, user.cause).await?,
    ))
}
