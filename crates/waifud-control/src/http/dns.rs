//! `/v1/dns`.

use waifud_api::Dns;

use super::answers::Answer;
use super::body::Json;
use super::peer::AuthenticatedUser;

/// Shows what a resolver needs to know to resolve the names of instances for machines that are not guests.
#[utoipa::path(
    get, path = "/v1/dns", tag = "networks", operation_id = "dns",
    responses((status = 200, description = "The zones, and the addresses at which nodes serve them.", body = Dns))
)]
pub async fn show(user: AuthenticatedUser) -> Answer<Dns> {
    Ok(Json(user.control.dns().await?))
}
