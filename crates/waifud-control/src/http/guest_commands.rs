//! `POST /v1/instances/{name}/exec` and `PUT /v1/instances/{name}/password`: commands for the guest agent.

use axum::extract::Path;
use waifud_api::guest_command::{ExecRequest, ExecResult, SetPassword};

use super::answers::{NoContent, NoStore, no_content};
use super::body::Json;
use super::paths::InstanceName;
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;

/// Runs a program in the guest as root, through its guest agent, and answers when the program has exited.
#[utoipa::path(
    post, path = "/v1/instances/{name}/exec", tag = "instances", operation_id = "exec",
    params(InstanceName),
    responses(
        (status = 200, description = "The program has exited; see `exit_code`. Its output comes from the guest: escape it before writing it to a terminal.", body = ExecResult),
    )
)]
pub async fn exec(
    user: AuthenticatedUser,
    instance: Path<InstanceName>,
    Json(request): Json<ExecRequest>,
) -> Result<NoStore<Json<ExecResult>>, Refusal> {
    let AuthenticatedUser {
        control, principal, ..
    } = user;
    let result = control.exec(&instance.name, request, principal).await?;
    Ok(NoStore(Json(result)))
}

/// Sets the password of a user in the guest, through its guest agent. waifud does not store it.
#[utoipa::path(
    put, path = "/v1/instances/{name}/password", tag = "instances", operation_id = "set_password",
    params(InstanceName), responses((status = 204, description = "The password is set."))
)]
pub async fn set_password(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    Json(request): Json<SetPassword>,
) -> NoContent {
    no_content(
        user.control
            .set_password(&name, request, user.principal)
            .await,
    )
}
