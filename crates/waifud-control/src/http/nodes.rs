//! `/v1/nodes`.

use axum::Json;
use axum::extract::{Path, State};
use waifud_api::{Node, Page, Problem};

use super::peer::Asker;
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
    _: Asker,
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
    _: Asker,
    Path(name): Path<String>,
) -> Result<Json<Node>, Refusal> {
    Ok(Json(control.node(&name).await?))
}
