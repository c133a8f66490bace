//! `/v1/nodes`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{Node, Page, Problem, UpdateNode};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use crate::Control;

/// Lists nodes by name.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", operation_id = "list_nodes",
    params(PageParams),
    responses((status = 200, description = "A page of nodes.", body = Page<Node>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Node>>, Refusal> {
    let page = params.page()?;
    params.finish()?;
    Ok(Json(control.nodes(page).await?))
}

/// Shows one node.
#[utoipa::path(
    get, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "show_node",
    params(("name" = String, Path, description = "The node's name or id.")),
    responses((status = 200, description = "The node.", body = Node))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Node>, Refusal> {
    Ok(Json(control.node(&name).await?))
}

/// Renames a node, and sets and removes labels. Labels that are not named stay.
#[utoipa::path(
    patch, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "update_node",
    params(("name" = String, Path, description = "The node's name or id.")),
    request_body = UpdateNode,
    responses(
        (status = 200, description = "The changed node.", body = Node),
        (status = 422, description = "A label is invalid.", body = Problem)
    )
)]
pub async fn update(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    JsonBytes(bytes): JsonBytes,
) -> Result<Json<Node>, Refusal> {
    let change: UpdateNode = parse(&bytes, str::to_owned)?;
    Ok(Json(
        control.update_node(&name, change, caller.cause).await?,
    ))
}

/// Removes a node and its key. Guests on it keep running. Its subnet stays reserved until the node is purged.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "remove_node",
    params(
        ("name" = String, Path, description = "The node's name or id."),
        ("purge" = Option<bool>, Query, description = "If true, also release the node's subnet. Can be used later, for a node that is already removed."),
    ),
    responses(
        (status = 204, description = "The node is removed."),
        (status = 409, description = "The node has instances that are not deleted.", body = Problem)
    )
)]
pub async fn remove(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
) -> Result<StatusCode, Refusal> {
    let purge = params.flag("purge")?;
    params.finish()?;
    control.remove_node(&name, purge, caller.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
