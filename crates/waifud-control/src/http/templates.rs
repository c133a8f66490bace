//! `/v1/templates`.

use axum::extract::Path;
use waifud_api::{CreateTemplate, Download, Problem};
use waifud_types::template::Template;

use super::answers::{NoContent, StatusAnswer, accepted, created, no_content};
use super::body::Json;
use super::paths::TemplateName;
use super::peer::AuthenticatedUser;

/// Creates a template from an uploaded image. An existing template of that name gets the new image.
#[utoipa::path(
    post, path = "/v1/templates", tag = "templates", operation_id = "create_template",
    responses((status = 201, description = "The template.", body = Template))
)]
pub async fn create(user: AuthenticatedUser, body: Json<CreateTemplate>) -> StatusAnswer<Template> {
    created(user.control.create_template(body.0, user.cause).await)
}

/// Downloads a template's image from its source again. A newer image becomes a new revision, and a missing file is restored.
#[utoipa::path(
    post, path = "/v1/templates/{name}/refresh", tag = "templates", operation_id = "refresh_template",
    params(TemplateName),
    responses(
        (status = 202, description = "Accepted; the download runs in the background.", body = Download),
        (status = 409, description = "The template was created from an upload and has no source.", body = Problem),
        (status = 429, description = "The limit of concurrent downloads is reached.", body = Problem),
    )
)]
pub async fn refresh(
    user: AuthenticatedUser,
    template: Path<TemplateName>,
) -> StatusAnswer<Download> {
    let control = user.control;
    accepted(control.refresh_template(&template.name, user.cause).await)
}

/// Deletes a template. Its instances are not affected.
#[utoipa::path(
    delete, path = "/v1/templates/{name}", tag = "templates", operation_id = "delete_template",
    params(TemplateName), responses((status = 204, description = "The template is deleted."))
)]
pub async fn delete(user: AuthenticatedUser, template: Path<TemplateName>) -> NoContent {
    no_content(
        user.control
            .delete_template(&template.name, user.cause)
            .await,
    )
}
