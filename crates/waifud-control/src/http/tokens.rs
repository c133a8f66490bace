//! `/v1/tokens` and `/v1/whoami`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::{CreateToken, CreatedToken, Page, Problem, Token, Whoami};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use crate::Control;

/// Creates a token. Only this answer contains its secret. For administrators.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token",
    request_body = CreateToken,
    responses(
        (status = 201, description = "The token with its secret, which is not shown again.", body = CreatedToken),
        (status = 409, description = "Another token has the name.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let request: CreateToken = parse(&bytes, str::to_owned)?;
    let created = control
        .create_token(request, &caller.principal, caller.cause)
        .await?;
    let private = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, private, Json(created)).into_response())
}

/// Lists tokens by name, without secrets. For administrators.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", operation_id = "list_tokens",
    params(PageParams),
    responses((status = 200, description = "A page of tokens.", body = Page<Token>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Token>>, Refusal> {
    let page = params.page()?;
    params.finish()?;
    Ok(Json(control.tokens(page).await?))
}

/// Revokes a token. It stops working immediately, and its open streams end. For administrators.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", tag = "tokens", operation_id = "revoke_token",
    params(("name" = String, Path, description = "The token's name.")),
    responses((status = 204, description = "The token is revoked."))
)]
pub async fn revoke(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.revoke_token(&name, caller.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows the caller's name and role.
#[utoipa::path(
    get, path = "/v1/whoami", tag = "tokens", operation_id = "whoami",
    responses((status = 200, description = "The caller.", body = Whoami), (status = 401, description = "The request has no valid token.", body = Problem))
)]
pub async fn whoami(caller: AuthenticatedUser) -> Json<Whoami> {
    let principal = caller.principal;
    Json(Whoami {
        name: principal.name,
        role: principal.role,
        from: principal.from,
    })
}
