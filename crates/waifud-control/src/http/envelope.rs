//! The parts that all requests and answers share: a request id, a log line, and a problem body for errors.

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;
use waifud_api::Problem;
use waifud_api::problem::PROBLEM_JSON;

use super::Refusal;
use crate::server::problems as server_problems;
use crate::{Control, failpoints};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request id: the client's own if it is valid, otherwise a new one.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

impl RequestId {
    fn of(request: &Request) -> Self {
        let given = request
            .headers()
            .get(&X_REQUEST_ID)
            .and_then(|value| value.to_str().ok());
        let fits = |id: &&str| {
            (1..=64).contains(&id.len())
                && id
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match given.filter(fits) {
            Some(id) => Self(id.to_owned()),
            None => Self(uuid::Uuid::now_v7().simple().to_string()),
        }
    }
}

/// An extension of failed responses that keep their own body instead of a problem.
#[derive(Clone, Copy, Debug)]
pub struct OwnBody;

/// Wraps a router, and answers requests without a route.
pub fn wrap(router: Router<Control>, control: &Control) -> Router<Control> {
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(control.clone(), envelope))
}

async fn no_route() -> Refusal {
    Refusal(
        Problem::new(404, "no-such-route", "there is no route for this path")
            .hint("GET /v1/openapi.json lists the routes"),
    )
}

pub async fn no_method() -> Refusal {
    Refusal(
        Problem::new(
            405,
            "method-not-allowed",
            "this path does not support the method",
        )
        .hint("the Allow header lists the supported methods"),
    )
}

async fn envelope(State(control): State<Control>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    // Neither the query nor headers are logged, since they may contain secrets.
    let span = tracing::info_span!("request", id = %id.0, method = %request.method(), path = request.uri().path());
    let head = request.method() == axum::http::Method::HEAD;
    let mut response = async {
        let answered = AssertUnwindSafe(run(request, next)).catch_unwind().await;
        let mut response = answered.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            Refusal(Problem::new(500, "internal", "internal error in waifud")).into_response()
        });
        tracing::debug!(status = response.status().as_u16(), "answered");
        let failed = response.status().is_client_error() || response.status().is_server_error();
        if failed && response.extensions().get::<OwnBody>().is_none() {
            response = problem(&control, response, &id, head);
        }
        response
    }
    .instrument(span)
    .await;
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

/// Runs the request; one that may change something is a failpoint.
async fn run(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    failpoints::REQUEST.around(next.run(request)).await
}

fn problem(control: &Control, mut response: Response, id: &RequestId, head: bool) -> Response {
    let status = response.status();
    let mut problem = response
        .extensions_mut()
        .remove::<Problem>()
        .unwrap_or_else(|| Problem::new(status.as_u16(), code_of(status), title_of(status)));
    if problem.code == server_problems::NO_SPACE {
        problem = server_problems::with_disk_space(
            problem,
            control.disk_space().dir(),
            control.disk_space().current().ok(),
        );
    }
    problem.request_id = Some(id.0.clone());
    let mut kept = HeaderMap::new();
    for name in [header::ALLOW, header::RETRY_AFTER] {
        if let Some(value) = response.headers_mut().remove(&name) {
            kept.insert(name, value);
        }
    }
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"waifud\"");
        kept.insert(header::WWW_AUTHENTICATE, challenge);
    }
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut out = (
        status,
        [(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON))],
        if head {
            Body::empty()
        } else {
            Body::from(body)
        },
    )
        .into_response();
    out.headers_mut().extend(kept);
    out
}

fn code_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => "too-large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported-media-type",
        StatusCode::NOT_FOUND => "not-found",
        _ if status.is_server_error() => "internal",
        _ => "invalid-request",
    }
}

fn title_of(status: StatusCode) -> String {
    status
        .canonical_reason()
        .unwrap_or("the request failed")
        .to_lowercase()
}
