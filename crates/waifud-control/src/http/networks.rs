//! `/v1/networks`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{CreateNetwork, Network, Page, Problem};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::Control;

/// Names a bridge that nodes already have, so that instances can be on it. Nothing of any host is changed.
#[utoipa::path(
    post, path = "/v1/networks", tag = "networks", operation_id = "create_network",
    request_body = CreateNetwork,
    responses(
        (status = 201, description = "As it is now.", body = Network),
        (status = 409, description = "The name or the bridge is another network's.", body = Problem),
        (status = 422, description = "A field can't be used.", body = Problem)
    )
)]
pub async fn create(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Network>), Refusal> {
    let request: CreateNetwork = parse(&bytes, str::to_owned)?;
    let network = control.create_network(request, asker.cause).await?;
    Ok((StatusCode::CREATED, Json(network)))
}

/// Lists networks by name, `default` among them.
#[utoipa::path(
    get, path = "/v1/networks", tag = "networks", operation_id = "list_networks",
    params(
        ("limit" = Option<u32>, Query, description = "Items a page, 1 to 1000; 100 by default."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<Network>), (status = 400, description = "A parameter can't be understood.", body = Problem))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Network>>, Refusal> {
    let page = params.page()?;
    params.finish()?;
    Ok(Json(control.networks(page).await?))
}

/// Shows one network.
#[utoipa::path(
    get, path = "/v1/networks/{name}", tag = "networks", operation_id = "show_network",
    params(("name" = String, Path, description = "Its name.")),
    responses((status = 200, description = "As it is.", body = Network), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Network>, Refusal> {
    Ok(Json(control.network(&name).await?))
}

/// Forgets a network that no instance uses; bridges stay as they are.
#[utoipa::path(
    delete, path = "/v1/networks/{name}", tag = "networks", operation_id = "delete_network",
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 204, description = "Forgotten."),
        (status = 404, description = "There is none.", body = Problem),
        (status = 409, description = "Instances use it, or it is `default`.", body = Problem)
    )
)]
pub async fn delete(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.delete_network(&name, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
