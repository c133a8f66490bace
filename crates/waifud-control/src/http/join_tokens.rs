//! `/v1/join-tokens`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::join::{CreateJoinToken, CreatedJoinToken, JoinTokenInfo};
use waifud_api::{Page, Problem};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::Control;

/// Makes a token that lets one node in. Its text is shown once.
#[utoipa::path(
    post, path = "/v1/join-tokens", tag = "nodes", operation_id = "create_join_token",
    request_body = CreateJoinToken,
    responses((status = 201, description = "The token.", body = CreatedJoinToken), (status = 422, description = "A field can't be used.", body = Problem))
)]
pub async fn create(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<CreatedJoinToken>), Refusal> {
    let wanted: CreateJoinToken = parse(&bytes, str::to_owned)?;
    let made = control
        .create_join_token(wanted, &asker.principal.name, asker.cause)
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Lists join tokens, the oldest first; those that expired a week ago are gone.
#[utoipa::path(
    get, path = "/v1/join-tokens", tag = "nodes", operation_id = "list_join_tokens",
    responses((status = 200, description = "All of them.", body = Page<JoinTokenInfo>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    params: Params,
) -> Result<Json<Page<JoinTokenInfo>>, Refusal> {
    params.finish()?;
    Ok(Json(control.join_tokens().await?))
}

/// Makes a token worthless; a node that came in by it stays.
#[utoipa::path(
    delete, path = "/v1/join-tokens/{id}", tag = "nodes", operation_id = "revoke_join_token",
    params(("id" = String, Path, description = "Its id.")),
    responses((status = 204, description = "Revoked."), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn revoke(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.revoke_join_token(id, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
