//! `/v1/images`: image files by digest.

use axum::body::Bytes;
use axum::extract::{Path, Request};
use axum::http::{StatusCode, header};
use futures::{Stream, StreamExt};
use waifud_api::{Image, Page, Problem};
use waifud_types::ByteSize;

use super::answers::{Answer, NoContent, no_content};
use super::body::{self, Json};
use super::paths::ImageDigest;
use super::peer::AuthenticatedUser;
use super::query::Query;
use super::refusal::Refusal;
use crate::pagination::PageRequest;

/// Bytes of a refused upload that are read and discarded, so that the client reads the answer instead of failing to send.
const DRAINED: usize = 64 << 20;

/// Uploads an image file. The path contains its SHA-256.
#[utoipa::path(
    put, path = "/v1/images/{digest}", tag = "images", operation_id = "upload_image",
    request_body(content = String, content_type = "application/octet-stream", description = "A qcow2 file without a backing file."),
    params(ImageDigest),
    responses(
        (status = 201, description = "The image is verified and durable.", body = Image),
        (status = 200, description = "The image existed before: the file is verified and replaces the previous one.", body = Image),
        (status = 413, description = "The image is too large.", body = Problem),
        (status = 422, description = "The image is not acceptable, or has another digest.", body = Problem),
        (status = 507, description = "There is not enough free space.", body = Problem),
    )
)]
pub async fn upload(
    user: AuthenticatedUser,
    image: Path<ImageDigest>,
    request: Request,
) -> Result<(StatusCode, Json<Image>), Refusal> {
    let digest = image.parse()?;
    let images = user.control.images();
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = body::upload(request.into_body());
    // Refused before the bytes are sent instead of when the disk is full.
    if let Err(error) = images.require_space(ByteSize(length.unwrap_or(0))) {
        drain(body).await;
        return Err(error.into());
    }
    match images.upload(digest, &mut body, user.cause).await {
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
    params(ImageDigest), responses((status = 200, description = "The image.", body = Image))
)]
pub async fn show(user: AuthenticatedUser, image: Path<ImageDigest>) -> Answer<Image> {
    Ok(Json(user.control.images().show(image.parse()?).await?))
}

/// Lists images by digest.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", operation_id = "list_images",
    params(PageRequest), responses((status = 200, description = "A page of images.", body = Page<Image>))
)]
pub async fn list(user: AuthenticatedUser, page: Query<PageRequest>) -> Answer<Page<Image>> {
    Ok(Json(user.control.images().list(page.0).await?))
}

/// Removes an unused image.
#[utoipa::path(
    delete, path = "/v1/images/{digest}", tag = "images", operation_id = "delete_image",
    params(ImageDigest), responses((status = 204, description = "The image is removed."), (status = 409, description = "A template or an instance uses the image.", body = Problem))
)]
pub async fn delete(user: AuthenticatedUser, image: Path<ImageDigest>) -> NoContent {
    let images = user.control.images();
    no_content(images.delete(image.parse()?, user.cause).await)
}
