//! `/v1/server`: the state of waifud itself.

use axum::Json;
use axum::extract::State;
use waifud_api::Server;

use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Shows the state of waifud itself: its database, the free space of its state directory, its certificates.
#[utoipa::path(
    get, path = "/v1/server", tag = "service", operation_id = "server",
    responses((status = 200, description = "The state of waifud.", body = Server))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
) -> Result<Json<Server>, Refusal> {
    Ok(Json(control.server().await?))
}
