//! `/v1/server`: the state of waifud itself.

use waifud_api::Server;

use super::answers::Answer;
use super::body::Json;
use super::peer::AuthenticatedUser;

/// Shows the state of waifud itself: its database, the free space of its state directory, its certificates.
#[utoipa::path(
    get, path = "/v1/server", tag = "service", operation_id = "server",
    responses((status = 200, description = "The state of waifud.", body = Server))
)]
pub async fn show(user: AuthenticatedUser) -> Answer<Server> {
    Ok(Json(user.control.server().await?))
}
