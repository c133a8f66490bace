//! `/v1/tokens`, and who one is.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::{CreateToken, CreatedToken, Page, Problem, Token, Whoami};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::Control;

/// Makes a token; the answer is the only one with its secret. For administrators.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token",
    request_body = CreateToken,
    responses(
        (status = 201, description = "The token with its secret, which is shown this once.", body = CreatedToken),
        (status = 409, description = "There is one of that name.", body = Problem),
        (status = 422, description = "A field can't be used.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let request: CreateToken = parse(&bytes, str::to_owned)?;
    let created = control
        .create_token(request, &asker.principal, asker.cause)
        .await?;
    let private = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, private, Json(created)).into_response())
}

/// Lists tokens by name, without secrets. For administrators.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", operation_id = "list_tokens",
    params(
        ("limit" = Option<u32>, Query, description = "Items a page, 1 to 1000; 100 by default."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<Token>), (status = 400, description = "A parameter can't be understood.", body = Problem))
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

/// Revokes a token: it is worth nothing from now on, and streams that it opened end. For administrators.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", tag = "tokens", operation_id = "revoke_token",
    params(("name" = String, Path, description = "Its name.")),
    responses((status = 204, description = "Revoked."), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn revoke(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.revoke_token(&name, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says who asks, and what they may do.
#[utoipa::path(
    get, path = "/v1/whoami", tag = "tokens", operation_id = "whoami",
    responses((status = 200, description = "Who asks.", body = Whoami), (status = 401, description = "Nobody who is known.", body = Problem))
)]
pub async fn whoami(asker: AuthenticatedUser) -> Json<Whoami> {
    let principal = asker.principal;
    Json(Whoami {
        name: principal.name,
        role: principal.role,
        from: principal.from,
    })
}
