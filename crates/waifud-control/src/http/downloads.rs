//! `/v1/downloads` and `/v1/catalog`: images by URL.

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

/// Fetches an image that becomes a template; the same again changes nothing, or tries again what failed.
#[utoipa::path(
    post, path = "/v1/downloads", tag = "templates", operation_id = "create_download",
    request_body = CreateDownload,
    responses(
        (status = 202, description = "Written down; it goes on by itself. When it has ended well, the template is there and this is not.", body = Download),
        (status = 409, description = "The template is on its way from elsewhere.", body = Problem),
        (status = 422, description = "A field can't be used.", body = Problem),
        (status = 429, description = "Too many downloads are running.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Download>), Refusal> {
    let request: CreateDownload = parse(&bytes, str::to_owned)?;
    let download = control.create_download(request, asker.cause).await?;
    Ok((StatusCode::ACCEPTED, Json(download)))
}

/// Lists templates on their way, and those that failed on it.
#[utoipa::path(
    get, path = "/v1/downloads", tag = "templates", operation_id = "list_downloads",
    responses((status = 200, description = "All of them.", body = Page<Download>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    params: Params,
) -> Result<Json<Page<Download>>, Refusal> {
    params.finish()?;
    Ok(Json(control.downloads().await?))
}

/// Shows one template on its way.
#[utoipa::path(
    get, path = "/v1/downloads/{name}", tag = "templates", operation_id = "show_download",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 200, description = "How far it is.", body = Download), (status = 404, description = "It is not on its way.", body = Problem))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Download>, Refusal> {
    Ok(Json(control.download(&name).await?))
}

/// Gives a download up; a template that is there already stays.
#[utoipa::path(
    delete, path = "/v1/downloads/{name}", tag = "templates", operation_id = "delete_download",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 204, description = "Given up."), (status = 404, description = "It is not on its way.", body = Problem))
)]
pub async fn delete(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.delete_download(&name, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists well-known images that can be fetched by name.
#[utoipa::path(
    get, path = "/v1/catalog", tag = "templates", operation_id = "catalog",
    responses((status = 200, description = "All of them, on one page.", body = Page<CatalogEntry>))
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
