//! `/v1/instances/{name}/nics`: nics that are added to an instance and removed from it.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use waifud_api::{CreateNic, Instance, Problem};

use super::body::Json;
use super::instances::answer;
use super::paths::{InstanceName, InstanceNic};
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::instances::IfMatch;

/// Adds a nic to an instance. A running guest gets it at once, after its DHCP lease and its firewall rules; `status.nics` shows
/// when. The guest's network configuration is that of cloud-init for later boots; it is not changed in a running guest.
#[utoipa::path(
    post, path = "/v1/instances/{name}/nics", tag = "instances", operation_id = "add_nic",
    params(InstanceName, ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag.")),
    request_body = CreateNic,
    responses(
        (status = 200, description = "The nic is in the spec. It is the last one, unless its removal was canceled.", body = Instance),
        (status = 409, description = "The instance cannot have the nic now, or not on its node.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
        (status = 422, description = "The nic is not valid.", body = Problem),
    )
)]
pub async fn add(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    if_match: IfMatch,
    Json(request): Json<CreateNic>,
) -> Result<Response, Refusal> {
    let changed = user
        .control
        .add_nic(&name, request, if_match, user.cause)
        .await?;
    Ok(answer(StatusCode::OK, changed))
}

/// Removes a nic from an instance. A running guest is asked to release it; it is in `status.nics` until then, or until the guest
/// is off. Its addresses are free when it is gone. To keep a nic that is being removed, add it again with its MAC address.
#[utoipa::path(
    delete, path = "/v1/instances/{name}/nics/{nic}", tag = "instances", operation_id = "remove_nic",
    params(InstanceNic, ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag.")),
    responses(
        (status = 200, description = "The nic is not in the spec any more.", body = Instance),
        (status = 409, description = "The nic cannot be removed, or not now.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
    )
)]
pub async fn remove(
    user: AuthenticatedUser,
    Path(InstanceNic { name, nic }): Path<InstanceNic>,
    if_match: IfMatch,
) -> Result<Response, Refusal> {
    let changed = user
        .control
        .remove_nic(&name, &nic, if_match, user.cause)
        .await?;
    Ok(answer(StatusCode::OK, changed))
}
