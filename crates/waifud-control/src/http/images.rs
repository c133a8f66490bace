//! `/v1/images`: files by their digest.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use futures::{Stream, StreamExt};
use waifud_api::{Image, Page, Problem};
use waifud_types::{ByteSize, Digest};

use super::body;
use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::{Control, problems};

/// Bytes that are read and thrown away after a refusal, so that the client reads the answer before it gives up.
const DRAINED: usize = 64 << 20;

pub(super) fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|e: waifud_types::digest::DigestError| {
            Refusal(problems::bad_query(
                "digest",
                e.to_string(),
                "sha256: and the 64 digits that sha256sum prints",
            ))
        })
}

/// Uploads an image: its file's bytes, named by their SHA-256.
#[utoipa::path(
    put, path = "/v1/images/{digest}", tag = "images", operation_id = "upload_image",
    params(("digest" = String, Path, description = "`sha256:` and 64 hexadecimal digits.")),
    request_body(content = String, content_type = "application/octet-stream", description = "A qcow2 file that stands alone."),
    responses(
        (status = 201, description = "Kept, verified and durable.", body = Image),
        (status = 200, description = "It was known: the file is verified and replaces the one that was there.", body = Image),
        (status = 413, description = "It is too large.", body = Problem),
        (status = 422, description = "It is no image that may be used, or has another digest.", body = Problem),
        (status = 507, description = "No space is left.", body = Problem),
    )
)]
pub async fn upload(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(text): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Image>), Refusal> {
    let digest = digest(&text)?;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = body::upload(request.into_body());
    // Said before the bytes are sent, not when the disk is full of them.
    if let Err(error) = control.require_image_space(ByteSize(length.unwrap_or(0))) {
        drain(body).await;
        return Err(error.into());
    }
    match control.upload_image(digest, &mut body, asker.cause).await {
        Ok((image, new)) => {
            let status = if new {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            Ok((status, Json(image)))
        }
        Err(error) => {
            drain(body).await;
            Err(error.into())
        }
    }
}

async fn drain<E>(mut body: impl Stream<Item = Result<Bytes, E>> + Unpin) {
    let mut left = DRAINED;
    while let Some(Ok(chunk)) = body.next().await {
        if chunk.len() > left {
            return;
        }
        left -= chunk.len();
    }
}

/// Shows one image.
#[utoipa::path(
    get, path = "/v1/images/{digest}", tag = "images", operation_id = "show_image",
    params(("digest" = String, Path, description = "`sha256:` and 64 hexadecimal digits.")),
    responses((status = 200, description = "What is known of it.", body = Image), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(text): Path<String>,
) -> Result<Json<Image>, Refusal> {
    Ok(Json(control.image(digest(&text)?).await?))
}

/// Lists images by digest.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", operation_id = "list_images",
    params(
        ("limit" = Option<u32>, Query, description = "Items a page, 1 to 1000; 100 by default."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = Page<Image>), (status = 400, description = "A parameter can't be understood.", body = Problem))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Image>>, Refusal> {
    let page = params.page()?;
    params.finish()?;
    Ok(Json(control.images(page).await?))
}

/// Removes an image that nothing needs.
#[utoipa::path(
    delete, path = "/v1/images/{digest}", tag = "images", operation_id = "delete_image",
    params(("digest" = String, Path, description = "`sha256:` and 64 hexadecimal digits.")),
    responses((status = 204, description = "Removed."), (status = 404, description = "There is none.", body = Problem), (status = 409, description = "It is needed.", body = Problem))
)]
pub async fn delete(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(text): Path<String>,
) -> Result<StatusCode, Refusal> {
    control.delete_image(digest(&text)?, asker.cause).await?;
    Ok(StatusCode::NO_CONTENT)
}
