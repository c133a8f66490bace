//! The error of a handler. The envelope adds the request id and the body.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use waifud_api::Problem;

use crate::ControlError;

/// The error of a handler.
#[derive(Debug)]
pub struct Refusal(pub Problem);

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self(error.into_problem())
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}
