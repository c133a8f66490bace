//! `/v1/server`: how waifud itself is.

use axum::Json;
use axum::extract::State;
use waifud_api::Server;

use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Says how waifud itself is: the room where it keeps its state.
#[utoipa::path(
    get, path = "/v1/server", tag = "service", operation_id = "server",
    responses((status = 200, description = "How it is.", body = Server))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
) -> Result<Json<Server>, Refusal> {
    Ok(Json(control.server().await?))
}
