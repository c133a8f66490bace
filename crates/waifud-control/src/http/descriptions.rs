//! `/v1/instances/{name}/description`: an instance as the request that would create it.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::{CreateInstance, Problem};

use super::peer::AuthenticatedUser;
use super::refusal::Refusal;
use crate::Control;

/// Describes an instance as the request that would create it again, user-data included. For operators.
#[utoipa::path(
    get, path = "/v1/instances/{name}/description", tag = "instances", operation_id = "instance_description",
    params(("name" = String, Path, description = "Its name or id.")),
    responses(
        (status = 200, description = "The body for POST /v1/instances; its ETag is the instance's.", body = CreateInstance),
        (status = 404, description = "There is none.", body = Problem),
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
