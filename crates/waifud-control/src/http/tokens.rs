//! `/v1/tokens` and `/v1/whoami`.

use axum::extract::Path;
use axum::http::StatusCode;
use waifud_api::{CreateToken, CreatedToken, Problem, Whoami};

use super::answers::{self, NoContent, NoStore, no_content};
use super::body::Json;
use super::paths::TokenName;
use super::peer::AuthenticatedUser;
use super::refusal::Refusal;

/// Creates a token. Only this answer contains its secret. For administrators.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token",
    responses(
        (status = 201, description = "The token with its secret, which is not shown again.", body = CreatedToken),
        (status = 409, description = "Another token has the name.", body = Problem),
    )
)]
pub async fn create(
    user: AuthenticatedUser,
    Json(request): Json<CreateToken>,
) -> Result<NoStore<(StatusCode, Json<CreatedToken>)>, Refusal> {
    let created = user
        .control
        .create_token(request, &user.principal, user.cause)
        .await;
    answers::created(created).map(NoStore)
}

/// Revokes a token. It stops working immediately, and its open streams end. For administrators.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", tag = "tokens", operation_id = "revoke_token",
    params(TokenName), responses((status = 204, description = "The token is revoked."))
)]
pub async fn revoke(user: AuthenticatedUser, token: Path<TokenName>) -> NoContent {
    no_content(user.control.revoke_token(&token.name, user.cause).await)
}

/// Shows the caller's name and role.
#[utoipa::path(
    get, path = "/v1/whoami", tag = "tokens", operation_id = "whoami",
    responses((status = 200, description = "The caller.", body = Whoami), (status = 401, description = "The request has no valid token.", body = Problem))
)]
pub async fn whoami(user: AuthenticatedUser) -> Json<Whoami> {
    let principal = user.principal;
    Json(Whoami {
        name: principal.name,
        role: principal.role,
        from: principal.from,
    })
}
