//! The complete answer to a request.

use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use waifud_api::{Instance, Problem};

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|_| panic!("no JSON: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn instance(&self) -> Instance {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn problem(&self) -> Problem {
        assert_eq!(
            self.headers.get("content-type").unwrap(),
            "application/problem+json"
        );
        let problem: Problem = serde_json::from_slice(&self.bytes).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        assert_eq!(
            problem.request_id.as_deref(),
            self.headers
                .get("x-request-id")
                .map(|v| v.to_str().unwrap())
        );
        problem
    }

    /// The problem of a refused request, which must have this status, code and field, and a hint.
    pub fn refused(&self, status: u16, code: &str, field: &str) -> Problem {
        let problem = self.problem();
        assert_eq!(
            (
                problem.status,
                problem.code.as_str(),
                problem.field.as_deref()
            ),
            (status, code, Some(field)),
            "{problem:?}"
        );
        assert!(problem.hint.is_some(), "{problem:?} has no hint");
        problem
    }

    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self
    }
}

pub async fn collect(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        bytes: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}
