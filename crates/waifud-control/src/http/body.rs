//! Bodies: size and time limits of requests, and JSON errors that name the field.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use waifud_api::Problem;

use super::Refusal;

/// The limits of a body.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The maximum size.
    bytes: usize,
    /// The time within which the whole body must arrive.
    within: Duration,
}

/// For authenticated callers. User-data may have 1 MiB, and JSON may encode one byte in six.
const AUTHENTICATED: Limits = Limits {
    bytes: 8 << 20,
    within: Duration::from_mins(1),
};
/// For callers that are not authenticated yet.
const UNAUTHENTICATED: Limits = Limits {
    bytes: 16 << 10,
    within: Duration::from_secs(10),
};

/// How long an upload may stall.
const UPLOAD_IDLE: Duration = Duration::from_mins(1);

/// The chunks of an upload. It may take any time in total, but a stalled upload ends with an error.
pub fn upload(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + Unpin {
    pieces(body, UPLOAD_IDLE)
}

fn pieces(
    body: Body,
    idle: Duration,
) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + Unpin {
    let body = Some(body.into_data_stream());
    let pieces = futures::stream::unfold(body, move |body| async move {
        let mut body = body?;
        match timeout(idle, body.next()).await {
            Ok(Some(piece)) => Some((piece, Some(body))),
            Ok(None) => None,
            Err(elapsed) => Some((Err(axum::Error::new(elapsed)), None)),
        }
    });
    // After a refusal the rest is drained.
    Box::pin(pieces.fuse())
}

/// A JSON body, not parsed yet.
#[derive(Debug)]
pub struct JsonBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBytes {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        must_be_json(request.headers())?;
        read(request.into_body(), AUTHENTICATED).await.map(Self)
    }
}

/// A small JSON body from a caller that is not authenticated yet.
pub async fn small_json<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    must_be_json(request.headers())?;
    let bytes = read(request.into_body(), UNAUTHENTICATED).await?;
    parse(&bytes, str::to_owned)
}

/// The JSON body of a request or an answer. Errors name the fields of a request as they are in the body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let JsonBytes(bytes) = JsonBytes::from_request(request, state).await?;
        parse(&bytes, str::to_owned).map(Self)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn must_be_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(|v| v.to_str().unwrap_or_default());
    let is_json = kind.is_none_or(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json") || kind.ends_with("+json")
    });
    if is_json {
        return Ok(());
    }
    Err(
        Problem::new(415, "unsupported-media-type", "the body is not JSON")
            .field("Content-Type")
            .hint("send application/json"),
    )
}

async fn read(body: Body, limits: Limits) -> Result<Bytes, Refusal> {
    let Limits { bytes, within } = limits;
    let most = u64::try_from(bytes).unwrap_or(u64::MAX);
    if body.size_hint().lower() > most {
        return Err(too_large(bytes).into());
    }
    match timeout(within, Limited::new(body, bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(bytes).into()),
        Ok(Err(_)) => Err(Problem::new(
            400,
            "upload-interrupted",
            "the connection ended before the body was complete",
        )
        .field("body")
        .into()),
        Err(_) => Err(Problem::new(
            408,
            "body-too-slow",
            format!("the body did not arrive within {} s", within.as_secs()),
        )
        .field("body")
        .hint("send the request again")
        .into()),
    }
}

fn too_large(bytes: usize) -> Problem {
    let (limit, hint) = if bytes < 1 << 20 {
        (
            format!("{} KiB", bytes >> 10),
            "send a token: requests without a credential have a lower limit",
        )
    } else {
        (
            format!("{} MiB", bytes >> 20),
            "user-data is limited to 1 MiB",
        )
    };
    Problem::new(
        413,
        "too-large",
        format!("the body exceeds the limit of {limit}"),
    )
    .field("body")
    .hint(hint)
}

/// Parses a body. `rename` turns the path of a field in the request into the name that users know.
pub fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    rename: impl Fn(&str) -> String,
) -> Result<T, Refusal> {
    // serde would accept a JSON array as the fields in declaration order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        let problem = Problem::new(422, "invalid-field", "the body is a JSON array")
            .field("body")
            .hint("send one JSON object");
        return Err(Refusal(problem));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        Refusal(refuse(&path, error.inner(), &rename))
    })?;
    json.end()
        .map_err(|error| Refusal(refuse(".", &error, &rename)))?;
    Ok(value)
}

fn refuse(path: &str, error: &serde_json::Error, rename: &impl Fn(&str) -> String) -> Problem {
    use serde_json::error::Category;
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Data => {}
        _ => {
            return Problem::new(
                400,
                "invalid-json",
                format!("the body is not JSON at line {line}, column {column}"),
            )
            .field("body")
            .hint("send one JSON object");
        }
    }
    // serde_json appends the position, which the field name replaces.
    let text = error.to_string();
    let why = text.split(" at line ").next().unwrap_or(&text);
    let named = why.split('`').nth(1);
    let field = match (path, named) {
        ("." | "?", Some(named)) => named.to_owned(),
        ("." | "?", None) => "body".to_owned(),
        (path, Some(named)) if why.starts_with("missing field") => format!("{path}.{named}"),
        (path, _) => path.to_owned(),
    };
    // The value may be a secret, so the message must not repeat it.
    let why = if field.starts_with("user_data") || field.starts_with("ssh_keys") {
        "it is not a string"
    } else {
        why
    };
    let why: String = why.chars().take(300).collect();
    let size = field.ends_with("_bytes");
    let problem = Problem::new(422, "invalid-field", format!("{field} is invalid: {why}"))
        .field(rename(&field));
    if size {
        problem.hint("use a whole number of bytes without a unit; 1 GiB is 1073741824")
    } else if why.starts_with("unknown field") {
        problem.hint("GET /v1/openapi.json lists the fields")
    } else {
        problem.hint("GET /v1/openapi.json describes the fields")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_api::CreateInstance;

    fn problem(text: &str) -> Problem {
        parse::<CreateInstance>(text.as_bytes(), str::to_owned)
            .unwrap_err()
            .0
    }

    #[test]
    fn errors_name_the_field() {
        for (text, code, field) in [
            ("", "invalid-json", "body"),
            ("{", "invalid-json", "body"),
            ("[]", "invalid-field", "body"),
            (r#" [null, {}, "a"]"#, "invalid-field", "body"),
            ("{}", "invalid-field", "template"),
            (r#"{"template":"a","x":1}"#, "invalid-field", "x"),
            (
                r#"{"template":"a","memory_bytes":-1}"#,
                "invalid-field",
                "memory_bytes",
            ),
            (
                r#"{"template":"a","memory_bytes":"2G"}"#,
                "invalid-field",
                "memory_bytes",
            ),
            (
                r#"{"template":"a","memory_bytes":1e30}"#,
                "invalid-field",
                "memory_bytes",
            ),
            (r#"{"template":"a","cpus":1.5}"#, "invalid-field", "cpus"),
            (
                r#"{"template":"a","ssh_keys":["x",7]}"#,
                "invalid-field",
                "ssh_keys[1]",
            ),
            (
                r#"{"template":"a","placement":{"node":"A B"}}"#,
                "invalid-field",
                "placement.node",
            ),
            (r#"{"template":"a"} {}"#, "invalid-json", "body"),
        ] {
            let problem = problem(text);
            assert_eq!(
                (problem.code.as_str(), problem.field.as_deref()),
                (code, Some(field)),
                "{text}"
            );
            assert!(problem.hint.is_some(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_within_its_limits_of_size_and_time() {
        let limits = Limits {
            bytes: 16 << 10,
            within: Duration::from_millis(20),
        };
        let code = async |body| read(body, limits).await.map_err(|refusal| refusal.0.code);
        let pieces = |pieces: Vec<Result<Vec<u8>, std::io::Error>>| {
            Body::from_stream(futures::stream::iter(pieces))
        };
        let whole = pieces(vec![Ok(vec![1; 8 << 10]), Ok(vec![2; 8 << 10])]);
        assert_eq!(code(whole).await.map(|bytes| bytes.len()), Ok(16 << 10));
        let large = pieces(vec![Ok(vec![1; 8 << 10]), Ok(vec![2; (8 << 10) + 1])]);
        assert_eq!(code(large).await, Err("too-large".to_owned()));
        assert_eq!(
            code(Body::from(vec![0; (16 << 10) + 1])).await,
            Err("too-large".to_owned())
        );
        // Another error with a similar text is not taken for the size limit.
        let broken = pieces(vec![Err(std::io::Error::other("length limit exceeded"))]);
        assert_eq!(code(broken).await, Err("upload-interrupted".to_owned()));
        let stalled =
            Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(code(stalled).await, Err("body-too-slow".to_owned()));
    }

    #[tokio::test]
    async fn a_stalled_upload_ends_with_an_error() {
        let first = futures::stream::iter([Ok::<_, std::io::Error>(vec![1; 3])]);
        let body = Body::from_stream(first.chain(futures::stream::pending()));
        let mut upload = pieces(body, Duration::from_millis(20));
        assert_eq!(upload.next().await.unwrap().unwrap().len(), 3);
        assert!(upload.next().await.unwrap().is_err());
        for _ in 0..2 {
            assert!(upload.next().await.is_none());
        }
    }

    #[test]
    fn the_limits_are_those_in_the_reference() {
        assert_eq!(AUTHENTICATED.bytes, 8 << 20);
        assert_eq!(AUTHENTICATED.within, Duration::from_mins(1));
        let page = include_str!("../../../../docs/reference/api.md");
        let sentence = "at most 8 MiB (413 `too-large`) and must arrive within a minute";
        assert!(page.contains(sentence));
    }

    #[test]
    fn errors_do_not_repeat_secrets() {
        let problem = problem(r#"{"template":"a","user_data":{"password":"hunter2"}}"#);
        assert!(!format!("{problem:?}").contains("hunter2"));
        let problem = self::problem(r#"{"template":"a","user_data":123456789}"#);
        assert!(!format!("{problem:?}").contains("123456789"));
    }
}
