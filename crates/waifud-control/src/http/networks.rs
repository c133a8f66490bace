//! `/v1/networks`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{CreateNetwork, Network, Page, Problem};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use crate::Control;

/// Adds a network: a name for a bridge that nodes already have. Nothing changes on the nodes.
#[utoipa::path(
    post, path = "/v1/networks", tag = "networks", operation_id = "create_network",
    request_body = CreateNetwork,
    responses(
        (status = 201, description = "The network.", body = Network),
        (status = 409, description = "Another network has the name or the bridge.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Network>), Refusal> {
    let request: CreateNetwork = parse(&bytes, str::to_owned)?;
    let network = control.create_network(request, caller.cause).await?;
    Ok((StatusCode::CREATED, Json(network)))
}

/// Lists networks by name, including `default`.
#[utoipa::path(
    get, path = "/v1/networks", tag = "networks", operation_id = "list_networks",
    params(PageParams),
    responses((status = 200, description = "A page of networks.", body = Page<Network>))
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
    params(("name" = String, Path, description = "The network's name.")),
    responses((status = 200, description = "The network.", body = Network))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Network>, Refusal> {
    Ok(Json(control.network(&name).await?))
}

/// Deletes an unused network. The bridges on the nodes stay.
#[utoipa::path(
    delete, path = "/v1/networks/{name}", tag = "networks", operation_id = "delete_network",
    params(("name" = String, Path, description = "The network's name.")),
    responses(
        (status = 204, description = "The network is deleted."),
        (status = 409, description = "Instances use it, or it is `default`.", body = Problem)
    )
)]
pub async fn delete(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.delete_network(&name, caller.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
