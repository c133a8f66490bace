//! `/v1/downloads` and `/v1/catalog`: downloads of images.

use axum::extract::Path;
use waifud_api::{CatalogEntry, CreateDownload, Download, Page, Problem};

use super::answers::{Answer, NoContent, StatusAnswer, accepted, no_content};
use super::body::Json;
use super::paths::TemplateName;
use super::peer::AuthenticatedUser;
use super::query::NoParams;
use crate::ControlError;
use crate::images::catalog as data;

/// Downloads an image and creates a template from it. Repeating the request changes nothing, or retries a failed download.
#[utoipa::path(
    post, path = "/v1/downloads", tag = "templates", operation_id = "create_download",
    responses(
        (status = 202, description = "Accepted; the download runs in the background. When it succeeds, the template is created and the download is removed.", body = Download),
        (status = 409, description = "The template is being downloaded from another source.", body = Problem),
        (status = 429, description = "The limit of concurrent downloads is reached.", body = Problem),
    )
)]
pub async fn create(user: AuthenticatedUser, body: Json<CreateDownload>) -> StatusAnswer<Download> {
    accepted(user.control.create_download(body.0, user.cause).await)
}

/// Lists running and failed downloads.
#[utoipa::path(
    get, path = "/v1/downloads", tag = "templates", operation_id = "list_downloads",
    responses((status = 200, description = "All downloads, on one page.", body = Page<Download>))
)]
pub async fn list(user: AuthenticatedUser, _: NoParams) -> Answer<Page<Download>> {
    Ok(Json(user.control.downloads().list().await?))
}

/// Shows one download.
#[utoipa::path(
    get, path = "/v1/downloads/{name}", tag = "templates", operation_id = "show_download",
    params(TemplateName), responses((status = 200, description = "The download and its progress.", body = Download))
)]
pub async fn show(user: AuthenticatedUser, template: Path<TemplateName>) -> Answer<Download> {
    Ok(Json(user.control.downloads().show(&template.name).await?))
}

/// Cancels a download. An existing template of that name is kept.
#[utoipa::path(
    delete, path = "/v1/downloads/{name}", tag = "templates", operation_id = "delete_download",
    params(TemplateName), responses((status = 204, description = "The download was canceled."))
)]
pub async fn delete(user: AuthenticatedUser, template: Path<TemplateName>) -> NoContent {
    let downloads = user.control.downloads();
    no_content(downloads.delete(&template.name, user.cause).await)
}

/// Lists the catalog: well-known images that can be downloaded by name.
#[utoipa::path(
    get, path = "/v1/catalog", tag = "templates", operation_id = "catalog",
    responses((status = 200, description = "All entries, on one page.", body = Page<CatalogEntry>))
)]
pub async fn catalog(user: AuthenticatedUser, _: NoParams) -> Answer<Page<CatalogEntry>> {
    let revision = user
        .control
        .store()
        .read(|tx| Ok::<_, ControlError>(tx.at(tx.newest_event()?)))
        .await?;
    Ok(Json(Page {
        items: data::entries().to_vec(),
        next: None,
        revision,
    }))
}
