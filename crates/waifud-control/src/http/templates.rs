//! `/v1/templates`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{CreateTemplate, Download, Page, Problem};
use waifud_types::template::Template;

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use crate::Control;

/// Creates a template from an uploaded image. An existing template of that name gets the new image.
#[utoipa::path(
    post, path = "/v1/templates", tag = "templates", operation_id = "create_template",
    request_body = CreateTemplate,
    responses((status = 201, description = "The template.", body = Template))
)]
pub async fn create(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Template>), Refusal> {
    let request: CreateTemplate = parse(&bytes, str::to_owned)?;
    let template = control.create_template(request, caller.cause).await?;
    Ok((StatusCode::CREATED, Json(template)))
}

/// Lists templates by name.
#[utoipa::path(
    get, path = "/v1/templates", tag = "templates", operation_id = "list_templates",
    params(PageParams),
    responses((status = 200, description = "A page of templates.", body = Page<Template>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Template>>, Refusal> {
    let page = params.page()?;
    params.finish()?;
    Ok(Json(control.templates(page).await?))
}

/// Shows one template.
#[utoipa::path(
    get, path = "/v1/templates/{name}", tag = "templates", operation_id = "show_template",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 200, description = "The template.", body = Template))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Template>, Refusal> {
    Ok(Json(control.template(&name).await?))
}

/// Downloads a template's image from its source again. A newer image becomes a new revision, and a missing file is restored.
#[utoipa::path(
    post, path = "/v1/templates/{name}/refresh", tag = "templates", operation_id = "refresh_template",
    params(("name" = String, Path, description = "The template's name.")),
    responses(
        (status = 202, description = "Accepted; the download runs in the background.", body = Download),
        (status = 409, description = "The template was created from an upload and has no source.", body = Problem),
        (status = 429, description = "The limit of concurrent downloads is reached.", body = Problem),
    )
)]
pub async fn refresh(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Download>), Refusal> {
    let download = control.refresh_template(&name, caller.cause).await?;
    Ok((StatusCode::ACCEPTED, Json(download)))
}

/// Deletes a template. Its instances are not affected.
#[utoipa::path(
    delete, path = "/v1/templates/{name}", tag = "templates", operation_id = "delete_template",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 204, description = "The template is deleted."))
)]
pub async fn delete(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.delete_template(&name, caller.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
