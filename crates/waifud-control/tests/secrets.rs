//! No secret appears in a log, an event, a list or a problem: requests with tokens and user-data, and a search through
//! all that they produced. A program of its own, because it records the log of the whole process.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers may stop at the first surprise"
)]

#[allow(
    dead_code,
    unused_imports,
    reason = "one test uses few of the helpers of the others"
)]
#[path = "api/common/mod.rs"]
mod common;

use axum::http::Method;
use common::{Server, collect};
use serde_json::json;
use waifud_control::Peer;
use waifud_kit::testing::captured_log::CapturedProcessLog;

#[tokio::test(flavor = "multi_thread")]
async fn logs_events_lists_and_problems_contain_no_secret() {
    let log = CapturedProcessLog::begin();

    let (server, _alder) = Server::with_node(waifud_types::ByteSize::gib(64)).await;
    let token = server.token("laptop", "operator", None).await;
    let user_data = "#cloud-config\npassword: correct-horse-battery\n";
    let from = "192.0.2.9:4000".parse().unwrap();
    let mut answers = Vec::new();
    let mut ask = async |token: &str, method: Method, path: &str, body: String| {
        let peer = Peer::Tls { from };
        let answer = server
            .call_as(peer, Some(token), method.as_str(), path, body)
            .await;
        let answer = collect(answer).await;
        answers.extend_from_slice(&answer.bytes);
        answer.status.as_u16()
    };
    let body = json!({"name": "web", "template": "debian-12", "user_data": user_data}).to_string();
    assert_eq!(
        ask(&token, Method::POST, "/v1/instances", body.clone()).await,
        201
    );
    // Refused requests too: a duplicate name, a field of another type, an invalid token.
    assert_eq!(ask(&token, Method::POST, "/v1/instances", body).await, 409);
    let wrong = json!({"template": "debian-12", "user_data": [user_data]}).to_string();
    assert_eq!(ask(&token, Method::POST, "/v1/instances", wrong).await, 422);
    let (good, _) = token.split_at(token.len() - 1);
    let forged = format!("{good}~");
    assert_eq!(
        ask(&forged, Method::GET, "/v1/nodes", String::new()).await,
        401
    );
    for path in [
        "/v1/instances/web",
        "/v1/instances",
        "/v1/instances/web/why",
        "/v1/events?limit=1000",
    ] {
        assert_eq!(ask(&token, Method::GET, path, String::new()).await, 200);
    }
    answers.extend(server.get("/v1/tokens").await.expect(200).bytes);
    server.delete("/v1/tokens/laptop").await.expect(204);
    answers.extend(server.get("/v1/events?limit=1000").await.expect(200).bytes);

    let log = log.text();
    assert!(
        log.contains("refused an unknown, revoked or expired token"),
        "the log was not captured: {log}"
    );
    let answers = String::from_utf8(answers).unwrap();
    assert!(answers.contains("token.revoked"));
    // The secret part follows `waifud_`, 16 public digits and `_`.
    let secret = &token[24..];
    for secret in [secret, &secret[..secret.len() - 1], "correct-horse-battery"] {
        assert!(!log.contains(secret), "the log has {secret}");
        assert!(!answers.contains(secret), "an answer has {secret}");
    }
}
