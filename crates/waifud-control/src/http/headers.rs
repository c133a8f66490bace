//! ETag, If-Match and Idempotency-Key.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use waifud_api::Problem;
use waifud_types::Generation;

use super::Refusal;
use crate::instances::IfMatch;
use crate::problems;

/// The ETag of an instance: its generation, quoted.
pub fn etag(generation: Generation) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{generation}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Ok(if_match(&parts.headers)?)
    }
}

/// The condition of If-Match (RFC 9110, section 13.1.1).
fn if_match(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(IfMatch::Any);
    };
    let refuse = || {
        problems::bad_header(
            "If-Match",
            "If-Match is not an ETag of an instance",
            "use the ETag of an earlier answer, for example \"7\"",
        )
    };
    let text = value.to_str().map_err(|_| refuse())?.trim();
    if text == "*" {
        return Ok(IfMatch::Any);
    }
    if text.is_empty() {
        // An empty list, which nothing matches.
        return Ok(IfMatch::Generations(Vec::new()));
    }
    text.split(',')
        .map(|tag| {
            let number = tag
                .trim()
                .strip_prefix('"')
                .and_then(|tag| tag.strip_suffix('"'));
            number
                .and_then(|n| n.parse().ok())
                .map(Generation)
                .ok_or_else(refuse)
        })
        .collect::<Result<_, _>>()
        .map(IfMatch::Generations)
}

/// The Idempotency-Key, if given.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    headers
        .get("idempotency-key")
        .map(|value| {
            value
                .to_str()
                .ok()
                .filter(|key| (1..=255).contains(&key.len()))
                .map(str::to_owned)
                .ok_or_else(|| {
                    problems::bad_header(
                        "Idempotency-Key",
                        "the Idempotency-Key is invalid",
                        "use 1 to 255 visible ASCII characters, for example a UUID",
                    )
                })
        })
        .transpose()
}
