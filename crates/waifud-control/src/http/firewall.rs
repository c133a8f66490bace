//! `/v1/instances/{name}/firewall`.

use axum::extract::Path;
use waifud_api::InstanceFirewall;

use super::answers::Answer;
use super::body::Json;
use super::paths::InstanceName;
use super::peer::AuthenticatedUser;

/// Shows the firewall of an instance: its rules, the addresses that they stand for, and the packets that the node has counted.
/// Change it with `PATCH /v1/instances/{name}`.
#[utoipa::path(
    get, path = "/v1/instances/{name}/firewall", tag = "instances", operation_id = "instance_firewall",
    params(InstanceName), responses((status = 200, description = "The firewall.", body = InstanceFirewall))
)]
pub async fn show(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
) -> Answer<InstanceFirewall> {
    Ok(Json(user.control.instance_firewall(&name).await?))
}
