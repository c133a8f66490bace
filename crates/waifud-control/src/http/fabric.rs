//! `/v1/fabric`.

use waifud_api::{Fabric, SetFabric};

use super::answers::Answer;
use super::body::Json;
use super::peer::AuthenticatedUser;

/// Shows the fabric: what carries packets between guests of different nodes, and the routes to them.
#[utoipa::path(
    get, path = "/v1/fabric", tag = "networks", operation_id = "fabric",
    responses((status = 200, description = "The fabric.", body = Fabric))
)]
pub async fn show(user: AuthenticatedUser) -> Answer<Fabric> {
    Ok(Json(user.control.fabric().await?))
}

/// Chooses the fabric. Every node changes to it as soon as it is in contact.
#[utoipa::path(
    put, path = "/v1/fabric", tag = "networks", operation_id = "set_fabric",
    responses((status = 200, description = "The fabric.", body = Fabric))
)]
pub async fn set(user: AuthenticatedUser, body: Json<SetFabric>) -> Answer<Fabric> {
    Ok(Json(user.control.set_fabric(body.0, user.cause).await?))
}
