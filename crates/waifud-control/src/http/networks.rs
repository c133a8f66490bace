//! `/v1/networks`.

use axum::extract::Path;
use waifud_api::{CreateNetwork, Network, Problem};

use super::answers::{NoContent, StatusAnswer, created, no_content};
use super::body::Json;
use super::paths::NetworkName;
use super::peer::AuthenticatedUser;

/// Adds a network: a name for a bridge that nodes already have. Nothing changes on the nodes.
#[utoipa::path(
    post, path = "/v1/networks", tag = "networks", operation_id = "create_network",
    responses(
        (status = 201, description = "The network.", body = Network),
        (status = 409, description = "Another network has the name or the bridge.", body = Problem),
    )
)]
pub async fn create(user: AuthenticatedUser, body: Json<CreateNetwork>) -> StatusAnswer<Network> {
    created(user.control.create_network(body.0, user.cause).await)
}

/// Deletes an unused network. The bridges on the nodes stay.
#[utoipa::path(
    delete, path = "/v1/networks/{name}", tag = "networks", operation_id = "delete_network",
    params(NetworkName),
    responses(
        (status = 204, description = "The network is deleted."),
        (status = 409, description = "Instances use it, or it is `default`.", body = Problem)
    )
)]
pub async fn delete(user: AuthenticatedUser, network: Path<NetworkName>) -> NoContent {
    no_content(user.control.delete_network(&network.name, user.cause).await)
}
