//! `POST /v1/instances/{name}/exec` and `PUT /v1/instances/{name}/password`: what the guest agent does for operators.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::Problem;
use waifud_api::guest_command::{ExecRequest, ExecResult, SetPassword};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Runs a program in the guest, by its guest agent: as root, with the given input. Answers when it has ended.
#[utoipa::path(
    post, path = "/v1/instances/{name}/exec", tag = "instances", operation_id = "exec",
    params(("name" = String, Path, description = "Its name or id.")),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "It ended, well or not: `exit_code` tells. Its output is the guest's: escape it before it reaches a terminal.", body = ExecResult),
        (status = 404, description = "There is no such instance.", body = Problem),
        (status = 409, description = "It does not run, no guest agent answers, or the agent refuses.", body = Problem),
        (status = 422, description = "A field is wrong.", body = Problem),
        (status = 504, description = "It did not end in time and goes on, or its node is away.", body = Problem),
    )
)]
pub async fn exec(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let request: ExecRequest = parse(&bytes, str::to_owned)?;
    let result = control.exec(&name, request, asker.principal).await?;
    let private = [(header::CACHE_CONTROL, "no-store")];
    Ok((private, Json(result)).into_response())
}

/// Sets the password of one of the guest's users, by its guest agent. waifud keeps it nowhere.
#[utoipa::path(
    put, path = "/v1/instances/{name}/password", tag = "instances", operation_id = "set_password",
    params(("name" = String, Path, description = "Its name or id.")),
    request_body = SetPassword,
    responses(
        (status = 204, description = "It is set."),
        (status = 404, description = "There is no such instance.", body = Problem),
        (status = 409, description = "It does not run, no guest agent answers, or the agent refuses: perhaps there is no such user.", body = Problem),
        (status = 422, description = "A field is wrong.", body = Problem),
        (status = 504, description = "Its node is away, or its agent did not come.", body = Problem),
    )
)]
pub async fn set_password(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    JsonBytes(bytes): JsonBytes,
) -> Result<StatusCode, Refusal> {
    let request: SetPassword = parse(&bytes, str::to_owned)?;
    control
        .set_password(&name, request, asker.principal)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
