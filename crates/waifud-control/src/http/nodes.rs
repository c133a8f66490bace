//! `/v1/nodes`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{Node, Page, Problem, UpdateNode};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::Control;

/// Lists nodes by name.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", operation_id = "list_nodes",
    params(
        ("limit" = Option<u32>, Query, description = "Items a page, 1 to 1000; 100 by default."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<Node>), (status = 400, description = "A parameter can't be understood.", body = Problem))
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
    params(("name" = String, Path, description = "Its name or id.")),
    responses((status = 200, description = "As it is.", body = Node), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Node>, Refusal> {
    Ok(Json(control.node(&name).await?))
}

/// Sets and removes labels of a node; those that are not named stay.
#[utoipa::path(
    patch, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "update_node",
    params(("name" = String, Path, description = "Its name or id.")),
    request_body = UpdateNode,
    responses(
        (status = 200, description = "As it is now.", body = Node),
        (status = 404, description = "There is none.", body = Problem),
        (status = 422, description = "A label can't be used.", body = Problem)
    )
)]
pub async fn update(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    JsonBytes(bytes): JsonBytes,
) -> Result<Json<Node>, Refusal> {
    let change: UpdateNode = parse(&bytes, str::to_owned)?;
    Ok(Json(control.update_node(&name, change, asker.cause).await?))
}

/// Forgets a node and the key that it is known by. What runs there runs on. Its subnet stays reserved until it is purged.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "remove_node",
    params(
        ("name" = String, Path, description = "Its name or id."),
        ("purge" = Option<bool>, Query, description = "True: others may have its subnet. Can be said of a removed node, too."),
    ),
    responses(
        (status = 204, description = "Forgotten."),
        (status = 404, description = "There is none.", body = Problem),
        (status = 409, description = "Instances are on it that nobody deleted.", body = Problem)
    )
)]
pub async fn remove(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
) -> Result<StatusCode, Refusal> {
    let purge = params.flag("purge")?;
    params.finish()?;
    control.remove_node(&name, purge, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
