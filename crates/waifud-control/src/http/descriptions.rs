//! `/v1/descriptions` and `/v1/instances/{name}/description`: instances as the requests that would create them.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::{CreateInstance, InstanceDescription, Page};

use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use crate::Control;

/// Returns the request that would create the instance again, including its user-data. For operators.
#[utoipa::path(
    get, path = "/v1/instances/{name}/description", tag = "instances", operation_id = "instance_description",
    params(("name" = String, Path, description = "The instance's name or id.")),
    responses(
        (status = 200, description = "The body for POST /v1/instances. The ETag is that of the instance.", body = CreateInstance),
    )
)]
pub async fn description(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let (description, generation) = control.describe(&name).await?;
    let etag = HeaderValue::from_str(&format!("\"{generation}\""))
        .unwrap_or(HeaderValue::from_static("\"0\""));
    let headers = [
        (header::ETAG, etag),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((StatusCode::OK, headers, Json(description)).into_response())
}

/// Lists the requests that would create the instances again, including their user-data. For operators.
#[utoipa::path(
    get, path = "/v1/descriptions", tag = "instances", operation_id = "list_descriptions",
    params(PageParams),
    responses((status = 200, description = "A page of descriptions, at most 50.", body = Page<InstanceDescription>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Response, Refusal> {
    let page = params.page()?;
    params.finish()?;
    let page = control.descriptions(page).await?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(page)).into_response())
}
