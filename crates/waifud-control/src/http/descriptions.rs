//! `/v1/descriptions` and `/v1/instances/{name}/description`: instances as the requests that would create them.

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use waifud_api::{CreateInstance, InstanceDescription, Page};

use super::answers::NoStore;
use super::body::Json;
use super::headers::etag;
use super::paths::InstanceName;
use super::peer::AuthenticatedUser;
use super::query::Query;
use super::refusal::Refusal;
use crate::pagination::PageRequest;

/// Returns the request that would create the instance again, including its user-data. For operators.
#[utoipa::path(
    get, path = "/v1/instances/{name}/description", tag = "instances", operation_id = "instance_description",
    params(InstanceName),
    responses(
        (status = 200, description = "The body for POST /v1/instances. The ETag is that of the instance.", body = CreateInstance),
    )
)]
pub async fn description(
    user: AuthenticatedUser,
    instance: Path<InstanceName>,
) -> Result<NoStore<Response>, Refusal> {
    let (description, generation) = user.control.describe(&instance.name).await?;
    let etag = [(header::ETAG, etag(generation))];
    Ok(NoStore((etag, Json(description)).into_response()))
}

/// Lists the requests that would create the instances again, including their user-data. For operators.
#[utoipa::path(
    get, path = "/v1/descriptions", tag = "instances", operation_id = "list_descriptions",
    params(PageRequest), responses((status = 200, description = "A page of descriptions, at most 50.", body = Page<InstanceDescription>))
)]
pub async fn list(
    user: AuthenticatedUser,
    page: Query<PageRequest>,
) -> Result<NoStore<Json<Page<InstanceDescription>>>, Refusal> {
    Ok(NoStore(Json(user.control.descriptions(page.0).await?)))
}
