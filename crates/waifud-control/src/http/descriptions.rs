//! `/v1/instances/{name}/description`: the request that would create an instance again.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::CreateInstance;

use super::peer::AuthenticatedUser;
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
