//! `/v1/templates`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use waifud_api::{CreateTemplate, Download, Page, Problem};
use waifud_types::template::Template;

use super::body::{JsonBytes, parse};
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::Control;

/// Names an uploaded image; the same name again points at the new image.
#[utoipa::path(
    post, path = "/v1/templates", tag = "templates", operation_id = "create_template",
    request_body = CreateTemplate,
    responses((status = 201, description = "As it is now.", body = Template), (status = 422, description = "A field can't be used.", body = Problem))
)]
pub async fn create(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    JsonBytes(bytes): JsonBytes,
) -> Result<(StatusCode, Json<Template>), Refusal> {
    let request: CreateTemplate = parse(&bytes, str::to_owned)?;
    let template = control.create_template(request, asker.cause).await?;
    Ok((StatusCode::CREATED, Json(template)))
}

/// Lists templates by name.
#[utoipa::path(
    get, path = "/v1/templates", tag = "templates", operation_id = "list_templates",
    params(
        ("limit" = Option<u32>, Query, description = "Items a page, 1 to 1000; 100 by default."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<Template>), (status = 400, description = "A parameter can't be understood.", body = Problem))
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
    params(("name" = String, Path, description = "Its name.")),
    responses((status = 200, description = "As it is.", body = Template), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Template>, Refusal> {
    Ok(Json(control.template(&name).await?))
}

/// Asks a template's source again: newer contents become a new revision, and a missing file comes back.
#[utoipa::path(
    post, path = "/v1/templates/{name}/refresh", tag = "templates", operation_id = "refresh_template",
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 202, description = "Written down; it goes on by itself, as any download.", body = Download),
        (status = 404, description = "There is none.", body = Problem),
        (status = 409, description = "It was uploaded, so there is no source to ask.", body = Problem),
        (status = 429, description = "Too many downloads are running.", body = Problem),
    )
)]
pub async fn refresh(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Download>), Refusal> {
    let download = control.refresh_template(&name, asker.cause).await?;
    Ok((StatusCode::ACCEPTED, Json(download)))
}

/// Forgets a template; its instances live on.
#[utoipa::path(
    delete, path = "/v1/templates/{name}", tag = "templates", operation_id = "delete_template",
    params(("name" = String, Path, description = "Its name.")),
    responses((status = 204, description = "Forgotten."), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn delete(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.delete_template(&name, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
