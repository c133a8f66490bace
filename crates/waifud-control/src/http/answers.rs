//! Answers that many handlers give.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::body::Json;
use super::refusal::Refusal;
use crate::ControlError;

/// 200 with an object.
pub type Answer<T> = Result<Json<T>, Refusal>;

/// A status with an object.
pub type StatusAnswer<T> = Result<(StatusCode, Json<T>), Refusal>;

/// 201 with the new object.
pub fn created<T>(result: Result<T, ControlError>) -> StatusAnswer<T> {
    Ok((StatusCode::CREATED, Json(result?)))
}

/// 202 with the object whose change continues in the background.
pub fn accepted<T>(result: Result<T, ControlError>) -> StatusAnswer<T> {
    Ok((StatusCode::ACCEPTED, Json(result?)))
}

/// A status without a body.
pub type NoContent = Result<StatusCode, Refusal>;

/// 204 after a change that returns nothing.
pub fn no_content(result: Result<(), ControlError>) -> NoContent {
    result?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forbids caches to store an answer, because it contains a secret.
#[derive(Debug)]
pub struct NoStore<R>(pub R);

impl<R: IntoResponse> IntoResponse for NoStore<R> {
    fn into_response(self) -> Response {
        ([(header::CACHE_CONTROL, "no-store")], self.0).into_response()
    }
}
