//! `POST /v1/instances/{name}/exec` and `PUT /v1/instances/{name}/password`: commands for the guest agent.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::guest_command::{ExecRequest, ExecResult, SetPassword};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Runs a program in the guest as root, through its guest agent, and answers when the program has exited.
#[utoipa::path(
    post, path = "/v1/instances/{name}/exec", tag = "instances", operation_id = "exec",
    params(("name" = String, Path, description = "The instance's name or id.")),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "The program has exited; see `exit_code`. Its output comes from the guest: escape it before writing it to a terminal.", body = ExecResult),
    )
)]
pub async fn exec(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let request: ExecRequest = parse(&bytes, str::to_owned)?;
    let result = control.exec(&name, request, caller.principal).await?;
    let private = [(header::CACHE_CONTROL, "no-store")];
    Ok((private, Json(result)).into_response())
}

/// Sets the password of a user in the guest, through its guest agent. waifud does not store it.
#[utoipa::path(
    put, path = "/v1/instances/{name}/password", tag = "instances", operation_id = "set_password",
    params(("name" = String, Path, description = "The instance's name or id.")),
    request_body = SetPassword,
    responses(
        (status = 204, description = "The password is set."),
    )
)]
pub async fn set_password(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    JsonBytes(bytes): JsonBytes,
) -> Result<StatusCode, Refusal> {
    let request: SetPassword = parse(&bytes, str::to_owned)?;
    control
        .set_password(&name, request, caller.principal)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
