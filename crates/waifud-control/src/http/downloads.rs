//! `/v1/downloads` and `/v1/catalog`: downloads of images.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{CatalogEntry, CreateDownload, Download, Page, Problem};

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::images::catalog as data;
use crate::{Control, ControlError};

/// Downloads an image and creates a template from it. Repeating the request changes nothing, or retries a failed download.
#[utoipa::path(
    post, path = "/v1/downloads", tag = "templates", operation_id = "create_download",
    request_body = CreateDownload,
    responses(
        (status = 202, description = "Accepted; the download runs in the background. When it succeeds, the template is created and the download is removed.", body = Download),
        (status = 409, description = "The template is being downloaded from another source.", body = Problem),
        (status = 429, description = "The limit of concurrent downloads is reached.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Download>), Refusal> {
    let request: CreateDownload = parse(&bytes, str::to_owned)?;
    let download = control.create_download(request, caller.cause).await?;
    Ok((StatusCode::ACCEPTED, Json(download)))
}

/// Lists running and failed downloads.
#[utoipa::path(
    get, path = "/v1/downloads", tag = "templates", operation_id = "list_downloads",
    responses((status = 200, description = "All downloads, on one page.", body = Page<Download>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    params: Params,
) -> Result<Json<Page<Download>>, Refusal> {
    params.finish()?;
    Ok(Json(control.downloads().list().await?))
}

/// Shows one download.
#[utoipa::path(
    get, path = "/v1/downloads/{name}", tag = "templates", operation_id = "show_download",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 200, description = "The download and its progress.", body = Download))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Download>, Refusal> {
    Ok(Json(control.downloads().show(&name).await?))
}

/// Cancels a download. An existing template of that name is kept.
#[utoipa::path(
    delete, path = "/v1/downloads/{name}", tag = "templates", operation_id = "delete_download",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 204, description = "The download is cancelled."))
)]
pub async fn delete(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.downloads().delete(&name, caller.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the catalog: well-known images that can be downloaded by name.
#[utoipa::path(
    get, path = "/v1/catalog", tag = "templates", operation_id = "catalog",
    responses((status = 200, description = "All entries, on one page.", body = Page<CatalogEntry>))
)]
pub async fn catalog(
    State(control): State<Control>,
    _: AuthenticatedUser,
    params: Params,
) -> Result<Json<Page<CatalogEntry>>, Refusal> {
    params.finish()?;
    let revision = control
        .store()
        .read(|tx| Ok::<_, ControlError>(tx.at(tx.newest_event()?)))
        .await?;
    Ok(Json(Page {
        items: data::entries().to_vec(),
        next: None,
        revision,
    }))
}
