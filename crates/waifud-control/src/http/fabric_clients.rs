//! `/v1/fabric/clients`.

use axum::extract::Path;
use waifud_api::{CreateFabricClient, FabricClient, FabricClientConfig, Page, Problem};

use super::answers::{Answer, NoContent, StatusAnswer, created, no_content};
use super::body::Json;
use super::paths::FabricClientName;
use super::peer::AuthenticatedUser;
use super::query::NoParams;

/// Adds a client of the fabric: a machine that runs no waifud and reaches guests through WireGuard. Nodes in contact let it in
/// at once.
#[utoipa::path(
    post, path = "/v1/fabric/clients", tag = "networks", operation_id = "create_fabric_client",
    responses(
        (status = 201, description = "What the client needs for its configuration.", body = FabricClientConfig),
        (status = 409, description = "The fabric is not `wireguard`; or another client or a node has the name or the key; or no address is free.", body = Problem),
    )
)]
pub async fn create(
    user: AuthenticatedUser,
    body: Json<CreateFabricClient>,
) -> StatusAnswer<FabricClientConfig> {
    created(user.control.create_fabric_client(body.0, user.cause).await)
}

/// Lists clients of the fabric by name.
#[utoipa::path(
    get, path = "/v1/fabric/clients", tag = "networks", operation_id = "list_fabric_clients",
    responses((status = 200, description = "All clients, on one page.", body = Page<FabricClient>))
)]
pub async fn list(user: AuthenticatedUser, _: NoParams) -> Answer<Page<FabricClient>> {
    Ok(Json(user.control.fabric_clients().await?))
}

/// Shows what a client needs for its configuration.
#[utoipa::path(
    get, path = "/v1/fabric/clients/{name}", tag = "networks", operation_id = "show_fabric_client",
    params(FabricClientName),
    responses(
        (status = 200, description = "The client and all nodes.", body = FabricClientConfig),
        (status = 409, description = "The fabric is not `wireguard`.", body = Problem)
    )
)]
pub async fn show(
    user: AuthenticatedUser,
    path: Path<FabricClientName>,
) -> Answer<FabricClientConfig> {
    Ok(Json(user.control.fabric_client(&path.name).await?))
}

/// Removes a client of the fabric. Nodes that are out of contact let it in until they return.
#[utoipa::path(
    delete, path = "/v1/fabric/clients/{name}", tag = "networks", operation_id = "delete_fabric_client",
    params(FabricClientName), responses((status = 204, description = "The client is removed."))
)]
pub async fn delete(user: AuthenticatedUser, path: Path<FabricClientName>) -> NoContent {
    no_content(
        user.control
            .delete_fabric_client(&path.name, user.cause)
            .await,
    )
}
