//! `/v1/join-tokens`.

use axum::extract::Path;
use axum::http::StatusCode;
use waifud_api::join::{CreateJoinToken, CreatedJoinToken, JoinTokenInfo};
use waifud_api::{Page, Problem};

use super::answers::{Answer, NoContent, NoStore, created, no_content};
use super::body::Json;
use super::paths::JoinTokenId;
use super::peer::AuthenticatedUser;
use super::query::NoParams;
use super::refusal::Refusal;

/// Creates a token with which one node can join. Its text is returned only here.
#[utoipa::path(
    post, path = "/v1/join-tokens", tag = "nodes", operation_id = "create_join_token",
    responses(
        (status = 201, description = "The join token.", body = CreatedJoinToken),
        (status = 409, description = "Other machines cannot reach waifud, or it was not installed from a package.", body = Problem)
    )
)]
pub async fn create(
    user: AuthenticatedUser,
    Json(request): Json<CreateJoinToken>,
) -> Result<NoStore<(StatusCode, Json<CreatedJoinToken>)>, Refusal> {
    let creator = user.principal.name;
    created(
        user.control
            .create_join_token(request, &creator, user.cause)
            .await,
    )
    .map(NoStore)
}

/// Lists join tokens, oldest first. Tokens are removed a week after they expire.
#[utoipa::path(
    get, path = "/v1/join-tokens", tag = "nodes", operation_id = "list_join_tokens",
    responses((status = 200, description = "All join tokens, on one page.", body = Page<JoinTokenInfo>))
)]
pub async fn list(user: AuthenticatedUser, _: NoParams) -> Answer<Page<JoinTokenInfo>> {
    Ok(Json(user.control.join_tokens().await?))
}

/// Revokes a join token. A node that joined with it stays.
#[utoipa::path(
    delete, path = "/v1/join-tokens/{id}", tag = "nodes", operation_id = "revoke_join_token",
    params(JoinTokenId), responses((status = 204, description = "The join token is revoked."))
)]
pub async fn revoke(user: AuthenticatedUser, token: Path<JoinTokenId>) -> NoContent {
    no_content(user.control.revoke_join_token(token.0.id, user.cause).await)
}
