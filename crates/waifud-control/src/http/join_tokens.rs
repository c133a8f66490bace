//! `/v1/join-tokens`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::Page;
use waifud_api::join::{CreateJoinToken, CreatedJoinToken, JoinTokenInfo};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::Control;

/// Creates a token with which one node can join. Its text is returned only here.
#[utoipa::path(
    post, path = "/v1/join-tokens", tag = "nodes", operation_id = "create_join_token",
    request_body = CreateJoinToken,
    responses((status = 201, description = "The join token.", body = CreatedJoinToken))
)]
pub async fn create(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<CreatedJoinToken>), Refusal> {
    let wanted: CreateJoinToken = parse(&bytes, str::to_owned)?;
    let made = control
        .create_join_token(wanted, &caller.principal.name, caller.cause)
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Lists join tokens, oldest first. Tokens are removed a week after they expire.
#[utoipa::path(
    get, path = "/v1/join-tokens", tag = "nodes", operation_id = "list_join_tokens",
    responses((status = 200, description = "All join tokens, on one page.", body = Page<JoinTokenInfo>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    params: Params,
) -> Result<Json<Page<JoinTokenInfo>>, Refusal> {
    params.finish()?;
    Ok(Json(control.join_tokens().await?))
}

/// Revokes a join token. A node that joined with it stays.
#[utoipa::path(
    delete, path = "/v1/join-tokens/{id}", tag = "nodes", operation_id = "revoke_join_token",
    params(("id" = String, Path, description = "The join token's id.")),
    responses((status = 204, description = "The join token is revoked."))
)]
pub async fn revoke(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.revoke_join_token(id, caller.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
