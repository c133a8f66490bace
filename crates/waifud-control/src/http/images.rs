//! `/v1/images`: image files by digest.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use futures::{Stream, StreamExt};
use waifud_api::{Image, Page, Problem};
use waifud_types::{ByteSize, Digest};

use super::body;
use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use crate::{Control, problems};

/// Bytes of a refused upload that are read and discarded, so that the client reads the answer instead of failing to send.
const DRAINED: usize = 64 << 20;

pub(super) fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|e: waifud_types::digest::DigestError| {
            Refusal(problems::bad_query(
                "digest",
                e.to_string(),
                "use sha256: followed by the 64 hexadecimal digits of sha256sum",
            ))
        })
}

/// Uploads an image file. The path contains its SHA-256.
#[utoipa::path(
    put, path = "/v1/images/{digest}", tag = "images", operation_id = "upload_image",
    params(("digest" = String, Path, description = "`sha256:` followed by 64 hexadecimal digits.")),
    request_body(content = String, content_type = "application/octet-stream", description = "A qcow2 file without a backing file."),
    responses(
        (status = 201, description = "The image is verified and durable.", body = Image),
        (status = 200, description = "The image existed before: the file is verified and replaces the previous one.", body = Image),
        (status = 413, description = "The image is too large.", body = Problem),
        (status = 422, description = "The image is not acceptable, or has another digest.", body = Problem),
        (status = 507, description = "There is not enough free space.", body = Problem),
    )
)]
pub async fn upload(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(text): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Image>), Refusal> {
    let digest = digest(&text)?;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = body::upload(request.into_body());
    // Refused before the bytes are sent instead of when the disk is full.
    if let Err(error) = control
        .images()
        .require_space(ByteSize(length.unwrap_or(0)))
    {
        drain(body).await;
        return Err(error.into());
    }
    match control
        .images()
        .upload(digest, &mut body, caller.cause)
        .await
    {
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
    params(("digest" = String, Path, description = "`sha256:` followed by 64 hexadecimal digits.")),
    responses((status = 200, description = "The image.", body = Image))
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(text): Path<String>,
) -> Result<Json<Image>, Refusal> {
    Ok(Json(control.images().show(digest(&text)?).await?))
}

/// Lists images by digest.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", operation_id = "list_images",
    params(PageParams),
    responses((status = 200, description = "A page of images.", body = Page<Image>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Image>>, Refusal> {
    let page = params.page()?;
    params.finish()?;
    Ok(Json(control.images().list(page).await?))
}

/// Removes an unused image.
#[utoipa::path(
    delete, path = "/v1/images/{digest}", tag = "images", operation_id = "delete_image",
    params(("digest" = String, Path, description = "`sha256:` followed by 64 hexadecimal digits.")),
    responses((status = 204, description = "The image is removed."), (status = 409, description = "A template or an instance uses the image.", body = Problem))
)]
pub async fn delete(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(text): Path<String>,
) -> Result<StatusCode, Refusal> {
    control
        .images()
        .delete(digest(&text)?, caller.cause)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
